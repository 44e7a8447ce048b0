# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The distribution of a token that a proxy accepts, as loops: one candidate, one order and one outcome at a time."""

import itertools
import math
from typing import Any

import torch

from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def oracle_q(p: list[float], forced_last: bool) -> list[float]:
    """Probability of each candidate, summed over all outcomes of all decisions."""
    q = [0.0] * len(p)
    for outcome in itertools.product([True, False], repeat=len(p)):
        probability = math.prod(x if yes else 1 - x for x, yes in zip(p, outcome, strict=True))
        taken = outcome.index(True) if any(outcome) else len(p) - 1 if forced_last else 0
        q[taken] += probability
    return q


def oracle_marginal(p: list[float], w: list[float], forced_last: bool) -> list[float]:
    """The mean of the induced distribution over all orders, weighted by their probability without replacement."""
    q = [0.0] * len(p)
    for order in itertools.permutations(range(len(p))):
        probability = math.prod(w[c] / math.fsum(w[d] for d in order[i:]) for i, c in enumerate(order))
        for c, x in zip(order, oracle_q([p[c] for c in order], forced_last), strict=True):
            q[c] += probability * x
    return q


@torch.no_grad()
def next_tokens(
    model: Any, proxy: Any, process: DecisionProcess, ids: list[int], *, greedy: bool = False
) -> dict[int, float]:
    """
    Probability of each next token of a text, of a proxy whose feature is `"context"`.

    With `greedy`, candidates are examined by decreasing probability, and those with p of at least a half are accepted.
    """
    logits = model(torch.tensor([ids])).logits[0, -1].tolist()
    penalty = process.repetition_penalty
    for token in set(ids):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    best = sorted(range(len(logits)), key=lambda token: -logits[token])[: process.top_k]
    weights = [math.exp((logits[token] - logits[best[0]]) / process.temperature) for token in best]
    total, before, kept = sum(weights), 0.0, []
    for token, weight in zip(best, weights, strict=True):
        if before < process.top_p * total and weight >= process.min_p * weights[0]:
            kept.append((token, weight))
        before += weight
    mass = sum(weight for _, weight in kept)
    kept = kept[: process.max_candidates or None]
    state = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    p = [sigmoid(_accept_logit(proxy, state, model.get_input_embeddings().weight[token])) for token, _ in kept]
    last = process.forced == "last"
    if greedy:
        asked = range(len(kept) - (last and len(kept) > 1))
        taken = next((c for c in asked if p[c] >= 0.5), len(kept) - 1 if last else 0)
        q = [float(c == taken) for c in range(len(kept))]
    elif process.order == "descending":
        q = oracle_q(p, last)
    else:
        q = oracle_marginal(p, [weight / mass for _, weight in kept], last)
    return {token: x for (token, _), x in zip(kept, q, strict=True)}


def _accept_logit(proxy: Any, state: torch.Tensor, embedding: torch.Tensor) -> float:
    """The actor's output for one candidate, whose feature is rounded to bfloat16 as in training."""
    norm, *linears = [layer for layer in proxy.actor if hasattr(layer, "weight")]
    parts = []
    for part in (state, embedding):
        rounded = part.to(torch.bfloat16).float()
        mean = float(rounded.mean())
        variance = float(((rounded - mean) ** 2).mean())
        parts.append((rounded - mean) / math.sqrt(variance + norm.eps))
    x = torch.cat(parts) * norm.weight + norm.bias
    for layer in linears[:-1]:
        x = layer.weight @ x + layer.bias
        x = x * torch.sigmoid(x)
    return float(linears[-1].weight[0] @ x + linears[-1].bias[0])


def greedy_completion(model: Any, proxy: Any, process: DecisionProcess, prompt: list[int], length: int) -> list[int]:
    """The completion of greedy decisions in descending order."""
    ids = list(prompt)
    for _ in range(length):
        found = next_tokens(model, proxy, process, ids, greedy=True)
        ids.append(max(found, key=lambda token: found[token]))
    return ids[len(prompt) :]
