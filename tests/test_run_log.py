# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The log of runs has a line for each, with each test once."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY


TESTS = """
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("not here")

@pytest.fixture
def broken(): raise OSError("full")

def test_has_an_error(broken): pass
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
def test_a_line_for_each_run(tmp_path, workers):
    (tmp_path / "test_four.py").write_text(TESTS)
    environment = {
        **os.environ,
        "TRL_EXT_RUN_LOG": str(tmp_path / "runs.jsonl"),
        "PYTHONPATH": str(REPOSITORY / "tests"),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "run_log",
        "-p",
        "no:cacheprovider",
        "test_four.py",
        *workers,
    ]
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert (line["passed"], line["failed"], line["skipped"], line["exit"]) == (1, 2, 1, 1)
        assert sorted(line["failures"]) == ["test_four.py::test_fails", "test_four.py::test_has_an_error"]
        assert line["workers"] == (int(workers[1]) if workers else 1) and "test_four.py" in line["selected"]


def test_logged_runs_are_well_formed():
    """And a failure that is in the log has a line that says what was done about it."""
    file = REPOSITORY / "tests" / "runs.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert {"time", "commit", "processor", "workers", "load", "seconds", "passed", "failed"} <= set(line)
        assert len(line["failures"]) == line["failed"]
        assert bool(line["failed"]) == bool(line.get("mended"))
