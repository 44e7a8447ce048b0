# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Win rates, their intervals and length control, against numbers worked out by hand."""

import math
import statistics

import numpy as np
import pytest

from trl_ext.judging.win_rate import PairValues, fit, largest_unseen_rate, length_controlled_win_rate, win_rate


def values(outcomes, prompts=None, differences=None):
    return PairValues(outcomes, prompts or list(range(len(outcomes))), differences or [0] * len(outcomes))


def test_each_prompt_counts_once():
    """Prompt 0 has three pairs with a mean of 2/3, prompt 1 has one with 0: (2/3 + 0) / 2."""
    assert win_rate(values([1, 1, 0, 0], [0, 0, 0, 1])).value == pytest.approx(1 / 3)


def test_the_interval_is_that_of_a_binomial():
    """100 prompts with a win rate of 0.7: the bootstrap's standard error is sqrt(0.7 * 0.3 / 100) = 0.0458."""
    found = win_rate(values([1.0] * 70 + [0.0] * 30), samples=20_000)
    se = math.sqrt(0.7 * 0.3 / 100)
    assert found.interval == pytest.approx((0.7 - 1.96 * se, 0.7 + 1.96 * se), abs=0.011)


def test_the_interval_is_over_prompts_not_pairs():
    """Ten equal pairs of each prompt add nothing: the interval is that of one pair each."""
    one = values([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    ten = values(
        [x for x in (1.0, 0.0, 1.0, 1.0, 0.0, 1.0) for _ in range(10)], [i for i in range(6) for _ in range(10)]
    )
    assert win_rate(ten).interval == pytest.approx(win_rate(one).interval)


def test_lengths_are_divided_by_the_standard_deviation_of_a_sample():
    """As pandas' `std` does in AlpacaEval 2: divided by n - 1, which shows where there are three pairs."""
    outcomes, differences = [1.0, 0.0, 1.0], [30, -10, 5]
    features = np.tanh(np.array(differences) / statistics.stdev(differences))
    theta, _ = fit(np.ones((1, 3)), features, np.array(outcomes))
    found = length_controlled_win_rate(values(outcomes, differences=differences), samples=0)
    assert found.value == pytest.approx(1 / (1 + math.exp(-theta[0])), abs=1e-9)


def test_the_seed_decides_about_the_interval():
    pairs = values([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0])
    assert win_rate(pairs, seed=1) == win_rate(pairs, seed=1)
    assert win_rate(pairs, seed=1).interval != win_rate(pairs, samples=50, seed=2).interval
    assert win_rate(pairs, samples=0).interval is None
    assert win_rate(values([1.0])).interval is None


def by_length(share_longer, share_shorter, count=1000, difference=50):
    """`count` prompts where A is longer and `count` where it is as much shorter, with the shares that A won."""
    outcomes, differences = [], []
    for share, sign in ((share_longer, 1), (share_shorter, -1)):
        won = round(share * count)
        outcomes += [1.0] * won + [0.0] * (count - won)
        differences += [sign * difference] * count
    return values(outcomes, differences=differences)


def test_length_control_worked_by_hand():
    """
    With two differences of length, +d and -d, the regression meets both shares: theta + phi t = logit 0.9 = ln 9 and
    theta - phi t = logit 0.5 = 0, so that theta = ln 3 and sigmoid(theta) = 3 / 4. The plain win rate is 0.7.
    """
    pairs = by_length(0.9, 0.5)
    assert win_rate(pairs, samples=0).value == pytest.approx(0.7)
    assert length_controlled_win_rate(pairs, samples=0).value == pytest.approx(0.75, abs=1e-4)
    theta, phi = fit(
        pairs.weights_N[None], np.tanh(pairs.differences_N / pairs.differences_N.std(ddof=1)), pairs.values_N, 0
    )
    t = math.tanh(50 / (50 * math.sqrt(2000 / 1999)))
    assert theta == pytest.approx(math.log(3), abs=1e-8)
    assert phi == pytest.approx(math.log(3) / t, abs=1e-8)


def test_a_preference_for_length_alone_is_a_half():
    """A wins 80 % where it is longer and 20 % where it is shorter, but it is longer three times as often: 0.65."""
    outcomes = [1.0] * 240 + [0.0] * 60 + [1.0] * 20 + [0.0] * 80
    pairs = values(outcomes, differences=[30] * 300 + [-30] * 100)
    assert win_rate(pairs, samples=0).value == pytest.approx(0.65)
    assert length_controlled_win_rate(pairs, samples=0).value == pytest.approx(0.5, abs=1e-3)


def test_both_directions_add_up_to_one():
    rng = np.random.default_rng(0)
    outcomes, differences = rng.choice([0, 0.25, 0.5, 0.75, 1], 60), rng.normal(20, 40, 60)
    prompts = [index // 2 for index in range(60)]
    there = length_controlled_win_rate(PairValues(list(outcomes), prompts, list(differences)))
    back = length_controlled_win_rate(PairValues(list(1 - outcomes), prompts, list(-differences)))
    assert there.value + back.value == pytest.approx(1)
    assert there.interval == pytest.approx((1 - back.interval[1], 1 - back.interval[0]))


def test_the_regression_is_where_no_step_helps():
    """The gradient of the penalised likelihood, as a plain loop, is zero."""
    rng = np.random.default_rng(1)
    x, y, weights = np.tanh(rng.normal(size=30)), rng.choice([0, 0.5, 1], 30), rng.uniform(0.2, 1, 30)
    [theta], [phi] = fit(weights[None], x, y, 0.3)
    of_theta, of_phi = -0.3 * theta, -0.3 * phi
    for k in range(30):
        residual = weights[k] * (y[k] - 1 / (1 + math.exp(-(theta + phi * x[k]))))
        of_theta += residual
        of_phi += residual * x[k]
    assert of_theta == pytest.approx(0, abs=1e-9) and of_phi == pytest.approx(0, abs=1e-9)


def test_separated_outcomes_have_an_estimate():
    """Every longer completion wins, and A wins every pair: the penalty keeps the estimates finite."""
    assert length_controlled_win_rate(by_length(1.0, 0.0, count=20)).value == pytest.approx(0.5)
    won = length_controlled_win_rate(by_length(1.0, 1.0, count=20))
    assert 0.99 < won.value < 1 and 0.99 < won.interval[0] <= won.interval[1] < 1


def test_lengths_that_tell_nothing():
    equal = values([1.0, 0.0, 1.0, 0.5])
    assert length_controlled_win_rate(equal) == win_rate(equal)
    assert length_controlled_win_rate(values([1.0, 0.0, 1.0], differences=[7, 7, 7])) is None


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="no pair"):
        values([])


def test_the_rule_of_three():
    """0.95 of the time, 100 prompts would show an outcome of probability p if (1 - p)^100 = 0.05."""
    assert (1 - largest_unseen_rate(100)) ** 100 == pytest.approx(0.05)
    assert largest_unseen_rate(100) == pytest.approx(3 / 100, rel=0.02)
