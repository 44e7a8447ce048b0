# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Placement of a frozen model. Generation with a sharded one: see tests/test_two_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model

from trl_ext.training import frozen_model
from trl_ext.training.frozen_model import place_frozen


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
