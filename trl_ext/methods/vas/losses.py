# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Loss and reward normalisation of VAS (Han et al. 2024, arXiv 2405.06639). The TD(lambda) targets are in
`trl_ext/training/returns.py`.

Dimensions: N completions, T tokens of the longest completion, H heads, A atoms of a categorical head.
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


def two_hot(targets_NTH: torch.Tensor, atoms_HA: torch.Tensor) -> torch.Tensor:
    """
    Reconstruction: probabilities on the two atoms around a target whose mean is the target -> (N, T, H, A).

    A target beyond the outermost atoms has all probability on the nearest one.

    Args:
        targets_NTH (`torch.Tensor` of shape `(N, T, H)`): Targets.
        atoms_HA (`torch.Tensor` of shape `(H, A)`): Equally distant numbers of each head, from the lowest.
    """
    last = atoms_HA.shape[1] - 1
    low_H, distance_H = atoms_HA[:, 0], (atoms_HA[:, -1] - atoms_HA[:, 0]) / last
    place_NTH = ((targets_NTH - low_H) / distance_H).clamp(0, last)
    columns_A = torch.arange(last + 1, device=targets_NTH.device)
    return (1 - (place_NTH[..., None] - columns_A).abs()).clamp(min=0)


def categorical_loss(
    logits_NTHA: torch.Tensor, targets_NTH: torch.Tensor, mask_NTH: torch.Tensor, atoms_HA: torch.Tensor
) -> torch.Tensor:
    """
    Reconstruction: cross-entropy of the distribution with the two-hot target -> (N, T, H), 0 outside the mask.

    The targets are constants: no gradient flows into them.

    Args:
        logits_NTHA (`torch.Tensor` of shape `(N, T, H, A)`): Unnormalised log-probabilities of the atoms.
        targets_NTH (`torch.Tensor` of shape `(N, T, H)`): Targets of the values.
        mask_NTH (`torch.Tensor` of shape `(N, T, H)`): True at tokens whose reward is known.
        atoms_HA (`torch.Tensor` of shape `(H, A)`): The atoms.
    """
    goal_NTHA = two_hot(targets_NTH.detach().masked_fill(~mask_NTH, 0.0), atoms_HA)  # unknown rewards are NaN
    return -(goal_NTHA * logits_NTHA.log_softmax(-1)).sum(-1).masked_fill(~mask_NTH, 0.0)


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
