# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What this machine computes on: every question about devices, their streams and graphs, and the dtypes that are fast.

torch names the accelerator that it was compiled for, even on a machine without one, and computes in dtypes for which
the processor has no instructions. So nothing else asks torch (`tests/test_architecture.py` checks it).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

CPU = torch.device("cpu")
HALF_PRECISION = (torch.bfloat16, torch.float16)

# Instructions that multiply matrices of a dtype, as `torch.cpu.get_capabilities` names them on x86 and ARM. A
# processor that only converts (`f16c`, `avx_ne_convert`) is left out, and so is what was not measured.
_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "bf16"), torch.float16: ("avx512_fp16",)}

# Measured on an AMD EPYC with AVX2: SmolLM2-135M generates 12 against 75 tokens/s, and a step of
# recipes/psle/imdb-7m_full_imdb_cpu.yaml takes 160 s against 14.8 s.
SLOWDOWN = (
    "without them, an AMD EPYC generated about 6 times and trained about 11 times slower in bfloat16 than in float32"
)


# ---------------------------------------------------------------------------------------------------------- devices


def accelerator() -> torch.device | None:
    """The accelerator of this machine, if it has one."""
    return torch.accelerator.current_accelerator(check_available=True)


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return accelerator() or CPU


def process_device() -> torch.device:
    """The device that accelerate has chosen for this process: of its rank, or the CPU with `use_cpu`."""
    from accelerate import PartialState  # which most questions here do not need

    return PartialState().device  # type: ignore[no-any-return]


def accelerator_count() -> int:
    """How many accelerators this process sees."""
    return 0 if accelerator() is None else torch.accelerator.device_count()


@dataclass(frozen=True)
class Accelerator:
    """
    What a report says about an accelerator.

    Args:
        name (`str`): Its name, or its kind where torch does not know the name.
        free, total (`int`): Bytes of its memory; 0 where torch does not know.
    """

    name: str
    free: int = 0
    total: int = 0


def accelerators() -> list[Accelerator]:
    """The accelerators that this process sees."""
    kind = accelerator()
    if kind is None:
        return []
    memory_of = getattr(torch.get_device_module(kind), "mem_get_info", lambda device: (0, 0))
    found = [torch.device(kind.type, index) for index in range(accelerator_count())]
    return [Accelerator(device_name(device), *memory_of(device)) for device in found]


def device_name(device: torch.device) -> str:
    """The name of an accelerator, or the kind of a device where torch does not know its name."""
    name_of = getattr(torch.get_device_module(device), "get_device_name", lambda device: str(device.type))
    return str(name_of(device))


def cuda_version() -> str | None:
    """The version of CUDA that torch was compiled with."""
    return torch.version.cuda


def vector_instructions() -> str:
    """The vector instructions that torch uses on the CPU, such as `"AVX2"`."""
    return torch.backends.cpu.get_cpu_capability()


def supports_cuda_graphs(device: torch.device) -> bool:
    """Whether work on a device can be recorded as a CUDA graph."""
    return device.type == "cuda"


def supports_flash_attention(device: torch.device) -> bool:
    """Whether torch's own flash attention runs on a device: on NVIDIA's GPUs since Ampere."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None  # ROCm calls its devices `cuda` too
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def empty_cache() -> None:
    """Returns memory that torch keeps for later tensors to the accelerator."""
    if accelerator() is not None:
        torch.accelerator.empty_cache()


def synchronize(device: torch.device) -> None:
    """Waits until a device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def accelerator_started() -> bool:
    """Whether this process has started on a GPU. One that it forks cannot use the GPU then."""
    return torch.cuda.is_initialized()


def allow_tf32() -> None:
    """Lets GPUs multiply float32 matrices in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True


def reset_peak_memory(device: torch.device) -> int:
    """Starts a measurement of peak memory, without what torch keeps; returns the bytes that tensors occupy."""
    empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    return torch.accelerator.memory_allocated(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The largest bytes since [`reset_peak_memory`]: those of tensors (`allocated`), and those held (`reserved`)."""
    allocated = torch.accelerator.max_memory_allocated(device)
    return {"allocated": allocated, "reserved": torch.accelerator.max_memory_reserved(device)}


@contextmanager
def limited_memory(device: torch.device, size: int) -> Iterator[None]:
    """
    Context in which torch may hold as much of a GPU's memory as a smaller card has.

    Args:
        device (`torch.device`): A CUDA device; on another kind nothing is limited.
        size (`int`): Bytes; 0 limits nothing.
    """
    if device.type != "cuda" or not size:
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def generators() -> dict[str, Any]:
    """The arguments of `torch.random.fork_rng` for the generators that sampling here uses, beside the CPU's."""
    kind = accelerator()
    if kind is None:
        return {"devices": []}
    return {"devices": [torch.accelerator.current_device_index()], "device_type": kind.type}


def generator_states() -> list[torch.Tensor]:
    """The states of the generators that [`generators`] is about, the CPU's first."""
    kind = accelerator()
    states = [torch.get_rng_state()]
    return states if kind is None else [*states, torch.get_device_module(kind).get_rng_state()]


def set_generator_states(states: list[torch.Tensor]) -> None:
    """Sets what [`generator_states`] returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(accelerator()).set_rng_state(state)


def record_cuda_graph(
    step: Callable[[], Any], restore: Callable[[], None], device: torch.device, warm_up: int
) -> Callable[[], None]:
    """
    Records a function as a CUDA graph. The random number generator of the device is left as it was.

    Args:
        step (`Callable`): The function. It must not wait for the device.
        restore (`Callable`): Takes back what a call of `step` has changed.
        device (`torch.device`): A CUDA device.
        warm_up (`int`): Calls before the recording, on a stream of their own.

    Returns:
        `Callable`: Replays the graph.
    """
    with torch.cuda.device(device):
        rng_state = torch.cuda.get_rng_state(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                step()
                restore()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a data loader's, which pins memory) may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        torch.cuda.set_rng_state(rng_state, device)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


# ----------------------------------------------------------------------------------------------------------- dtypes


@functools.cache
def processor_computes(dtype: torch.dtype) -> bool:
    """
    Whether the processor has instructions for a half-precision dtype, and torch uses them.

    Without them, torch converts both matrices of each product. `False` where it is not known.

    Args:
        dtype (`torch.dtype`): bfloat16 or float16.
    """
    from trl_ext.upstream import onednn_computes  # imports TRL, which most questions here do not need

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[dtype]) and onednn_computes(dtype)


def computes_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """
    Whether a device computes in a dtype about as fast as in float32, or faster.

    Args:
        dtype (`torch.dtype`): The dtype of the arithmetic.
        device (`torch.device`): Where it computes. Accelerators are taken to be fast in all dtypes.
    """
    return device.type != "cpu" or dtype not in HALF_PRECISION or processor_computes(dtype)


def fast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or float32 where a device computes slowly in it."""
    return dtype if computes_fast(dtype, device) else torch.float32


def slow_reason(dtype: torch.dtype) -> str:
    """Why the processor is slow in a half-precision dtype, for a line of log."""
    return f"this processor has no {str(dtype).removeprefix('torch.')} instructions ({SLOWDOWN})"


def warn_if_slow(setting: str, dtype: torch.dtype, device: torch.device, remedy: str) -> None:
    """
    Logs once that a setting asks for a dtype in which a device computes slowly.

    Args:
        setting (`str`): The setting and its value.
        dtype (`torch.dtype`): The dtype.
        device (`torch.device`): Where it computes.
        remedy (`str`): What to set instead.
    """
    if not computes_fast(dtype, device):
        logger.warning_once(f"`{setting}`: {slow_reason(dtype)}. {remedy}")
