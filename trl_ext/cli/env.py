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


_PACKAGES = ("trl-ext", "torch", "trl", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
# With the extra that installs it.
_OPTIONAL = {"bitsandbytes": "quantization", "vllm": "vllm", "deepspeed": "deepspeed", "matplotlib": "plots"}
# What transformers uses if it is there: attention, and where `report_to` sends metrics to.
_FOUND = ("flash-attn", "kernels", "liger-kernel", "wandb", "trackio", "tensorboard")


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
    facts |= {package: _version(package, extra) for package, extra in _OPTIONAL.items()}
    found = {package: _version(package) for package in _FOUND}
    facts["also"] = ", ".join(f"{name} {version}" for name, version in found.items() if version != _MISSING) or "-"
    facts["git commit"] = _commit()
    facts["accelerator"] = _accelerator()
    facts["accelerator memory"] = _accelerator_memory()
    facts["cores"] = str(os.cpu_count() or "unknown")
    facts["memory"] = _memory()
    facts["accelerate config"] = _accelerate_config()
    facts["launcher"] = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "-"
    return facts


# What changes how a run behaves without being in its command.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE", "ACCELERATE_USE_CPU")


_MISSING = "not installed"


def _version(package: str, extra: str = "") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        builds = importlib.metadata.packages_distributions().get(package, [])  # a module that others bring as well
        if builds:
            return f"{importlib.metadata.version(builds[0])} ({builds[0]})"
        return f"{_MISSING}: pip install 'trl-ext[{extra}]'" if extra else _MISSING


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


def _accelerator() -> str:
    try:
        import torch
    except ImportError as error:  # a broken torch is what the report may be about
        return f"unknown: {error}"
    if not torch.accelerator.is_available():
        return "none (CPU)"
    kind = torch.accelerator.current_accelerator(check_available=True)
    assert kind is not None
    module = getattr(torch, kind.type)
    if not hasattr(module, "get_device_name"):
        return str(kind)
    names = [module.get_device_name(index) for index in range(torch.accelerator.device_count())]
    runtime = f" (CUDA {torch.version.cuda})" if torch.version.cuda else ""
    return f"{len(names)} x {', '.join(sorted(set(names)))}{runtime}"


def _accelerator_memory() -> str:
    try:
        import torch
    except ImportError:
        return "unknown"
    if not torch.accelerator.is_available():
        return "-"
    kind = torch.accelerator.current_accelerator(check_available=True)
    assert kind is not None
    module = getattr(torch, kind.type)
    if not hasattr(module, "mem_get_info"):
        return "unknown"
    pairs = [module.mem_get_info(index) for index in range(torch.accelerator.device_count())]
    return ", ".join(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free" for free, total in pairs)


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # no POSIX
        return "unknown"
    return f"{free:.1f} of {total:.1f} GiB free"


def _accelerate_config() -> str:
    """The file that `accelerate config` has left, which every launch reads."""
    try:
        from accelerate.commands.config.config_args import default_config_file
    except ImportError as error:
        return f"unknown: {error}"
    return default_config_file if os.path.isfile(default_config_file) else "-"
