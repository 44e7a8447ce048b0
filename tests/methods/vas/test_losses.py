# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What VAS learns, against loops, worked numbers and the signs of gradients."""

import torch

from trl_ext.methods.vas.losses import normalize, value_loss


def test_loss_is_half_the_squared_error_at_known_rewards():
    values = torch.tensor([[[1.0], [2.0], [5.0]]], requires_grad=True)
    targets = torch.tensor([[[3.0], [2.0], [torch.nan]]], requires_grad=True)
    mask = torch.tensor([[[True], [True], [False]]])
    loss = value_loss(values, targets, mask)
    assert loss[..., 0].tolist() == [[2.0, 0.0, 0.0]]
    loss.sum().backward()
    assert values.grad[..., 0].tolist() == [[-2.0, 0.0, 0.0]]  # descent raises a value below its target
    assert targets.grad is None


def test_a_normalised_reward_sums_to_the_normalised_score():
    rewards = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 8.0]], [[5.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = normalize(rewards, mask, torch.tensor([2.0, 6.0]), torch.tensor([4.0, 0.5])) * mask[..., None]
    torch.testing.assert_close(found.sum(dim=1), torch.tensor([[(6 - 2) / 4, (8 - 6) / 0.5], [(5 - 2) / 4, -4.0]]))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.25, 0.5, (3 - 2) / 4]))
    torch.testing.assert_close(normalize(rewards, mask, torch.zeros(2), torch.ones(2)), rewards)
