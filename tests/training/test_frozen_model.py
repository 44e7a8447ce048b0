# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Placement of a frozen model. Generation with a sharded one: see tests/test_two_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from transformers import BitsAndBytesConfig

from trl_ext.training import frozen_model
from trl_ext.training.frozen_model import load_frozen, place_frozen


def trainer(*, fsdp=False, deepspeed=False):
    return SimpleNamespace(
        is_fsdp_enabled=fsdp,
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )


def test_each_process_has_one():
    model = make_model(64)
    assert place_frozen(model, trainer()) is model
    assert place_frozen(None, trainer(fsdp=True)) is None


@pytest.mark.parametrize("kind", [{"fsdp": True}, {"deepspeed": True}])
def test_sharded_unless_it_is_quantized_or_on_several_devices(monkeypatch, kind):
    monkeypatch.setattr(frozen_model, "shard", lambda model, trainer: "sharded")
    assert place_frozen(make_model(64), trainer(**kind)) == "sharded"
    quantized, dispatched = make_model(64), make_model(64)
    quantized.is_loaded_in_4bit = True
    dispatched.hf_device_map = {"": 0}
    for model in (quantized, dispatched):
        assert place_frozen(model, trainer(**kind)) is model


@pytest.mark.parametrize("kind", [{"fsdp": True}, {"deepspeed": True}])
def test_a_model_that_shares_its_weights_is_not_sharded(kind):
    with pytest.raises(ValueError, match=r"shares the weights .* cannot be trained under DeepSpeed or FSDP"):
        place_frozen(make_model(64), trainer(**kind), shared=True)
    assert place_frozen(make_model(64), trainer(), shared=True) is not None


def test_what_is_for_loading_is_not_ignored_for_a_model_that_is_loaded(monkeypatch):
    said = []
    monkeypatch.setattr("trl_ext.training.model_loading.logger.warning", said.append)
    model, args = make_model(64), SimpleNamespace(model_init_kwargs=None)
    assert load_frozen(model, args) is model and not said
    with pytest.raises(ValueError, match="`quantization_config` was given for a model that is loaded already"):
        load_frozen(model, args, BitsAndBytesConfig(load_in_8bit=True))
    load_frozen(model, SimpleNamespace(model_init_kwargs={"dtype": "bfloat16"}))
    assert said == ["`model_init_kwargs` is ignored: the model is loaded already."]
