# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The repetition penalty of a batch of texts: that of transformers, for the tokens of each text without its padding.

The padding is often the end-of-sequence token. Counted as text, it would make the end less likely in every row that
is shorter than the longest of its batch. transformers 5.24 does not count it in `generate`, 5.18 does.

Dimensions: N sequences, P prompts or their columns, S columns of the sequences so far, V vocabulary.
"""

from typing import ClassVar

import torch
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor


def penalize_repetition(
    logits_NV: torch.Tensor, ids_NS: torch.Tensor, mask_NS: torch.Tensor, penalty: float
) -> torch.Tensor:
    """
    Logits of tokens that a text has, divided by the penalty if they are positive, else multiplied by it.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): The logits.
        ids_NS, mask_NS (`torch.Tensor` of shape `(N, S)`): The sequences so far, and 0 at their padding, which does
            not come last.
        penalty (`float`): The penalty; 1 changes nothing.

    Returns:
        `torch.Tensor` of shape `(N, V)`.
    """
    # In place of the padding a token that the text has.
    text_NS = torch.where(mask_NS.bool(), ids_NS, ids_NS[:, -1:])
    return RepetitionPenaltyLogitsProcessor(penalty)(text_NS, logits_NV)


class RepetitionPenalty(LogitsProcessor):
    """
    [`penalize_repetition`] for `generate`, in place of its setting `repetition_penalty`.

    Args:
        penalty (`float`): The penalty.
        mask_PS (`torch.Tensor`): Attention mask of the prompts, which are padded on the left; a row for each. The
            sequences of a prompt, such as the beams of a search, are next to each other.
    """

    supports_continuous_batching: ClassVar[bool] = False

    def __init__(self, penalty: float, mask_PS: torch.Tensor) -> None:
        self.penalty, self.mask_PS = penalty, mask_PS

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        new = input_ids.shape[1] - self.mask_PS.shape[1]
        mask_NS = self.mask_PS.repeat_interleave(len(input_ids) // len(self.mask_PS), 0)
        mask_NS = torch.nn.functional.pad(mask_NS, (0, new), value=1)
        return penalize_repetition(scores, input_ids, mask_NS, self.penalty)  # type: ignore[return-value]
