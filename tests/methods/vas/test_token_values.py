# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Values of the tokens of completions against a loop over single sequences, for every layout of rows."""

import logging

import pytest
import torch
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
)

import trl_ext.logprobs.prefix_attention as cascade
import trl_ext.logprobs.shared_prefix as prefix
import trl_ext.logprobs.shared_prefix as shared_rows
from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.methods.vas.token_values import CompletionValues
from trl_ext.methods.vas.value_model.model import ValueModel


def value_model(heads=("reward",), attention="sdpa", **changes):
    model = ValueModel.from_backbone(make_model(64, attn_implementation=attention, **changes), heads)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model.head.weight.normal_(std=0.3)
        model.head.bias.normal_()
    return model


@pytest.fixture
def mock_flash_attention(monkeypatch):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)


def by_loop(model, prompts, completions):
    """Values (tokens, H), from one sequence at a time."""
    rows = []
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            hidden = model.backbone(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
            rows.append(hidden[len(prompt) :] @ model.head.weight.T + model.head.bias)
    return torch.cat(rows)


@pytest.mark.parametrize("heads", [("reward",), ("a", "b")], ids=["one head", "two heads"])
@pytest.mark.parametrize(
    ("form", "attention"),
    [("separate", "sdpa"), ("dense", "sdpa"), ("dense", "eager"), ("cascade", CASCADE)],
)
def test_each_token_and_all_gradients_equal_a_loop(mock_flash_attention, form, attention, heads):
    cascaded = form == "cascade"
    prompts, completions = (LONG_PROMPTS, LONG_COMPLETIONS) if cascaded else (PROMPTS, COMPLETIONS)
    model = value_model(heads, attention)
    expected = by_loop(model, prompts, completions)
    weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (weights * expected).sum().backward()
    reference = gradients(model)
    model.zero_grad()
    reader = CompletionValues(model, 0, shared_prefix="never" if form == "separate" else "always")
    tokens = reader(model, prompts, completions)
    assert tokens.form == form
    assert tokens.values.shape == (len(flat(completions)), 7, len(heads))
    assert tokens.mask.sum(dim=1).tolist() == [len(c) for c in flat(completions)]
    assert (tokens.values[~tokens.mask] == 0).all()
    torch.testing.assert_close(tokens.values[tokens.mask], expected, rtol=1e-4, atol=1e-4)
    (weights * tokens.values[tokens.mask]).sum().backward()
    found = gradients(model)
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_padding_does_not_change_values():
    model = value_model()
    plain = CompletionValues(model, 0, shared_prefix="never")(model, PROMPTS, COMPLETIONS)
    for setting in ("always", "never"):
        padded = CompletionValues(model, 5, shared_prefix=setting, pad_to_multiple_of=8)(model, PROMPTS, COMPLETIONS)
        torch.testing.assert_close(padded.values, plain.values, rtol=1e-4, atol=1e-4)


def test_values_do_not_depend_on_the_batch():
    model = value_model()
    reader = CompletionValues(model, 0, shared_prefix="always")
    whole = reader(model, PROMPTS, COMPLETIONS)
    parts = [reader(model, [p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(
        whole.values[whole.mask], torch.cat([part.values[part.mask] for part in parts]), rtol=1e-4, atol=1e-4
    )


def forget_prompt(segment_ids):
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (causal & (segment_ids[:, :, None] == segment_ids[:, None, :]))[:, None]


def running_positions(prompts, completions, original=prefix.build_rows, **kwargs):
    rows = original(prompts, completions, **kwargs)
    rows["position_ids"] = torch.arange(rows["input_ids"].shape[1]).expand_as(rows["input_ids"])
    return rows


@pytest.mark.parametrize(
    "fault", [(prefix, "dense_mask", forget_prompt), (shared_rows, "build_rows", running_positions)]
)
def test_probe_detects_errors_with_a_zero_head(monkeypatch, caplog, fault):
    model = ValueModel.from_backbone(make_model(64))
    monkeypatch.setattr(*fault)
    with caplog.at_level(logging.WARNING):
        tokens = CompletionValues(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS)
    assert tokens.form == "separate"
    assert "hidden states differ" in caplog.text


def test_model_in_a_distributed_wrapper():
    model = value_model()
    expected = by_loop(model, PROMPTS, COMPLETIONS)
    tokens = CompletionValues(model, 0, shared_prefix="always")(Wrapper(model), PROMPTS, COMPLETIONS)
    assert tokens.form == "dense"
    torch.testing.assert_close(tokens.values[tokens.mask], expected, rtol=1e-4, atol=1e-4)


def test_bf16_shares_and_keeps_float32_values(caplog):
    model = value_model()
    expected = by_loop(model, PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", torch.bfloat16), caplog.at_level(logging.WARNING):
        tokens = CompletionValues(model, 0, shared_prefix="always")(model, PROMPTS, COMPLETIONS)
    assert (tokens.form, tokens.values.dtype) == ("dense", torch.float32)
    assert not caplog.records
    assert (tokens.values[tokens.mask] - expected).abs().max() < 0.05 * expected.abs().max()
