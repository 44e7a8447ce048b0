# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The equations of MyMethod, one function each.

Dimensions: B prompts, N completions in all; `group_N[i]` is the prompt (0 to B - 1) that completion i belongs to.
"""

import torch


def ranking_loss(s_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """
    Negative log-likelihood of the ranking by scores in the Plackett-Luce model (ListMLE, Xia et al. 2008) -> (B,).

    The best completion is chosen first, with probability proportional to exp(s), then the best of the others, and so
    on: sum_i log(exp(s_i) + sum_j exp(s_j)) - s_i, where j are the completions with a lower score than i. Completions
    with equal scores are not ranked among themselves.

    Args:
        s_N (`torch.Tensor` of shape `(N,)`): Utility of each completion under the model.
        scores_N (`torch.Tensor` of shape `(N,)`): Scores of the dataset or of the reward functions.
        group_N (`torch.Tensor` of shape `(N,)`): Prompt of each completion.
        num_prompts (`int`): B.
    """
    same_prompt_NN = group_N[:, None] == group_N[None, :]
    is_lower_NN = same_prompt_NN & (scores_N[None, :] < scores_N[:, None])
    rivals_NN = is_lower_NN | torch.eye(len(s_N), dtype=torch.bool, device=s_N.device)
    loss_N = torch.where(rivals_NN, s_N[None, :], -torch.inf).logsumexp(dim=1) - s_N
    return s_N.new_zeros(num_prompts).index_add(0, group_N, loss_N)


def best_completion(scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """Index of the completion with the highest score of each prompt -> (B,); the first of tied ones."""
    own_BN = group_N[None, :] == torch.arange(num_prompts, device=group_N.device)[:, None]
    return torch.where(own_BN, scores_N, -torch.inf).argmax(dim=1)
