# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Returns against the same recursions written as loops, worked numbers, and invariances."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.training.returns import discounted_sums, gae, td_lambda


def loop_targets(rewards, values, gamma, lam):
    """The recursion in the README of VAS, one sequence of plain numbers at a time."""
    targets, ahead, next_value = [0.0] * len(values), 0.0, 0.0
    for t in reversed(range(len(values))):
        delta = rewards[t] + gamma * next_value - values[t]
        ahead = delta + gamma * lam * ahead
        targets[t] = ahead + values[t]
        next_value = values[t]
    return targets


def forward_view(rewards, values, gamma, lam):
    """The definition: a mean of n-step returns with weights (1 - lam) lam^(n-1), the rest of it on the last one."""
    length, targets = len(values), []
    for t in range(length):
        total, weight = 0.0, 1.0
        for n in range(1, length - t + 1):
            step = sum(gamma**k * rewards[t + k] for k in range(n))
            step += gamma**n * values[t + n] if t + n < length else 0.0
            share = weight * (1 - lam) if t + n < length else weight
            total, weight = total + share * step, weight * lam
        targets.append(total)
    return targets


numbers = st.floats(-5, 5)
sequences = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4)


def tensors(sequences, padding=0):
    width = max(map(len, sequences)) + padding
    rewards, values = (torch.full((len(sequences), width), 7.0, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for n, sequence in enumerate(sequences):
        for t, (reward, value) in enumerate(sequence):
            rewards[n, t], values[n, t], mask[n, t] = reward, value, True
    return rewards, values, mask


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=9), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_sums_are_of_what_is_still_to_come(sequences, discount):
    paid = torch.zeros(len(sequences), max(map(len, sequences)) + 1)
    for n, sequence in enumerate(sequences):
        paid[n, : len(sequence)] = torch.tensor(sequence)
    found = discounted_sums(paid, discount)
    for n, sequence in enumerate(sequences):
        expected = [sum(discount**i * x for i, x in enumerate(sequence[t:])) for t in range(len(sequence))]
        assert found[n, : len(sequence)].tolist() == pytest.approx(expected, abs=1e-4)
        assert (found[n, len(sequence) :] == 0).all()
    heads = torch.stack([paid, -2 * paid], dim=2)
    torch.testing.assert_close(discounted_sums(heads, discount), torch.stack([found, -2 * found], dim=2))


@given(sequences, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.integers(0, 3))
def test_targets_equal_loops_whatever_the_padding(sequences, gamma, lam, padding):
    rewards, values, mask = tensors(sequences, padding)
    found = td_lambda(rewards, values, mask, gamma, lam)
    assert (found[~mask] == 0).all()
    for n, sequence in enumerate(sequences):
        r, v = zip(*sequence, strict=True)
        row = found[n, : len(sequence)].tolist()
        assert row == pytest.approx(loop_targets(r, v, gamma, lam), abs=1e-9)
        assert row == pytest.approx(forward_view(r, v, gamma, lam), abs=1e-9)
    advantages = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages[mask], (found - values)[mask])
    heads = [torch.stack([x, -2 * x], dim=2) for x in (rewards, values)]
    by_head = td_lambda(*heads, mask[..., None], gamma, lam)
    torch.testing.assert_close(by_head, torch.stack([found, -2 * found], dim=2))


def test_worked_numbers():
    # delta = (0 + 3 - 2, 0 + 4 - 3, 10 - 4) = (1, 1, 6); A = (1 + 0.5 * 4, 1 + 0.5 * 6, 6) = (3, 4, 6).
    rewards, values = torch.tensor([[0.0, 0.0, 10.0]]), torch.tensor([[2.0, 3.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert gae(rewards, values, mask, 1.0, 0.5).tolist() == [[3.0, 4.0, 6.0]]
    assert td_lambda(rewards, values, mask, 1.0, 0.5).tolist() == [[5.0, 7.0, 10.0]]
    assert td_lambda(rewards, values, mask, 1.0, 1.0).tolist() == [[10.0, 10.0, 10.0]]  # Monte-Carlo
    assert td_lambda(rewards, values, mask, 1.0, 0.0).tolist() == [[3.0, 4.0, 10.0]]
    assert td_lambda(rewards, values, mask, 0.5, 1.0).tolist() == [[2.5, 5.0, 10.0]]


def test_the_last_target_is_the_reward_and_values_pull_targets_their_way():
    rewards, values, mask = tensors([[(0.0, 0.3), (0.0, -1.0), (2.0, 5.0)]])
    values.requires_grad_(True)
    targets = td_lambda(rewards, values, mask, 1.0, 0.9)
    assert targets[0, -1].item() == pytest.approx(2.0)
    (slope,) = torch.autograd.grad(targets[0, 0], values)
    assert slope[0, 0].item() == pytest.approx(0.0)
    assert slope[0, 1].item() == pytest.approx(0.1)
    assert slope[0, 2].item() == pytest.approx(0.09)


def test_no_tokens():
    assert td_lambda(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_defaults_are_those_of_the_docstrings():
    """No discount, and lambda 0.95."""
    rewards, values, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 1.0]]), torch.ones(1, 3)
    assert discounted_sums(rewards).tolist() == [[7.0, 6.0, 4.0]]
    for function in (gae, td_lambda):
        assert torch.equal(function(rewards, values, mask), function(rewards, values, mask, 1.0, 0.95))


def test_a_mask_of_any_dtype_keeps_that_of_the_values():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    for dtype in (torch.bool, torch.long, torch.float64):
        for function in (gae, td_lambda):
            assert function(rewards, values, torch.ones(1, 2, dtype=dtype)).dtype == torch.float32
