# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Equations of Proxy-RLHF: log-probabilities of decisions, the token probabilities that they induce, and the losses.

The paper gives no objective: it says "PPO" and describes the process. `logits` are those of accepting a candidate.

Dimensions: N positions, k candidates per position in the order in which they are examined, M decisions, B prompts,
K completions per prompt.
"""

import math

import torch
from torch.nn.functional import logsigmoid


def decision_logps(logits: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
    """
    Reconstruction: log p of accepted candidates and log (1 - p) of rejected ones, with p = sigmoid(logit).

    Args:
        logits (`torch.Tensor` of shape `(M,)`): Logits of accepting.
        accepted (`torch.Tensor` of shape `(M,)`): True for accepted candidates.
    """
    return logsigmoid(torch.where(accepted, logits, -logits))


def decision_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of each decision in nats, -p log p - (1 - p) log (1 - p), from logits of shape (M,)."""
    return -(logits.sigmoid() * logsigmoid(logits) + (-logits).sigmoid() * logsigmoid(-logits))


def induced_logps(logits_Nk: torch.Tensor, valid_Nk: torch.Tensor, forced_last: bool = False) -> torch.Tensor:
    """
    Reconstruction: log q(c_j | order) = log p_j + sum over i < j of log (1 - p_i), plus the forced case -> (N, k).

    If all candidates are rejected, the first one is taken, or with `forced_last` the last one, whose own p then does
    not matter. -inf at padding.

    Args:
        logits_Nk (`torch.Tensor` of shape `(N, k)`): Logits of accepting, in the order of examination.
        valid_Nk (`torch.Tensor` of shape `(N, k)`): True for candidates, which precede padding.
        forced_last (`bool`, *optional*, defaults to `False`): Whether the last candidate, instead of the first, is
            taken if none is accepted.
    """
    accept = logsigmoid(logits_Nk).masked_fill(~valid_Nk, -torch.inf)
    reject = logsigmoid(-logits_Nk).masked_fill(~valid_Nk, 0.0)
    before = reject.cumsum(1) - reject
    q = accept + before
    forced = valid_Nk.sum(1, keepdim=True) - 1 if forced_last else torch.zeros_like(valid_Nk[:, :1], dtype=torch.long)
    none = reject.sum(1, keepdim=True)
    return q.scatter(1, forced, torch.logaddexp(q.gather(1, forced), none))


def marginal_logps(logits_Nk: torch.Tensor, weights_Nk: torch.Tensor, forced_last: bool = False) -> torch.Tensor:
    r"""
    Reconstruction: log q(c) of each candidate under the sampled order, summed over all orders -> (N, k).

    Sampling without replacement is equivalent to a race: candidate j arrives at an exponential time of rate w_j. A
    candidate that arrived by time t was accepted with probability p_j, so that

        q(c) = p_c \int w_c e^{-w_c t} \prod_{j \ne c} (1 - p_j (1 - e^{-w_j t})) dt + P(none accepted) P(c is forced)

    where c is forced with probability w_c if the first candidate is (c arrives first), and otherwise with the
    probability that c arrives last, which is the same integral with p = 1 for arrival. With t = e^x the integrand is
    analytic and decays on both sides, so that the trapezoidal rule converges exponentially: steps of 1/2 leave a
    relative error of about 1e-8, below that of float32. -inf at padding.

    Args:
        logits_Nk (`torch.Tensor` of shape `(N, k)`): Logits of accepting, in any order.
        weights_Nk (`torch.Tensor` of shape `(N, k)`): Sampling probabilities of the candidates; rows sum to 1, 0 is
            padding.
        forced_last (`bool`, *optional*, defaults to `False`): Whether the last candidate, instead of the first, is
            taken if none is accepted.
    """
    device = torch.device("cpu") if logits_Nk.device.type == "mps" else logits_Nk.device  # MPS has no float64
    logits, weights = (x.to(device, torch.float64) for x in (logits_Nk, weights_Nk))
    padding = weights == 0
    # From e^-30 times the mean arrival time of a candidate of weight 1 to e^5 times that of the least weight in
    # float32, e^-88; the rest is below 1e-13.
    x = torch.arange(-60, 187, dtype=weights.dtype, device=weights.device) / 2
    elapsed = weights[:, :, None] * x.exp()  # (N, k, nodes)
    density = weights.clamp(min=1e-300).log()[:, :, None] + x - elapsed  # log of w t e^{-w t}, where dt = t dx

    def integral(factors: torch.Tensor) -> torch.Tensor:
        logs = factors.clamp(min=1e-300).log().masked_fill(padding[:, :, None], 0.0)
        return (density + logs.sum(1, keepdim=True) - logs).logsumexp(2) - math.log(2)

    # 1 - p (1 - e^{-w t}), without cancellation where p is near 1
    not_accepted = (-logits).sigmoid()[:, :, None] + logits.sigmoid()[:, :, None] * (-elapsed).exp()
    first = logsigmoid(logits) + integral(not_accepted)
    none = logsigmoid(-logits).masked_fill(padding, 0.0).sum(1, keepdim=True)
    forced = integral(-torch.expm1(-elapsed)) if forced_last else weights.log()
    return torch.logaddexp(first, none + forced).masked_fill(padding, -torch.inf).to(logits_Nk)


def repeated_logps(logits_Nk: torch.Tensor, weights_Nk: torch.Tensor, proposals_N: torch.Tensor) -> torch.Tensor:
    r"""
    Reconstruction: log q(c) of all candidates where rejected ones may be proposed again, over all proposals -> (N, k).

    Each of m proposals is sampled with replacement, so that it is rejected with probability r = sum_j w_j (1 - p_j)
    whatever the others were:

        q(c) = w_c p_c sum_{i < m - 1} r^i  +  w_c r^{m-1}

    The last term is that of the last proposal, which is taken after m - 1 rejections. Where the first one is taken
    after m rejections, the sum has a further term, w_c p_c r^{m-1}, and the last one is w_c (1 - p_c) r^{m-1}: as much
    together.

    Args:
        logits_Nk (`torch.Tensor` of shape `(N, k)`): Logits of accepting, in any order.
        weights_Nk (`torch.Tensor` of shape `(N, k)`): Sampling probabilities of the candidates; rows sum to 1, 0 is
            padding.
        proposals_N (`torch.Tensor` of shape `(N,)`): m of each row, at least 1.
    """
    device = torch.device("cpu") if logits_Nk.device.type == "mps" else logits_Nk.device  # MPS has no float64
    logits, weights, m = (x.to(device, torch.float64) for x in (logits_Nk, weights_Nk, proposals_N[:, None]))
    log_w = weights.log()
    log_r = (log_w + logsigmoid(-logits)).logsumexp(1, keepdim=True).clamp(min=-1e4)  # so that 0 times it is 0
    powers = torch.arange(int(m.max()), device=device)
    terms = (powers * log_r).masked_fill(powers >= m - 1, -torch.inf)
    accepted = logsigmoid(logits) + terms.logsumexp(1, keepdim=True)
    return (log_w + torch.logaddexp(accepted, (m - 1) * log_r)).to(logits_Nk)


def policy_loss(
    logps_M: torch.Tensor, old_logps_M: torch.Tensor, advantages_M: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """
    PPO (arXiv 1707.06347), Eq. (7), negated: -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A) -> (M,).

    Here ratio = exp(log p - old log p). Without clipping, the gradient at ratio 1 is that of REINFORCE.

    Args:
        logps_M, old_logps_M (`torch.Tensor` of shape `(M,)`): Log-probabilities of the decisions, now and when they
            were made.
        advantages_M (`torch.Tensor` of shape `(M,)`): Advantages A.
        cliprange (`float`): Clip range (`0`: no clipping).
    """
    ratio = (logps_M - old_logps_M).exp()
    loss = -ratio * advantages_M
    if not cliprange:
        return loss
    return torch.maximum(loss, -ratio.clamp(1 - cliprange, 1 + cliprange) * advantages_M)


def value_loss(
    values_M: torch.Tensor, old_values_M: torch.Tensor, returns_M: torch.Tensor, cliprange_value: float
) -> torch.Tensor:
    """
    TRL's PPO: 0.5 max((V - R)^2, (clip(V, V_old -+ cliprange_value) - R)^2) -> (M,).

    Args:
        values_M, old_values_M (`torch.Tensor` of shape `(M,)`): Values V, now and when the decisions were made.
        returns_M (`torch.Tensor` of shape `(M,)`): Returns R.
        cliprange_value (`float`): Clip range (`0`: no clipping).
    """
    loss = (values_M - returns_M).square()
    if cliprange_value:
        clipped = old_values_M + (values_M - old_values_M).clamp(-cliprange_value, cliprange_value)
        loss = torch.maximum(loss, (clipped - returns_M).square())
    return 0.5 * loss


def leave_one_out(scores_BK: torch.Tensor) -> torch.Tensor:
    """
    REINFORCE leave-one-out (arXiv 2402.14740): score - mean score of the prompt's other completions -> (B, K).

    NaN scores are excluded and stay NaN. A prompt's only score becomes NaN.

    Args:
        scores_BK (`torch.Tensor` of shape `(B, K)`): Scores of the completions.
    """
    known = ~scores_BK.isnan()
    others = (known.sum(1, keepdim=True) - 1).clamp(min=0)
    total = scores_BK.nansum(1, keepdim=True)
    return scores_BK - (total - scores_BK) / others  # 0 / 0 is NaN
