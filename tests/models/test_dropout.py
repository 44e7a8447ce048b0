# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Without dropout, two forward passes in training mode are equal bit for bit, and equal to one in evaluation mode."""

import pytest
import torch
from conftest import make_model
from peft import BOFTConfig, LoHaConfig, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from trl_ext.models.dropout import disable_dropout


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# By how they apply dropout: modules, numbers on modules, numbers in the config, whole layers, and noise in a router.
MODELS = {
    "llama": {"attention_dropout": 0.3},
    "qwen2": {"attention_dropout": 0.3},
    "qwen3_moe": {"attention_dropout": 0.3, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"attention_dropout": 0.3, "router_jitter_noise": 0.3, "num_local_experts": 4},
    "phimoe": {"attention_dropout": 0.3, "input_jitter_noise": 0.3, "num_local_experts": 4},
    "gpt_oss": {"attention_dropout": 0.3, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "bloom": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "falcon": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "persimmon": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
    "phi": {"attention_dropout": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "layerdrop": 0.5, "d_model": 32},
    "starcoder2": {"attention_dropout": 0.3, "residual_dropout": 0.3, "embedding_dropout": 0.3},
    "biogpt": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "layerdrop": 0.5},
}
IDS = torch.arange(5, 15)[None]


def assert_deterministic(model):
    with torch.no_grad():
        model.train()
        assert any(
            not torch.equal(model(IDS).logits, model(IDS).logits) for _ in range(5)
        )  # layers are dropped at random
        disable_dropout(model)
        first, second = model(IDS).logits, model(IDS).logits
        assert torch.equal(first, second)
        assert torch.equal(first, model.eval()(IDS).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_a_language_model(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | MODELS[kind])
    model = AutoModelForCausalLM.from_config(config)
    saved = {name: value for name, value in config.to_dict().items() if "drop" in name}
    assert_deterministic(model)
    written = {name: value for name, value in model.config.to_dict().items() if "drop" in name}
    assert (written == saved) != (kind in ("falcon", "persimmon"))  # their layers read the config


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "deberta-v2", "albert", "modernbert"])
def test_a_classifier(kind):
    torch.manual_seed(0)
    more = {"embedding_size": 32, "type_vocab_size": 2}
    config = AutoConfig.for_model(kind, **SIZES | more, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    for name in ("attention_dropout", "mlp_dropout", "embedding_dropout"):
        setattr(config, name, 0.3)
    assert_deterministic(AutoModelForSequenceClassification.from_config(config))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False),
        LoHaConfig(target_modules=["q_proj"], rank_dropout=0.5, module_dropout=0.5, init_weights=False),
        BOFTConfig(target_modules=["q_proj"], boft_block_size=8, boft_dropout=0.5, init_weights=False),
    ],
    ids=["lora", "loha", "boft"],
)
def test_an_adapter(config):
    torch.manual_seed(0)
    assert_deterministic(get_peft_model(make_model(64), config))
