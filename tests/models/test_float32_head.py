# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A head in float32 on a model in bfloat16. The oracle is the same product in float64 on the model's hidden states."""

import copy

import pytest
import torch
from conftest import make_model
from torch import nn

from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.models.float32_head import cast_head_to_float32


PROMPT, COMPLETION = [5, 6, 7, 8], [20, 21, 22]
IDS = torch.tensor([PROMPT + COMPLETION])


def exact_logits(model):
    hidden = model.model(input_ids=IDS).last_hidden_state
    return hidden.double() @ model.lm_head.weight.double().T


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_logits_and_log_probabilities_are_those_of_float32(tied, autocast, copied):
    model = make_model(64, tie_word_embeddings=tied)
    if not autocast:
        model = model.to(torch.bfloat16)
    before = model.get_input_embeddings()(IDS)
    cast_head_to_float32(model)
    cast_head_to_float32(model)  # has no effect
    if copied:
        LogProbs(model, 0)
        model = copy.deepcopy(model)
    assert torch.equal(model.get_input_embeddings()(IDS), before)
    assert model.get_input_embeddings()(IDS).dtype == before.dtype
    assert model.lm_head.weight.dtype == torch.float32
    assert (model.get_input_embeddings().weight is model.lm_head.weight) == tied
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, expected = model(input_ids=IDS).logits, exact_logits(model)
        found = LogProbs(model, 0)(model, [PROMPT], [[COMPLETION]]).sums()[0]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    log_probs = expected[0].log_softmax(-1)
    by_hand = sum(log_probs[len(PROMPT) - 1 + t, token] for t, token in enumerate(COMPLETION))
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-4)


def test_gradients_are_those_of_float32():
    model = make_model(64).to(torch.bfloat16)
    cast_head_to_float32(model)
    LogProbs(model, 0)(model, [PROMPT], [[COMPLETION]]).sums().sum().backward()
    found = model.lm_head.weight.grad
    model.zero_grad()
    log_probs = model(input_ids=IDS).logits[0].log_softmax(-1)
    sum(log_probs[len(PROMPT) - 1 + t, token] for t, token in enumerate(COMPLETION)).backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.lm_head.weight.grad, rtol=1e-4, atol=1e-4)


def test_another_head_is_named():
    model = make_model(64)
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="that of LlamaForCausalLM is a Sequential"):
        cast_head_to_float32(model)
