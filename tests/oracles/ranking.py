# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The ranking losses of RRHF's family, slow and plain: the loss of one prompt, from p and score of each completion.

They loop over completions, pairs and places of a sorted list. p may be tensors, for gradients. Without ties they are
the equations of the papers; what a tie is comes from the docstrings in trl_ext/methods/rrhf/ranking_losses.py.
"""

import math

import torch


def rrhf(p, r, margin=0.0):
    """RRHF, Eq. (2)."""
    total = 0.0 * sum(p)
    for i in range(len(p)):
        for j in range(len(p)):
            if r[i] < r[j]:
                total = total + torch.relu(p[i] - p[j] + margin)
    return total


def plackett_luce(p, r, beta=1.0):
    """LiPO, Eq. (7): from the best completion to the worst, each against those after it that are not as good."""
    total = 0.0 * sum(p)
    best_first = sorted(range(len(p)), key=lambda i: -r[i])
    for place, k in enumerate(best_first):
        after = [torch.exp(beta * p[i]) for i in best_first[place + 1 :] if r[i] != r[k]]
        own = torch.exp(beta * p[k])
        total = total - torch.log(own / (own + sum(after)))
    return total


def listnet(p, r, beta=1.0):
    """ListNet, Eq. (3)."""
    total = 0.0 * sum(p)
    of_scores, of_model = sum(math.exp(x) for x in r), sum(torch.exp(beta * x) for x in p)
    for i in range(len(p)):
        total = total - math.exp(r[i]) / of_scores * torch.log(torch.exp(beta * p[i]) / of_model)
    return total


def lambda_dcg(p, r, beta=0.05):
    """LiPO, Eq. (8): ranks are places in a list sorted by s; where s is equal, the lower score comes first."""
    s = [beta * torch.as_tensor(x).item() for x in p]
    psi = [sum(1 / (1 + math.exp(r[j] - r[i])) for j in range(len(p))) / len(p) for i in range(len(p))]
    places = sorted(set(zip(s, r, strict=True)), key=lambda each: (-each[0], each[1]))
    entries = sorted(zip(s, r, strict=True), key=lambda each: (-each[0], each[1]))
    rank = {place: 1 + entries.index(place) for place in places}
    total = 0.0 * sum(p)
    for i in range(len(p)):
        for j in range(len(p)):
            if r[i] > r[j]:
                gain = abs((2 ** psi[i] - 1) - (2 ** psi[j] - 1))
                discount = [1 / math.log(1 + rank[s[n], r[n]]) for n in (i, j)]
                logistic = torch.log(1 + torch.exp(-(beta * p[i] - beta * p[j])))
                total = total + gain * abs(discount[0] - discount[1]) * logistic
    return total


def slic(p, r, beta=1.0, margin=1.0):
    """SLiC-HF, Eq. (4), for all pairs."""
    total = 0.0 * sum(p)
    for i in range(len(p)):
        for j in range(len(p)):
            if r[i] > r[j]:
                total = total + torch.relu(margin - beta * p[i] + beta * p[j])
    return total


def pro(p, r, beta=1.0):
    """PRO: places of a list sorted by score; the temperature of two completions is 1 / the difference of scores."""
    total = 0.0 * sum(p)
    best_first = sorted(range(len(p)), key=lambda i: -r[i])
    for place, k in enumerate(best_first):
        after = [i for i in best_first[place + 1 :] if r[i] != r[k]]
        if after:
            temperatures = [1 / (beta * (r[k] - r[i])) for i in after]
            own = torch.exp(p[k] / min(temperatures))
            rivals = sum(torch.exp(p[i] / t) for i, t in zip(after, temperatures, strict=True))
            total = total - torch.log(own / (own + rivals))
    return total


def qrpo(p, r, beta=0.1):
    """QRPO: the quantile is counted, and Z is the integral of exp(q / beta) over uniform q in closed form."""
    log_z = math.log(beta * (math.exp(1 / beta) - 1))
    total = 0.0 * sum(p)
    for i in range(len(p)):
        quantile = sum(other <= r[i] for other in r) / len(r)
        total = total + (quantile - beta * log_z - beta * p[i]) ** 2
    return total / len(p)


ORACLES = {
    "rrhf": rrhf,
    "plackett_luce": plackett_luce,
    "listnet": listnet,
    "lambda": lambda_dcg,
    "slic": slic,
    "pro": pro,
    "listwise_dpo": plackett_luce,
    "qrpo": qrpo,
}
