# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Two flash calls merged by their log-sum-exp, against one softmax over the keys that each query may see."""

from types import SimpleNamespace

import pytest
import torch
from oracles.logprobs import flash_backward, flash_forward, visible_keys
from transformers import AttentionInterface

import trl_ext.logprobs.prefix_attention as cascade
from trl_ext.logprobs.prefix_attention import CASCADE, CascadeAttention, CascadePlan, cascade_attention_forward
from trl_ext.logprobs.shared_prefix import attention_inputs, build_rows


CPU = torch.device("cpu")
PAD = 99


@pytest.fixture
def mock_flash_attention(monkeypatch):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_cascade_attention_equals_masked_attention(mock_flash_attention, kv_heads):
    """Output and all gradients, in float64, against one softmax over the keys that each query may see."""
    prompts, completions = [[1] * 4, [2] * 2], [[[3] * 3, [4] * 5], [[5], [6, 7], [8]]]
    rows = build_rows(prompts, completions, form="cascade", pad_token_id=PAD)
    visible = visible_keys("cascade", rows)[0]
    plan = CascadePlan(*(rows[name] for name in ("cu_segments", "cu_completions", "cu_prompts")), device=CPU)
    generator = torch.Generator().manual_seed(0)

    def random(heads):
        shape = (len(visible), heads, 8)
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v = random(4), random(kv_heads), random(kv_heads)
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(4 // kv_heads, dim=1)) * 0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    expected = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(4 // kv_heads, dim=1))
    found = CascadeAttention.apply(q, k, v, plan, 0.5)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, (q, k, v), direction)
    for found_grad, expected_grad in zip(
        torch.autograd.grad(found, (q, k, v), direction), expected_grads, strict=True
    ):
        torch.testing.assert_close(found_grad, expected_grad)


@pytest.mark.parametrize("scaling", [None, 0.1])
def test_attention_function_scales_scores(mock_flash_attention, scaling):
    rows = build_rows([[1, 2]], [[[3, 4]]], form="cascade", pad_token_id=PAD)
    plan = attention_inputs(rows, CASCADE, torch.float32, CPU)["prefix_plan"]
    query, key, value = torch.randn(3, 1, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    module = SimpleNamespace(head_dim=16)
    found, weights = cascade_attention_forward(module, query, key, value, None, scaling=scaling, prefix_plan=plan)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling or 16**-0.5
    )
    assert weights is None
    assert found.shape == (1, 3, 2, 16)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_the_kernels_get_one_half_precision_dtype(monkeypatch):
    """Under autocast, rotary embeddings leave queries and keys in float32; without it they have the weights' dtype."""
    seen = []

    def remember(q, k, v, span, scale):
        seen.append({x.dtype for x in (q, k, v)})
        return flash_forward(q, k, v, span, scale)

    monkeypatch.setattr(cascade, "flash_forward", remember)
    rows = build_rows([[1, 2]], [[[3, 4]]], form="cascade", pad_token_id=PAD)
    plan = attention_inputs(rows, CASCADE, torch.float32, CPU)["prefix_plan"]
    query, key, value = torch.randn(3, 1, 2, 3, 16)
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            cascade_attention_forward(None, query, key, value.to(dtype), None, scaling=1.0, prefix_plan=plan)
    assert seen == [{torch.bfloat16}] * 4  # two calls each


def test_without_shared_rows_the_attention_function_is_sdpa(tiny_model):
    ids = torch.arange(10, 22).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])  # generation pads on the left
    expected = tiny_model(input_ids=ids, attention_mask=mask).logits
    tiny_model.set_attn_implementation(CASCADE)
    assert AttentionInterface()[CASCADE] is cascade_attention_forward
    found = tiny_model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[0, 2:], expected[0, 2:])
    generated = [
        tiny_model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        for attention in ("sdpa", CASCADE)
        if not tiny_model.set_attn_implementation(attention)
    ]
    assert generated[0].equal(generated[1])
