# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The statistics against numbers worked by hand, and against their definitions written as loops."""

import math

import pytest
import torch

from trl_ext.evaluation.metrics import (
    distinct_n,
    distinct_n_and_se,
    jackknife_se,
    mean_and_se,
    perplexity_and_se,
    response_kl,
)


NAN = math.nan


def random_completions(seed: int, vocabulary: int = 4) -> list[list[list[int]]]:
    """Completions of six prompts, different in number and length (an empty one too), with repeated n-grams."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, size: int) -> list[int]:
        return torch.randint(0, high, (size,), generator=generator).tolist()

    return [[integers(vocabulary, length) for length in integers(6, 1 + prompt % 3)] for prompt in range(6)]


def test_mean_is_over_prompts_and_so_is_its_error():
    # prompts' means 2 and 5; their standard deviation is 3 / sqrt(2), over sqrt(2) prompts: 1.5
    assert mean_and_se([[1.0, 3.0], [5.0]]) == pytest.approx((3.5, 1.5))


def test_mean_ignores_nan():
    # prompts' means 4 and 2; their standard deviation is sqrt(2), over sqrt(2) prompts: 1
    assert mean_and_se([[NAN, 4.0], [NAN], [2.0]]) == pytest.approx((3.0, 1.0))


@pytest.mark.parametrize(("values", "mean"), [([[4.0, 6.0]], 5.0), ([], NAN), ([[NAN]], NAN)])
def test_mean_of_fewer_than_two_prompts_has_no_error(values, mean):
    found, se = mean_and_se(values)
    assert found == pytest.approx(mean, nan_ok=True)
    assert math.isnan(se)


def test_jackknife_of_a_mean_is_the_usual_standard_error():
    x = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without = [(x.sum() - value).item() / 8 for value in x]
    assert jackknife_se(without) == pytest.approx((x.std() / 3).item())
    assert math.isnan(jackknife_se([1.0]))


@pytest.mark.parametrize(
    ("completions", "n", "expected"),
    [
        ([[1, 2, 1, 2], [2, 1]], 2, 2 / 4),  # 12 21 12 | 21
        ([[1, 2], [3, 4]], 2, 1.0),  # 23 would extend over two completions
        ([[1, 2], [1, 2], [1, 2]], 2, 1 / 3),
        ([[1, 1, 1], [2]], 1, 2 / 4),
        ([[1, 2, 3, 1, 2, 3]], 3, 3 / 4),
        ([[1], []], 2, NAN),
    ],
)
def test_distinct_n_by_hand(completions, n, expected):
    assert distinct_n(completions, n) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_distinct_error_is_the_jackknife_over_prompts(seed):
    completions = random_completions(seed)

    def statistic(prompts):
        return distinct_n([ids for prompt in prompts for ids in prompt])

    value, se = distinct_n_and_se(completions)
    without = [statistic(completions[:i] + completions[i + 1 :]) for i in range(len(completions))]
    assert value == pytest.approx(statistic(completions))
    assert se == pytest.approx(jackknife_se(without))


def test_distinct_without_bigrams_is_nan():
    assert all(math.isnan(x) for x in distinct_n_and_se([[[1], []], [[2]]]))


def test_perplexity_of_a_uniform_distribution_is_its_number_of_tokens():
    logps = [[torch.full((3,), -math.log(7.0)), torch.full((5,), -math.log(7.0))], [torch.full((1,), -math.log(7.0))]]
    assert perplexity_and_se(logps) == pytest.approx((7.0, 0.0), abs=1e-5)


def test_perplexity_is_over_tokens_and_its_error_is_the_jackknife_over_prompts():
    generator = torch.Generator().manual_seed(1)
    logps = [[-torch.rand(n, generator=generator) * 4 for n in lengths] for lengths in ([3, 0], [5], [1, 2, 4])]

    def statistic(prompts):
        nll, tokens = 0.0, 0
        for prompt in prompts:
            for completion in prompt:
                for logp in completion.tolist():
                    nll, tokens = nll - logp, tokens + 1
        return math.exp(nll / tokens)

    without = [statistic(logps[:i] + logps[i + 1 :]) for i in range(3)]
    assert perplexity_and_se(logps) == pytest.approx((statistic(logps), jackknife_se(without)), rel=1e-6)


def test_perplexity_without_tokens_is_nan():
    assert math.isnan(perplexity_and_se([[torch.empty(0)]])[0])


def test_response_kl_sums_over_tokens_and_has_the_right_sign():
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    base = [torch.tensor([-1.5, -4.0]), torch.tensor([-1.0])]
    assert response_kl(logps, base) == pytest.approx([2.5, -2.0])
