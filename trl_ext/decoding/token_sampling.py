# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
The parts of decoding that are faster here than inside `generate`, plugged into it: drawing a token, and the cache.

N = P x K sequences, T tokens, V vocabulary, C candidates.
"""

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor


if TYPE_CHECKING:
    from trl_ext.generation_settings import GenerationSettings


def next_token_probabilities(
    logits_NV: torch.Tensor, settings: "GenerationSettings"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    What a token is drawn from: temperature, then top-k, then top-p, then min-p, in the order of transformers.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): Logits of the next token, float32.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): Its `temperature`, `top_k`, `top_p` and
            `min_p` are used.

    Returns:
        Weights of shape `(N, V)` and `None`; or, where top-k or top-p has sorted the tokens, falling weights of shape
        `(N, C)` and the tokens `(N, C)` they belong to. What is cut off weighs 0; the rest is not scaled up again.
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


def sample_columns(weights_NC: torch.Tensor) -> torch.Tensor:
    """
    One column a row, as likely as its weight: where the running sum passes a uniform number. Shape `(N, 1)`.

    `torch.multinomial` draws an exponential number for every column: 40 % of decoding a small model on a CPU.
    """
    sums = weights_NC.cumsum(-1)
    total = sums[:, -1:]
    # Rounding may give the total itself, which no column passes.
    uniform = torch.minimum(torch.rand_like(total) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, uniform, right=True)


class SamplingProcessor(LogitsProcessor):
    """Last processor of a greedy `generate`: leaves the drawn token as the likeliest."""

    def __init__(self, settings: "GenerationSettings") -> None:
        self.settings = settings

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights, tokens = next_token_probabilities(scores, self.settings)
        drawn = sample_columns(weights)
        return scores.zero_().scatter_(1, drawn if tokens is None else tokens.gather(1, drawn), 1.0)
