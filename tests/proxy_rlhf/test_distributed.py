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


def run(folder: Path, processes: int, batch_size: int) -> dict[str, Any]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    port = ["--main_process_port=0"] if processes > 1 else []
    script = [str(HERE / "two_processes.py"), str(folder), str(batch_size)]
    done = subprocess.run(
        [*LAUNCH[processes], *port, *script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["weights"] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    return result


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Answers too: each has chance of its own, whichever process draws it."""
    one, two = run(tmp_path / "one", 1, 4), run(tmp_path / "two", 2, 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-4)
    assert two["episodes"] == one["episodes"]
    for name, value in one["weights"][0].items():
        torch.testing.assert_close(two["weights"][0][name], value, atol=1e-4, rtol=1e-4, msg=name)
        assert torch.equal(two["weights"][0][name], two["weights"][1][name]), name
