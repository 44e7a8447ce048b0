# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Candidates for the next token: who proposes them, in which order they are examined, and which one is taken.

N rows, V vocabulary, k candidates.
"""

from dataclasses import dataclass

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from trl_ext.decoding.token_sampling import next_token_probabilities

from ..decision_process import DecisionProcess


@dataclass
class Proposals:
    """
    Candidates of N positions, in the order of examination.

    Args:
        tokens (`torch.Tensor` of shape `(N, k)`): Token ids.
        weights (`torch.Tensor` of shape `(N, k)`): What they are drawn by; over all candidates of a row they sum to 1.
        base_logps (`torch.Tensor` of shape `(N, k)`): log pi_0, untruncated and at temperature 1.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    base_logps: torch.Tensor

    @property
    def valid(self) -> torch.Tensor:
        """True where there is a candidate; those come first."""
        return self.weights > 0

    def asked(self, forced: str) -> torch.Tensor:
        """True where the proxy may be asked: nowhere if there is one candidate, nor about one that is taken anyway."""
        counts = self.valid.sum(1, keepdim=True)
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns < counts - int(forced == "last")) & (counts > 1)


def penalized_logits(logits_NV: torch.Tensor, process: DecisionProcess, ids_NS: torch.Tensor | None) -> torch.Tensor:
    """Logits (N, V) by which candidates are chosen: less for tokens of the texts so far, where the process says so."""
    if process.repetition_penalty == 1 or ids_NS is None:
        return logits_NV
    return RepetitionPenaltyLogitsProcessor(process.repetition_penalty)(ids_NS, logits_NV.clone())


def propose(
    logits_NV: torch.Tensor,
    process: DecisionProcess,
    uniform_Nk: torch.Tensor | None,
    ids_NS: torch.Tensor | None = None,
) -> Proposals:
    """
    Truncate the next-token distribution and put the candidates in order.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): The model's logits, float32.
        process ([`DecisionProcess`]): Truncation, order and the most that are examined.
        uniform_Nk (`torch.Tensor` of shape `(N, k)` or `None`): Chance of the sampled order.
        ids_NS (`torch.Tensor` of shape `(N, S)`, *optional*): The texts so far, for the repetition penalty.
    """
    weights, tokens = next_token_probabilities(penalized_logits(logits_NV, process, ids_NS), process.settings())
    assert tokens is not None  # top-k has sorted them
    weights = weights / weights.sum(1, keepdim=True)
    if process.order == "sampled":
        assert uniform_Nk is not None
        # Arrivals at rates w come in the order of draws without replacement.
        arrival = (-torch.log1p(-uniform_Nk) / weights).masked_fill(weights == 0, torch.inf)
        order = arrival.sort(1).indices
        weights, tokens = weights.gather(1, order), tokens.gather(1, order)
    if process.max_candidates:
        weights, tokens = weights[:, : process.max_candidates], tokens[:, : process.max_candidates]
    return Proposals(tokens, weights, logits_NV.gather(1, tokens) - logits_NV.logsumexp(1, keepdim=True))


def choose(
    accepted_Nk: torch.Tensor, asked_Nk: torch.Tensor, valid_Nk: torch.Tensor, forced: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The column that is taken, which candidates were examined, and where none was accepted.

    Args:
        accepted_Nk, asked_Nk, valid_Nk (`torch.Tensor` of shape `(N, k)`): Booleans.
        forced (`str`): The rule where none is accepted.

    Returns:
        `(N,)` columns, `(N, k)` True where a decision was made, `(N,)` True where candidates were asked about in vain.
    """
    accepted = accepted_Nk & asked_Nk
    taken = accepted.any(1)
    fallback = valid_Nk.sum(1) - 1 if forced == "last" else torch.zeros_like(taken, dtype=torch.long)
    choice = torch.where(taken, accepted.int().argmax(1), fallback)
    columns = torch.arange(accepted.shape[1], device=accepted.device)
    examined = asked_Nk & ((columns <= choice[:, None]) | ~taken[:, None])
    return choice, examined, asked_Nk.any(1) & ~taken
