# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Colours of tokens: a scale over the answers of a comparison, the same for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .answers import CHANGE, LOGPROB, Answer, quantity


HIGH, LOW = (37, 99, 235), (234, 88, 12)  # blue and orange, which colour-blind readers can tell apart
STRONGEST = 0.6  # opacity at the ends: text stays readable on light and dark pages
SHARE = 0.05  # of the tokens at each end, beyond the ends of the scale, so that an outlier does not pale the others


@dataclass(frozen=True)
class Scale:
    """
    Colours of the values of one quantity: orange at the low end, none in the middle, blue at the high end.

    Args:
        name (`str`): The quantity; see [`~trl_ext.playground.answers.quantities`].
        low, middle, high (`float`): The values at the ends, and the one without a colour.
    """

    name: str
    low: float
    middle: float
    high: float

    def strength(self, value: float) -> float:
        """From -1 at the low end and below, over 0 in the middle, to 1 at the high end and above."""
        end = self.high if value > self.middle else self.low
        width = abs(end - self.middle)
        return 0.0 if not width else max(-1.0, min(1.0, (value - self.middle) / width))

    def colour(self, value: float) -> tuple[int, int, int, float]:
        """Red, green and blue from 0 to 255, and the opacity."""
        strength = self.strength(value)
        return *(HIGH if strength > 0 else LOW), round(abs(strength) * STRONGEST, 3)


def scale(answers: Sequence[Answer], name: str) -> Scale | None:
    """
    The scale of a quantity over answers; `None` if no token has it.

    Log-probabilities are without a colour at 0, which is certainty, and changes at 0. Values of a head are so half-way
    between the ends.
    """
    found = sorted(
        value for answer in answers for token in answer.tokens if (value := quantity(token, name)) is not None
    )
    if not found:
        return None
    cut = int(len(found) * SHARE)
    low, high = found[cut], found[-1 - cut]
    if name == LOGPROB:
        return Scale(name, low, 0.0, 0.0)
    if name == CHANGE:
        most = max(abs(low), abs(high))
        return Scale(name, -most, 0.0, most)
    return Scale(name, low, (low + high) / 2, high)
