# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Sampling of the next token, faster than in `generate`, which uses it as a logits processor.

Dimensions: N sequences, V vocabulary, C candidates.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers import LogitsProcessor


if TYPE_CHECKING:
    from trl_ext.generation_settings import GenerationSettings


def next_token_probabilities(
    logits_NV: torch.Tensor, settings: "GenerationSettings"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Weights of the next token after temperature, top-k, top-p and min-p, in the order of transformers.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): Logits of the next token, float32.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): Its `temperature`, `top_k`, `top_p` and `min_p`
            are used.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Weights of shape `(N, V)` and `None`. Where top-k or top-p has
        sorted the tokens, falling weights of shape `(N, C)` and their tokens `(N, C)`. Excluded tokens have weight 0;
        the other weights are not rescaled.
    """
    values, tokens = logits_NV if settings.temperature == 1 else logits_NV / settings.temperature, None
    if settings.top_k or settings.top_p < 1:
        values, tokens = values.topk(min(settings.top_k or values.shape[1], values.shape[1]))
    weights = values.softmax(-1)
    if settings.top_p < 1:
        weights = weights.masked_fill(weights.cumsum(-1) - weights >= settings.top_p, 0.0)
    if settings.min_p:
        weights = weights.masked_fill(weights < settings.min_p * weights.amax(-1, keepdim=True), 0.0)
    return weights, tokens


def sample_columns(weights_NC: torch.Tensor, uniform_N1: torch.Tensor | None = None) -> torch.Tensor:
    """
    Samples one column per row with probabilities proportional to the weights.

    Inverse transform sampling: the column where the running sum exceeds a uniform number. `torch.multinomial` samples
    an exponential number for every column, which takes 40 % of decoding time of a small model on a CPU.

    Args:
        weights_NC (`torch.Tensor` of shape `(N, C)`): Non-negative weights.
        uniform_N1 (`torch.Tensor` of shape `(N, 1)`, *optional*): Random numbers in [0, 1). By default from torch's
            global generator.

    Returns:
        `torch.Tensor` of shape `(N, 1)`: The columns.
    """
    sums = weights_NC.cumsum(-1)
    total = sums[:, -1:]
    # Rounding may give the total itself, which no running sum exceeds.
    uniform_N1 = torch.rand_like(total) if uniform_N1 is None else uniform_N1
    threshold = torch.minimum(uniform_N1 * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, threshold, right=True)


class SamplingProcessor(LogitsProcessor):
    """
    Last logits processor of a greedy `generate`: samples a token and makes it the most likely one.

    Args:
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): As for [`next_token_probabilities`].
        seeds (`Sequence[int]`, *optional*): One seed per row, whose numbers then do not depend on the other rows. They
            are made on the CPU, so that a seed gives the same numbers on every device. By default torch's global
            generator is used.
    """

    supports_continuous_batching: ClassVar[bool] = False

    def __init__(self, settings: "GenerationSettings", seeds: Sequence[int] | None = None) -> None:
        self.settings = settings
        self._generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights, tokens = next_token_probabilities(scores, self.settings)
        uniform_N1 = None
        if self._generators is not None:
            numbers = [torch.rand(1, generator=generator) for generator in self._generators]
            uniform_N1 = torch.stack(numbers).to(weights)
        columns = sample_columns(weights, uniform_N1)
        return scores.zero_().scatter_(1, columns if tokens is None else tokens.gather(1, columns), 1.0)
