# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Win rates over pairs, with bootstrap intervals over prompts.

Prompts are the units of sampling: the pairs of a prompt share its weight, and the bootstrap samples prompts with all
of their pairs, so that both policies are compared on the same prompts in every sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


LEVEL = 0.95  # of the intervals
# Ridge penalty of the regression, the form of scikit-learn's C = 100: too weak to be seen with a hundred prompts, and
# enough for a finite estimate where one policy wins every pair, or every longer completion wins.
RIDGE = 0.01
_STEPS, _LONGEST_STEP, _TOLERANCE = 100, 2.0, 1e-10  # of Newton's method
_AT_ONCE = 2_000_000  # numbers in one array of the bootstrap


@dataclass(frozen=True)
class Estimate:
    """
    A win rate and its interval.

    Args:
        value (`float`): Between 0 and 1.
        interval (`tuple[float, float]`, *optional*): 95 % interval; `None` with fewer than two prompts.
    """

    value: float
    interval: tuple[float, float] | None


class PairValues:
    """
    The values of pairs to A, with weights by which each prompt counts once.

    Args:
        values (`Sequence[float]`): For each pair 1 if A won, 0 if B won, a half for a tie.
        prompts (`Sequence[int]`): The prompt of each pair, any number that distinguishes them.
        length_differences (`Sequence[float]`): For each pair, by how much the completion of A is longer.

    Raises:
        `ValueError`: There is no pair.
    """

    def __init__(self, values: Sequence[float], prompts: Sequence[int], length_differences: Sequence[float]) -> None:
        if not values:
            raise ValueError("there is no pair to compute a win rate from")
        self.values_N = np.asarray(values, dtype=np.float64)
        self.differences_N = np.asarray(length_differences, dtype=np.float64)
        _, self.prompt_N, pairs_B = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
        self.weights_N = 1.0 / pairs_B[self.prompt_N]
        self.num_prompts = len(pairs_B)

    def counts(self, samples: int, seed: int) -> np.ndarray:
        """How often each bootstrap sample has each prompt, `(samples, prompts)`."""
        chance = np.full(self.num_prompts, 1 / self.num_prompts)
        return np.random.default_rng(seed).multinomial(self.num_prompts, chance, size=samples)


def win_rate(pairs: PairValues, samples: int = 2000, seed: int = 42) -> Estimate:
    """
    The mean over prompts of the mean value of a prompt's pairs, with a percentile bootstrap interval over prompts.

    Args:
        pairs ([`PairValues`]): The pairs.
        samples (`int`, *optional*, defaults to `2000`): Bootstrap samples. `0`: no interval.
        seed (`int`, *optional*, defaults to `42`): Seed of the bootstrap.
    """
    means_B = np.bincount(pairs.prompt_N, pairs.weights_N * pairs.values_N)
    value = float(means_B.mean())
    if samples < 1 or pairs.num_prompts < 2:
        return Estimate(value, None)
    return Estimate(value, _interval(pairs.counts(samples, seed) @ means_B / pairs.num_prompts))


def length_controlled_win_rate(pairs: PairValues, samples: int = 2000, seed: int = 42) -> Estimate | None:
    """
    The win rate that a logistic regression predicts for completions of equal length.

    AlpacaEval 2 (Dubois et al. 2024, [arXiv 2404.04475](https://huggingface.co/papers/2404.04475)) models the
    probability that A wins as `sigmoid(theta + phi * tanh(d / s) + difficulty of the prompt)`, where `d` is the
    difference of the lengths in characters and `s` its standard deviation, and predicts with `d = 0`. Its difficulties
    come from a leaderboard of many models; for two policies alone there are none, so that their term is left out. What
    remains is `sigmoid(theta)`. It keeps what the authors ask of such a number: that of A against B and of B against A
    add up to 1, and a policy against itself has a half. Ties are a half of each outcome.

    Args:
        pairs, samples, seed: As for [`win_rate`]. `s` is that of all pairs in every bootstrap sample.

    Returns:
        `Estimate`: `None` if the lengths cannot show it: all pairs differ by the same number of characters.
    """
    differences = pairs.differences_N
    scale = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if scale == 0:
        return win_rate(pairs, samples, seed) if not differences.any() else None
    features_N = np.tanh(differences / scale)
    value = float(_predicted(pairs.weights_N[None], features_N, pairs.values_N)[0])
    if samples < 1 or pairs.num_prompts < 2:
        return Estimate(value, None)
    weights_RB = pairs.counts(samples, seed)
    size = max(1, _AT_ONCE // len(features_N))
    found = [
        _predicted(weights_RB[start : start + size][:, pairs.prompt_N] * pairs.weights_N, features_N, pairs.values_N)
        for start in range(0, samples, size)
    ]
    return Estimate(value, _interval(np.concatenate(found)))


def fit(
    weights_RN: np.ndarray, features_N: np.ndarray, values_N: np.ndarray, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """
    Weighted logistic regressions `sigmoid(theta + phi * x)` with soft labels, by Newton's method.

    Args:
        weights_RN (`np.ndarray`): For each of R regressions, the weight of each pair.
        features_N, values_N (`np.ndarray`): The feature `x` and the label, from 0 to 1, of each pair.
        ridge (`float`, *optional*, defaults to `0.01`): Penalty, `ridge / 2 * (theta^2 + phi^2)`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `theta` and `phi` of each regression.
    """
    theta_R, phi_R = (np.zeros(len(weights_RN)) for _ in range(2))
    for _ in range(_STEPS):
        p_RN = 1 / (1 + np.exp(-(theta_R[:, None] + phi_R[:, None] * features_N)))
        residuals_RN = weights_RN * (values_N - p_RN)
        curvature_RN = weights_RN * p_RN * (1 - p_RN)
        # Gradient (g, h) and Hessian ((a, b), (b, d)) of the penalised log-likelihood.
        g_R, h_R = residuals_RN.sum(1) - ridge * theta_R, residuals_RN @ features_N - ridge * phi_R
        a_R, b_R = curvature_RN.sum(1) + ridge, curvature_RN @ features_N
        d_R = curvature_RN @ features_N**2 + ridge
        determinant_R = a_R * d_R - b_R**2
        step_theta_R = (d_R * g_R - b_R * h_R) / determinant_R
        step_phi_R = (a_R * h_R - b_R * g_R) / determinant_R
        # The first steps may be too long where the outcomes are nearly separated.
        size_R = np.maximum(np.abs(step_theta_R), np.abs(step_phi_R))
        shorter_R = np.minimum(1, _LONGEST_STEP / np.maximum(size_R, 1e-300))
        theta_R, phi_R = theta_R + shorter_R * step_theta_R, phi_R + shorter_R * step_phi_R
        if size_R.max() < _TOLERANCE:
            break
    return theta_R, phi_R


def _predicted(weights_RN: np.ndarray, features_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The predicted win rate at equal length of each regression."""
    theta_R, _ = fit(weights_RN, features_N, values_N)
    return 1 / (1 + np.exp(-theta_R))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def largest_unseen_rate(num_prompts: int) -> float:
    """
    The rate of an outcome that `num_prompts` prompts without it do not exclude at the level of the intervals.

    It is `1 - 0.05^(1 / n)`, about 3 / n (the rule of three). A bootstrap of equal values has an interval of no width.
    """
    return 1 - math.pow(1 - LEVEL, 1 / num_prompts)
