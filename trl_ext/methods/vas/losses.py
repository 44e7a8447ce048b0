# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What VAS learns (Han et al. 2024, arXiv 2405.06639), one function each. The targets are in
`trl_ext/training/returns.py`.

Letters: N completions, T tokens of the longest, H heads.
"""

import torch


def value_loss(values_NTH: torch.Tensor, targets_NTH: torch.Tensor, mask_NTH: torch.Tensor) -> torch.Tensor:
    """
    Reference code: 0.5 (V - target)^2 for each token and head -> (N, T, H), 0 outside the mask.

    The targets are constants: no gradient flows into them.
    """
    error_NTH = (values_NTH - targets_NTH.detach()).masked_fill(~mask_NTH, 0.0)  # what is not known is NaN
    return 0.5 * error_NTH.square()


def normalize(
    rewards_NTH: torch.Tensor, mask_NT: torch.Tensor, mean_H: torch.Tensor, std_H: torch.Tensor
) -> torch.Tensor:
    """
    Reconstruction: rewards whose sum over a completion is (R - mean) / std -> (N, T, H).

    Each reward is divided by the deviation, and the last token of a completion pays the mean.
    """
    last_NT = mask_NT & ~torch.nn.functional.pad(mask_NT, (0, 1))[:, 1:]
    return (rewards_NTH - last_NT[..., None] * mean_H) / std_H
