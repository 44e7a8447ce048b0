# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext env`: versions of libraries and hardware, for a bug report."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


_PACKAGES = (
    *("trl-ext", "torch", "trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "safetensors"),
    *("numpy", "matplotlib"),
)
# Each with the extra that installs it.
_OPTIONAL = {"vllm": "vllm", "deepspeed": "deepspeed", "uvicorn": "serve", "gradio": "playground"}
# Used by transformers if installed: for attention, and as trackers in `report_to`.
_FOUND = ("flash-attn", "kernels", "liger-kernel", "wandb", "trackio", "tensorboard")
# Environment variables that change how a command runs.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE", "ACCELERATE_USE_CPU")

_MISSING = "not installed"


def main(argv: Sequence[str]) -> int:
    """Print versions and hardware."""
    if list(argv) in (["--help"], ["-h"]):
        print("usage: trl-ext env\n\nPrint versions of the libraries and the hardware, for a bug report.")
        return 0
    if argv:
        raise ValueError(f"takes no arguments, got {' '.join(argv)}")
    facts = environment()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def environment() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    facts = {"python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    facts |= {package: _version(package) for package in _PACKAGES}
    facts["torch"] = _build_of_torch() or facts["torch"]
    facts |= {package: _version(package, extra) for package, extra in _OPTIONAL.items()}
    found = {package: _version(package) for package in _FOUND}
    facts["also"] = ", ".join(f"{name} {version}" for name, version in found.items() if version != _MISSING) or "-"
    facts["git commit"] = _commit()
    facts["accelerator"], facts["accelerator memory"] = _accelerator()
    facts["cores"] = str(os.cpu_count() or "unknown")
    facts["processor"] = _processor()
    facts["memory"] = _memory()
    facts["accelerate config"] = _accelerate_config()
    facts["launcher"] = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "-"
    return facts


def _version(package: str, extra: str = "") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        builds = importlib.metadata.packages_distributions().get(package, [])  # a build under another name
        if builds:
            return f"{importlib.metadata.version(builds[0])} ({builds[0]})"
        return f"{_MISSING}: pip install 'trl-ext[{extra}]'" if extra else _MISSING


def _build_of_torch() -> str:
    """torch's version with its build, such as 2.11.0+cu130, which its metadata may omit; empty if it does not load."""
    try:
        import torch
    except (ImportError, OSError):  # the report may be about a broken torch
        return ""
    return str(torch.__version__)


def _commit() -> str:
    """The commit of the clone that the package runs from, if it runs from one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "-"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def _accelerator() -> tuple[str, str]:
    """The accelerators and their memory."""
    try:
        from trl_ext.devices import accelerators, cuda_version
    except ImportError as error:  # the report may be about a broken torch
        return f"unknown: {error}", "unknown"
    found = accelerators()
    if not found:
        return "none (CPU)", "-"
    names = ", ".join(sorted({each.name for each in found}))
    runtime = f" (CUDA {cuda_version()})" if cuda_version() else ""
    memory = [f"{each.free / 2**30:.1f} of {each.total / 2**30:.1f} GiB free" for each in found if each.total]
    return f"{len(found)} x {names}{runtime}", ", ".join(memory) or "unknown"


def _processor() -> str:
    """The vector instructions that torch uses, and the half-precision dtypes that the processor computes fast in."""
    try:
        from trl_ext.devices import HALF_PRECISION, processor_computes, vector_instructions

        fast = [str(dtype).removeprefix("torch.") for dtype in HALF_PRECISION if processor_computes(dtype)]
    except ImportError as error:
        return f"unknown: {error}"
    return f"{vector_instructions()}, fast in {', '.join(['float32', *fast])}"


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # no POSIX
        return "unknown"
    return f"{free:.1f} of {total:.1f} GiB free"


def _accelerate_config() -> str:
    """The file that `accelerate config` has written, which every launch reads."""
    try:
        from trl_ext.upstream import default_accelerate_config
    except ImportError as error:
        return f"unknown: {error}"
    return default_accelerate_config() or "-"
