# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What this machine computes on, with accelerators and processors that it does not have."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from tiny_trainers import METHODS, make_trainer
from transformers import HfArgumentParser
from trl import ModelConfig, TrlParser

from trl_ext import devices, upstream
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.policies import VASDecoding
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.models.load import load_model, quantization_config_from
from trl_ext.models.properties import is_quantized
from trl_ext.rewards.functions import load_rewards
from trl_ext.seeds import fork_rng
from trl_ext.training.config import ExtConfig
from trl_ext.training.copies import sampling_copy


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROCESSOR_COMPUTES = devices.processor_computes  # tests have one with all instructions


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


def test_memory_is_limited_to_that_of_a_smaller_card(monkeypatch):
    """By hand: 20 of 80 bytes are a quarter; more than there is limits nothing."""
    fractions = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: fractions.append(share))
    with contextlib.suppress(ValueError), devices.limited_memory(CUDA, 20):
        raise ValueError
    with devices.limited_memory(CUDA, 100):
        pass
    assert fractions == [0.25, 1.0, 1.0, 1.0]
    for device, size in ((CPU, 20), (CUDA, 0)):
        with devices.limited_memory(device, size):
            pass
    assert len(fractions) == 4


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
    monkeypatch.setattr(devices, "processor_computes", PROCESSOR_COMPUTES.__wrapped__)
    assert [dtype for dtype in devices.HALF_PRECISION if devices.computes_fast(dtype, CPU)] == fast
    assert all(devices.computes_fast(dtype, CUDA) for dtype in devices.HALF_PRECISION)
    assert devices.computes_fast(torch.float32, CPU)
    for dtype in devices.HALF_PRECISION:
        assert devices.fast_dtype(dtype, CPU) == (dtype if dtype in fast else torch.float32)


def test_this_processor_is_known():
    """It is one question of torch and one of oneDNN; float32 is not asked about."""
    assert {PROCESSOR_COMPUTES(dtype) for dtype in devices.HALF_PRECISION} <= {True, False}


# ------------------------------------------------------------------------------------------- dtypes that follow it

FLOAT32_LINE = "Models are loaded in float32, not in the dtype of their weights: this processor has no bfloat16"


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model in a dtype and returns its folder."""

    def save(dtype, **kind):
        folder = tmp_path / f"{dtype}-{len(kind)}".removeprefix("torch.")
        tokenizer = make_tokenizer()
        make_model(len(tokenizer), **kind).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def test_a_checkpoint_in_half_precision_becomes_float32(slow_processor, saved, tmp_path, caplog):
    """`dtype="auto"`: the language model under an adapter, and a reward model, by one line of log."""
    folder = saved(torch.bfloat16)
    model = load_model(folder, dtype="auto")
    assert model.dtype == torch.float32
    assert [text for text in caplog.messages if "loaded in float32" in text] == [caplog.messages[-1]]
    assert caplog.messages[-1].startswith(FLOAT32_LINE) and "Set `dtype`" in caplog.messages[-1]
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert {p.dtype for p in load_model(str(tmp_path / "adapter"), dtype="auto").parameters()} == {torch.float32}
    [reward] = load_rewards(saved(torch.bfloat16, num_labels=1))
    assert reward.func.model.dtype == torch.float32
    model.save_pretrained(tmp_path / "again")
    assert load_model(str(tmp_path / "again"), dtype="auto").config.dtype == torch.float32
    assert len([text for text in caplog.messages if "loaded in float32" in text]) == 1


def test_a_checkpoint_in_float32_is_loaded_without_a_word(slow_processor, saved, caplog):
    assert load_model(saved(torch.float32), dtype="auto").dtype == torch.float32
    assert load_model(saved(torch.bfloat16)).dtype == torch.float32  # TRL's default
    assert "instructions" not in caplog.text


def test_an_accelerator_keeps_the_dtype_of_the_checkpoint(slow_processor, saved):
    assert load_model(saved(torch.bfloat16), dtype="auto", device=CUDA, device_map=None).dtype == torch.bfloat16


def test_an_explicit_dtype_is_obeyed_with_a_warning(slow_processor, saved, caplog):
    folder = saved(torch.float32)
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_model(folder, dtype=dtype).dtype == torch.bfloat16
    [line] = [text for text in caplog.messages if "instructions" in text]
    assert line.startswith("`dtype: bfloat16`: this processor has no bfloat16 instructions (without them, an AMD ")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_models_compute_in_float32(slow_processor, saved, bits):
    config = quantization_config_from(ModelConfig(**{f"load_in_{bits}bit": True}))
    model = load_model(saved(torch.bfloat16), quantization_config=config, dtype="auto")
    assert model.model.norm.weight.dtype == torch.float32
    assert bits == 8 or config.bnb_4bit_compute_dtype == torch.float32


def test_a_checkpoint_that_was_saved_quantized_is_loaded_as_it_is(slow_processor, saved, tmp_path):
    config = quantization_config_from(ModelConfig(load_in_4bit=True))
    load_model(saved(torch.bfloat16), quantization_config=config, dtype=torch.bfloat16).save_pretrained(tmp_path / "4")
    assert is_quantized(load_model(str(tmp_path / "4"), dtype="auto"))


def test_a_value_model_beside_a_server_follows_the_processor(slow_processor, saved, tmp_path):
    value_model = ValueModel.from_backbone(saved(torch.bfloat16), dtype="bfloat16")
    value_model.save_pretrained(tmp_path / "value")
    loaded, _ = VASDecoding(value_model_name_or_path=[str(tmp_path / "value")]).load_value_models(None)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("given", "with_instructions", "without"),
    [(None, False, False), ("auto", True, False), (True, True, True), (False, False, False), ("true", True, True)],
)
def test_bf16_on_a_cpu(monkeypatch, tmp_path, given, with_instructions, without):
    for expected in (with_instructions, without):
        assert ExtConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=given).bf16 is expected
        monkeypatch.setattr(devices, "processor_computes", lambda dtype: False)


def test_bf16_auto_says_that_it_is_float32(slow_processor, tmp_path, caplog):
    for _ in range(2):
        ExtConfig(str(tmp_path), report_to="none", use_cpu=True, bf16="auto")
    [line] = [text for text in caplog.messages if "instructions" in text]
    assert line.startswith("`bf16: auto` is float32 here: this processor has no bfloat16 instructions")


def test_fp16_on_a_cpu_is_off_and_says_so(tmp_path, caplog):
    """accelerate ignores it there; `bf16: auto` does not take its place."""
    args = ExtConfig(str(tmp_path), report_to="none", use_cpu=True, bf16="auto", fp16=True)
    assert not args.fp16 and not args.bf16
    assert "`fp16` has no effect on a CPU: training computes in the dtype of the weights." in caplog.messages


def test_bf16_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`bf16` must be true, false or 'auto', got 'half'"):
        ExtConfig(str(tmp_path), bf16="half")


def test_explicit_bf16_is_obeyed_with_a_warning_and_without_a_copy(slow_processor, tmp_path, caplog):
    args = ExtConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=True, cast_for_generation=True)
    assert args.bf16 is True
    [line] = [text for text in caplog.messages if "instructions" in text]
    assert "trained about 11 times slower in bfloat16 than in float32). `bf16: auto` chooses float32 here" in line
    model = make_model(64)
    assert sampling_copy(model, args) is model


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_other_parsers_take_bf16_as_before(parser, tmp_path):
    for word, expected in (("True", True), ("false", False), ("auto", True)):
        words = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none", "--bf16", word]
        (args,) = parser(ExtConfig).parse_args_into_dataclasses(words)
        assert args.bf16 is expected


def test_a_cuda_graph_is_recorded_after_calls_that_leave_no_trace(monkeypatch):
    """The order of the calls, without a GPU: `step` is restored after each warm-up call, and recorded once."""
    calls = []
    rng_state = torch.tensor([7])

    class Graph:
        def replay(self):
            calls.append("replay")

    @contextlib.contextmanager
    def context(name):
        calls.append(f"{name} begins")
        yield
        calls.append(f"{name} ends")

    stream = SimpleNamespace(wait_stream=lambda other: calls.append("wait"))
    fakes = {
        "device": lambda device: contextlib.nullcontext(),
        "get_rng_state": lambda device: rng_state,
        "set_rng_state": lambda state, device: calls.append(("rng", int(state))),
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda side: context("warm-up"),
        "CUDAGraph": Graph,
        "graph": lambda graph, capture_error_mode: context(f"recording {capture_error_mode}"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    step, restore = (lambda name=name: calls.append(name) for name in ("step", "restore"))
    replay = devices.record_cuda_graph(step, restore, CUDA, warm_up=2)
    warm_up = ["warm-up begins", "step", "restore", "step", "restore", "warm-up ends"]
    recording = ["recording thread_local begins", "step", "recording thread_local ends"]
    assert calls == ["wait", *warm_up, "wait", *recording, ("rng", 7)]
    replay()
    assert calls[-1] == "replay"
