# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The losses of PSLE (Liu, Xu and Geng 2024, arXiv 2408.02599), one function each.

The paper describes the method in words; the formulas are reconstructed from them. Dimensions: B prompts, M pairs of a
plain and a guided completion of one prompt, `prompt_M[i]` is the prompt (0 to B - 1) of pair i. l(z) is the mean
log-probability per token of completion z given the plain prompt, in nats.
"""

import torch


def is_ranked(
    plain_rewards_M: torch.Tensor, guided_rewards_M: torch.Tensor, threshold: float, two_sided: bool = False
) -> torch.Tensor:
    """
    Reconstruction: a pair is ranked where r_guided - r_plain > threshold -> (M,), bool; other pairs are imitated.

    A gap that equals the threshold is not above it. `two_sided` (ours) takes |r_guided - r_plain|.
    """
    gaps_M = guided_rewards_M - plain_rewards_M
    return (gaps_M.abs() if two_sided else gaps_M) > threshold


def ranking_loss(
    plain_logps_M: torch.Tensor,
    guided_logps_M: torch.Tensor,
    plain_rewards_M: torch.Tensor,
    guided_rewards_M: torch.Tensor,
    margin: float = 0.0,
) -> torch.Tensor:
    """
    Reconstruction: max(0, l(worse) - l(better) + margin) -> (M,), where the completion of higher reward is better.

    In the pairs that the paper ranks, the guided completion is always the better one. The paper has no margin (0).
    """
    sign_M = torch.where(guided_rewards_M >= plain_rewards_M, 1.0, -1.0)
    return (sign_M * (plain_logps_M - guided_logps_M) + margin).clamp(min=0)


def sft_weights(
    plain_rewards_M: torch.Tensor, guided_rewards_M: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Reconstruction: w = softmax([r_plain, r_guided] / temperature)[0] -> (M,), the weight of the plain one."""
    return ((plain_rewards_M - guided_rewards_M) / temperature).sigmoid()


def weighted_sft_loss(
    plain_logps_M: torch.Tensor, guided_logps_M: torch.Tensor, plain_weights_M: torch.Tensor
) -> torch.Tensor:
    """Reconstruction: -(w l(plain) + (1 - w) l(guided)) -> (M,), in nats per token."""
    return -(plain_weights_M * plain_logps_M + (1 - plain_weights_M) * guided_logps_M)


def prompt_means(values_M: torch.Tensor, prompt_M: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """The mean over the pairs of each prompt -> (B,); 0 for a prompt without pairs."""
    sums_B = values_M.new_zeros(num_prompts).index_add(0, prompt_M, values_M)
    return sums_B / torch.bincount(prompt_M, minlength=num_prompts).clamp(min=1)


def decayed(threshold: float, decay: float) -> float:
    """Reconstruction: tau <- alpha tau after an iteration (as printed, the paper's update leaves tau as it is)."""
    return decay * threshold
