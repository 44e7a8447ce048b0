# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What guides did at each token: the values of candidate tokens, and probabilities before and after guidance.

Dimensions: N sequences, R of them, k candidate tokens, H heads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A token that could be the next one.

    Args:
        token (`int`): Its id.
        before, after (`float`): Its probability without and with guidance, among all tokens, at temperature 1.
        values (`tuple[float | None, ...]`): Its values, one per head. Empty if it was not scored; `None` for a head
            whose guide does not know the token.
    """

    token: int
    before: float
    after: float
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenGuidance:
    """
    What guides did at one position.

    Args:
        heads (`tuple[str, ...]`): Names of the heads.
        weights (`tuple[float, ...]`): Their weights; 0 for a head that has no effect.
        chosen ([`Candidate`]): The token that was chosen, which need not be a candidate.
        candidates (`list[Candidate]`): Tokens that were scored, the likeliest with guidance first. Empty at a token
            that is not guided (`guide_every`, `guide_when`).
    """

    heads: tuple[str, ...]
    weights: tuple[float, ...]
    chosen: Candidate
    candidates: list[Candidate]


@runtime_checkable
class GuidingProcessor(Protocol):
    """A logits processor that can say what it did to the logits of the current step."""

    saved: "SavedGuidance | None"


class SavedGuidance:
    """
    What guides did in the current step. Whatever guides writes it, and the steps of an observer are made of it.

    Args:
        top (`int`): Number of candidates to return for each sequence.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._heads: tuple[str, ...] = ()

    def begin(self, logits_NV: torch.Tensor, heads: Sequence[str], weights_NH: torch.Tensor) -> None:
        """
        Begin a step, in which nothing is scored yet.

        Args:
            logits_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            heads (`Sequence[str]`): Names of the heads.
            weights_NH (`torch.Tensor` of shape `(N, H)`): Their weights.
        """
        self._heads, self._weights_NH = tuple(heads), weights_NH
        self._before_NV = self._after_NV = logits_NV.float().log_softmax(-1)
        n = len(logits_NV)
        self._tokens_Nk = torch.full((n, 1), -1, dtype=torch.long, device=logits_NV.device)  # -1: no candidate
        self._values_NkH = torch.full((n, 1, len(self._heads)), torch.nan, device=logits_NV.device)

    def keep(
        self,
        candidates_Rk: torch.Tensor,
        possible_Rk: torch.Tensor,
        values_RkH: torch.Tensor,
        rows_R: torch.Tensor | None = None,
    ) -> None:
        """
        Keep the values of candidates.

        Args:
            candidates_Rk (`torch.Tensor` of shape `(R, k)`): Candidate tokens.
            possible_Rk (`torch.Tensor` of shape `(R, k)`): True for those that are candidates.
            values_RkH (`torch.Tensor` of shape `(R, k, H)`): Their values; NaN where a guide does not know the token.
            rows_R (`torch.Tensor` of shape `(R,)`, *optional*): The sequences that they are of; by default all.
        """
        tokens_Rk = candidates_Rk.masked_fill(~possible_Rk, -1)
        if rows_R is None:
            self._tokens_Nk, self._values_NkH = tokens_Rk, values_RkH
            return
        n, k = len(self._before_NV), tokens_Rk.shape[1]
        self._tokens_Nk = self._tokens_Nk.expand(n, k).index_copy(0, rows_R, tokens_Rk)
        self._values_NkH = self._values_NkH.expand(n, k, -1).index_copy(0, rows_R, values_RkH)

    def end(self, logits_NV: torch.Tensor) -> None:
        """End a step with the logits, or log-probabilities, that the next tokens are chosen by."""
        self._after_NV = logits_NV.float().log_softmax(-1)

    def of(self, tokens_N: torch.Tensor) -> list[TokenGuidance]:
        """What guides did at the tokens that were chosen, shape `(N,)`."""
        tokens_N = tokens_N.to(self._tokens_Nk.device)
        known_Nk = self._tokens_Nk >= 0
        before_Nk, after_Nk = self._probabilities(self._tokens_Nk.clamp(min=0))
        top_Nj = after_Nk.masked_fill(~known_Nk, -1.0).topk(min(self.top, after_Nk.shape[1])).indices
        values_NjH = self._values_NkH.gather(1, top_Nj[..., None].expand(-1, -1, len(self._heads)))
        columns = [x.gather(1, top_Nj).tolist() for x in (self._tokens_Nk, before_Nk, after_Nk)]
        listed = [
            [
                Candidate(token, before, after, _known(values))
                for token, before, after, values in zip(*row, strict=True)
                if token >= 0
            ]
            for row in zip(*columns, values_NjH.tolist(), strict=True)
        ]
        chosen = self._chosen(tokens_N)
        weights = [tuple(row) for row in self._weights_NH.tolist()]
        return [TokenGuidance(self._heads, *each) for each in zip(weights, chosen, listed, strict=True)]

    def _chosen(self, tokens_N: torch.Tensor) -> list[Candidate]:
        """The chosen tokens, with values if they are candidates."""
        same_Nk = self._tokens_Nk == tokens_N[:, None]
        rows_N = torch.arange(len(tokens_N), device=tokens_N.device)
        values_NH = self._values_NkH[rows_N, same_Nk.int().argmax(1)].tolist()
        known_N = same_Nk.any(1).tolist()
        before_N, after_N = (x[:, 0].tolist() for x in self._probabilities(tokens_N[:, None]))
        return [
            Candidate(token, before, after, _known(values) if known else ())
            for token, before, after, values, known in zip(
                tokens_N.tolist(), before_N, after_N, values_NH, known_N, strict=True
            )
        ]

    def _probabilities(self, tokens_Nk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities of tokens before and after guidance, (N, k) each."""
        return self._before_NV.gather(1, tokens_Nk).exp(), self._after_NV.gather(1, tokens_Nk).exp()


def _known(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(value if value == value else None for value in values)
