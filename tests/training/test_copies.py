# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Copies that compute with their own weights, and leave the model that they were made from as it was."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import make_model
from peft import LoraConfig, get_peft_model
from torch.optim.swa_utils import AveragedModel

from trl_ext.logprobs.lm_head import add_fused_head
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.models.copies import independent_copy
from trl_ext.models.properties import base_of
from trl_ext.training.config import ExtConfig
from trl_ext.training.copies import sampling_copy


IDS = torch.arange(8, 28).view(2, 10)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def settings(tmp_path, **changes):
    return ExtConfig(output_dir=str(tmp_path), report_to="none", **changes)


def test_sampling_copy_leaves_the_model_alone(tmp_path):
    model = make_model(64)
    assert sampling_copy(model, settings(tmp_path)) is model
    assert sampling_copy(model, settings(tmp_path, cast_for_generation=True)) is model  # no bf16 training
    copied = sampling_copy(model, settings(tmp_path, cast_for_generation=True, bf16=True))
    assert copied.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in copied.parameters())
    assert model.dtype == torch.float32
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: get_peft_model(m, LoraConfig(**LORA))], ids=["plain", "LoRA"])
def test_a_copy_does_not_follow_the_model(wrap):
    """A deep copy of a model with a fused head would compute with the weights of the first."""
    model = wrap(make_model(64))
    add_fused_head(base_of(model))
    expected = model(input_ids=IDS).logits.detach()
    copied = independent_copy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(input_ids=IDS).logits, expected)
    add_fused_head(base_of(copied))
    labels = torch.full_like(IDS, 5)
    found = copied(input_ids=IDS, shift_labels=labels, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, expected.log_softmax(dim=-1)[..., 5], rtol=1e-4, atol=1e-4)


def test_the_model_keeps_its_head():
    model = make_model(64)
    add_fused_head(model)
    forward = model.forward
    independent_copy(model)
    assert model.forward == forward
    assert model(input_ids=IDS, shift_labels=IDS, fused_lm_head=True).log_probs.shape == IDS.shape


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: get_peft_model(m, LoraConfig(**LORA))], ids=["plain", "LoRA"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_deep_copy_of_a_trained_model_computes_with_its_own_weights(wrap, bf16):
    """An average of weights is one. accelerate replaces the forward of the outermost model under autocast."""
    model = wrap(make_model(64))
    LogProbs(model, 0)
    AcceleratorState._reset_state(True)
    model = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no").prepare_model(model)
    copied = AveragedModel(model).module
    expected = copied(input_ids=IDS).logits.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    AcceleratorState._reset_state(True)
    torch.testing.assert_close(copied(input_ids=IDS).logits, expected)
    again = copy.deepcopy(copied)
    found = LogProbs(again, 0)(again, IDS[:, :4].tolist(), [[row] for row in IDS[:, 4:].tolist()]).sums()
    log_probs = expected[:, 3:-1].float().log_softmax(dim=-1)
    torch.testing.assert_close(found, log_probs.gather(2, IDS[:, 4:, None]).sum((1, 2)), rtol=1e-3, atol=1e-3)
