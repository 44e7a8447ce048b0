# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Candidates for the next token: who proposes them, in which order they are examined, and which one is taken.

N rows, V vocabulary, k candidates.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from ..decoding import next_token_probabilities
from ..field_types import check_fields
from ..generation_settings import GenerationSettings


ORDERS = ("sampled", "descending")
FORCED = ("first", "last")
FEATURES = {"candidate": 1, "context": 2}  # and how many times the hidden size they are


@dataclass(frozen=True)
class Process:
    """
    How candidates are proposed and examined, alike in training and use.

    Args:
        top_k (`int`, *optional*, defaults to `20`): Candidates are among the k likeliest tokens.
        top_p (`float`, *optional*, defaults to `1.0`): ... whose probabilities sum to this,
        min_p (`float`, *optional*, defaults to `0.0`): ... and which are at least this likely relative to the first.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of the model's probabilities.
        repetition_penalty (`float`, *optional*, defaults to `1.0`): Divides logits of tokens that have occurred.
        order (`str`, *optional*, defaults to `"sampled"`): Candidates are examined in falling order of probability
            (`"descending"`), or as they are drawn without replacement (`"sampled"`).
        feature (`str`, *optional*, defaults to `"candidate"`): What the proxy sees: the last hidden state at the
            candidate (`"candidate"`), or the one before it and the candidate's embedding (`"context"`).
        forced (`str`, *optional*, defaults to `"first"`): What is taken when all are rejected: the candidate that was
            examined first, or the last one, which then is not asked about.
        max_candidates (`int`, *optional*, defaults to `0`): Candidates that are examined at most (`0`: all).

    Raises:
        `ValueError`: A field is out of its range.
    """

    top_k: int = 20
    top_p: float = 1.0
    min_p: float = 0.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    order: str = "sampled"
    feature: str = "candidate"
    forced: str = "first"
    max_candidates: int = 0

    def __post_init__(self) -> None:
        check_fields(self, [each.name for each in fields(self)])
        if self.top_k < 2:
            raise ValueError(
                f"`top_k` must be at least 2, got {self.top_k}: with a single candidate there is nothing to decide, "
                "and the whole vocabulary (0) cannot be examined. 20 is the default, 40 MARA's."
            )
        if self.max_candidates < 0 or self.max_candidates == 1:
            raise ValueError(
                f"`max_candidates` must be 0 (all) or at least 2, got {self.max_candidates}: of a single candidate "
                "there is nothing to decide."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be positive, got {self.temperature}; for deterministic answers decide greedily "
                "(`greedy`) in descending order."
            )
        for name, choices in (("order", ORDERS), ("feature", tuple(FEATURES)), ("forced", FORCED)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        self.settings()

    def settings(self) -> GenerationSettings:
        """The truncation, as shared code takes it."""
        names = ("top_k", "top_p", "min_p", "temperature", "repetition_penalty")
        return GenerationSettings(**{name: getattr(self, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Its fields, for a config."""
        return asdict(self)

    @property
    def exact(self) -> bool:
        """Whether the distribution of tokens that it induces is computed."""
        return self.order == "descending" or self.max_candidates in (0, self.top_k)


class Dice:
    """
    Uniform numbers for each row from a generator of its own: no row depends on what it is batched with.

    Args:
        seeds (`list[int]`): One a row.
        columns (`int`): Numbers of a kind that a position needs; there are two kinds.
        device (`torch.device`): Where they are needed.
    """

    positions = 32  # drawn at once

    def __init__(self, seeds: list[int], columns: int, device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.columns, self.device = columns, device
        self._block: torch.Tensor | None = None
        self._next = 0

    def roll(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tables of shape (N, columns): for the order and for the decisions."""
        if self._block is None or self._next == self.positions:
            shape = (self.positions, 2, self.columns)
            self._block = torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
            self._next = 0
        numbers = self._block[:, self._next]
        self._next += 1
        return numbers[:, 0], numbers[:, 1]

    def table(self, positions: int) -> torch.Tensor:
        """The numbers of the first positions at once, (N, at least `positions`, 2, columns); then `roll` goes on."""
        shape = (self.positions, 2, self.columns)
        blocks = range(-(-positions // self.positions))
        rows = [torch.cat([torch.rand(shape, generator=g) for _ in blocks]) for g in self.generators]
        return torch.stack(rows).to(self.device)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.generators = [self.generators[i] for i in rows.tolist()]
        self._block = None if self._block is None else self._block[rows]


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


def penalised(logits_NV: torch.Tensor, process: Process, ids_NS: torch.Tensor | None) -> torch.Tensor:
    """Logits (N, V) by which candidates are chosen: less for tokens of the texts so far, where the process says so."""
    if process.repetition_penalty == 1 or ids_NS is None:
        return logits_NV
    return RepetitionPenaltyLogitsProcessor(process.repetition_penalty)(ids_NS, logits_NV.clone())


def propose(
    logits_NV: torch.Tensor, process: Process, uniform_Nk: torch.Tensor | None, ids_NS: torch.Tensor | None = None
) -> Proposals:
    """
    Truncate the next-token distribution and put the candidates in order.

    Args:
        logits_NV (`torch.Tensor` of shape `(N, V)`): The model's logits, float32.
        process ([`Process`]): Truncation, order and the most that are examined.
        uniform_Nk (`torch.Tensor` of shape `(N, k)` or `None`): Chance of the sampled order.
        ids_NS (`torch.Tensor` of shape `(N, S)`, *optional*): The texts so far, for the repetition penalty.
    """
    weights, tokens = next_token_probabilities(penalised(logits_NV, process, ids_NS), process.settings())
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
