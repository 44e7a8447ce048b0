# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Candidates for the next token: their proposal by the language model, the order of examination, and the choice.

Dimensions: N sequences, S columns of the sequences so far, V vocabulary, k candidates.
"""

from dataclasses import dataclass

import torch

from trl_ext.decoding.guide_schedule import sure
from trl_ext.decoding.repetition_penalty import penalize_repetition
from trl_ext.decoding.token_sampling import next_token_probabilities

from ..decision_process import DecisionProcess


ACCEPTED = 100.0  # a logit of accepting with probability 1 in float32, and small enough to be summed


@dataclass
class Proposals:
    """
    Candidates of one position of N sequences, and the proposals to examine in order: each candidate once, or with
    `columns` candidates that may come several times.

    Args:
        tokens (`torch.Tensor` of shape `(N, k)`): Token ids.
        weights (`torch.Tensor` of shape `(N, k)`): Sampling probabilities among all candidates of a row, 0 at padding.
        base_logps (`torch.Tensor` of shape `(N, k)`): log pi_0, without truncation and at temperature 1.
        columns (`torch.Tensor` of shape `(N, m)`, *optional*): The candidate of each proposal. A row has as many
            proposals as candidates, but at most m.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    base_logps: torch.Tensor
    columns: torch.Tensor | None = None

    @property
    def valid(self) -> torch.Tensor:
        """True for candidates, which precede padding, shape (N, k)."""
        return self.weights > 0

    @property
    def proposed(self) -> torch.Tensor:
        """True for proposals, which precede padding, shape (N, k) or (N, m)."""
        return self.valid if self.columns is None else self.valid[:, : self.columns.shape[1]]

    def asked(self, forced: str) -> torch.Tensor:
        """
        True for proposals about which the proxy's decision matters, shape (N, k) or (N, m).

        It does not for a single candidate, nor for the last proposal if that is taken whenever the others are
        rejected.
        """
        counts = self.proposed.sum(1, keepdim=True)
        places = torch.arange(self.proposed.shape[1], device=self.tokens.device)
        return (places < counts - int(forced == "last")) & (counts > 1)

    def of_proposals(self, of_candidates: torch.Tensor) -> torch.Tensor:
        """What candidates have, shape (N, k, ...), for each proposal, shape (N, k, ...) or (N, m, ...)."""
        if self.columns is None:
            return of_candidates
        rows = torch.arange(len(self.columns), device=self.columns.device)
        return of_candidates[rows[:, None], self.columns]

    def column(self, choice_N: torch.Tensor) -> torch.Tensor:
        """The column of the candidate of one proposal in each row, shape (N,)."""
        return choice_N if self.columns is None else self.columns.gather(1, choice_N[:, None]).squeeze(1)


def penalized_logits(
    logits_NV: torch.Tensor,
    process: DecisionProcess,
    ids_NS: torch.Tensor | None,
    mask_NS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits after the process's repetition penalty for tokens of the sequences so far, shape (N, V)."""
    if process.repetition_penalty == 1 or ids_NS is None:
        return logits_NV
    mask_NS = torch.ones_like(ids_NS) if mask_NS is None else mask_NS
    return penalize_repetition(logits_NV.clone(), ids_NS, mask_NS, process.repetition_penalty)


def propose(
    logits_NV: torch.Tensor,
    process: DecisionProcess,
    uniform_Nk: torch.Tensor | None,
    ids_NS: torch.Tensor | None = None,
    plain_N: torch.Tensor | None = None,
    mask_NS: torch.Tensor | None = None,
) -> Proposals:
    """
    Truncate the distribution of the next token, and put the candidates in the order of examination.

    With `propose_rejected` the candidates are by decreasing probability, and `columns` are samples of them with
    replacement.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits, float32.
        process ([`DecisionProcess`]): Truncation, order, and maximum number of candidates.
        uniform_Nk (`torch.Tensor` of shape `(N, k)` or `None`): Uniform random numbers for the sampled order.
        ids_NS (`torch.Tensor` of shape `(N, S)`, *optional*): The sequences so far, for the repetition penalty.
        plain_N (`torch.Tensor` of shape `(N,)`, *optional*): True for rows whose next token the proxy is not asked
            about: their first candidate is a sample of the language model among all candidates, in either order.
            Without random numbers it is the likeliest.
        mask_NS (`torch.Tensor` of shape `(N, S)`, *optional*): False at the padding of the sequences; by default they
            have none.
    """
    penalized_NV = penalized_logits(logits_NV, process, ids_NS, mask_NS)
    weights, tokens = next_token_probabilities(penalized_NV, process.settings())
    assert tokens is not None  # top-k has sorted them
    weights = weights / weights.sum(1, keepdim=True)
    if process.propose_rejected:
        assert uniform_Nk is not None
        columns = with_replacement(weights, uniform_Nk[:, : process.max_candidates or None])
        return Proposals(tokens, weights, _base_logps(logits_NV, tokens), columns)
    if process.order == "sampled" or (plain_N is not None and uniform_Nk is not None):
        assert uniform_Nk is not None
        # Exponential arrival times with rates w come in the order of sampling without replacement.
        arrival = (-torch.log1p(-uniform_Nk) / weights).masked_fill(weights == 0, torch.inf)
        order = arrival.sort(1).indices
        if process.order != "sampled" and plain_N is not None:
            order = torch.where(plain_N[:, None], order, torch.arange(order.shape[1], device=order.device))
        weights, tokens = weights.gather(1, order), tokens.gather(1, order)
    if process.max_candidates and plain_N is None:
        weights, tokens = weights[:, : process.max_candidates], tokens[:, : process.max_candidates]
    elif process.max_candidates and plain_N is not None:
        beyond = torch.arange(weights.shape[1], device=weights.device) >= process.max_candidates
        weights = weights.masked_fill(beyond & ~plain_N[:, None], 0.0)
    return Proposals(tokens, weights, _base_logps(logits_NV, tokens))


def _base_logps(logits_NV: torch.Tensor, tokens_Nk: torch.Tensor) -> torch.Tensor:
    return logits_NV.gather(1, tokens_Nk) - logits_NV.logsumexp(1, keepdim=True)


def with_replacement(weights_Nk: torch.Tensor, uniform_Nm: torch.Tensor) -> torch.Tensor:
    """
    Columns sampled with probabilities `weights_Nk`, independently of each other, shape (N, m).

    Args:
        weights_Nk (`torch.Tensor` of shape `(N, k)`): Probabilities; 0 is padding, on the right.
        uniform_Nm (`torch.Tensor` of shape `(N, m)`): Uniform random numbers in [0, 1).
    """
    columns = torch.searchsorted(weights_Nk.cumsum(1), uniform_Nm.to(weights_Nk.dtype).contiguous(), right=True)
    # Rounding may leave the sum of all probabilities below a random number.
    return columns.minimum((weights_Nk > 0).sum(1, keepdim=True) - 1)


def accept(logits: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """
    Which candidates the proxy accepts: with probability sigmoid(logit), or greedily where that is at least a half.

    Args:
        logits (`torch.Tensor` of shape `(N, k)`): The proxy's logits of accepting.
        uniform (`torch.Tensor` of shape `(N, k)` or wider, or `None`): Uniform random numbers; `None` for greedy.
    """
    if uniform is None:
        return logits >= 0
    return uniform[..., : logits.shape[-1]] < logits.sigmoid()


def followed(logits: torch.Tensor, confidence: float) -> torch.Tensor:
    """
    The logits of accepting, where a candidate that the proxy is not sure about is accepted as it is proposed.

    Args:
        logits (`torch.Tensor`): The proxy's logits, of any shape.
        confidence (`float`): See [`~trl_ext.decoding.guide_schedule.sure`]; 0 changes nothing.
    """
    return torch.where(sure(logits, confidence), logits, ACCEPTED) if confidence else logits


def decided(examined_Nk: torch.Tensor, logits_Nk: torch.Tensor) -> torch.Tensor:
    """
    True for rows of which the proxy has decided about a candidate, rather than accept it unsure, shape (N,).

    Args:
        examined_Nk (`torch.Tensor` of shape `(N, k)`): True for candidates that were examined.
        logits_Nk (`torch.Tensor` of shape `(N, k)`): From [`followed`].
    """
    return (examined_Nk & (logits_Nk != ACCEPTED)).any(1)


def choose(
    accepted_Nk: torch.Tensor, asked_Nk: torch.Tensor, valid_Nk: torch.Tensor, forced: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Take the first accepted candidate.

    Args:
        accepted_Nk, asked_Nk, valid_Nk (`torch.Tensor` of shape `(N, k)`): Booleans.
        forced (`str`): Candidate to take if none is accepted.

    Returns:
        The column that is taken, shape (N,); True at decisions, shape (N, k); and True where all candidates that the
        proxy was asked about were rejected, shape (N,).
    """
    accepted = accepted_Nk & asked_Nk
    taken = accepted.any(1)
    fallback = valid_Nk.sum(1) - 1 if forced == "last" else torch.zeros_like(taken, dtype=torch.long)
    choice = torch.where(taken, accepted.int().argmax(1), fallback)
    columns = torch.arange(accepted.shape[1], device=accepted.device)
    examined = asked_Nk & ((columns <= choice[:, None]) | ~taken[:, None])
    return choice, examined, asked_Nk.any(1) & ~taken
