# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What VAS learns, against loops, worked numbers and the signs of gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.vas.losses import discounted_return, normalize, value_loss


def test_the_loss_is_half_the_squared_error_where_something_is_known():
    values = torch.tensor([[[1.0], [2.0], [5.0]]], requires_grad=True)
    targets = torch.tensor([[[3.0], [2.0], [torch.nan]]], requires_grad=True)
    mask = torch.tensor([[[True], [True], [False]]])
    loss = value_loss(values, targets, mask)
    assert loss[..., 0].tolist() == [[2.0, 0.0, 0.0]]
    loss.sum().backward()
    assert values.grad[..., 0].tolist() == [[-2.0, 0.0, 0.0]]  # descent raises a value below its target
    assert targets.grad is None


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_returns_are_sums_of_what_is_still_to_come(sequences, gamma):
    width = max(map(len, sequences)) + 1
    rewards, mask = torch.full((len(sequences), width), 9.0), torch.zeros(len(sequences), width, dtype=torch.bool)
    for n, sequence in enumerate(sequences):
        rewards[n, : len(sequence)], mask[n, : len(sequence)] = torch.tensor(sequence), True
    found = discounted_return(rewards, mask, gamma)
    for n, sequence in enumerate(sequences):
        expected = [sum(gamma**k * r for k, r in enumerate(sequence[t:])) for t in range(len(sequence))]
        assert found[n, : len(sequence)].tolist() == pytest.approx(expected, abs=1e-4)
        assert (found[n, len(sequence) :] == 0).all()


def test_a_normalised_reward_sums_to_the_normalised_score():
    rewards = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 8.0]], [[5.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = normalize(rewards, mask, torch.tensor([2.0, 6.0]), torch.tensor([4.0, 0.5])) * mask[..., None]
    torch.testing.assert_close(found.sum(dim=1), torch.tensor([[(6 - 2) / 4, (8 - 6) / 0.5], [(5 - 2) / 4, -4.0]]))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.25, 0.5, (3 - 2) / 4]))
    torch.testing.assert_close(normalize(rewards, mask, torch.zeros(2), torch.ones(2)), rewards)
