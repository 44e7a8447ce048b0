# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The equation of ListMLE (Xia et al. 2008)."""

import torch


def plackett_luce(p_K: torch.Tensor, scores_K: torch.Tensor) -> torch.Tensor:
    """- sum_i log(exp p_(i) / sum_{j >= i} exp p_(j)) -> (), where (1), (2), ... are the completions, best first."""
    ordered_K = p_K[scores_K.argsort(descending=True, stable=True)]
    return (ordered_K.flip(0).logcumsumexp(0).flip(0) - ordered_K).sum()
