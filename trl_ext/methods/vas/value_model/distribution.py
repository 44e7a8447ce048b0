# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Categorical value heads: a distribution of the return over equally distant numbers, the atoms, and statistics of it.

Dimensions: H heads, A atoms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


MEAN, LOG_MEAN_EXP, QUANTILE = "mean", "log_mean_exp", "quantile"


@dataclass(frozen=True)
class Statistic:
    """
    What guidance uses of a distribution of returns R.

    Args:
        kind (`str`, *optional*, defaults to `"mean"`):
            `"mean"`: E[R]. `"log_mean_exp"`: log E[exp(c R)] / c, above the mean for a positive c and below it for a
            negative one. `"quantile"`: the return that R is below with probability c.
        parameter (`float`, *optional*, defaults to `0.0`):
            c.

    Raises:
        `ValueError`: The kind is unknown, or c is out of its range.
    """

    kind: str = MEAN
    parameter: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (MEAN, LOG_MEAN_EXP, QUANTILE):
            raise ValueError(f"A statistic of values is `mean`, `log_mean_exp=c` or `quantile=c`, got {self.kind!r}.")
        if self.kind == MEAN and self.parameter:
            raise ValueError(
                f"`mean` takes no parameter, got {self.parameter:g}: remove it, or use another statistic."
            )
        if self.kind == LOG_MEAN_EXP and not (self.parameter and math.isfinite(self.parameter)):
            raise ValueError(
                f"`log_mean_exp=c` needs a finite number c other than 0, got {self.parameter:g}; for c = 0 use `mean`."
            )
        if self.kind == QUANTILE and not 0 < self.parameter < 1:
            raise ValueError(f"`quantile=c` needs a c between 0 and 1, got {self.parameter:g}.")

    @classmethod
    def read(cls, text: str) -> "Statistic":
        """
        The statistic of a setting: `mean`, `log_mean_exp=2` or `quantile=0.1`.

        Raises:
            `ValueError`: It is none of them.
        """
        kind, equals, number = text.partition("=")
        try:
            return cls(kind, float(number) if equals else 0.0)
        except ValueError as error:
            raise ValueError(f"`value_statistic` is {text!r}: {error}") from error

    def __str__(self) -> str:
        return self.kind if self.kind == MEAN else f"{self.kind}={self.parameter:g}"


def atoms_of(low_H: Sequence[float], high_H: Sequence[float], count: int, device: torch.device) -> torch.Tensor:
    """
    `count` equally distant numbers from the lowest to the highest return of each head, (H, A), float32.

    Args:
        low_H (`Sequence[float]`), high_H (`Sequence[float]`): Lowest and highest return of each head.
        count (`int`): A.
        device (`torch.device`): Where. Nothing is copied to it, so that a CUDA graph can record this.
    """
    place = torch.arange(count, dtype=torch.float32, device=device) / (count - 1)
    return torch.stack([low + (high - low) * place for low, high in zip(low_H, high_H, strict=True)])


def statistic_of(logits: torch.Tensor, atoms_HA: torch.Tensor, statistic: Statistic) -> torch.Tensor:
    """
    A statistic of distributions over atoms.

    For a quantile the probability of an atom is spread evenly from half-way to the atom before to half-way to the next
    one, so that it is continuous: distributions that differ a little have quantiles that differ a little.

    Args:
        logits (`torch.Tensor` of shape `(..., H, A)`): Unnormalised log-probabilities.
        atoms_HA (`torch.Tensor` of shape `(H, A)`): The atoms.
        statistic ([`Statistic`]): Which.

    Returns:
        `torch.Tensor` of shape `(..., H)`.
    """
    if statistic.kind == LOG_MEAN_EXP:
        return (logits.log_softmax(-1) + statistic.parameter * atoms_HA).logsumexp(-1) / statistic.parameter
    p = logits.softmax(-1)
    if statistic.kind == MEAN:
        return (p * atoms_HA).sum(-1)
    below = p.cumsum(-1)
    place = (below < statistic.parameter).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    own = p.gather(-1, place)
    part = (statistic.parameter - (below.gather(-1, place) - own)) / own.clamp(min=torch.finfo(p.dtype).tiny)
    distance_H1 = atoms_HA[:, 1:2] - atoms_HA[:, :1]
    return (atoms_HA[:, :1] + distance_H1 * (place - 0.5 + part.clamp(0, 1))).squeeze(-1)
