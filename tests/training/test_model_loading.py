# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Where a frozen model goes. How it samples in pieces: see each method's test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model

from trl_ext.training import model_loading as frozen
from trl_ext.training.model_loading import place_frozen


def trainer(*, fsdp=False, deepspeed=False):
    return SimpleNamespace(
        is_fsdp_enabled=fsdp,
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )


def test_one_on_each_process():
    model = make_model(64)
    assert place_frozen(model, trainer()) is model
    assert place_frozen(None, trainer(fsdp=True)) is None


@pytest.mark.parametrize("kind", [{"fsdp": True}, {"deepspeed": True}])
def test_in_pieces_unless_it_is_quantised_or_on_several_devices(monkeypatch, kind):
    monkeypatch.setattr(frozen, "shard", lambda model, trainer: "in pieces")
    assert place_frozen(make_model(64), trainer(**kind)) == "in pieces"
    quantised, dispatched = make_model(64), make_model(64)
    quantised.is_loaded_in_4bit = True
    dispatched.hf_device_map = {"": 0}
    for model in (quantised, dispatched):
        assert place_frozen(model, trainer(**kind)) is model


@pytest.mark.parametrize("kind", [{"fsdp": True}, {"deepspeed": True}])
def test_what_is_trained_on_its_weights_is_not_divided(kind):
    with pytest.raises(ValueError, match="own weights cannot be trained under DeepSpeed or FSDP"):
        place_frozen(make_model(64), trainer(**kind), shared=True)
    assert place_frozen(make_model(64), trainer(), shared=True) is not None
