# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The decision process of Proxy-RLHF: in which order candidate tokens are examined, and what the proxy sees."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from trl_ext.generation_settings import GenerationSettings
from trl_ext.validation import check_fields


@dataclass(frozen=True)
class DecisionProcess:
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


ORDERS = ("sampled", "descending")


FORCED = ("first", "last")


FEATURES = {"candidate": 1, "context": 2}  # and how many times the hidden size they are
