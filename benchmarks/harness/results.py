# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Result files: the environment that they record, how they are written, read and checked."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trl_ext import devices
from trl_ext.atomic_files import write_text

from .measured_code import reached, stamp
from .timing import CLOCKS


ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"
README = Path(__file__).resolve().parents[1] / "README.md"
SCHEMA = 1
PACKAGES = ("trl-ext", "torch", "trl", "transformers", "accelerate", "peft", "bitsandbytes")


# ------------------------------------------------------------------------------------------------------- environment


def environment(device: torch.device, measures: Iterable[Any]) -> dict[str, Any]:
    """
    Versions, hardware, and what exactly was measured.

    Args:
        device (`torch.device`): Where the work ran.
        measures (`Iterable`): Functions and classes that measure; the fingerprints of all that they run through show
            whether a later commit changed it (see measured_code.py).
    """
    return {
        "commit": current_commit(),
        "sources": stamp(reached(measures, ROOT)),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "vector": devices.vector_instructions(),
            "gpu": device_name(device),
            "cuda": devices.cuda_version(),
        },
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def device_name(device: torch.device) -> str | None:
    """The name of a GPU."""
    return devices.device_name(device) if device.type == "cuda" else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def current_commit() -> str | None:
    """The commit, with `-dirty` where a tracked file differs from it; `None` outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def refuse_dirty(allowed: bool) -> None:
    """
    Stop before hours of measuring what no commit can give again.

    Raises:
        `SystemExit`: A tracked file differs from the commit, and this was not allowed.
    """
    commit = current_commit()
    if not allowed and commit is not None and commit.endswith("-dirty"):
        raise SystemExit(
            "The tree differs from its commit: commit first, or measure it all the same with --allow_dirty."
        )


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ----------------------------------------------------------------------------------------------------------- results


def device_slug(device: torch.device) -> str:
    """`"cpu"`, or the name of the GPU in lower case with dashes."""
    name = device_name(device) or device.type
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


class ResultFile:
    """
    The result file of one run, which is written again, atomically, whenever the run has measured something more.

    The first writing adds a file: none of another run is ever overwritten (a second run of the day gets a number).

    Args:
        suite (`str`): Name of the suite.
        device (`torch.device`): Where it runs.
        folder (`Path`, *optional*): Where to.
        path (`Path`, *optional*): The file of an interrupted run that goes on.
    """

    def __init__(self, suite: str, device: torch.device, folder: Path = RESULTS, path: Path | None = None) -> None:
        self.suite, self.slug, self.folder, self.path = suite, device_slug(device), folder, path
        self.began = datetime.now(UTC)

    def write(self, result: dict[str, Any]) -> Path:
        """
        Write what was measured so far.

        Args:
            result (`dict`): `cases`, `environment` and `settings`; see [`check_result`].
        """
        time = self.began.isoformat(timespec="seconds")
        result = {"schema": SCHEMA, "suite": self.suite, "device": self.slug, "time": time, **result}
        check_result(result)
        text = json.dumps(result, indent=1) + "\n"
        if self.path is None:
            self.path = self._add(text)
        else:
            write_text(self.path, text)
        return self.path

    def _add(self, text: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            name = f"{self.began.date()}-{self.suite}-{self.slug}{'' if number == 1 else f'-{number}'}.json"
            file = self.folder / name
            try:
                with file.open("x", encoding="utf-8") as stream:
                    stream.write(text)
            except FileExistsError:
                continue
            return file
        raise FileExistsError(f"{self.folder} has 999 results of today; name another folder with --output.")


def write_result(suite: str, device: torch.device, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Add the file of a result that is complete; see [`ResultFile`]."""
    return ResultFile(suite, device, folder).write(result)


def measured_names(suite: str, label: str, folder: Path = RESULTS) -> set[str]:
    """Names of the cases that runs of a label have measured; none without a label."""
    names = set()
    for file in folder.glob(f"*-{suite}-*.json") if label else ():
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["suite"] == suite and result.get("label") == label:
            names |= {case["name"] for case in result["cases"] if not case.get("error")}
    return names


def _numbered(stem: str) -> tuple[str, int]:
    """A file's name without its number, and the number; 1 where the name ends without one."""
    name, _, number = stem.rpartition("-")
    return (name, int(number)) if name and number.isdigit() else (stem, 1)


def read_results(suite: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All results of a suite, oldest first; of the same second, in the order of the numbers of their files."""
    files = sorted(folder.glob("*.json"), key=lambda file: _numbered(file.stem))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted((r for r in results if r["suite"] == suite), key=lambda r: r["time"])


def check_result(result: dict[str, Any]) -> None:
    """
    Raise a `ValueError` that names the first place where a result is not as it should be.

    A result has `schema`, `suite`, `device`, `time`, `settings`, `environment` (commit, sources, versions, hardware,
    threads) and `cases`. Where variants take turns, a case has, in this order, `ratios` (name -> `of_medians`, `min`,
    `max`), `name`, `settings` and `variants` (name -> `seconds` by clock as `median`, `min`, `max`; `memory`), and the
    settings have the seed. Where outcomes are measured, a case has `name`, `seed`, `settings`, `metrics` and `cost`,
    and the settings have the seeds.
    """
    _require(result, "result", ("schema", "suite", "device", "time", "settings", "environment", "cases"))
    if result["schema"] != SCHEMA:
        raise ValueError(f"result: schema {result['schema']!r} is not {SCHEMA}.")
    _require(result["environment"], "environment", ("commit", "sources", "versions", "hardware", "threads"))
    if not result["cases"]:
        raise ValueError("cases: there are none.")
    outcomes = "seeds" in result["settings"]
    if not outcomes:
        _require(result["settings"], "settings", ("seed", "rounds", "clock"))
    for i, case in enumerate(result["cases"]):
        place = f"cases[{i}]"
        if outcomes:
            _require(case, place, ("name", "seed", "settings", "metrics", "cost"))
            continue
        _require(case, place, ("ratios", "name", "settings", "variants"))
        for name, value in case["ratios"].items():
            _require_spread(value, f"{place}.ratios.{name}", ("of_medians", "min", "max"))
        for name, variant in case["variants"].items():
            _require(variant, f"{place}.variants.{name}", ("seconds", "memory"))
            _require(variant["seconds"], f"{place}.variants.{name}.seconds", CLOCKS)
            for clock in CLOCKS:
                value = variant["seconds"][clock]
                _require_spread(value, f"{place}.variants.{name}.seconds.{clock}", ("median", "min", "max"))


def _require(value: Any, place: str, keys: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: a dict is needed, got {type(value).__name__}.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"{place}: {', '.join(missing)} missing.")


def _require_spread(value: Any, place: str, keys: Sequence[str]) -> None:
    _require(value, place, keys)
    middle, low, high = (value[key] for key in keys)
    # The ratio of two medians may lie a little outside the ratios of the rounds; a median lies among its values.
    if not (0 < low <= high and middle > 0 and (keys[0] != "median" or low <= middle <= high)):
        raise ValueError(f"{place}: {value} is not a spread.")


def origin(result: dict[str, Any]) -> str:
    """The commit that a result measured and the digest of its code; true of every later commit too."""
    commit, sources = result["environment"]["commit"], result["environment"]["sources"]
    if "definitions" not in sources:
        return f"commit {commit}, whose code is not in the history"
    same = f", as committed in {sources['commit']}" if "commit" in sources else ""
    return f"commit {commit}{same}, code {sources['digest']}"
