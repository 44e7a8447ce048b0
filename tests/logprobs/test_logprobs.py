# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Log-probabilities of every form of rows against a loop over full logits, values and gradients, for many models."""

import copy
import logging
import re

import pytest
import torch
import transformers
from conftest import make_model
from oracles.logprobs import (
    COMPLETIONS,
    LONG_COMPLETIONS,
    LONG_PROMPTS,
    PROMPTS,
    Wrapper,
    flash_backward,
    flash_forward,
    flat,
    gradients,
    sums_by_loop,
    token_logps,
)
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import trl_ext.logprobs.logprobs as logprobs
import trl_ext.logprobs.prefix_attention as cascade
import trl_ext.logprobs.shared_prefix as prefix
from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.logprobs.shared_prefix import Layout
from trl_ext.methods.rrhf.losses import best_completion, normalized_logps, ranking_loss, sft_loss


VOCABULARY = 64

# How a model is set up, and the form that it then takes when sharing is asked for.
SHARED = {"dense-sdpa": ("sdpa", "dense"), "dense-eager": ("eager", "dense"), "cascade": (CASCADE, "cascade")}


@pytest.fixture(autouse=True)
def mock_flash_attention(monkeypatch):
    """Flash attention in Python, so that the cascade runs without a GPU."""
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)


def llama(attention="sdpa", **changes):
    model = make_model(VOCABULARY, **changes)
    model.set_attn_implementation(attention)
    return model


def batch_for(form):
    return (LONG_PROMPTS, LONG_COMPLETIONS) if form == "cascade" else (PROMPTS, COMPLETIONS)


def rrhf_loss(sums, lengths, completions):
    """RRHF's loss: p, ranking loss with ties, SFT loss on the best, so that gradients of both signs occur."""
    group = torch.tensor([b for b, items in enumerate(completions) for _ in items])
    scores = torch.tensor([float((5 * n) % 3) for n in range(len(group))])
    p = normalized_logps(sums, lengths)
    best = best_completion(scores, group, len(completions))
    rank = ranking_loss(p, scores, group, len(completions), margin=0.2)
    return 3.0 * rank.sum() + sft_loss(sums, lengths, best).sum()


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    assert found
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


# ------------------------------------------------------------------------------------- forms of rows against the loop


@pytest.mark.parametrize("setup", ["separate", *SHARED])
def test_each_token_equals_a_loop_over_full_logits(setup):
    attention, form = SHARED.get(setup, ("sdpa", "separate"))
    prompts, completions = batch_for(form)
    model = llama(attention)
    expected = [token_logps(model, p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    log_probs = LogProbs(model, 0, shared_prefix="never" if form == "separate" else "always")
    tokens = log_probs(model, prompts, completions)
    assert tokens.form == form
    assert tokens.num_positions == tokens.logps.numel()
    assert tokens.num_completions == len(expected)
    assert tokens.lengths().tolist() == [len(c) for c in flat(completions)]
    for n, logps in enumerate(expected):
        # the first token, which is predicted from the shared prompt, included
        torch.testing.assert_close(tokens.logps[tokens.completion_index == n], logps.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.sums(), torch.stack([x.sum() for x in expected]).float(), rtol=1e-4, atol=1e-4)
    assert tokens.logps[tokens.completion_index < 0].eq(0).all()


@pytest.mark.parametrize("setup", ["separate", *SHARED])
def test_entropy_and_top1_equal_a_loop_over_full_logits(setup):
    attention, form = SHARED.get(setup, ("sdpa", "separate"))
    prompts, completions = batch_for(form)
    model = llama(attention)
    entropies, top1 = [], []
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
            log_probs = logits.log_softmax(dim=-1)
            entropies.append(-(log_probs.exp() * log_probs).sum(dim=-1).float())
            top1.append((logits.argmax(dim=-1) == torch.tensor(completion)).float())
    tokens = LogProbs(model, 0, shared_prefix="never" if form == "separate" else "always")(model, prompts, completions)
    for n, (entropy, is_top1) in enumerate(zip(entropies, top1, strict=True)):
        mine = tokens.completion_index == n
        torch.testing.assert_close(tokens.entropy[mine], entropy, rtol=1e-4, atol=1e-4)
        assert tokens.is_top1[mine].tolist() == is_top1.tolist()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("setup", ["separate", *SHARED])
def test_loss_and_all_gradients_equal_those_of_the_loop(setup, kv_heads):
    attention, form = SHARED.get(setup, ("sdpa", "separate"))
    prompts, completions = batch_for(form)
    model = llama(attention, num_key_value_heads=kv_heads, tie_word_embeddings=kv_heads == 2)
    lengths = torch.tensor([len(c) for c in flat(completions)])
    expected = rrhf_loss(sums_by_loop(model, prompts, completions), lengths, completions)
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    tokens = LogProbs(model, 0, shared_prefix="never" if form == "separate" else "always")(model, prompts, completions)
    loss = rrhf_loss(tokens.sums(), tokens.lengths(), completions)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients(model), expected_gradients)


def losses_and_gradients(model, prompts, completions, shared_prefix):
    model.zero_grad()
    tokens = LogProbs(model, 0, shared_prefix=shared_prefix)(model, prompts, completions)
    loss = rrhf_loss(tokens.sums(), tokens.lengths(), completions)
    loss.backward()
    return tokens.form, loss.detach(), gradients(model)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("setup", SHARED)
def test_shared_rows_under_gradient_checkpointing(setup, use_reentrant):
    attention, form = SHARED[setup]
    prompts, completions = batch_for(form)
    separate, shared = llama(), llama(attention)
    shared.train().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    shared.enable_input_require_grads()
    _, expected, expected_gradients = losses_and_gradients(separate, prompts, completions, "never")
    found_form, loss, found = losses_and_gradients(shared, prompts, completions, "always")
    assert found_form == form
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(found, expected_gradients)
    assert shared.training


def with_lora(model):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("setup", SHARED)
def test_shared_rows_under_lora(setup):
    attention, form = SHARED[setup]
    prompts, completions = batch_for(form)
    separate, shared = with_lora(llama()), with_lora(llama(attention))
    _, expected, expected_gradients = losses_and_gradients(separate, prompts, completions, "never")
    found_form, loss, found = losses_and_gradients(shared, prompts, completions, "always")
    assert found_form == form
    assert all("lora" in name for name in found)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(found, expected_gradients)
    loop = sums_by_loop(separate, prompts, completions).float()
    torch.testing.assert_close(
        LogProbs(shared, 0, shared_prefix="always")(shared, prompts, completions).sums(), loop, rtol=1e-4, atol=1e-4
    )


def test_a_trained_copy_of_the_head_is_used():
    """`modules_to_save=["lm_head"]` trains a copy of the head: log-probabilities must come from it, and reach it."""
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    trained = model.get_output_embeddings().modules_to_save["default"].weight
    with torch.no_grad():
        trained.mul_(1.5)
    tokens = LogProbs(model, 0)(model, PROMPTS, COMPLETIONS)
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)
    tokens.sums().sum().backward()
    assert trained.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("setup", ["separate", "dense-sdpa", "dense-eager"])
def test_padding_changes_nothing(setup):
    attention, form = SHARED.get(setup, ("sdpa", "separate"))
    setting = "never" if form == "separate" else "always"
    results = []
    for multiple in (0, 32):
        model = llama(attention)
        log_probs = LogProbs(model, 0, shared_prefix=setting, pad_to_multiple_of=multiple)
        tokens = log_probs(model, PROMPTS, COMPLETIONS)
        loss = rrhf_loss(tokens.sums(), tokens.lengths(), COMPLETIONS)
        loss.backward()
        results.append((tokens, loss, gradients(model)))
    (plain, loss, expected), (padded, padded_loss, found) = results
    assert plain.logps.shape[1] < padded.logps.shape[1] == 32
    assert padded.lengths().equal(plain.lengths())
    torch.testing.assert_close(padded_loss, loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("setup", SHARED)
def test_completions_do_not_see_one_another(setup):
    """Other completions, more of them, or another order do not change a log-probability."""
    attention, form = SHARED[setup]
    prompts, completions = batch_for(form)
    model = llama(attention)
    log_probs = LogProbs(model, 0, shared_prefix="always")
    expected = log_probs(model, prompts, completions).sums().detach()
    backwards = log_probs(model, prompts[::-1], [group[::-1] for group in completions[::-1]])
    torch.testing.assert_close(backwards.sums().flip(0), expected, rtol=1e-4, atol=1e-4)
    alone = [log_probs(model, [p], [[c]]).sums() for p, g in zip(prompts, completions, strict=True) for c in g]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-4, atol=1e-4)
    changed = [[group[0], *([9, 9] for _ in group[1:])] for group in completions]
    firsts = [sum(map(len, completions[:b])) for b in range(len(completions))]
    torch.testing.assert_close(
        log_probs(model, prompts, changed).sums()[firsts], expected[firsts], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("setup", ["separate", *SHARED])
def test_batches_can_be_split(setup):
    attention, form = SHARED.get(setup, ("sdpa", "separate"))
    prompts, completions = batch_for(form)
    model = llama(attention)
    log_probs = LogProbs(model, 0, shared_prefix="never" if form == "separate" else "always")
    log_probs(model, prompts, completions).sums().square().sum().backward()
    expected = gradients(model)
    model.zero_grad()
    for prompt, group in zip(prompts, completions, strict=True):
        log_probs(model, [prompt], [group]).sums().square().sum().backward()
    assert_close_in_size(gradients(model), expected)


# --------------------------------------------------------------------------------------- what the verification is for


def plain_causal(segment_ids):
    """A mask without segments, in which completions see one another."""
    length = segment_ids.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril().expand(len(segment_ids), 1, -1, -1)


def without_prompt(segment_ids):
    """A mask in which completions do not see their prompt."""
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (causal & (segment_ids[:, :, None] == segment_ids[:, None, :]))[:, None]


def running_positions(prompts, completions, original=prefix.build_rows, **kwargs):
    """Positions that count through a row, instead of continuing from the prompt for each completion."""
    rows = original(prompts, completions, **kwargs)
    rows["position_ids"] = torch.arange(rows["input_ids"].shape[1]).expand_as(rows["input_ids"])
    return rows


WRONG = {
    "mask without segments": (prefix, "dense_mask", plain_causal),
    "mask without prompt": (prefix, "dense_mask", without_prompt),
    "positions": (prefix, "build_rows", running_positions),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_and_positions_are_detected(monkeypatch, caplog, name):
    """With a wrong mask the numbers differ (so that the tests above can see one), and the verification falls back."""
    model = llama()
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    monkeypatch.setattr(*WRONG[name])
    unverified = LogProbs(model, 0, shared_prefix="always")
    monkeypatch.setattr(unverified, "verify", lambda model: None)
    assert (unverified(model, PROMPTS, COMPLETIONS).sums() - expected).abs().max() > 0.1
    assert_falls_back(model, caplog, expected)


def assert_falls_back(model, caplog, expected, setting="always"):
    log_probs = LogProbs(model, 0, shared_prefix=setting)
    assert log_probs.layout.form == "dense"
    with caplog.at_level(logging.WARNING, logger="trl_ext.logprobs.shared_prefix"):
        tokens = log_probs(model, PROMPTS, COMPLETIONS)
        log_probs(model, PROMPTS, COMPLETIONS)
    assert log_probs.layout.form == tokens.form == "separate"
    (message,) = (m for m in caplog.messages if "not shared" in m)
    assert message == f"Prompts are not shared between completions, because then {log_probs.layout.reason}."
    assert re.search("log-probabilities (of|differ)|its forward fails", message), message
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)


class DropsPositions(LlamaForCausalLM):
    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class IgnoresMasks(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self.forget_mask, with_kwargs=True)

    @staticmethod
    def forget_mask(module, args, kwargs):
        return args, {**kwargs, "attention_mask": None}


class CountsPositionsItself(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self.forget_positions, with_kwargs=True)

    @staticmethod
    def forget_positions(module, args, kwargs):
        return args, {**kwargs, "position_ids": None}


class RefusesMasks(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self.refuse, with_kwargs=True)

    @staticmethod
    def refuse(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            raise ValueError("attention_mask should be of shape (batch, length)")


@pytest.mark.parametrize("kind", [IgnoresMasks, CountsPositionsItself, RefusesMasks])
def test_models_that_cannot_share_end_with_separate_rows(kind, caplog):
    torch.manual_seed(0)
    model = kind(make_model(VOCABULARY).config).eval()
    assert_falls_back(model, caplog, sums_by_loop(model, PROMPTS, COMPLETIONS).float())


def test_a_forward_without_positions_is_not_given_any_for_separate_rows():
    torch.manual_seed(0)
    model = DropsPositions(make_model(VOCABULARY).config).eval()
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    tokens = LogProbs(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS)
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)


def test_separate_rows_are_passed_without_positions():
    """Some models do not count from 0 (the first position of RoBERTa is 2), so that they count themselves."""
    model = llama()
    seen = []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    log_probs = LogProbs(model, 0, shared_prefix="never")
    log_probs(model, PROMPTS, COMPLETIONS)
    assert seen
    assert all(kwargs.get("position_ids") is None for kwargs in seen)


def test_unknown_attention_keeps_separate_rows():
    transformers.AttentionInterface.register("somebody_elses", cascade.sdpa_attention_forward)
    transformers.AttentionMaskInterface.register("somebody_elses", cascade.sdpa_mask)
    model = llama("somebody_elses")
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    tokens = log_probs(model, PROMPTS, COMPLETIONS)
    assert tokens.form == "separate"
    assert "somebody_elses" in log_probs.layout.reason
    assert model.config._attn_implementation == "somebody_elses"
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)


def test_a_device_without_flash_kernels_falls_back_to_a_mask(monkeypatch, caplog):
    monkeypatch.undo()  # the real kernels, which the CPU has not
    model = llama(CASCADE)
    expected = sums_by_loop(model, LONG_PROMPTS, LONG_COMPLETIONS).float()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    with caplog.at_level(logging.WARNING, logger="trl_ext.logprobs.shared_prefix"):
        tokens = log_probs(model, LONG_PROMPTS, LONG_COMPLETIONS)
    assert tokens.form == "dense"
    assert model.config._attn_implementation == log_probs.attention == "sdpa"
    (message,) = caplog.messages
    assert re.match("Shared prompts use a mask instead of flash attention, with which its forward fails", message)
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)


def test_verification_runs_once_per_model_and_leaves_no_trace():
    model = llama().train()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        log_probs = LogProbs(model, 0, shared_prefix="always")
        log_probs(model, PROMPTS, COMPLETIONS)
        log_probs(model, PROMPTS, COMPLETIONS)
    # Fused head and shared rows, each with its reference; then the batches.
    assert len(calls) == 4 + 4
    assert model.training
    assert not gradients(model)


@pytest.mark.parametrize("shared_prefix", ["always", "never"])
def test_works_through_the_wrapper_of_distributed_training(shared_prefix):
    model = llama()
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    tokens = LogProbs(model, 0, shared_prefix=shared_prefix)(Wrapper(model), PROMPTS, COMPLETIONS)
    assert tokens.form == ("dense" if shared_prefix == "always" else "separate")
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)


def test_another_model_of_the_same_architecture_can_be_passed():
    """The frozen reference of a KL term shares the policy's rows."""
    model = llama()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    reference = llama(seed=3)
    logprobs.add_fused_head(reference)
    found = log_probs(reference, PROMPTS, COMPLETIONS).sums()
    torch.testing.assert_close(found, sums_by_loop(reference, PROMPTS, COMPLETIONS).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bf16 weights"])
def test_bf16_stays_close_and_shares(caplog, autocast):
    model = llama()
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    model = model if autocast else model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), caplog.at_level(logging.WARNING):
        tokens = LogProbs(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS)
    assert tokens.form == "dense"
    assert tokens.logps.dtype == torch.float32
    assert not caplog.records
    assert (tokens.sums() - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("name", WRONG)
def test_in_bf16_a_wrong_mask_does_not_pass_for_a_rounding_error(monkeypatch, name):
    model = llama().to(torch.bfloat16)
    monkeypatch.setattr(*WRONG[name])
    assert LogProbs(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS).form == "separate"


def test_the_layout_is_chosen_again_for_a_model_that_was_moved():
    """Trainers receive a model on the CPU and move it later."""
    model = llama()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    log_probs._device, log_probs.layout = "elsewhere", Layout("separate", "as it was there")
    assert log_probs(model, PROMPTS, COMPLETIONS).form == "dense"


def test_shared_prefix_has_three_settings():
    with pytest.raises(ValueError, match=r"`shared_prefix` must be one of .*'sometimes'"):
        LogProbs(llama(), 0, shared_prefix="sometimes")


def test_never_keeps_the_models_attention():
    log_probs = LogProbs(llama(), 0, shared_prefix="never")
    assert log_probs.layout == Layout("separate", "`shared_prefix` is 'never'")


def test_auto_shares_where_that_is_cheaper():
    model = llama()
    log_probs = LogProbs(model, 0)
    long_prompt, short_prompt = [[3] * 40], [[3] * 2]
    group = [[[4 + k] * 12 for k in range(4)]]
    assert log_probs(model, long_prompt, group).form == "dense"
    assert log_probs(model, short_prompt, [[[4] * 40] * 4]).form == "separate"


# ------------------------------------------------------------------------------------------------ other architectures

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.15,
}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}
NEO = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "initializer_range": 0.15}
NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 16, "max_position_embeddings": 64}
NEO |= {"bos_token_id": 1, "eos_token_id": 1}
NO_GROUPS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}

# Architecture, changes to SMALL (or a config of its own), and the form that it should end with when sharing is asked.
ARCHITECTURES = {
    "gpt2": ("GPT2", GPT2, "dense"),
    "gpt_neox": ("GPTNeoX", NO_GROUPS, "dense"),
    "phi": ("Phi", SMALL, "dense"),
    "phi3": ("Phi3", SMALL, "dense"),
    "qwen2": ("Qwen2", SMALL, "dense"),
    "qwen2 window": (
        "Qwen2",
        SMALL | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "separate",
    ),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 8}, "dense"),
    "mistral": ("Mistral", SMALL | {"sliding_window": None}, "dense"),
    "mistral window": ("Mistral", SMALL | {"sliding_window": 4}, "separate"),
    "mixtral": (
        "Mixtral",
        SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None},
        "dense",
    ),
    "gemma": ("Gemma", SMALL | {"head_dim": 8}, "dense"),
    "gemma2": ("Gemma2", SMALL | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0}, "separate"),
    "gemma3": ("Gemma3Text", SMALL | {"head_dim": 8, "sliding_window": 4}, "separate"),
    "cohere": ("Cohere", SMALL | {"logit_scale": 0.5}, "dense"),
    "granite": ("Granite", SMALL | {"logits_scaling": 3.0}, "dense"),
    "bloom": ("Bloom", BLOOM, "separate"),  # its positions are distances along the row
    "gpt_neo": ("GPTNeo", NEO, "separate"),  # a window that `layer_types` does not know
    "mamba": (
        "Mamba",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "separate",
    ),
}


def build(config, settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, f"{config}Config")(**settings)).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name):
    architecture, settings, form = ARCHITECTURES[name]
    model = build(architecture, settings)
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    expected.square().sum().backward()
    expected_gradients = gradients(model)
    for setting in ("never", "always"):
        model.zero_grad()
        log_probs = LogProbs(model, 0, shared_prefix=setting)
        tokens = log_probs(model, PROMPTS, COMPLETIONS)
        assert tokens.form == (form if setting == "always" else "separate"), log_probs.layout.reason
        torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)
        tokens.sums().square().sum().backward()
        assert_close_in_size(gradients(model), expected_gradients)


def test_a_model_without_attention():
    # (its own gradients fail in evaluation mode, so only values)
    model = build("Rwkv", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2})
    log_probs = LogProbs(model, 0, shared_prefix="always")
    with torch.no_grad():
        expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
        torch.testing.assert_close(log_probs(model, PROMPTS, COMPLETIONS).sums(), expected, rtol=1e-4, atol=1e-4)
    assert "no attention heads" in log_probs.layout.reason


def assert_close_in_size(found, expected):
    """Gradients of a square are large, and so are their rounding errors."""
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-4, name


# Heads that are more than a matrix: a transformation before it, or a cap that goes by a name of its own.
HEADS = {
    "bert": ("BertLMHeadModel", "BertConfig", NO_GROUPS | {"is_decoder": True}),
    "modernbert": ("ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", NO_GROUPS | {"local_attention": 8}),
    "recurrent gemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        SMALL | {"num_key_value_heads": 1, "logits_soft_cap": 3.0, "num_hidden_layers": 3},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_more_than_a_matrix_get_full_logits(name, caplog):
    model_class, config_class, settings = HEADS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    expected.square().sum().backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    with caplog.at_level(logging.WARNING, logger="trl_ext.logprobs.logprobs"):
        tokens = log_probs(model, PROMPTS, COMPLETIONS)
    assert not log_probs.fused
    (message,) = (m for m in caplog.messages if "full logits" in m)
    assert "with the fused head it computes something else (log-probabilities differ by" in message
    torch.testing.assert_close(tokens.sums(), expected, rtol=1e-4, atol=1e-4)
    tokens.sums().square().sum().backward()
    assert_close_in_size(gradients(model), expected_gradients)


def test_an_ordinary_head_is_fused():
    model = llama()
    log_probs = LogProbs(model, 0)
    log_probs(model, PROMPTS, COMPLETIONS)
    assert log_probs.fused


def test_a_batch_that_fits_in_one_part_has_none():
    model = llama()
    tokens = LogProbs(model, 0, completions_per_forward=16)(model, PROMPTS, COMPLETIONS)
    assert tokens.parts is None
    torch.testing.assert_close(tokens.sums(), sums_by_loop(model, PROMPTS, COMPLETIONS).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_no_forward_pass_fills_a_cache(fused):
    """It would hold the keys and values of all rows beside what the gradient needs."""
    model = llama()
    log_probs = LogProbs(model, 0)
    log_probs(model, PROMPTS, COMPLETIONS)
    log_probs.fused, seen = fused, []
    model.model.register_forward_hook(lambda *given: seen.append(given[-1].past_key_values))
    log_probs(model, PROMPTS, COMPLETIONS)
    assert seen == [None]


def test_virtual_tokens_keep_separate_rows():
    """They are not among the positions of a row."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(llama(), config).eval()
    log_probs = LogProbs(model, 0, shared_prefix="always")
    assert log_probs.layout == Layout("separate", "`shared_prefix` is 'never'")
    expected = sums_by_loop(model, PROMPTS, COMPLETIONS).float()
    torch.testing.assert_close(log_probs(model, PROMPTS, COMPLETIONS).sums(), expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------- completion_logps


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_completion_logps_are_in_order(batch_size):
    model = llama().train()
    completions = [[*group[:1], [], *group[1:]] for group in COMPLETIONS]
    completions.append([[], []])
    prompts = [*PROMPTS, [4, 4]]
    found = completion_logps(model, prompts, completions, pad_token_id=0, batch_size=batch_size)
    assert model.training
    model.eval()
    assert [[len(logps) for logps in group] for group in found] == [[len(c) for c in group] for group in completions]
    for prompt, group, results in zip(prompts, completions, found, strict=True):
        for completion, logps in zip(group, results, strict=True):
            assert logps.dtype == torch.float32
            assert not logps.requires_grad
            if completion:
                expected = token_logps(model, prompt, completion).float()
                torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)


def test_completion_logps_keep_to_the_batch_size(monkeypatch):
    model = llama()
    log_probs = LogProbs(model, 0)
    sizes = []
    original = LogProbs.__call__
    monkeypatch.setattr(
        LogProbs, "__call__", lambda self, m, p, c: sizes.append(len(flat(c))) or original(self, m, p, c)
    )
    completion_logps(model, PROMPTS, COMPLETIONS, pad_token_id=0, batch_size=4, log_probs=log_probs)
    assert sum(sizes) == len(flat(COMPLETIONS))
    assert max(sizes) == 4
    assert len(sizes) > 1


def test_completion_logps_of_a_copy_do_not_depend_on_dropout():
    model = make_model(VOCABULARY, attention_dropout=0.9)
    twin = copy.deepcopy(model).train()
    expected = completion_logps(model, PROMPTS, COMPLETIONS, pad_token_id=0)
    found = completion_logps(twin, PROMPTS, COMPLETIONS, pad_token_id=0)
    for a, b in zip(flat(expected), flat(found), strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------------------- on GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: flash attention has no CPU kernel")
def test_cascade_on_a_gpu_equals_separate_rows(monkeypatch):
    monkeypatch.undo()  # the real kernels
    results = []
    for setting in ("never", "always"):
        model = make_model(VOCABULARY).to("cuda", torch.bfloat16)
        tokens = LogProbs(model, 0, shared_prefix=setting)(model, LONG_PROMPTS, LONG_COMPLETIONS)
        loss = rrhf_loss(tokens.sums().cpu(), tokens.lengths().cpu(), LONG_COMPLETIONS)
        loss.backward()
        results.append((tokens, gradients(model)))
    (separate, expected), (shared, found) = results
    assert (separate.form, shared.form) == ("separate", "cascade")
    assert (shared.sums() - separate.sums()).abs().max() < 0.02 * separate.sums().abs().max()
    for name, grad in expected.items():
        cosine = torch.nn.functional.cosine_similarity(found[name].float().flatten(), grad.float().flatten(), dim=0)
        assert cosine > 0.99, name
