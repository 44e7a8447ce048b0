# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Guided decoding as plain loops: one sequence, one candidate and one token at a time, without padding or KV cache."""

from typing import Any

import torch
from conftest import make_model

from trl_ext import ValueModel
from trl_ext.data.tokenization import left_padded


PROMPTS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17], [20, 21]]
K = 6  # candidates
EOS = 1

Guides = list[tuple[ValueModel, int, float]]  # (value model, head, beta)


def make_value(form: str, policy: Any, heads: tuple[str, ...] = ("reward",), seed: int = 7) -> ValueModel:
    """A value model of a form, whose values differ by a few units between candidates."""
    if form == "policy":
        return randomize(ValueModel.on_policy(policy, heads, form=form, action_rank=3), seed)
    backbone = make_model(policy.config.vocab_size, seed=seed)
    return randomize(ValueModel.from_backbone(backbone, heads, form=form, action_rank=3), seed)


def randomize(model: ValueModel, seed: int = 7) -> ValueModel:
    """Random weights for heads and adapters, which start at zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model.head.weight.normal_(std=0.1)
        model.head.bias.normal_()
        if model.config.form != "state":
            model.action.query.weight.normal_(std=0.3)
            model.action.actions.weight.normal_(std=0.5)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@torch.no_grad()
def state_value(model: ValueModel, ids: list[int], head: int = 0) -> float:
    """w h + b, with the hidden state h at the last token of a text."""
    hidden = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(model.head.weight[head] @ hidden + model.head.bias[head])


@torch.no_grad()
def token_value(model: ValueModel, ids: list[int], token: int, head: int = 0) -> float:
    """Value of a text with a token appended: V(s + a), or v(h) + sum over r of u_r (W h)_r."""
    if model.config.form == "state":
        return state_value(model, [*ids, token], head)
    hidden = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    value = float(model.head.weight[head] @ hidden + model.head.bias[head])
    rank = model.config.action_rank
    for r in range(rank):
        query = float(model.action.query.weight[head * rank + r] @ hidden)
        value += float(model.action.actions.weight[token, r]) * query
    return value


@torch.no_grad()
def guided_logits(policy: Any, guides: Guides, ids: list[int], k: int = K) -> torch.Tensor:
    """Logits of the next token: beta times the centred value is added to those of the k likeliest."""
    logits = policy(torch.tensor([ids])).logits[0, -1].clone()
    candidates = sorted(range(len(logits)), key=lambda a: -float(logits[a]))[:k]
    guided = logits.clone()
    for model, head, beta in guides:
        values = {a: token_value(model, ids, a, head) for a in candidates}
        mean = sum(values.values()) / k
        for a in candidates:
            guided[a] += beta * (values[a] - mean)
    return guided


def greedy(
    policy: Any, guides: Guides, prompt: list[int], length: int, k: int = K, eos: int | None = EOS
) -> list[int]:
    """Greedy completion of a prompt, up to the end of sequence."""
    ids = list(prompt)
    while len(ids) - len(prompt) < length:
        ids.append(int(guided_logits(policy, guides, ids, k).argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


def run_generate(
    policy: Any, processor: Any, prompts: list[list[int]], length: int = 8, **kwargs: Any
) -> list[list[int]]:
    """Completions by `generate` with a logits processor, as users call it; greedy unless `kwargs` say otherwise."""
    ids, mask = left_padded(prompts, 0)
    kwargs = {"do_sample": False, "pad_token_id": 0, "eos_token_id": EOS} | kwargs
    output = policy.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, logits_processor=[processor], **kwargs
    )
    rows = output[:, ids.shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]
