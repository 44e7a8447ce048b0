# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Slow and plain: log-probabilities by a loop over full logits, and flash attention in a few lines of Python."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.logprobs.shared_prefix import attention_inputs


# B prompts of lengths 5, 1, 2 and 9 with ragged groups, K = 1 among them, and completions of one token.
PROMPTS = [[5, 9, 3, 7, 4], [6], [8, 2], [3, 5, 7, 9, 11, 2, 4, 6, 8]]
COMPLETIONS = [
    [[10, 11, 12, 13], [14], [15, 16, 17, 18, 19, 20, 21], [10, 11, 12, 13]],
    [[22, 23], [24, 25, 26]],
    [[27, 28, 29, 30, 31]],
    [[32, 33], [34], [35, 36, 37, 38]],
]
# Without the prompt of one token, which leaves flash attention nothing to share.
LONG_PROMPTS = [p for p in PROMPTS if len(p) > 1]
LONG_COMPLETIONS = [c for p, c in zip(PROMPTS, COMPLETIONS, strict=True) if len(p) > 1]


def flat(groups):
    return [item for group in groups for item in group]


def token_logps(model, prompt, completion):
    """log P of each token of a completion, one sequence at a time and from all logits, in float64."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    logits = logits[-len(prompt + completion) :]  # an adapter may put virtual tokens in front
    log_probs = logits.double().log_softmax(dim=-1)
    return torch.stack([log_probs[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def sums_by_loop(model, prompts, completions):
    return torch.stack(
        [token_logps(model, p, c).sum() for p, group in zip(prompts, completions, strict=True) for c in group]
    )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def visible_keys(form, rows):
    """(rows, L, L), true where a position may attend, from the arguments of the model."""
    length = rows["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if form == "separate":
        return causal & rows["attention_mask"][:, None, :].bool()
    if form == "dense":
        return attention_inputs(rows, "sdpa", torch.float32, torch.device("cpu"))["attention_mask"][:, 0]
    plan = attention_inputs(rows, CASCADE, torch.float32, torch.device("cpu"))["prefix_plan"]
    visible = torch.zeros(1, length, length, dtype=torch.bool)
    segments, prompts = plan.inside.cu_keys.tolist(), plan.across.cu_keys.tolist()
    for start, end in pairwise(segments):
        visible[0, start:end, start:end] = causal[start:end, start:end]
    blocks = [plan.prompt_tokens + start for start in plan.across.cu_queries.tolist()]
    for b in range(len(prompts) - 1):
        visible[0, blocks[b] : blocks[b + 1], prompts[b] : prompts[b + 1]] = True
    return visible


def _scores(q, k, span, i, scale):
    queries = slice(span.cu_queries[i], span.cu_queries[i + 1])
    keys = slice(span.cu_keys[i], span.cu_keys[i + 1])
    assert queries.stop - queries.start <= span.max_queries
    assert keys.stop - keys.start <= span.max_keys
    scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys]) * scale
    if span.causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return queries, keys, scores


def flash_forward(q, k, v, span, scale):
    """`trl_ext.logprobs.prefix_attention.flash_forward` in Python, for machines without a GPU."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out, lse = torch.zeros_like(q), q.new_full((q.shape[1], q.shape[0]), -torch.inf)
    for i in range(len(span.cu_queries) - 1):
        queries, keys, scores = _scores(q, k, span, i, scale)
        lse[:, queries] = scores.logsumexp(dim=-1)
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v[keys])
    return out, lse, [torch.zeros(2), torch.zeros(2)]


def flash_backward(grad, q, k, v, out, lse, span, state, scale):
    """
    `trl_ext.logprobs.prefix_attention.flash_backward` in Python. Like the kernels, it recomputes probabilities as
    e^(score - lse).
    """
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(len(span.cu_queries) - 1):
        queries, keys, scores = _scores(q, k, span, i, scale)
        p = (scores - lse[:, queries, None]).exp()
        dp = torch.einsum("qhd,khd->hqk", grad[queries], v[keys])
        ds = p * (dp - (grad[queries] * out[queries]).sum(dim=-1).T[..., None]) * scale
        dv[keys] += torch.einsum("hqk,qhd->khd", p, grad[queries])
        dq[queries] += torch.einsum("hqk,khd->qhd", ds, k[keys])
        dk[keys] += torch.einsum("hqk,qhd->khd", ds, q[queries])
    return dq, *(x.unflatten(1, (kv_heads, group)).sum(dim=2) for x in (dk, dv))


class Wrapper(DistributedDataParallel):
    """A wrapper like that of distributed training, which only calls the model."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def train(self, mode=True):
        return nn.Module.train(self, mode)
