# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
One process of two is killed: the other ends with an error within a minute, and does not wait for it.

No launcher is there to end it, so that it has to notice by itself: every step of every method gathers over the
processes (the count that the loss is divided by, and DDP's gradients), and gloo fails where a peer is gone. RRHF is
tested for all; with `TRL_EXT_LONG=1` all four are, and either process.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HANGS, LONG
from scripted_server import free_port
from tiny_trainers import METHODS


HERE = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "victim"), [(m, v) for m in METHODS for v in (1, 0)] if LONG else [("rrhf", 1)])
def test_the_other_process_ends_with_an_error(method: str, victim: int, tmp_path: Path) -> None:
    port, processes = str(free_port()), []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        log = (tmp_path / f"log-{rank}").open("w")
        command = [sys.executable, str(HERE / "one_dies.py"), method, str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        log.close()
    try:
        _wait_until_they_train(processes, tmp_path)
        processes[victim].kill()
        killed = time.monotonic()
        status = processes[1 - victim].wait(timeout=HANGS)
        print(f"{method}: the other process ended {time.monotonic() - killed:.1f} s later, status {status}")
        assert status != 0
        assert "Error" in (tmp_path / f"log-{1 - victim}").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_until_they_train(processes: list[subprocess.Popen], folder: Path) -> None:
    for _ in range(2000):
        if all((folder / f"begun-{rank}").exists() for rank in range(2)):
            return
        for rank, process in enumerate(processes):
            assert process.poll() is None, (folder / f"log-{rank}").read_text()[-3000:]
        time.sleep(0.1)
    raise AssertionError("they did not begin")
