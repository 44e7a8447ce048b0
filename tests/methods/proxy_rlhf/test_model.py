# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The proxy's networks, by themselves."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model

from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.model import PartwiseLayerNorm, ProxyConfig, ProxyModel


def proxy_of(feature: str, **changes: Any) -> ProxyModel:
    torch.manual_seed(0)
    settings = {"llm_hidden_size": 16, "layer_sizes": [8], "process": {"feature": feature}, **changes}
    proxy = ProxyModel(ProxyConfig(**settings)).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_()
    return proxy


def test_each_part_is_normalised_by_itself() -> None:
    """Against loops, with a weight and a bias for each channel."""
    norm = PartwiseLayerNorm(3, 2)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
        norm.bias.copy_(torch.arange(6.0) / 10)
    x = torch.tensor([[5.0, -1.0, 2.0, 0.03, 0.01, 0.08], [1.0, 1.0, 4.0, -2.0, 0.0, 7.0]])
    expected = []
    for row in x.tolist():
        normed = []
        for part in (row[:3], row[3:]):
            mean = sum(part) / 3
            deviation = math.sqrt(sum((value - mean) ** 2 for value in part) / 3 + norm.eps)
            normed += [(value - mean) / deviation for value in part]
        expected.append([value * (i + 1) + i / 10 for i, value in enumerate(normed)])
    torch.testing.assert_close(norm(x), torch.tensor(expected))


def test_the_scale_of_embeddings_does_not_matter() -> None:
    """A candidate is seen as well where embeddings are much smaller than hidden states, as in most models."""
    proxy = proxy_of("context", partwise_norm=True)
    states, embeddings = torch.randn(5, 16) * 2, torch.randn(5, 16)
    expected = proxy.accept_logits(torch.cat([states, embeddings], -1))
    for scale in (2.0**-3, 2.0**4):  # exact in bfloat16
        found = proxy.accept_logits(torch.cat([states, embeddings * scale], -1))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    other = proxy.accept_logits(torch.cat([states, embeddings.roll(1, 0)], -1))
    assert float((other - expected).abs().min()) > 1e-3


def test_proxies_that_were_trained_before_keep_their_norm() -> None:
    """Their config says nothing about it: one LayerNorm over both parts."""
    assert type(proxy_of("context").actor[0]) is torch.nn.LayerNorm
    for feature, kind in (("context", PartwiseLayerNorm), ("candidate", torch.nn.LayerNorm)):
        assert type(proxy_of(feature, partwise_norm=True).actor[0]) is kind


@pytest.mark.parametrize("feature", ["candidate", "context"])
def test_a_proxy_is_saved_with_its_feature(feature: str, tmp_path: Path) -> None:
    model: Any = make_model(30)
    proxy = ProxyModel.for_model(model, DecisionProcess(feature=feature)).eval()
    proxy.save_pretrained(tmp_path)
    again = ProxyModel.from_pretrained(tmp_path).eval()
    assert again.config.decision_process == proxy.config.decision_process
    features = torch.randn(4, 64 * (2 if feature == "context" else 1))
    assert torch.equal(again.accept_logits(features), proxy.accept_logits(features))
    assert type(again.actor[0]) is type(proxy.actor[0])
