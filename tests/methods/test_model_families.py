# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Families of models as language model, value model and under a proxy, each of a kind of its own, in padded batches.

The oracles read one sequence and one candidate at a time, without padding or KV cache.
"""

from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from oracles.guided_decoding import greedy, randomize
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

from trl_ext import ProxyModel, ValueModel
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.models.backbone_and_head import BackboneAndHead


PROMPTS = [[15, 16, 17, 18, 21, 22, 23, 24, 25], [20, 21]]
K, TOKENS, EOS = 4, 3, 1
SETTINGS = GenerationSettings(num_generations=1, temperature=0, max_completion_length=TOKENS)

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    # Learned positions, and narrower hidden states; the language model calls the decoder in its backbone itself.
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    # Positions by distance.
    "bloom": {"n_layer": 2, "n_head": 4},
    # Sliding windows in every other layer, and caps on scores and logits.
    "gemma2": {"sliding_window": 6},
    # Attention sinks, and experts.
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6},
    # A class that names a backbone that it does not have, and chunks of attention.
    "llama4_text": {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 6},
    # Compressed keys and values.
    "deepseek_v3": EXPERTS
    | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    # A factor on the logits.
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.3},
    # Recurrent layers alone, convolutions beside attention, linear attention beside it.
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def make(family: str, tokenizer: Any, seed: int) -> Any:
    """A model of two layers with sharp weights, so that attention makes a difference."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": len(tokenizer), "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS}
    config = AutoConfig.for_model(family, **sizes | ids | FAMILIES[family])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_guided_decoding(tokenizer: Any, family: str) -> None:
    policy, other = make(family, tokenizer, 0), make(family, tokenizer, 5)
    for form in ("state", "action", "policy"):
        if form == "policy":
            value = randomize(ValueModel.on_policy(policy, form=form, action_rank=3))
        else:
            value = randomize(ValueModel.from_backbone(other, form=form, action_rank=3))
        found = [c.ids for [c] in guided_policy(policy, tokenizer, value, 2.0, K).generate(PROMPTS, SETTINGS)]
        assert found == [greedy(policy, [(value, 0, 2.0)], prompt, TOKENS, K) for prompt in PROMPTS], form


@pytest.mark.parametrize("family", FAMILIES)
def test_proxies(tokenizer: Any, family: str) -> None:
    """Candidates in descending order: the first that the proxy rather accepts than rejects, or the last."""
    model = make(family, tokenizer, 0)
    process = DecisionProcess(top_k=K, order="descending", forced="last")
    torch.manual_seed(0)
    proxy = ProxyModel.for_model(model, process, layer_sizes=[8]).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 1)
    backbone = BackboneAndHead(model).backbone

    @torch.no_grad()
    def complete(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + TOKENS and ids[-1] != EOS:
            candidates = model(torch.tensor([ids])).logits[0, -1].topk(K).indices.tolist()
            states = [backbone(torch.tensor([[*ids, c]])).last_hidden_state[0, -1] for c in candidates[:-1]]
            accepted = [c for c, state in zip(candidates, states, strict=False) if proxy.accept_logits(state) >= 0]
            ids.append((accepted or candidates[-1:])[0])
        return ids[len(prompt) :]

    policy = proxy_policy(model, tokenizer, proxy, greedy=True)
    assert [c.ids for [c] in policy.generate(PROMPTS, SETTINGS)] == [complete(prompt) for prompt in PROMPTS]


def test_encoder_decoders_are_refused() -> None:
    config = BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1)
    model = BartForConditionalGeneration(config)
    for make_value in (ValueModel.from_backbone, lambda model: ValueModel.on_policy(model, form="policy")):
        with pytest.raises(ValueError, match=r"BartForConditionalGeneration is an encoder-decoder.*decoder-only"):
            make_value(model)
