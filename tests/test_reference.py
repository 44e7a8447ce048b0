# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The KL term's reference: the same weights give exactly nothing, whatever attention each model has."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import make_model
from oracles import COMPLETIONS as GROUPS
from oracles import PROMPTS as QUESTIONS
from oracles import Wrapper, flash_backward, flash_forward, flat, sums_by_loop
from peft import LoraConfig, get_peft_model

import trl_ext.cascade as cascade
import trl_ext.rows as rows
from trl_ext.cascade import CASCADE
from trl_ext.logprobs import LogProbs
from trl_ext.prefix import Layout
from trl_ext.reference import Reference


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
COMPLETIONS = [[[20, 21, 22], [23]], [[24, 25], [26, 27, 28]]]


def stand_in_trainer(model):
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, generation_batch_size=4)
    return SimpleNamespace(accelerator=Accelerator(cpu=True), model=model, model_wrapped=model, args=args)


@pytest.mark.parametrize("attention", ["sdpa", CASCADE])
def test_a_copy_is_at_no_distance_and_another_model_is_where_loops_say(monkeypatch, attention):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)
    model = make_model(64)
    copied, other = Reference(model), Reference(model, make_model(64, seed=3))  # made before the attention is set
    if attention == CASCADE:
        monkeypatch.setattr(rows, "supported_layout", lambda base: Layout("cascade", "a stand-in"))
    log_probs = LogProbs(model, 0, shared_prefix="always")
    trainer = stand_in_trainer(model)
    for group in copied.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS):
        assert group == pytest.approx([0.0, 0.0], abs=1e-4)
    assert log_probs.layout.form == ("cascade" if attention == CASCADE else "dense")
    ratios = other.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS)
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
    monkeypatch.setattr(rows, "supported_layout", lambda base: Layout("cascade", "a stand-in"))
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


# ---------------------------------------------------------------------------------------------- after some training

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def placed_trainer(model, **flags):
    accelerator = SimpleNamespace(
        unwrap_model=lambda m: getattr(m, "module", m), prepare_model=lambda m, evaluation_mode: m
    )
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, generation_batch_size=4)
    flags = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False} | flags
    return SimpleNamespace(model=model, model_wrapped=Wrapper(model), accelerator=accelerator, args=args, **flags)


def log_ratios(reference, model):
    trainer = placed_trainer(model)
    reference.place(trainer)
    ratios = reference.log_ratios(trainer, LogProbs(model, 0), QUESTIONS, GROUPS)
    assert [len(group) for group in ratios] == [len(group) for group in GROUPS]
    return torch.tensor(flat(ratios))


def move(model):
    """What training does to a model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def ratios_by_loop(model, reference):
    expected = sums_by_loop(model, QUESTIONS, GROUPS) - sums_by_loop(reference, QUESTIONS, GROUPS)
    assert expected.abs().max() > 0.1
    return expected.float()


@pytest.mark.parametrize("given", [False, True], ids=["a copy", "a model of one's own"])
def test_full_fine_tuning_is_compared_with_a_model_that_stays(given):
    model, start = make_model(64), make_model(64, seed=5 if given else 0)
    LogProbs(model, 0)  # its fused head must not come along with the copy
    reference = Reference(model, make_model(64, seed=5) if given else None)
    assert not any(p.requires_grad for p in reference.model.parameters())
    move(model)
    torch.testing.assert_close(log_ratios(reference, model), ratios_by_loop(model, start), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_compared_with_its_base_and_costs_no_second_model(checkpointing):
    base, model = make_model(64), get_peft_model(make_model(64), LoraConfig(**LORA))
    model.train(checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable()
    reference = Reference(model)
    assert reference.model is None
    ratios = log_ratios(reference, model)
    assert model.training == checkpointing
    assert model.is_gradient_checkpointing == checkpointing
    model.eval()
    torch.testing.assert_close(ratios, ratios_by_loop(model, base), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_a_sharded_policy_has_a_sharded_reference(monkeypatch, backend):
    monkeypatch.setattr("trl_ext.reference.shard", lambda model, trainer: ("sharded", model))
    reference = Reference(make_model(64))
    frozen = reference.model
    reference.place(placed_trainer(make_model(64), **{f"is_{backend}_enabled": True}))
    assert reference.model == ("sharded", frozen)
