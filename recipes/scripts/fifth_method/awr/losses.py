# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The equations of advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177), for whole completions."""

import torch


def weights(scores_K: torch.Tensor, temperature: float, max_weight: float) -> torch.Tensor:
    """
    Algorithm 1: w = exp((R - V) / temperature), at most `max_weight` -> (K,).

    V, which the paper fits, is here the mean score of the prompt's completions.
    """
    return ((scores_K - scores_K.mean()) / temperature).exp().clamp(max=max_weight)


def weighted_nll(sum_logps_K: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """Algorithm 1: - E[w log pi(y | x)] over the completions y of a prompt x -> ()."""
    return -(weights_K * sum_logps_K).mean()
