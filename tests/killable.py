# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs of the command that can be killed at a chosen point, and a server that starts them.

The server (this file as a script) imports everything once and forks a child a run, since most of a short run is its
imports. A child knows what it is about to do (`step`, `sample`, `evaluate`, `save`); at a given one of these, after a
given delay, it is killed with SIGKILL by a process that does nothing else.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Killing:
    """Kill at the `number`-th time (from 1) that `phase` begins, `delay` seconds later."""

    phase: str
    number: int
    delay: float


class Server:
    """Starts runs, in the caller's process; a context manager."""

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # which ends it
        self.process.wait(timeout=600)

    def run(self, words: list[str], log: Path, killing: Killing | None = None) -> int:
        """`trl-ext WORDS`; its exit status, negative for the signal that ended it. `log` has what it printed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        task = {"words": words, "log": str(log), "killing": vars(killing) if killing else None}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server has ended"
        return int(answer)

    def must_end_well(self, words: list[str], log: Path) -> None:
        """The same for a run that is not killed."""
        status = self.run(words, log)
        assert status == 0, f"status {status}:\n{log.read_text()[-3000:]}"


def durations(log: Path) -> dict[str, list[float]]:
    """From the log of a run: how long each time of each phase took, in seconds."""
    found: dict[str, list[float]] = {}
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("PHASE "):
            _, name, seconds = line.split()
            found.setdefault(name, []).append(float(seconds))
    return found


def _serve() -> None:
    from trl_ext.cli.main import main

    # What a user's shell has not either.
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    begin = _watch()
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            _run(main, task, begin)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(main: Callable[[list[str]], int], task: dict[str, Any], begin: dict[str, Any]) -> None:
    descriptor = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the tasks are the server's
    if task["killing"]:
        begin.update(task["killing"], trigger=_killer(task["killing"]["delay"]))
    status = 1
    try:
        status = main(task["words"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _killer(delay: float) -> int:
    """Start a process that kills this one `delay` seconds after a byte is written to the returned descriptor."""
    victim, (reading, writing) = os.getpid(), os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    os.close(writing)
    if os.read(reading, 1):  # nothing, if the victim ends before
        time.sleep(delay)
        if os.getppid() == victim:
            os.kill(victim, signal.SIGKILL)
    os._exit(0)


def _watch() -> dict[str, Any]:
    """Report each phase of training and sampling on stderr; returns the settings of the phase to signal at."""
    from trl_ext.data.resumable_file import ResumableFile
    from trl_ext.inference.dataset_sampler import DatasetSampler
    from trl_ext.method import discover
    from trl_ext.training.trainer import ExtTrainer

    chosen: dict[str, Any] = {"phase": "", "number": 0, "trigger": -1}

    def watch(cls: type, attribute: str, phase: str) -> None:
        inner = getattr(cls, attribute)

        def outer(*args: Any, **kwargs: Any) -> Any:
            if phase == chosen["phase"]:
                chosen["number"] -= 1
                if not chosen["number"]:
                    os.write(chosen["trigger"], b"!")
            start = time.monotonic()
            result = inner(*args, **kwargs)
            print("PHASE", phase, time.monotonic() - start, file=sys.stderr, flush=True)
            return result

        setattr(cls, attribute, outer)

    watch(ExtTrainer, "_save_checkpoint", "save")
    watch(ExtTrainer, "_evaluate_one", "evaluate")
    for found in discover().methods.values():
        trainer = found.method.trainer_class()
        watch(trainer, "_roll_out" if hasattr(trainer, "_roll_out") else "_sample_round", "sample")
        watch(trainer, "training_step", "step")
    watch(DatasetSampler, "__call__", "sample")
    watch(ResumableFile, "append", "save")
    watch(ResumableFile, "finish", "finish")
    return chosen


if __name__ == "__main__":
    _serve()
