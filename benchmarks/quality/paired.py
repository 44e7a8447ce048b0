# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Comparisons of two arms prompt by prompt, with intervals by the bootstrap over prompts and seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np


RESAMPLES = 2_000
LEVEL = 0.95
# Standard normal quantiles of a two-sided test at 5 % and of a power of 80 %.
_SIGNIFICANCE, _POWER = 1.96, 0.8416

Values = Sequence[Sequence[float | None]]  # for each seed, the mean reward of each prompt; `None`: none applies
Answers = Sequence[Sequence[float | Sequence[float] | None]]  # or the rewards of each prompt's answers


@dataclass(frozen=True)
class Interval:
    """
    An estimate with its 95 % interval.

    Args:
        value (`float`), low (`float`), high (`float`): The estimate, and the interval's ends.
    """

    value: float
    low: float
    high: float

    def text(self, decimals: int = 2) -> str:
        """As in a table: `0.31 [0.27, 0.35]`."""
        value, low, high = (f"{x:.{decimals}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def mean(values: Values) -> Interval:
    """The mean over prompts and seeds."""
    return _bootstrap([np.array(seed, dtype=float) for seed in values])


def difference(first: Values, second: Values) -> Interval:
    """The mean over prompts of how much more the first arm has than the second, on the same prompt and seed."""
    return _compared(first, second, lambda a, b: a - b)


def win_rate(first: Answers, second: Answers) -> Interval:
    """
    How often the first arm has more than the second: over all pairs of their answers to a prompt, then over prompts.

    Equally much counts a half. Where one number stands for a prompt, it is one answer.
    """
    _check_prompts(first, second)
    seeds = []
    for one, two in zip(first, second, strict=True):
        wins = []
        for a, b in zip(one, two, strict=True):
            of_a, of_b = (np.array([] if x is None else x, dtype=float).reshape(-1) for x in (a, b))
            signs = np.sign(of_a[:, None] - of_b[None, :])
            wins.append((signs.mean() + 1) / 2 if signs.size else np.nan)
        seeds.append(np.array(wins))
    return _bootstrap(seeds)


def _check_prompts(first: Answers, second: Answers) -> None:
    if [len(seed) for seed in first] != [len(seed) for seed in second]:
        raise ValueError("Arms are compared on the same prompts and seeds only.")


def detectable(values: Values) -> float:
    """
    The smallest difference of two arms that a comparison finds with a power of 80 % (two-sided test at 5 %).

    The prompts of the two arms are taken as independent, each as spread as in `values`; that errs on the safe side, as
    on the same prompts the arms' rewards are alike.
    """
    found = np.array(values, dtype=float)
    by_prompt = np.nanmean(found, axis=0)
    by_prompt = by_prompt[~np.isnan(by_prompt)]
    return float((_SIGNIFICANCE + _POWER) * by_prompt.std(ddof=1) * np.sqrt(2 / len(by_prompt)))


def pair_accuracy(scores: Sequence[float], predicted: Sequence[float]) -> float | None:
    """
    The share of a row's pairs of completions with different scores that a prediction orders in the same way.

    Args:
        scores (`Sequence[float]`): What people or a judge gave.
        predicted (`Sequence[float]`): What a model gives; equally much for two completions counts a half.

    Returns:
        `float` or `None`: The share; `None` for a row whose scores are all equal.
    """
    pairs = [(i, j) for i, j in combinations(range(len(scores)), 2) if scores[i] != scores[j]]
    right = [(np.sign((scores[i] - scores[j]) * (predicted[i] - predicted[j])) + 1) / 2 for i, j in pairs]
    return float(np.mean(right)) if right else None


def better_and_worse(first: Values, second: Values) -> tuple[int, int, float]:
    """
    On how many prompts the first arm has more than the second, on how many less, and how likely it is by chance.

    Returns:
        `tuple[int, int, float]`: Both numbers, and the two-sided p of the sign test; of accuracies of one pair a row,
            that is McNemar's exact test.
    """
    pairs = zip(first, second, strict=True)
    signs = np.concatenate([np.sign(np.array(a, dtype=float) - np.array(b, dtype=float)) for a, b in pairs])
    more, less = int((signs > 0).sum()), int((signs < 0).sum())
    tail = sum(comb(more + less, k) for k in range(min(more, less) + 1)) / 2 ** (more + less)
    return more, less, min(1.0, 2 * tail)


def _compared(first: Values, second: Values, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Interval:
    _check_prompts(first, second)
    pairs = zip(first, second, strict=True)
    return _bootstrap([compare(np.array(a, dtype=float), np.array(b, dtype=float)) for a, b in pairs])


def _bootstrap(seeds: Sequence[np.ndarray]) -> Interval:
    """The mean of all, and the middle 95 % of the means of samples of seeds and of prompts, with replacement."""
    table = np.stack(seeds)
    table = table[:, ~np.isnan(table).any(axis=0)]
    random = np.random.default_rng(0)
    count, prompts = table.shape
    # Prompts are the same for all seeds, so a resample takes the same prompts of each seed that it takes.
    columns = random.integers(prompts, size=(RESAMPLES, prompts))
    rows = random.integers(count, size=(RESAMPLES, count))
    means = [table[np.ix_(row, column)].mean() for row, column in zip(rows, columns, strict=True)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(table.mean()), float(low), float(high))
