# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Memory and open files do not grow with the number of steps: sampling, training, evaluating and saving over and over.

120 steps a method; 2,000 with `TRL_EXT_LONG=1`. The figures are printed (`pytest -s`).
"""

import gc
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG
from tiny_trainers import METHODS, PROMPTS, make_trainer
from transformers import TrainerCallback


STEPS = 2000 if LONG else 120
# What the allocator's habits may look like in so many steps. A tensor of a batch that is kept is tens of KiB a step.
KIB_A_STEP = 2 if LONG else 30

SETTINGS: dict[str, dict[str, Any]] = {
    "rrhf": {"resample_steps": 20},
    "vas": {"resample_steps": 20, "normalize_rewards": True},
    "psle": {"resample_steps": 20},
    "proxy_rlhf": {"num_ppo_epochs": 4, "num_mini_batches": 4},
}


class Watch(TrainerCallback):
    """Resident memory in KiB and the number of open files, after every step."""

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.files: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        gc.collect(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1024)
        self.files.append(len(os.listdir("/proc/self/fd")))


def slope(values: list[float]) -> float:
    """
    The median of the slopes between all pairs of steps (Theil and Sen), per step.

    An allocator takes memory in blocks, once; a leak grows with every step.
    """
    every = max(1, len(values) // 300)
    points = list(enumerate(values))[::every]
    return statistics.median((b - a) / (j - i) for n, (i, a) in enumerate(points) for j, b in points[n + 1 :])


def test_a_slope() -> None:
    assert slope([5.0] * 30 + [900.0] * 10) == 0
    assert slope([3.0 + n // 10 * 20 for n in range(80)]) == pytest.approx(2, rel=0.1)
    assert slope([3.0, 5.0, 7.0, 9.0]) == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("method", METHODS)
def test_nothing_grows(method: str, tmp_path: Path) -> None:
    settings = {
        "max_steps": STEPS,
        "logging_steps": 20,
        "save_strategy": "steps",
        "save_steps": STEPS // 8,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": STEPS // 8,
        **SETTINGS[method],
    }
    trainer, watch = make_trainer(method, tmp_path, PROMPTS * 10, eval_rows=PROMPTS[:2], **settings), Watch()
    trainer.add_callback(watch)
    trainer.train()
    later = STEPS // 3  # once every path was taken
    growth, files = slope(watch.memory[later:]), (min(watch.files[later:]), max(watch.files[later:]))
    print(
        f"{method}: {STEPS} steps, {watch.memory[-1] / 1024:.0f} MiB, {growth:+.2f} KiB a step after step {later}, "
        f"{files[0]} to {files[1]} open files"
    )
    assert len(watch.memory) == STEPS
    assert growth < KIB_A_STEP
    assert watch.files[-1] <= watch.files[later]
