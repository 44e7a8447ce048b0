# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The decision process of Proxy-RLHF: which candidates are examined, in which order, and with which features."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from trl_ext.generation_settings import GenerationSettings
from trl_ext.validation import check_fields


ORDERS = ("sampled", "descending")
FORCED = ("first", "last")
FEATURES = {"candidate": 1, "context": 2}  # with their size, in multiples of the hidden size


@dataclass(frozen=True)
class DecisionProcess:
    """
    How candidates are proposed and examined, in training and decoding.

    Args:
        top_k (`int`, *optional*, defaults to `20`):
            Candidates are among the k likeliest tokens.
        top_p (`float`, *optional*, defaults to `1.0`):
            Candidates are among the likeliest tokens whose probabilities sum to this.
        min_p (`float`, *optional*, defaults to `0.0`):
            Candidates are at least this probable relative to the likeliest token.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the language model's probabilities.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Above 1 makes tokens less likely that have occurred.
        order (`str`, *optional*, defaults to `"sampled"`):
            Candidates are examined by decreasing probability (`"descending"`), or in the order in which they are
            sampled without replacement (`"sampled"`).
        feature (`str`, *optional*, defaults to `"candidate"`):
            Input of the proxy: the last hidden state at the candidate (`"candidate"`), or the one before it and the
            candidate's embedding (`"context"`).
        forced (`str`, *optional*, defaults to `"first"`):
            Candidate that is taken when all are rejected: the first one examined, or the last one, for which the proxy
            is then not asked.
        max_candidates (`int`, *optional*, defaults to `0`):
            Maximum number of candidates to examine (`0`: all).
        propose_rejected (`bool`, *optional*, defaults to `False`):
            Whether a rejected candidate may be proposed again: they are then sampled with replacement, at most as
            often as there are candidates. For the sampled order only.

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
    propose_rejected: bool = False

    def __post_init__(self) -> None:
        check_fields(self, [each.name for each in fields(self)])
        if self.top_k < 2:
            raise ValueError(
                f"`top_k` must be at least 2, got {self.top_k}: with a single candidate there is nothing to decide, "
                "and examining the complete vocabulary (0) is not possible. The default is 20, MARA's 40."
            )
        if self.max_candidates < 0 or self.max_candidates == 1:
            raise ValueError(
                f"`max_candidates` must be 0 (all) or at least 2, got {self.max_candidates}: with a single candidate "
                "there is nothing to decide."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be positive, got {self.temperature}; for deterministic completions use greedy "
                "decisions (`greedy`) and the descending order."
            )
        if self.propose_rejected and self.order != "sampled":
            raise ValueError(
                f"`propose_rejected` samples candidates with replacement, and order={self.order!r} does not sample "
                "them (nor do greedy decisions at temperature 0): set order='sampled' or propose_rejected=False."
            )
        for name, choices in (("order", ORDERS), ("feature", tuple(FEATURES)), ("forced", FORCED)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        self.settings()

    def check_examination(self, first_candidates: int = 0, is_scheduled: bool = False) -> None:
        """
        Check settings of how candidates are examined, which are not part of the process.

        Args:
            first_candidates (`int`, *optional*, defaults to `0`): Candidates in the first forward pass.
            is_scheduled (`bool`, *optional*, defaults to `False`): Whether the proxy is asked about some tokens only.

        Raises:
            `ValueError`: One of them does not go with `propose_rejected`.
        """
        if self.propose_rejected and first_candidates:
            raise ValueError(
                f"`first_candidates` ({first_candidates}) saves forward passes where candidates are examined once. "
                "With `propose_rejected` all are in one forward pass: set it to 0."
            )
        if self.propose_rejected and is_scheduled:
            raise ValueError(
                "With `propose_rejected` the proxy is asked about every token: leave out `proxy_every` and "
                "`proxy_when` (`guide_every`, `guide_when`)."
            )

    def settings(self) -> GenerationSettings:
        """Temperature and truncation as generation settings."""
        names = ("top_k", "top_p", "min_p", "temperature", "repetition_penalty")
        return GenerationSettings(**{name: getattr(self, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a config."""
        return asdict(self)

    @property
    def truncation(self) -> str:
        """The candidates in words: no other token is ever taken."""
        rest = {"top-p": (self.top_p, 1.0), "min-p": (self.min_p, 0.0)}
        parts = [f"{name} {value:g}" for name, (value, off) in rest.items() if value != off]
        return ", ".join([f"top-k {self.top_k}", *parts])

    @property
    def exact(self) -> bool:
        """Whether the token probabilities that the decisions induce can be computed."""
        return self.order == "descending" or self.propose_rejected or self.max_candidates in (0, self.top_k)
