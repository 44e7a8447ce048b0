# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Loss and reward normalisation of VAS (Han et al. 2024, arXiv 2405.06639). The TD(lambda) targets are in
`trl_ext/training/returns.py`.

Dimensions: N completions, T tokens of the longest completion, H heads.
"""

import torch


def value_loss(values_NTH: torch.Tensor, targets_NTH: torch.Tensor, mask_NTH: torch.Tensor) -> torch.Tensor:
    """
    Reference code: 0.5 (V - target)^2 for each token and head -> (N, T, H), 0 outside the mask.

    The targets are constants: no gradient flows into them.

    Args:
        values_NTH, targets_NTH (`torch.Tensor` of shape `(N, T, H)`): Predicted values and their targets.
        mask_NTH (`torch.Tensor` of shape `(N, T, H)`): True at tokens whose reward is known.
    """
    error_NTH = (values_NTH - targets_NTH.detach()).masked_fill(~mask_NTH, 0.0)  # unknown rewards are NaN
    return 0.5 * error_NTH.square()


def normalize(
    rewards_NTH: torch.Tensor, mask_NT: torch.Tensor, mean_H: torch.Tensor, std_H: torch.Tensor
) -> torch.Tensor:
    """
    Reconstruction: rewards whose sum over a completion is (R - mean) / std -> (N, T, H).

    Each reward is divided by the standard deviation; the mean is subtracted at the last token of a completion.

    Args:
        rewards_NTH (`torch.Tensor` of shape `(N, T, H)`): Rewards per token and head.
        mask_NT (`torch.Tensor` of shape `(N, T)`): True at tokens, False at padding.
        mean_H, std_H (`torch.Tensor` of shape `(H,)`): Mean and standard deviation of a completion's total reward R.
    """
    last_NT = mask_NT & ~torch.nn.functional.pad(mask_NT, (0, 1))[:, 1:]
    return (rewards_NTH - last_NT[..., None] * mean_H) / std_H
