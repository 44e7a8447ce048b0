# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Config settings that change attention or logits, each by the config class that has it."""

import pytest
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from trl_ext.models.architecture import FULL, SLIDING, layer_kinds, logit_cap, logit_scale, score_cap


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (LlamaConfig(), {FULL}),
        (MistralConfig(sliding_window=4096), {SLIDING}),
        (MistralConfig(sliding_window=None), {FULL}),
        (Qwen2Config(sliding_window=4096, use_sliding_window=False), {FULL}),
        (Gemma2Config(num_hidden_layers=2), {FULL, SLIDING}),
        (LlamaConfig(attention_chunk_size=8192), {"attention limited by `attention_chunk_size`"}),
        (LlamaConfig(num_hidden_layers=1, layer_types=["linear_attention"]), {"linear_attention"}),
    ],
    ids=["full", "sliding", "no window", "window switched off", "both", "chunks", "another kind"],
)
def test_layer_kinds(config, kinds):
    assert layer_kinds(config) == kinds


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (LlamaConfig(), 1.0),
        (CohereConfig(logit_scale=0.0625), 0.0625),
        (FalconH1Config(lm_head_multiplier=0.5), 0.5),
        (GraniteConfig(logits_scaling=8.0), 0.125),
    ],
    ids=["none", "factor", "multiplier", "divisor"],
)
def test_logit_scale(config, scale):
    assert logit_scale(config) == scale


def test_caps():
    config = Gemma2Config(final_logit_softcapping=30.0, attn_logit_softcapping=None)
    assert (logit_cap(config), score_cap(config)) == (30.0, 0.0)
    assert (logit_cap(LlamaConfig()), score_cap(LlamaConfig(attn_logit_softcapping=50.0))) == (0.0, 50.0)
