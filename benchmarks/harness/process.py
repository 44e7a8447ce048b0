# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Commands in processes of their own, and what they cost."""

import ast
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import ROOT


class Failed(RuntimeError):
    """A command ended with an error; its log has the reason."""


@dataclass(frozen=True)
class Finished:
    """
    A command that succeeded.

    Args:
        cost (`dict`): `seconds` of the clock on the wall, `cpu_seconds` of all its threads, `peak_mib` of resident
            memory (libraries included; never less than this process has, which a new one is forked from).
        logs (`list[dict]`): What a trainer logged, in order.
    """

    cost: dict[str, float]
    logs: list[dict[str, Any]]

    def last(self, name: str) -> float | None:
        """The last logged value of a metric."""
        found = [row[name] for row in self.logs if name in row]
        return float(found[-1]) if found else None


def run(
    arguments: Sequence[str], log: Path, python: str = sys.executable, *, keep: bool = False, folder: Path = ROOT
) -> Finished:
    """
    Run `python <arguments>` with one thread, its output in a file.

    Args:
        arguments (`Sequence[str]`): What Python runs.
        log (`Path`): Where its output goes.
        python (`str`, *optional*): Another Python than this one.
        keep (`bool`, *optional*, defaults to `False`): Whether an error quotes the log's end, for a temporary log.
        folder (`Path`, *optional*): Where it runs. The packages of the clone are found from there too.

    Raises:
        [`Failed`]: It ended with an error.
    """
    env = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **os.environ}
    if folder != ROOT:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [python, *arguments], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C: it must not go on alone
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = f", which ends:\n{log.read_text(encoding='utf-8')[-2000:]}" if keep else ""
        raise Failed(f"`python {' '.join(arguments[:3])} ...` ended with status {process.returncode}: see {log}{end}")
    cost = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)),
    }
    return Finished(cost, _logged(log.read_text(encoding="utf-8")))


def _logged(text: str) -> list[dict[str, Any]]:
    """The dicts that transformers' trainers print, one a line."""
    rows = []
    for line in text.replace("\r", "\n").splitlines():
        if line.startswith("{'") and line.endswith("}"):
            try:
                rows.append(ast.literal_eval(line))
            except (SyntaxError, ValueError):
                continue
    return rows


def trainable_parameters(folder: Path) -> int | None:
    """Parameters in what a training saved: in the safetensors files of a folder, and of the folders in it."""
    files = sorted(folder.rglob("*.safetensors"))
    return sum(map(_parameters, files)) if files else None


def _parameters(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for n in tensor["shape"]:
                size *= n
            total += size
    return total
