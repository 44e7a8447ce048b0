# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A pytest plugin that appends a line about each run of the suite to the file that `TRL_EXT_RUN_LOG` names.

Failures that come and go show only over many runs, on machines of several kinds, busy and quiet. The lines of runs of
the whole suite are kept in tests/runs.jsonl.
"""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest


VARIABLE = "TRL_EXT_RUN_LOG"


class RunLog:
    """
    Counts outcomes and writes the line when the run ends.

    Args:
        file (`Path`): To append to.
        config (`pytest.Config`): Of the process that collects the reports of all workers.
    """

    def __init__(self, file: Path, config: pytest.Config) -> None:
        self.file, self.config = file, config
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: list[str] = []
        self.started, self.load = time.time(), _load()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: by its call, or by the phase before or after it that failed or was skipped."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Append the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.started)),
            "commit": _commit(self.config.rootpath),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "workers": self.config.getoption("numprocesses", None) or 1,
            "load": [self.load, _load()],
            "selected": list(self.config.invocation_params.args),
            "seconds": round(time.time() - self.started),
            "exit": int(exitstatus),
            **self.counts,
            "failures": self.failed,
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Log this run if the variable is set; workers of xdist send their reports to the process that does."""
    name = os.environ.pop(VARIABLE, None)  # runs that tests start are not this one
    if name and not hasattr(config, "workerinput"):
        config.pluginmanager.register(RunLog(Path(name).absolute(), config), "writer of the run log")


def _load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
