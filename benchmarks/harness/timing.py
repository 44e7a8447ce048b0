# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Timing of variants that take turns, and the statistics of their times.

A suite compares variants of one piece of work. They run in one process and take turns, one step each, in an order that
rotates: whatever slows the machine down for a while slows all of them, so that ratios hold where seconds do not.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trl_ext.devices import synchronize


CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Variant:
    """
    One way to do the work.

    Args:
        name (`str`): Its name in results.
        step (`Callable[[int], Any]`): One step on the batch of this number. A training step returns its loss.
        prepare (`Callable[[], None]`, *optional*): Runs before a step and is not timed.
    """

    name: str
    step: Callable[[int], Any]
    prepare: Callable[[], None] = lambda: None


def alternate(
    variants: Sequence[Variant], *, rounds: int, batches: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """
    Time `rounds` steps of each variant, in turns; round i is about batch i modulo `batches` for all of them.

    Returns:
        `dict`: For each variant the seconds of its steps under `"wall"` and `"cpu"` (CPU seconds of the process, all
        threads), after one step on each batch that is not timed.
    """
    seconds: dict[str, dict[str, list[float]]] = {v.name: {clock: [] for clock in CLOCKS} for v in variants}
    for i in range(batches + rounds):
        turn = i % len(variants)
        for variant in [*variants[turn:], *variants[:turn]]:
            variant.prepare()
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            variant.step(i % batches)
            synchronize(device)
            if i >= batches:
                seconds[variant.name]["wall"].append(time.perf_counter() - wall)
                seconds[variant.name]["cpu"].append(time.process_time() - cpu)
    return seconds


def clock_of(device: torch.device) -> str:
    """
    The clock that ratios are of: CPU time of the process where one thread does the work, else wall time.

    CPU time leaves out the time that other processes held the core. With more threads it would count their waiting.
    """
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


# -------------------------------------------------------------------------------------------------------- statistics


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, to four digits."""
    return {name: _round(f(values)) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times `fast` is faster: the ratio of the medians, and the smallest and largest ratio in a round."""
    rounds = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "of_medians": _round(statistics.median(slow) / statistics.median(fast)),
        "min": _round(min(rounds)),
        "max": _round(max(rounds)),
    }


def spreads(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The spread of a variant's seconds on each clock."""
    return {clock: spread(values) for clock, values in seconds.items()}


def pair_ratios(
    seconds: dict[str, dict[str, list[float]]], pairs: dict[str, tuple[str, str]], clock: str
) -> dict[str, dict[str, float]]:
    """How many times faster the second variant of each pair is than the first."""
    return {name: ratio(seconds[a][clock], seconds[b][clock]) for name, (a, b) in pairs.items()}


def all_pairs(order: Iterable[str]) -> dict[str, tuple[str, str]]:
    """All pairs of variants, by the name of their ratio: `"earlier / later"`."""
    return {f"{a} / {b}": (a, b) for a, b in itertools.combinations(order, 2)}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, values))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def relative_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The norm of the difference of two lists of tensors, as a share of that of the second."""
    apart = sum((a - b).float().pow(2).sum().item() for a, b in zip(found, expected, strict=True))
    return math.sqrt(apart / sum(b.float().pow(2).sum().item() for b in expected))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
