# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext env`: what a bug report needs."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


_PACKAGES = (
    "trl-ext",
    "torch",
    "trl",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "vllm",
    "deepspeed",
)


def main(argv: Sequence[str]) -> int:
    """Print versions and hardware."""
    if list(argv) in (["--help"], ["-h"]):
        print("usage: trl-ext env\n\nPrint what a bug report needs: versions of the libraries, and the hardware.")
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
    facts["git commit"] = _commit()
    facts["accelerator"] = _accelerator()
    facts["cores"] = str(os.cpu_count() or "unknown")
    facts["memory"] = _memory()
    facts["launcher"] = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "-"
    return facts


# What changes how a run behaves without being in its command.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE", "ACCELERATE_USE_CPU")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the clone that the package runs from, if it runs from one."""
    root = Path(__file__).resolve().parent.parent
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


def _accelerator() -> str:
    try:
        import torch
    except ImportError as error:  # a broken torch is what the report may be about
        return f"unknown: {error}"
    if not torch.accelerator.is_available():
        return "none (CPU)"
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    module = getattr(torch, kind.type)
    if not hasattr(module, "get_device_name"):
        return str(kind)
    names = [module.get_device_name(index) for index in range(torch.accelerator.device_count())]
    runtime = f" (CUDA {torch.version.cuda})" if torch.version.cuda else ""
    return f"{len(names)} x {', '.join(sorted(set(names)))}{runtime}"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no POSIX
        return "unknown"
    return f"{total / 2**30:.1f} GiB"
