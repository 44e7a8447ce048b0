# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What guides read in place of the language model's prompts, such as the prompt with a reference answer.

Dimensions: N sequences, P columns of the language model's prompts, S columns of the sequences so far.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.guide import GuideContext


class GuidePrompts:
    """
    Puts other prompts before the tokens that were generated.

    Args:
        prompts (`Sequence[Sequence[int]]`): For each prompt of the batch the token ids that guides read instead.
        columns (`int`): P. What follows these columns is the completion.
        pad_token_id (`int`): Token id of the padding on the left.

    Raises:
        `ValueError`: There is no prompt, or one has no tokens.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], columns: int, pad_token_id: int) -> None:
        if not prompts or not all(prompts):
            raise ValueError("`guide_prompts` must have token ids for each prompt of the batch.")
        self.columns = columns
        self._ids_NP, self._mask_NP = left_padded(prompts, pad_token_id)
        self._seen_NP: torch.Tensor | None = None

    def context(self, context: GuideContext) -> GuideContext:
        """
        The same sequences with the other prompts.

        Raises:
            `ValueError`: The batch is another than that of the first call.
        """
        if context.batch is not None and context.rows_N is not None:
            return self.context(context.batch).some(context.rows_N, context.logits_Nk)
        ids_NS = context.ids_NS
        self._check(ids_NS)
        repeats = len(ids_NS) // len(self._ids_NP)
        first_NP, mask_NP = (x.to(ids_NS.device).repeat_interleave(repeats, 0) for x in (self._ids_NP, self._mask_NP))
        completion_NT = ids_NS[:, self.columns :]
        own_NS = torch.cat([first_NP.to(ids_NS.dtype), completion_NT], 1)
        mask_NS = torch.cat([mask_NP, torch.ones_like(completion_NT)], 1)
        return replace(context, ids_NS=own_NS, mask=lambda: mask_NS)

    def _check(self, ids_NS: torch.Tensor) -> None:
        prompts_NP = ids_NS[:, : self.columns]
        if self._seen_NP is None and len(ids_NS) % len(self._ids_NP) == 0 and prompts_NP.shape[1] == self.columns:
            self._seen_NP = prompts_NP.clone()
        if self._seen_NP is None or not torch.equal(self._seen_NP, prompts_NP):
            raise ValueError(
                f"`guide_prompts` is for {len(self._ids_NP)} prompts of {self.columns} columns, and these sequences "
                "begin otherwise: make a processor for each batch of prompts."
            )
