# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Comparisons of figures, and the verdict that each gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import stdev

from .figures import Figure, Missing, Reference, Sources, Task, figure, label, number


COMPARISONS = ("greater", "less", "as_good", "within", "ordered")


class Verdict(StrEnum):
    """What the results say about a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown at this size"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Check:
    """
    A comparison of figures.

    A difference counts if it is larger than the spreads of both figures together, so that their ranges do not overlap;
    of two figures of one seed on the same prompts, if it is larger than twice its standard error over prompts.

    Args:
        task ([`Task`]): Where the figures are.
        compare (`str`): `"greater"`, `"less"`: of `left` than `right`, by more than `by`. `"as_good"`: `left` is at
            most the tolerance below `right`; `"within"`: at most the tolerance from it. `"ordered"`: `left` has
            several, from the lowest: no neighbours are in the wrong order, and the first is less than the last.
        left (`list[Reference]`), right ([`Reference`], *optional*): What is compared.
        by (`float`, *optional*, defaults to `0.0`): See `compare`.
        tolerance (`float`, *optional*, defaults to `0.0`): See `compare`.
        share_above ([`Reference`], *optional*): The tolerance is this share of the distance from `right` to here.
        show (`list[str]`, *optional*): Columns to show beside the figures.
        unit (`str`, *optional*): What the figures are; by default their column.
    """

    task: Task
    compare: str
    left: Sequence[Reference]
    right: Reference | None = None
    by: float = 0.0
    tolerance: float = 0.0
    share_above: Reference | None = None
    show: Sequence[str] = ()
    unit: str = ""

    @property
    def references(self) -> list[Reference]:
        """All that it names."""
        return [*self.left, *(r for r in (self.right, self.share_above) if r is not None)]

    @property
    def names(self) -> list[str]:
        """The rows that it needs."""
        return [name for reference in self.references for name in reference.names]


@dataclass(frozen=True)
class Finding:
    """
    What a check gave.

    Args:
        verdict ([`Verdict`]): Whether it holds.
        text (`str`): The figures.
        seeds (`int`): The fewest that a figure comes from.
    """

    verdict: Verdict
    text: str
    seeds: int


def judge(check: Check, sources: Sources) -> Finding:
    """
    The verdict of a check.

    Raises:
        [`~benchmarks.claims.figures.Missing`]: A figure is not there, or two of seconds are of different processors.
    """

    def of(reference: Reference) -> Figure:
        return figure(reference, check.task, sources, check.names, check.show)

    left = [of(reference) for reference in check.left]
    if check.compare == "ordered":
        found, shown = _ordered(left), left
    else:
        assert check.right is not None
        right = of(check.right)
        tolerance = check.tolerance
        if check.share_above is not None:
            tolerance *= abs(right.value - of(check.share_above).value)
        found, shown = _compared(check.compare, left[0], right, check.by, tolerance), [left[0], right]
    unit = check.unit or label(check.left[0].column)
    measured = [figure for figure in shown if figure.processors]
    if len({figure.processors for figure in measured}) > 1:
        where = ", ".join(f"of “{figure.name}” on {' and '.join(figure.processors)}" for figure in measured)
        raise Missing(f"{unit}: seconds of different processors say nothing ({where})")
    seeds = min((figure.seeds for figure in shown if figure.seeds), default=0)
    return Finding(found, f"{unit}: {', '.join(map(_text, shown))}", seeds)


def _text(figure: Figure) -> str:
    more = f" ({', '.join(figure.shown)})" if figure.shown else ""
    return f"“{figure.name}” {number(figure)}{more}" if figure.name else number(figure)


def _compared(compare: str, left: Figure, right: Figure, by: float, tolerance: float) -> Verdict:
    gap, margin = left.value - right.value, _margin(left, right)
    if math.isinf(margin):
        return Verdict.NOT_SHOWN
    if compare == "within":
        return _decided(tolerance - abs(gap), margin)
    if compare == "less":
        gap = -gap
    return _decided(gap + tolerance if compare == "as_good" else gap - by, margin)


def _margin(left: Figure, right: Figure) -> float:
    """
    How far the difference of two figures may be off: their spreads together; of one seed on the same prompts, twice
    the standard error of the differences of the prompts.
    """
    pairs = zip(left.by_prompt, right.by_prompt, strict=False)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if len(left.by_prompt) != len(right.by_prompt) or len(differences) < 2:
        return left.spread + right.spread
    return 2 * stdev(differences) / math.sqrt(len(differences))


def _decided(excess: float, margin: float) -> Verdict:
    """Whether something is positive, given how far it may be off."""
    if excess > margin:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if excess < -margin else Verdict.NOT_SHOWN


def _ordered(figures: Sequence[Figure]) -> Verdict:
    steps = [_compared("less", a, b, 0.0, 0.0) for a, b in pairwise(figures)]
    ends = _compared("less", figures[0], figures[-1], 0.0, 0.0)
    if Verdict.DOES_NOT_HOLD in (*steps, ends):
        return Verdict.DOES_NOT_HOLD
    in_order = all(a.value < b.value for a, b in pairwise(figures))
    return Verdict.HOLDS if in_order and ends is Verdict.HOLDS else Verdict.NOT_SHOWN
