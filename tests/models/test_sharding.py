# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Launches that silently set up something else are errors; what a model is like while it generates.

For sharded models, see tests/test_two_processes.py.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from conftest import make_model

from trl_ext.models.sharding import check_launch, gathered, is_sharded


def trainer(kind=DistributedType.NO, processes=1, *, fsdp=0, n_gpu=0, **args):
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=fsdp) if fsdp else None)
    return SimpleNamespace(
        args=SimpleNamespace(n_gpu=n_gpu, **args),
        accelerator=SimpleNamespace(distributed_type=kind, num_processes=processes, state=state),
        is_fsdp_enabled=bool(fsdp),
        is_deepspeed_enabled=kind == DistributedType.DEEPSPEED,
    )


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


def test_launches_that_are_set_up_as_asked_for(monkeypatch):
    check_launch(trainer(cast_for_generation=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(trainer(DistributedType.MULTI_CPU, 2))
    check_launch(trainer(DistributedType.DEEPSPEED, 2))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_launch(trainer(DistributedType.FSDP, 2, fsdp=2))


def test_processes_that_would_each_train_by_themselves(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(trainer())  # of a scheduler, perhaps
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="2 processes were launched, and each would train by itself"):
        check_launch(trainer())


def test_fsdp_that_became_ddp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, and accelerate has set up MULTI_CPU instead"):
        check_launch(trainer(DistributedType.MULTI_CPU, 2))


def test_several_gpus_in_one_process():
    with pytest.raises(ValueError, match="Several GPUs are visible to one process"):
        check_launch(trainer(n_gpu=2))


def test_settings_that_sharded_models_do_not_support():
    with pytest.raises(ValueError, match="Set `fsdp_version: 2`"):
        check_launch(trainer(DistributedType.FSDP, 2, fsdp=1))
    for kind, fsdp in ((DistributedType.FSDP, 2), (DistributedType.DEEPSPEED, 0)):
        with pytest.raises(ValueError, match="`cast_for_generation` copies the model"):
            check_launch(trainer(kind, 2, fsdp=fsdp, cast_for_generation=True))


def test_is_sharded():
    model = make_model(64)
    assert not is_sharded(model)
    next(model.parameters()).ds_id = 0  # as ZeRO-3 marks sharded parameters
    assert is_sharded(model)
    assert not is_sharded(torch.nn.Identity())


@pytest.mark.parametrize("gather", [True, False])
def test_checkpointing_is_off_while_a_model_generates_and_as_before_afterwards(gather):
    """transformers' methods for it warn since 5.24: no warning is caused."""
    model, accelerator = make_model(16), Accelerator(cpu=True)
    layers = model.model.layers
    layers[0].gradient_checkpointing = True  # every second layer, say
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), gathered(model, accelerator, gather=gather) as unwrapped:
            assert unwrapped is model
            assert not any(layer.gradient_checkpointing for layer in layers)
            raise KeyError
    assert [layer.gradient_checkpointing for layer in layers] == [True] + [False] * (len(layers) - 1)
