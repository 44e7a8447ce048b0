# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Peak memory of a step."""

import contextlib
import ctypes
import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trl_ext import devices

from .round_clock import resident
from .timing import Variant


def peak_memory(variant: Variant, batch: int, device: torch.device) -> dict[str, int]:
    """
    Peak memory of steps that are not timed, in bytes.

    Returns:
        `dict`: `"above"`, the peak of what tensors occupy less what they occupied before the step: from CUDA's
        counters, or, on the CPU, from the allocations that torch's profiler records. On CUDA also `"reserved"`, the
        peak that the allocator held, weights included. On the CPU under Linux also `"resident"`, how far the resident
        size of the process rose: with the scratch space of libraries and without pages
        that were allocated and never touched, it is what a machine has to have.
    """
    if device.type == "cuda":
        variant.prepare()
        devices.synchronize(device)
        before = devices.reset_peak_memory(device)
        variant.step(batch)
        devices.synchronize(device)
        peak = devices.peak_memory(device)
        return {"above": peak["allocated"] - before, "reserved": peak["reserved"]}
    variant.prepare()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        variant.step(batch)
    result = {"above": max(_running_totals(profile), default=0)}
    del profile
    with contextlib.suppress(AttributeError, OSError):  # not Linux with glibc, or not allowed
        result["resident"] = _resident_growth(variant, batch)
    return result


def needed_memory(memory: dict[str, int]) -> int:
    """The figure of [`peak_memory`] that ratios are of."""
    return memory.get("resident", memory["above"])


def _resident_growth(variant: Variant, batch: int) -> int:
    variant.prepare()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed would hide what this one takes
    before = resident("VmRSS", reset=True)
    variant.step(batch)
    return resident("VmHWM") - before


def _running_totals(profile: Any) -> Iterator[int]:
    """Bytes that are allocated and not yet freed after each allocation of the profile."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    total = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        total += event["args"]["Bytes"]
        yield total
