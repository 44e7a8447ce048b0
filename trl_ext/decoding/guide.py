# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What guides a language model: an object that scores candidate tokens, and what it is passed.

Dimensions: N sequences, S columns of the sequences so far, k candidate tokens, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class GuideContext:
    """
    The sequences that candidate tokens would continue.

    Parameters:
        ids_NS (`torch.Tensor` of shape `(N, S)`):
            Token ids of the sequences so far, padded on the left.
        mask (`Callable`):
            `() -> mask_NS`: their attention mask, 1 for tokens and 0 for padding, of shape `(N, S)`. Called only where
            the mask is needed: it has to be worked out, and raises a `ValueError` where that is not possible.
        vocabulary (`int`):
            V, the number of tokens of the language model.
        logits_Nk (`torch.Tensor` of shape `(N, k)`, *optional*):
            The language model's logits of the candidates, before guidance. Those of tokens that another logits
            processor has excluded are minus infinity.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The language model's tokenizer.
        batch ([`GuideContext`], *optional*):
            The complete batch, where the sequences are some of it, for guides that keep a KV cache of all rows.
        rows_N (`torch.Tensor` of shape `(N,)`, *optional*):
            The rows of that batch that the sequences are.
        goes_on (`bool`, *optional*, defaults to `False`):
            Whether the sequences are those of the guide's previous call, grown token by token.
        end_token_ids (`frozenset[int]`, *optional*):
            Tokens that end a completion, as far as they are known.
    """

    ids_NS: torch.Tensor
    mask: Callable[[], torch.Tensor]
    vocabulary: int
    logits_Nk: torch.Tensor | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    batch: "GuideContext | None" = None
    rows_N: torch.Tensor | None = None
    goes_on: bool = False
    end_token_ids: frozenset[int] = frozenset()

    def some(self, rows_R: torch.Tensor, logits_Rk: torch.Tensor | None) -> "GuideContext":
        """The context of these rows, with the logits of their candidates."""
        return GuideContext(
            self.ids_NS[rows_R], lambda: self.mask()[rows_R], self.vocabulary, logits_Nk=logits_Rk,
            tokenizer=self.tokenizer, batch=self, rows_N=rows_R, goes_on=self.goes_on,
            end_token_ids=self.end_token_ids,
        )  # fmt: skip

    def texts(self, candidates_Nk: torch.Tensor) -> list[list[str]]:
        """
        The text of each sequence with each candidate, without special tokens.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): Candidate tokens.

        Returns:
            `list[list[str]]`: N lists of k texts.

        Raises:
            `ValueError`: The tokenizer is not known.
        """
        if self.tokenizer is None:
            raise ValueError("The texts of candidates need the language model's tokenizer: pass `tokenizer`.")
        rows = [
            [*ids[mask].tolist(), token]
            for ids, mask, tokens in zip(self.ids_NS, self.mask().bool(), candidates_Nk.tolist(), strict=True)
            for token in tokens
        ]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        k = candidates_Nk.shape[1]
        return [texts[start : start + k] for start in range(0, len(texts), k)]


@runtime_checkable
class Guide(Protocol):
    """
    Scores candidate tokens: a value model, a reward model, a language model or a function.

    [`~trl_ext.guides.base_guide.BaseGuide`] has defaults for what a guide may say about itself beyond its scores.
    """

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """
        Scores of candidate tokens; higher is better. Only differences between the candidates of a sequence count.

        Args:
            context ([`GuideContext`]): The sequences so far.
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): Candidate tokens of each sequence.

        Returns:
            `torch.Tensor` of shape `(N, k)`, or `(N, k, H)` for a guide with H heads.
        """
        ...
