# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of PSLE: as loops, with worked numbers, and the signs of their gradients."""

import math

import pytest
import torch
from oracles.psle import oracle

from trl_ext.methods.psle import losses
from trl_ext.methods.psle.data import pairs


def computed(logps, rewards, marks, threshold, margin=0.0, temperature=1.0, two_sided=False, rank=1.0, sft=1.0):
    l_N = torch.tensor([x for group in logps for x in group], dtype=torch.float64)
    r_N = torch.tensor([x for group in rewards for x in group], dtype=torch.float64)
    prompt_M, plain_M, guided_M = torch.tensor(pairs(marks)).T
    l_M, r_M = (l_N[plain_M], l_N[guided_M]), (r_N[plain_M], r_N[guided_M])
    ranked_M = losses.is_ranked(*r_M, threshold, two_sided)
    rank_M = losses.ranking_loss(*l_M, *r_M, margin)
    sft_M = losses.weighted_sft_loss(*l_M, losses.sft_weights(*r_M, temperature))
    return losses.prompt_means(torch.where(ranked_M, rank * rank_M, sft * sft_M), prompt_M, len(marks))


def groups(seed):
    """Prompts with 0 to 3 completions of each kind in any order, ties in rewards, gaps that equal the threshold."""
    generator = torch.Generator().manual_seed(seed)
    marks, logps, rewards = [[0, 1]], [[-1.0, -2.0]], [[0.0, 0.5]]
    for _ in range(6):
        n = int(torch.randint(1, 7, (1,), generator=generator))
        marks.append(torch.randint(0, 2, (n,), generator=generator).tolist())
        logps.append((-3 * torch.rand(n, generator=generator, dtype=torch.float64)).tolist())
        rewards.append((torch.randint(-3, 4, (n,), generator=generator) / 2).tolist())
    return logps, rewards, marks


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.5},
        {"threshold": 0.0},
        {"threshold": 1.0, "two_sided": True},
        {"threshold": 0.5, "margin": 0.7, "temperature": 2.5, "rank": 10.0, "sft": 0.3},
        {"threshold": 100.0},
    ],
)
def test_losses_are_the_loops(seed, settings):
    logps, rewards, marks = groups(seed)
    expected = torch.tensor(oracle(logps, rewards, marks, **settings), dtype=torch.float64)
    torch.testing.assert_close(computed(logps, rewards, marks, **settings), expected)


def test_worked_numbers():
    # Gap 2 > 1: ranked, l(plain) - l(guided) = 0.5. Gap 0.5 <= 1: imitated, w = 1 / (1 + e^0.5) = 0.37754.
    logps, rewards, marks = [[-1.0, -1.5], [-2.0, -1.0]], [[0.0, 2.0], [1.0, 1.5]], [[0, 1], [0, 1]]
    assert computed(logps, rewards, marks, 1.0).tolist() == pytest.approx([0.5, 0.37754 * 2 + 0.62246 * 1], abs=1e-5)
    # The guided answer is already the likelier one: nothing to rank; with a margin of 1, half of it is missing.
    assert computed([[-1.5, -1.0]], [[0.0, 2.0]], [[0, 1]], 1.0).tolist() == [0.0]
    assert computed([[-1.5, -1.0]], [[0.0, 2.0]], [[0, 1]], 1.0, margin=1.0).tolist() == [0.5]


def test_the_guided_answer_counts_as_the_better_one_of_a_tie():
    """And there is no margin by default: l(plain) - l(guided) = 1."""
    tied = losses.ranking_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.zeros(1), torch.zeros(1))
    assert tied.tolist() == [1.0]
    satisfied = losses.ranking_loss(torch.tensor([-2.0]), torch.tensor([-1.5]), torch.zeros(1), torch.ones(1))
    assert satisfied.tolist() == [0.0]


def test_a_gap_of_exactly_the_threshold_is_imitated():
    r = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([0.25, 0.2500001, -1.0, math.nan])
    assert losses.is_ranked(*r, 0.25).tolist() == [False, True, False, False]
    assert losses.is_ranked(*r, 0.25, two_sided=True).tolist() == [False, True, True, False]


def test_weights():
    plain, guided = torch.tensor([0.0, 1.0, -50.0, 3.0]), torch.tensor([0.0, 0.0, 50.0, 3.0])
    weights = losses.sft_weights(plain, guided)
    assert weights.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 0.0, 0.5])
    assert losses.sft_weights(plain, guided, 1e6).tolist() == pytest.approx([0.5] * 4, abs=1e-4)
    # Rewards may be shifted: only their difference counts.
    torch.testing.assert_close(losses.sft_weights(plain + 7, guided + 7), weights)


@pytest.mark.parametrize("two_sided", [False, True])
def test_signs_of_gradients(two_sided):
    """A step raises the better completion (ranking), or both (imitation), the better one more."""
    plain = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    guided = torch.tensor([-2.0, -2.0, -0.5], requires_grad=True)
    rewards = torch.tensor([0.0, 0.0, 5.0]), torch.tensor([3.0, 0.5, 0.0])
    ranked = losses.is_ranked(*rewards, 1.0, two_sided)
    rank = losses.ranking_loss(plain, guided, *rewards)
    sft = losses.weighted_sft_loss(plain, guided, losses.sft_weights(*rewards))
    torch.where(ranked, rank, sft).sum().backward()
    assert plain.grad[0] == 1 and guided.grad[0] == -1
    assert plain.grad[1] < 0 and guided.grad[1] < plain.grad[1]
    if two_sided:
        assert plain.grad[2] == -1 and guided.grad[2] == 1
    else:
        assert plain.grad[2] < guided.grad[2] < 0
    assert torch.equal(ranked, torch.tensor([True, False, two_sided]))


def test_the_mean_is_over_pairs_then_prompts():
    values, prompt = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])
    assert losses.prompt_means(values, prompt, 4).tolist() == [2.0, 0.0, 5.0, 0.0]


def test_pairs():
    assert pairs([[0, 1], [0, 0, 1]]) == [(0, 0, 1), (1, 2, 4), (1, 3, 4)]
    assert pairs([[0, 0], [], [1], [1, 0, 1]]) == [(3, 4, 3), (3, 4, 5)]


def test_decay():
    tau = 0.2
    for _ in range(8):
        tau = losses.decayed(tau, 0.9)
    assert tau == pytest.approx(0.0860934)
