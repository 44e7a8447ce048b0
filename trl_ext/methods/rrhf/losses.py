# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The equations of RRHF (Yuan et al. 2023, arXiv 2304.05302, section 3), one function each.

Dimensions: B prompts, N completions in all, `group_N[i]` is the prompt (0 to B - 1) that completion i belongs to.
"""

import torch


def normalized_logps(sum_logps_N: torch.Tensor, lengths_N: torch.Tensor, length_penalty: float = 1.0) -> torch.Tensor:
    """Eq. (1): p_i = sum_t log P(y_i,t | x, y_i,<t) / |y_i|^length_penalty -> (N,), in nats (per token, at 1.0)."""
    return sum_logps_N / lengths_N.clamp(min=1) ** length_penalty


def worse_better_pairs(scores_N: torch.Tensor, group_N: torch.Tensor) -> torch.Tensor:
    """The pairs of Eq. (2) -> (N, N), true at [i, j] where i and j complete one prompt and r_i < r_j, ties not."""
    return (group_N[:, None] == group_N[None, :]) & (scores_N[:, None] < scores_N[None, :])


def ranking_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, margin: float = 0.0
) -> torch.Tensor:
    """
    Eq. (2): sum over the pairs of a prompt with r_i < r_j of max(0, p_i - p_j + margin) -> (B,).

    The paper has no margin (0). Ties add nothing; a prompt with one completion has loss 0.
    """
    violations_NN = (p_N[:, None] - p_N[None, :] + margin).clamp(min=0) * worse_better_pairs(scores_N, group_N)
    return p_N.new_zeros(num_prompts).index_add(0, group_N, violations_NN.sum(dim=1))


def best_completion(scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """Eq. (3): i' = argmax_i r_i -> (B,), an index into the N completions; the first of tied ones."""
    own_BN = group_N[None, :] == torch.arange(num_prompts, device=group_N.device)[:, None]
    scores_BN = torch.where(own_BN, scores_N, -torch.inf)
    is_best_BN = own_BN & (scores_BN == scores_BN.amax(dim=1, keepdim=True))
    return is_best_BN.long().cumsum(dim=1).eq(0).sum(dim=1)


def sft_loss(
    sum_logps_N: torch.Tensor, lengths_N: torch.Tensor, best_B: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """
    Eq. (4): - sum_t log P(y_i',t | x, y_i',<t) for the best completion i' of each prompt -> (B,), in nats.

    `reduction="sum"` is the equation; `"mean"` divides by the length of i'.
    """
    nll_B = -sum_logps_N[best_B]
    return nll_B / lengths_N[best_B].clamp(min=1) if reduction == "mean" else nll_B


def order(values_N: torch.Tensor) -> torch.Tensor:
    """
    How values order two completions -> (N, N): 1 at [i, j] where value i is above value j, -1 where it is below, 0 for
    a tie.

    Values that differ by rounding alone are tied: equal completions of two rows of a batch may differ in their last
    bits. float32 has 7 digits, of which sums over some hundred tokens keep 5.
    """
    difference_NN = values_N[:, None] - values_N[None, :]
    rounding_NN = 1e-5 * torch.maximum(values_N.abs()[:, None], values_N.abs()[None, :])
    return torch.sign(difference_NN) * (difference_NN.abs() > rounding_NN)


def pair_accuracy(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Section 4.5: how often p orders two completions as their scores do -> (correctly ordered pairs, pairs).

    Both are sums, so that accuracies of batches can be pooled; a tie in p counts as a half.
    """
    pairs_NN = worse_better_pairs(scores_N, group_N)
    right_NN = 0.5 - 0.5 * order(p_N)  # of completion j over i
    return (right_NN * pairs_NN).sum().float(), pairs_NN.sum().float()


def kendall_tau(p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """
    Kendall's tau-b between p and scores -> (B,), from -1 to 1; NaN for a prompt whose scores (or p) are all tied.

    tau-b = (concordant - discordant) / sqrt(pairs untied in p x pairs untied in scores).
    """
    own_NN = group_N[:, None] == group_N[None, :]
    p_NN = order(p_N) * own_NN
    scores_NN = torch.sign(scores_N[:, None] - scores_N[None, :]) * own_NN

    def per_prompt(values_NN: torch.Tensor) -> torch.Tensor:
        return p_N.new_zeros(num_prompts).index_add(0, group_N, values_NN.sum(dim=1).to(p_N.dtype))

    return per_prompt(p_NN * scores_NN) / (per_prompt(p_NN.abs()) * per_prompt(scores_NN.abs())).sqrt()
