# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Returns and advantages of sequences of rewards.

Padding is on the right. `rewards_NT[n, t]` is the reward of token t of sequence n, and `values_NT[n, t]` the value of
the state whose return begins with this reward; the value after the last token is 0. Dimensions: N sequences, T tokens.
"""

import torch


def discounted_sums(paid_NT: torch.Tensor, discount: float = 1.0) -> torch.Tensor:
    """
    Sum over i of discount^i x_t+i -> (N, T, ...), for sequences that are 0 in padding.

    Computed by doubling, in log2 T operations on tensors: a loop over tokens would launch two kernels per token.

    Args:
        paid_NT (`torch.Tensor` of shape `(N, T, ...)`): The sequences.
        discount (`float`, *optional*, defaults to `1.0`): The discount.
    """
    sums_NT, reach = paid_NT, 1  # over i < reach
    while reach < paid_NT.shape[1]:
        ahead_NT = torch.cat([sums_NT[:, reach:], torch.zeros_like(sums_NT[:, :reach])], dim=1)
        sums_NT, reach = sums_NT + discount**reach * ahead_NT, 2 * reach
    return sums_NT


def gae(
    rewards_NT: torch.Tensor, values_NT: torch.Tensor, mask_NT: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> torch.Tensor:
    """
    Generalised advantage estimation (arXiv 1506.02438, Eqs. (11) to (16)) -> advantages (N, T), 0 in padding.

    delta_t = r_t + gamma V_t+1 - V_t and A_t = delta_t + gamma lam A_t+1. More dimensions, such as heads, may follow;
    the mask then has them too, or 1 in their place.

    Args:
        rewards_NT (`torch.Tensor` of shape `(N, T, ...)`): Rewards of the tokens.
        values_NT (`torch.Tensor` of shape `(N, T, ...)`): Values of the states.
        mask_NT (`torch.Tensor` of shape `(N, T, ...)`): 1 at tokens, 0 in padding.
        gamma (`float`, *optional*, defaults to `1.0`): The discount.
        lam (`float`, *optional*, defaults to `0.95`): Lambda.
    """
    mask_NT = mask_NT.to(values_NT.dtype)
    values_NT = values_NT * mask_NT
    next_NT = torch.cat([values_NT[:, 1:], torch.zeros_like(values_NT[:, :1])], dim=1)
    delta_NT = (rewards_NT * mask_NT + gamma * next_NT - values_NT) * mask_NT
    return discounted_sums(delta_NT, gamma * lam)


def td_lambda(
    rewards_NT: torch.Tensor, values_NT: torch.Tensor, mask_NT: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> torch.Tensor:
    """
    TD(lambda) returns, A_t + V_t with the advantages of [`gae`] -> targets (N, T), 0 in padding.

    `lam=1` gives the discounted sum of the rewards from t on (Monte Carlo), `lam=0` gives r_t + gamma V_t+1. The
    target of the last token is its reward. A target should have no gradient: pass detached values, or detach the
    result. Arguments are those of [`gae`].
    """
    return gae(rewards_NT, values_NT, mask_NT, gamma, lam) + values_NT * mask_NT.to(values_NT.dtype)
