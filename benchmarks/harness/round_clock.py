# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds and memory of the rounds of an online trainer, measured from inside; needs transformers alone."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class RoundClock(TrainerCallback):
    """
    Writes when each round of a training ended, on both clocks, and the memory that training took.

    Args:
        file (`Path`): JSON with `wall` and `cpu` (seconds of each round; CPU of the process, all threads), and in
            bytes `before` (resident size when training began) and `peak` (the largest since); 0 outside
            Linux.
        steps (`int`): Optimizer steps of a round, as the trainer counts them.
    """

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        self.marks: list[tuple[float, float]] = []
        self.before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = resident("VmRSS", reset=True)
        self._mark()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self._mark()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, cpu = zip(*self.marks, strict=True)
        found = {name: [b - a for a, b in itertools.pairwise(t)] for name, t in (("wall", wall), ("cpu", cpu))}
        memory = {"before": self.before, "peak": resident("VmHWM")}
        self.file.write_text(json.dumps(found | memory), encoding="utf-8")

    def _mark(self) -> None:
        self.marks.append(now())


def now() -> tuple[float, float]:
    """Seconds on the wall clock, and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def resident(name: str, reset: bool = False) -> int:
    """A resident size of this process in bytes (`VmRSS` now, `VmHWM` the largest); 0 outside Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the largest starts again
    lines = status.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
