# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


HERE = Path(__file__).parent
LAUNCH = {
    1: [sys.executable],
    2: [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"],
}


def run(folder: Path, processes: int, schedule: int, batch_size: int, top_k: int) -> dict[str, Any]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    port = ["--main_process_port=0"] if processes > 1 else []
    script = [str(HERE / "two_processes.py"), str(folder), str(schedule), str(batch_size), str(top_k)]
    done = subprocess.run(
        [*LAUNCH[processes], *port, *script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["weights"] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    result["states"] = [
        json.loads((folder / "checkpoint-3" / f"iterations_{rank}.json").read_text()) for rank in range(processes)
    ]
    return result


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """One candidate a token leaves no chance, so the answers do not depend on who draws them."""
    one, two = run(tmp_path / "one", 1, 0, 4, 1), run(tmp_path / "two", 2, 0, 2, 1)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["logs"]) == 4
    for a, b in zip(one["logs"], two["logs"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    for name, value in one["weights"][0].items():
        torch.testing.assert_close(two["weights"][0][name], value, atol=1e-4, rtol=1e-4, msg=name)
        assert torch.equal(two["weights"][0][name], two["weights"][1][name]), name
    for state in two["states"]:
        assert state["rewards"] == pytest.approx(one["states"][0]["rewards"], abs=1e-6)
        assert state["threshold"] == one["states"][0]["threshold"]


def test_two_processes_agree_on_the_state_when_each_draws_its_own(tmp_path: Path) -> None:
    two = run(tmp_path / "two", 2, 1, 2, 0)
    assert two["states"][0] == two["states"][1]
    for name, value in two["weights"][0].items():
        assert torch.equal(value, two["weights"][1][name]), name
