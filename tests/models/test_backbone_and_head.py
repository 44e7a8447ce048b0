# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The two parts of a causal language model."""

from typing import Any

import pytest
import torch
from conftest import make_model
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.properties import backbone_of


IDS = torch.arange(3, 10)[None]


def tiny(kind: str, **changes: Any) -> Any:
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    if kind == "falcon":
        del settings["head_dim"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings | changes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return AutoModelForCausalLM.from_config(config).eval()


class Head(torch.nn.Module):
    """A head that is not an `nn.Linear`, as code from the Hub may have."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


def test_the_vocabulary_is_that_of_the_head() -> None:
    model = make_model(34)
    assert BackboneAndHead(model).vocabulary == 34
    model.lm_head = Head(model.lm_head)
    assert BackboneAndHead(model).vocabulary == 34


def test_a_head_that_is_narrower_than_the_layers() -> None:
    """OPT-350m projects the output of its layers to the width of its embedding."""
    model = tiny("opt", word_embed_proj_dim=16, do_layer_norm_before=False, ffn_dim=48)
    parts = BackboneAndHead(model)
    hidden = parts.backbone(input_ids=IDS).last_hidden_state
    assert parts.width == hidden.shape[-1] == 16
    torch.testing.assert_close(parts.logits(hidden), model(input_ids=IDS).logits)


@pytest.mark.parametrize("kind", ["llama", "llama4_text", "gpt2", "opt", "falcon", "gpt_neox"])
def test_the_backbone_is_below_the_head(kind: str) -> None:
    """transformers does not find that of Llama 4 under the name that its class states."""
    model = tiny(kind, num_local_experts=2, intermediate_size_mlp=48, ffn_dim=48, word_embed_proj_dim=32)
    assert backbone_of(model) is not model
    assert backbone_of(backbone_of(model)) is backbone_of(model)
    assert backbone_of(model)(input_ids=IDS).last_hidden_state.shape == (1, 7, 32)
    tokens = LogProbs(model, 0)(model, [[5, 6]], [[[7, 8, 9]]])
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    expected = logits[1, 7] + logits[2, 8] + logits[3, 9]
    torch.testing.assert_close(tokens.sums()[0], expected, rtol=1e-4, atol=1e-4)


def test_the_backbone_inside_an_adapter() -> None:
    model = tiny("llama")
    assert backbone_of(get_peft_model(model, LoraConfig(target_modules="all-linear"))) is model.model
