# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Guided decoding of the literature as plain loops: next-token distributions of one text, without padding or cache."""

import math
from typing import Any

import torch


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> list[float]:
    return model(torch.tensor([ids])).logits[0, -1].tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def label_logits(classifier: Any, ids: list[int]) -> list[float]:
    """Logits of all labels for a text; of a token classifier those of the last token."""
    pad, classifier.config.pad_token_id = classifier.config.pad_token_id, None  # the last token may be that of padding
    logits = classifier(torch.tensor([ids])).logits[0]
    classifier.config.pad_token_id = pad
    return (logits[-1] if logits.dim() == 2 else logits).tolist()  # type: ignore[no-any-return]


def normalised(weights: dict[int, float], vocabulary: int) -> list[float]:
    total = sum(weights.values())
    return [weights.get(a, 0.0) / total for a in range(vocabulary)]


def probabilities(model: Any, ids: list[int]) -> list[float]:
    logits = logits_of(model, ids)
    highest = max(logits)
    return normalised({a: math.exp(x - highest) for a, x in enumerate(logits)}, len(logits))


def likeliest(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda a: -scores[a])[:k]


def reward_search(llm: Any, reward: Any, ids: list[int], k: int, weight: float, label: int = 0) -> list[float]:
    """ARGS (2402.01694) and RAD (2310.09520): softmax over the k likeliest tokens of logit + weight r(text, token)."""
    logits = logits_of(llm, ids)
    total = {a: logits[a] + weight * label_logits(reward, [*ids, a])[label] for a in likeliest(logits, k)}
    highest = max(total.values())
    return normalised({a: math.exp(x - highest) for a, x in total.items()}, len(logits))


def fudge(llm: Any, classifier: Any, ids: list[int], k: int, label: int) -> list[float]:
    """FUDGE (2104.05218): P(token) P(attribute | text, token) among the k likeliest tokens."""
    p = probabilities(llm, ids)
    weights = {}
    for a in likeliest(p, k):
        logits = label_logits(classifier, [*ids, a])
        exps = [math.exp(x - max(logits)) for x in logits]
        attribute = exps[label] / sum(exps) if len(exps) > 1 else 1 / (1 + math.exp(-logits[0]))
        weights[a] = p[a] * attribute
    return normalised(weights, len(p))


def controlled_decoding(llm: Any, value: Any, ids: list[int], weight: float) -> list[float]:
    """CD (2310.17022), token by token: p(token) exp(weight V(text, token)); `value` is a function of ids."""
    p = probabilities(llm, ids)
    values = [value([*ids, a]) for a in range(len(p))]
    highest = max(values)
    return normalised({a: p[a] * math.exp(weight * (values[a] - highest)) for a in range(len(p))}, len(p))


def ratio(llm: Any, expert: Any, anti_expert: Any, ids: list[int], weight: float) -> list[float]:
    """Proxy-tuning (2401.08565), DExperts, EFT; GenARM (2410.08193) without an anti-expert."""
    p, up = probabilities(llm, ids), probabilities(expert, ids)
    down = probabilities(anti_expert, ids) if anti_expert is not None else [1.0] * len(p)
    return normalised({a: p[a] * (up[a] / down[a]) ** weight for a in range(len(p))}, len(p))


def contrastive(llm: Any, amateur: Any, ids: list[int], alpha: float) -> list[float]:
    """Contrastive decoding (2210.15097): p(token) / p_amateur(token) where p(token) >= alpha max p."""
    p, q = probabilities(llm, ids), probabilities(amateur, ids)
    return normalised({a: p[a] / q[a] for a in range(len(p)) if p[a] >= alpha * max(p)}, len(p))
