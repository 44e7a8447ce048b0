# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
The load balancing loss of mixtures of experts.

The oracles are Eq. (4) to (6) of Switch Transformers (arXiv 2101.03961) as plain loops over tokens of separate rows,
and the loss that the models of transformers return for separate rows.
"""

import os
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.logprobs import flash_backward, flash_forward, gradients
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import trl_ext.logprobs.prefix_attention as cascade
import trl_ext.logprobs.shared_prefix as shared
from trl_ext import PSLEConfig, PSLETrainer, RRHFConfig, RRHFTrainer, ValueModel, VASConfig, VASTrainer
from trl_ext.logprobs.balancing_loss import router_aux_loss_coef
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.logprobs.shared_prefix import Layout, build_rows
from trl_ext.methods.psle.warm_up import WarmUpTrainer


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
COMPLETIONS = [[[20, 21, 22], [23], [24, 25]], [[26, 27], [28, 29, 30]]]
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 128, "initializer_range": 0.2}
SIZES |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 16, "num_experts_per_tok": 3},
    "gpt_oss": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
}


def mixture(kind: str = "mixtral", vocab_size: int = 64, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **SIZES | EXPERTS[kind] | changes)
    return AutoModelForCausalLM.from_config(config).eval()


def loss_by_loops(model: Any, prompts: Any, completions: Any) -> float:
    """experts * sum_e (share of choices of e) * (mean probability of e), over the tokens of all layers."""
    config = model.config
    experts = config.to_dict().get("num_experts") or config.num_local_experts
    chosen, probabilities, tokens = [0.0] * experts, [0.0] * experts, 0
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion[:-1]])
            for layer in model(input_ids=ids, output_router_logits=True).router_logits:
                for logits in layer.double():
                    probs = logits.softmax(0).tolist()
                    for e in sorted(range(experts), key=lambda e: -probs[e])[: config.num_experts_per_tok]:
                        chosen[e] += 1
                    probabilities = [total + p for total, p in zip(probabilities, probs, strict=True)]
                    tokens += 1
    return experts * sum(c * p for c, p in zip(chosen, probabilities, strict=True)) / tokens**2


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("form", ["never", "always"])
def test_it_is_that_of_separate_rows(kind, form):
    """Shared rows hold the prompt once, and the loss has its tokens as often as there are completions."""
    model = mixture(kind)
    tokens = LogProbs(model, 0, shared_prefix=form, pad_to_multiple_of=8)(model, PROMPTS, COMPLETIONS, aux_loss=True)
    assert tokens.form == ("dense" if form == "always" and kind != "gpt_oss" else "separate")
    assert tokens.aux_loss.item() == pytest.approx(loss_by_loops(model, PROMPTS, COMPLETIONS), rel=1e-5)
    rows = build_rows(PROMPTS, COMPLETIONS, form="separate", pad_token_id=0)
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    own = model(**inputs, output_router_logits=True)
    torch.testing.assert_close(tokens.aux_loss, own.aux_loss, rtol=1e-5, atol=1e-6)
    own.aux_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    tokens.aux_loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_under_a_cascade(monkeypatch):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)
    monkeypatch.setattr(shared, "supported_layout", lambda base: Layout("cascade", "a mock"))
    model = mixture()
    tokens = LogProbs(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS, aux_loss=True)
    assert tokens.form == "cascade"
    model.set_attn_implementation("sdpa")
    assert tokens.aux_loss.item() == pytest.approx(loss_by_loops(model, PROMPTS, COMPLETIONS), rel=1e-5)


@pytest.mark.parametrize("asks", [True, False], ids=["its config asks for it", "its config does not"])
@pytest.mark.parametrize("fused", [True, False])
def test_it_does_not_depend_on_the_head_or_the_config(asks, fused):
    """A model whose config asks for the loss computes it with every forward pass, which takes no mask of ours."""
    model = mixture(output_router_logits=asks)
    log_probs = LogProbs(model, 0, shared_prefix="always")
    log_probs.verify(model)
    log_probs.fused = fused
    tokens = log_probs(model, PROMPTS, COMPLETIONS, aux_loss=True)
    assert tokens.form == "dense"
    assert tokens.aux_loss.item() == pytest.approx(loss_by_loops(model, PROMPTS, COMPLETIONS), rel=1e-5)
    assert log_probs(model, PROMPTS, COMPLETIONS).aux_loss is None
    assert not model.base_model._forward_hooks


@pytest.mark.parametrize("adapter", ["lora", "prompt tuning"])
def test_with_an_adapter_and_checkpointing(adapter):
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    config = lora if adapter == "lora" else PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(mixture(), config)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train(checkpointing)
        model.zero_grad()
        tokens = LogProbs(model, 0)(model, PROMPTS, COMPLETIONS, aux_loss=True)
        tokens.aux_loss.backward()
        found.append(gradients(model))
        rows = build_rows(PROMPTS, COMPLETIONS, form="separate", pad_token_id=0)
        inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
        own = model(**inputs, output_router_logits=True)
        torch.testing.assert_close(tokens.aux_loss, own.aux_loss, rtol=1e-5, atol=1e-6)
    assert any(gradient.abs().max() > 0 for gradient in found[0].values())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_the_coefficient():
    assert router_aux_loss_coef(mixture(router_aux_loss_coef=0.25), None) == 0.25
    assert router_aux_loss_coef(mixture(), 0.5) == 0.5
    assert router_aux_loss_coef(mixture(), 0.0) == 0
    assert router_aux_loss_coef(make_model(64), None) == 0
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef` is 0\.1, but LlamaForCausalLM is no mixture"):
        router_aux_loss_coef(make_model(64), 0.1)


# ---------------------------------------------------------------------------------------------------- in a trainer

ANSWERS, SCORES = [" was good", " bad", " is on a story"], [1.0, 0.0, 2.0]
ROWS = [
    {"prompt": f"{start} film", "completions": ANSWERS[: 2 + n % 2], "scores": SCORES[: 2 + n % 2]}
    for n, start in enumerate(["the", "a", "one", "this"])
]


def rrhf(folder: Any, **changes: Any) -> RRHFTrainer:
    tokenizer = make_tokenizer()
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 1, "bf16": False}
    settings |= {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_grad_norm": 1e9,
        "warmup_steps": 0,
    }
    settings |= {"gradient_checkpointing": False, "router_aux_loss_coef": 0.5, "optim": "sgd", "seed": 1}
    return RRHFTrainer(
        mixture("qwen3_moe", len(tokenizer)),
        args=RRHFConfig(str(folder), **settings | changes),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )


def test_it_is_added_to_the_loss_and_logged(tmp_path):
    run, without = rrhf(tmp_path), rrhf(tmp_path, router_aux_loss_coef=0.0)
    assert run.aux_loss_enabled
    assert not without.aux_loss_enabled
    batch = next(iter(run.get_train_dataloader()))
    expected = loss_by_loops(run.model, batch["prompt_ids"], batch["completion_ids"])
    difference = run.compute_loss(run.model, batch) - without.compute_loss(without.model, batch)
    assert difference.item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert "eval_aux_loss" in run.evaluate()
    run.train()
    assert run.state.log_history[-2]["aux_loss"] == pytest.approx(expected, rel=1e-4)
    assert "aux_loss" not in without.evaluate()


def test_checkpointing_that_hides_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="load balancing loss of a mixture of experts has no gradient"):
        rrhf(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})


def weights_after_a_step(run: Any) -> list[torch.Tensor]:
    run.train()
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def test_a_step_has_the_mean_over_its_micro_batches(tmp_path):
    """Each batch of two prompts has a loss of its own: one step over two of them moves as far as their mean says."""
    whole = rrhf(tmp_path, gradient_accumulation_steps=2)
    batches = list(whole.get_train_dataloader())
    before = [parameter.detach().clone() for parameter in whole.model.parameters()]
    parts = [whole.compute_loss(whole.model, batch) for batch in batches]  # means over as many prompts
    torch.stack(parts).mean().backward()
    expected = [b - 1e-2 * p.grad for b, p in zip(before, whole.model.parameters(), strict=True)]
    whole.model.zero_grad()
    torch.testing.assert_close(weights_after_a_step(whole), expected, rtol=1e-4, atol=1e-6)
    assert whole.state.log_history[0]["loss"] == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)


def test_psle_and_its_warm_up_add_it(tmp_path):
    tokenizer = make_tokenizer()
    settings: dict[str, Any] = {"principles": ["good film"], "max_completion_length": 4, "sft_epochs": 1}
    settings |= {"per_device_train_batch_size": 2}
    settings |= {"report_to": "none", "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no"}
    settings |= {"num_iterations": 1}
    run = PSLETrainer(
        mixture("qwen3_moe", len(tokenizer)),
        letter_reward,
        PSLEConfig(str(tmp_path), router_aux_loss_coef=0.5, bf16=False, **settings),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=tokenizer,
        sft_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "completion": row["completions"][0]} for row in ROWS]
        ),
    )
    warm_up = WarmUpTrainer(run, run._sft_dataset)
    batch = next(iter(warm_up.get_train_dataloader()))
    loss = warm_up.compute_loss(run.model, batch).item()
    warm_up.router_aux_loss_coef = 0.0
    expected = loss_by_loops(run.model, batch["prompt_ids"], batch["completion_ids"])
    assert loss - warm_up.compute_loss(run.model, batch).item() == pytest.approx(0.5 * expected, rel=1e-3)
    run.train()
    logged = [set(entry) for entry in run.state.log_history]
    assert any("aux_loss" in entry for entry in logged)


@pytest.mark.parametrize("form", ["never", "always"])
def test_vas_adds_that_of_its_value_model(tmp_path, form):
    """Values are of the tokens themselves, so that rows hold the last token of a completion too."""
    tokenizer = make_tokenizer()
    settings = {"per_device_train_batch_size": 2, "report_to": "none", "router_aux_loss_coef": 0.5, "bf16": False}
    run = VASTrainer(
        make_model(len(tokenizer)),
        args=VASConfig(str(tmp_path), shared_prefix=form, gradient_checkpointing=False, **settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        value_model=ValueModel.from_backbone(mixture("qwen3_moe", len(tokenizer))),
    )
    assert run.aux_loss_enabled
    batch = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model, batch).item()
    run.router_aux_loss_coef = 0.0
    language_model = mixture("qwen3_moe", len(tokenizer))
    whole = [[[*ids, 0] for ids in group] for group in batch["completion_ids"]]
    expected = loss_by_loops(language_model, batch["prompt_ids"], whole)
    assert loss - run.compute_loss(run.model, batch).item() == pytest.approx(0.5 * expected, rel=1e-3)


# --------------------------------------------------------------------------- trainings for tests/test_two_processes.py


def make(folder: str, batch_size: int) -> RRHFTrainer:
    """A step of the same four rows, in batches of two: on one process or on two."""
    accumulation = 1 if "LOCAL_RANK" in os.environ else 2
    settings = {"gradient_accumulation_steps": accumulation, "per_device_eval_batch_size": 2, "max_steps": 3}
    return rrhf(folder, per_device_train_batch_size=2, **settings)


CASES = {"mixture": make}


def cases_of(kind: str) -> list[str]:
    return [] if kind.startswith("zero") else list(CASES)
