# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Ranking losses that can take the place of Eq. (2) of RRHF, one function each.

All have the signature of [`~trl_ext.methods.rrhf.losses.ranking_loss`]: `(p_N, scores_N, group_N, num_prompts)`, and
by keyword the `beta` of their equation. N completions of B prompts have scores r; `group_N[i]` is the prompt (0 to
B - 1) that completion i belongs to. p is the log-probability of a completion, or its log-ratio to a reference, as a
sum over tokens or a mean: what each equation has is in its docstring, and the caller divides. s = beta * p. The result
has a loss for each prompt, (B,). It does not depend on the order of completions, nor on other prompts.
"""

import math

import torch
from torch.nn.functional import softplus

from .losses import ranking_loss, worse_better_pairs


def plackett_luce_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 1.0
) -> torch.Tensor:
    """
    Eq. (7) of LiPO (arXiv 2402.01878): the list MLE of Xia et al. 2008, -log P(ranking by the scores) under a
    Plackett-Luce model with the strengths exp(s) -> (B,).

    A sum over k of log(exp(s_k) + sum of exp(s_i) over i with r_i < r_k) - s_k. Xia et al. leave open what s is; here
    p is the mean over tokens, as in RRHF, and beta is 1.

    The equation has no ties. Here completions with equal scores are no rivals of each other, so a tie adds nothing. A
    prompt with one completion has loss 0.
    """
    s_N = beta * p_N
    worse_NN = worse_better_pairs(scores_N, group_N).T  # true at [k, i] where r_i < r_k
    return _per_prompt(_log_sum_exp(s_N, worse_NN | _identity(s_N)) - s_N, group_N, num_prompts)


def listwise_dpo_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 0.1
) -> torch.Tensor:
    """
    Eq. (7) of LiPO (arXiv 2402.01878) with s as in its Eq. (2), which is DPO's loss for rankings of K completions
    (arXiv 2305.18290, appendix A.3) -> (B,).

    s = beta * log(pi(y | x) / pi_0(y | x)), a sum over tokens: p has to be the log-ratio to the reference. Where K = 2
    it is DPO's loss of a pair. beta is DPO's, 0.1. Ties and single completions as in [`plackett_luce_loss`].
    """
    return plackett_luce_loss(p_N, scores_N, group_N, num_prompts, beta=beta)


def listnet_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 1.0
) -> torch.Tensor:
    """
    Eq. (3) of ListNet (Cao et al. 2007): cross entropy of the top-one probabilities of scores and model -> (B,).

    - sum over i of softmax(r)_i * log softmax(s)_i, each softmax over the completions of the prompt. It uses how far
      scores are apart: multiply them to sharpen what the model learns. p is the mean over tokens and beta 1, ours.

    Equal scores have equal targets, which is a loss: it is least where s = r up to a constant, and its value there is
    the entropy of the targets. A prompt with one completion has loss 0.
    """
    own_NN = _same_prompt(group_N)
    s_N, r_N = beta * p_N, scores_N.to(p_N.dtype)
    targets_N = (r_N - _log_sum_exp(r_N, own_NN)).exp()
    return _per_prompt(targets_N * (_log_sum_exp(s_N, own_NN) - s_N), group_N, num_prompts)


def lambda_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 0.05
) -> torch.Tensor:
    """
    Eq. (8) of LiPO (arXiv 2402.01878), LiPO-lambda: logistic losses of pairs, weighted by what swapping the two would
    change of the DCG -> (B,).

    The sum over pairs with r_i < r_j of |G_i - G_j| * |1 / D_i - 1 / D_j| * log(1 + exp(s_i - s_j)), with the gain
    G = 2^psi - 1, the discount D = log(1 + rank), and the rank (from 1) of a completion by s. The weights have no
    gradient. s = beta * log(pi(y | x) / pi_0(y | x)), a sum over tokens, with the paper's beta, 0.05; without a
    reference s = beta * log pi(y | x).

    psi_i is the mean over the K completions of the probability that i wins, for which the paper asks a pairwise reward
    model. Here it is sigmoid(r_i - r_j), as for a reward model of Bradley and Terry; where scores are far apart, that
    is the paper's form for human rankings, 1 or 0.

    Ties add nothing. Completions with equal s are ranked worst first: with a reference all s are 0 when training
    begins, and equal ranks would leave no gradient. A prompt with one completion has loss 0.
    """
    s_N, own_NN = beta * p_N, _same_prompt(group_N)
    lead_NN = scores_N[:, None] - scores_N[None, :]
    psi_N = (torch.sigmoid(lead_NN.to(p_N.dtype)) * own_NN).sum(dim=1) / own_NN.sum(dim=1)
    ahead_NN = s_N[None, :] - s_N[:, None]
    above_NN = own_NN & ((ahead_NN > 0) | ((ahead_NN == 0) & (lead_NN > 0)))  # [i, j]: j is ranked above i
    inverse_discount_N = 1 / torch.log(2.0 + above_NN.sum(dim=1).to(p_N.dtype))
    gain_N = 2**psi_N - 1
    weights_NN = _distance(gain_N) * _distance(inverse_discount_N) * worse_better_pairs(scores_N, group_N)
    return _per_prompt((weights_NN * softplus(-ahead_NN)).sum(dim=1), group_N, num_prompts)


def slic_loss(
    p_N: torch.Tensor,
    scores_N: torch.Tensor,
    group_N: torch.Tensor,
    num_prompts: int,
    *,
    beta: float = 1.0,
    margin: float = 1.0,
) -> torch.Tensor:
    """
    Eq. (4) of SLiC-HF (arXiv 2305.10425), its first term: max(0, margin - s_j + s_i), here summed over all pairs with
    r_i < r_j, as in Eq. (6) of LiPO -> (B,).

    p is the sum over tokens. The equation has no beta (1) and no reference; with one and LiPO's beta, 0.05, it is
    LiPO's "pair-hinge", SLiC-norm. The margin, delta, is LiPO's 1, in units of s. The second term of the equation,
    SFT, is `sft_weight`'s.

    It is RRHF's loss with a margin, on sums. Ties add nothing; a prompt with one completion has loss 0.
    """
    return ranking_loss(beta * p_N, scores_N, group_N, num_prompts, margin)


def pro_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 1.0
) -> torch.Tensor:
    """
    Reference code: PRO (arXiv 2306.17492): list MLE in which each term has temperatures from the scores -> (B,).

    For each k a term -log(exp(p_k / T_kk) / (exp(p_k / T_kk) + sum of exp(p_i / T_ki) over i with r_i < r_k)), with
    1 / T_ki = beta * (r_k - r_i) and T_kk the least T_ki, so that a completion that is much worse is pushed away more.
    p is the mean over tokens. beta is 1 in the paper, whose scores are those of its reward model: a factor for scores
    on another scale. The paper's SFT term is `sft_weight`'s.

    The temperatures divide p, not differences of p, so it matters where p is 0: it is meant for log-probabilities, not
    for log-ratios to a reference.

    The paper has no ties, where T would be infinite. Here completions with equal scores are no rivals of each other:
    a tie adds nothing. A prompt with one completion has loss 0.
    """
    worse_NN = worse_better_pairs(scores_N, group_N).T  # true at [k, i] where r_i < r_k
    sharpness_NN = beta * (scores_N[:, None] - scores_N[None, :]).to(p_N.dtype) * worse_NN  # 1 / T
    own_N = p_N * sharpness_NN.amax(dim=1)
    terms_NN = torch.where(worse_NN, p_N[None, :] * sharpness_NN, -torch.inf)
    terms_NN = torch.where(_identity(p_N), own_N[:, None], terms_NN)
    return _per_prompt(terms_NN.logsumexp(dim=1) - own_N, group_N, num_prompts)


def qrpo_loss(
    p_N: torch.Tensor, scores_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int, *, beta: float = 0.1
) -> torch.Tensor:
    """
    Reference code: QRPO (arXiv 2507.08068): the mean over the K completions of
    (R_i - beta * log Z - beta * log(pi(y_i | x) / pi_0(y_i | x)))^2 -> (B,).

    R_i is the quantile of the completion's reward, the share of r_j with r_j <= r_i. Quantiles are uniform on [0, 1],
    so Z = beta * (exp(1 / beta) - 1) is exact (the reference code leaves out the -1). p has to be the log-ratio to the
    reference, a sum over tokens. beta 0.1 is DPO's: the paper tunes it for each model.

    Simplified: the paper's quantile is among rewards of separate samples of the reference; here it is among the scores
    of the same prompt, the completion's own included. With few completions R_i is therefore coarse, on average
    (K + 1) / 2K where the equation for Z has 1/2, and once the policy has moved it is not the reference's.

    It is pointwise: no pair is compared. Tied completions have the same R, which is the highest of theirs; a prompt
    with one completion has R = 1, so its loss is not 0, and raises that completion until the log-ratio is
    (1 - beta * log Z) / beta.
    """
    own_NN = _same_prompt(group_N)
    count_N = own_NN.sum(dim=1).to(p_N.dtype)
    quantile_N = (own_NN & (scores_N[None, :] <= scores_N[:, None])).sum(dim=1) / count_N
    log_z = math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))  # exp(1 / beta) would overflow
    return _per_prompt((quantile_N - beta * log_z - beta * p_N) ** 2 / count_N, group_N, num_prompts)


def _same_prompt(group_N: torch.Tensor) -> torch.Tensor:
    return group_N[:, None] == group_N[None, :]


def _identity(values_N: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(values_N), dtype=torch.bool, device=values_N.device)


def _distance(values_N: torch.Tensor) -> torch.Tensor:
    """|v_i - v_j| -> (N, N)."""
    return (values_N[:, None] - values_N[None, :]).abs()


def _log_sum_exp(values_N: torch.Tensor, mask_NN: torch.Tensor) -> torch.Tensor:
    """log of the sum of exp(v_i) over i with `mask_NN[k, i]` -> (N,). Each k has one."""
    return torch.where(mask_NN, values_N[None, :], -torch.inf).logsumexp(dim=1)


def _per_prompt(values_N: torch.Tensor, group_N: torch.Tensor, num_prompts: int) -> torch.Tensor:
    return values_N.new_zeros(num_prompts).index_add(0, group_N, values_N)
