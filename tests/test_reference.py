# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The KL term's reference: the same weights give exactly nothing, whatever attention each model has."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import make_model
from oracles import flash_backward, flash_forward

import trl_ext.cascade as cascade
import trl_ext.logprobs as logprobs
from trl_ext.cascade import CASCADE
from trl_ext.logprobs import LogProbs
from trl_ext.prefix import Layout
from trl_ext.reference import Reference


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
COMPLETIONS = [[[20, 21, 22], [23]], [[24, 25], [26, 27, 28]]]


def stand_in_trainer(model):
    args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    return SimpleNamespace(accelerator=Accelerator(cpu=True), model=model, model_wrapped=model, args=args)


@pytest.mark.parametrize("attention", ["sdpa", CASCADE])
def test_a_copy_is_at_no_distance_and_another_model_is_where_loops_say(monkeypatch, attention):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)
    model = make_model(64)
    copied, other = Reference(model), Reference(model, make_model(64, seed=3))  # made before the attention is set
    if attention == CASCADE:
        monkeypatch.setattr(logprobs, "supported_layout", lambda base: Layout("cascade", "a stand-in"))
    log_probs = LogProbs(model, 0, shared_prefix="always")
    trainer = stand_in_trainer(model)
    for group in copied.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS, 4):
        assert group == pytest.approx([0.0, 0.0], abs=1e-4)
    assert log_probs.layout.form == ("cascade" if attention == CASCADE else "dense")
    ratios = other.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS, 4)
    models = make_model(64), make_model(64, seed=3)
    for prompt, completions, found in zip(PROMPTS, COMPLETIONS, ratios, strict=True):
        for completion, ratio in zip(completions, found, strict=True):
            sums = []
            for each in models:
                logits = each(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
                sums.append(sum(logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)))
            assert ratio == pytest.approx(sums[0] - sums[1], abs=1e-3)


def test_the_cascade_casts_under_autocast_and_makes_no_square_mask(monkeypatch):
    seen = []

    def remember(q, k, v, span, scale):
        seen.append((q.dtype, k.dtype, v.dtype))
        return flash_forward(q.float(), k.float(), v.float(), span, scale)

    masks = []
    original = cascade.cascade_attention_forward

    def attention(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return original(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(cascade, "flash_forward", remember)
    monkeypatch.setattr(logprobs, "supported_layout", lambda base: Layout("cascade", "a stand-in"))
    cascade.AttentionInterface.register(CASCADE, attention)
    try:
        model = make_model(64)
        log_probs = LogProbs(model, 0, shared_prefix="always")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            tokens = log_probs(model, PROMPTS, COMPLETIONS)
    finally:
        cascade.AttentionInterface.register(CASCADE, original)
    assert tokens.form == "cascade"
    assert set(seen) == {(torch.bfloat16,) * 3}
    assert max(mask.numel() for mask in masks[-2:]) == 1


def test_the_model_itself_is_no_reference():
    model = make_model(64)
    with pytest.raises(ValueError, match="same object"):
        Reference(model, model)
