# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What this machine computes on, with accelerators and processors that it does not have."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer
from tiny_trainers import METHODS, make_trainer

from trl_ext import devices, upstream
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.seeds import fork_rng


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def missing_accelerator(monkeypatch):
    """torch from PyPI is compiled for CUDA on Linux, and names `cuda` without a GPU unless it is to check."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: CUDA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.accelerator.current_accelerator() == CUDA


def test_the_default_device(monkeypatch):
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: None)
    assert devices.default_device() == CPU and devices.accelerator_count() == 0
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: CUDA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.default_device() == CUDA and devices.accelerator_count() == 2


def test_a_missing_accelerator_is_none(missing_accelerator):
    assert devices.default_device() == CPU
    assert devices.accelerator_count() == 0 and devices.accelerators() == []
    devices.empty_cache()
    devices.synchronize(CPU)
    expected = torch.manual_seed(3) and torch.rand(2)
    before = torch.get_rng_state()
    with fork_rng(3):
        torch.testing.assert_close(torch.rand(2), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_training_with_a_missing_accelerator(missing_accelerator, tmp_path, method):
    """The whole way of each method: prompts are sampled from, scored and trained on."""
    trainer = make_trainer(method, tmp_path, max_steps=1)
    trainer.train()
    assert trainer.args.device == CPU and trainer.state.global_step == 1


def test_loading_and_generating_with_a_missing_accelerator(missing_accelerator, tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(tmp_path)
    model = LoadingArguments().load(str(tmp_path))
    settings = GenerationSettings(max_completion_length=3, num_generations=2)
    assert len(generate(model, tokenizer, [[5, 6]], settings)[0]) == 2


@pytest.mark.parametrize(
    ("names_and_memory", "described"),
    [
        ({"get_device_name": lambda device: "H1", "mem_get_info": lambda device: (5, 8)}, ("H1", 5, 8)),
        ({}, ("cuda", 0, 0)),
    ],
    ids=["all known", "a module without these"],
)
def test_reports_of_accelerators(monkeypatch, names_and_memory, described):
    monkeypatch.setattr(devices, "accelerator", lambda: CUDA)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**names_and_memory))
    assert devices.accelerators() == [devices.Accelerator(*described)] * 2


@pytest.mark.parametrize(
    ("version", "capability", "supports"), [("13.0", (8, 0), True), ("13.0", (7, 5), False), (None, (9, 0), False)]
)
def test_flash_attention_needs_an_nvidia_gpu_since_ampere(monkeypatch, version, capability, supports):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.supports_flash_attention(CUDA) == supports
    assert not devices.supports_flash_attention(CPU)


@pytest.mark.parametrize(
    ("capabilities", "onednn", "fast"),
    [
        ({"avx2": True, "f16c": True, "avx_ne_convert": True}, True, []),
        ({"avx512_f": True}, True, []),  # oneDNN takes bfloat16 there too, and converts
        ({"avx512_f": True, "avx512_bf16": True}, True, [torch.bfloat16]),
        ({"avx512_bf16": True, "avx512_fp16": True}, True, [torch.bfloat16, torch.float16]),
        ({"avx512_bf16": True, "avx512_fp16": True}, False, []),  # ONEDNN_MAX_CPU_ISA=AVX2
        ({"neon": True, "bf16": True, "fp16_arith": True}, True, [torch.bfloat16]),
        ({}, True, []),
    ],
)
def test_what_a_processor_computes_fast_in(monkeypatch, capabilities, onednn, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(upstream, "onednn_computes", lambda dtype: onednn)
    monkeypatch.setattr(devices, "processor_computes", devices.processor_computes.__wrapped__)
    assert [dtype for dtype in devices.HALF_PRECISION if devices.computes_fast(dtype, CPU)] == fast
    assert all(devices.computes_fast(dtype, CUDA) for dtype in devices.HALF_PRECISION)
    assert devices.computes_fast(torch.float32, CPU)
    for dtype in devices.HALF_PRECISION:
        assert devices.fast_dtype(dtype, CPU) == (dtype if dtype in fast else torch.float32)
