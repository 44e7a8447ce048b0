# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Means and standard deviations of numbers that come in batches and from several processes."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from trl_ext.atomic_files import write_text


@dataclass
class Running:
    """
    Running mean and standard deviation (Chan, Golub and LeVeque 1979), however the numbers are split into batches.

    Args:
        count (`float`, *optional*, defaults to `0.0`): How many numbers have been added.
        mean (`float`, *optional*, defaults to `0.0`): Their mean.
        square (`float`, *optional*, defaults to `0.0`): Sum of their squared deviations from the mean.
    """

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """Add numbers, except NaN."""
        kept = [value for value in values if not math.isnan(value)]
        if not kept:
            return
        mean = math.fsum(kept) / len(kept)
        square = math.fsum((value - mean) ** 2 for value in kept)
        total, shift = self.count + len(kept), mean - self.mean
        self.square += square + shift**2 * self.count * len(kept) / total
        self.mean += shift * len(kept) / total
        self.count = total

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 if there are fewer than two numbers or all are equal."""
        variance = self.square / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 0 else 1.0


class RunningColumns:
    """
    A [`Running`] for each of several columns of numbers.

    Args:
        count (`int`): Number of columns.
    """

    def __init__(self, count: int) -> None:
        self.columns = [Running() for _ in range(count)]

    def add(self, numbers: Sequence[Sequence[float]], accelerator: Accelerator | None = None) -> None:
        """Add numbers to each column; with an accelerator, those of all its processes."""
        parts = [numbers]
        if accelerator is not None and accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object([numbers])
        for i, running in enumerate(self.columns):
            running.add([x for part in parts for x in part[i]])

    @property
    def means(self) -> list[float]:
        """The mean of each column."""
        return [running.mean for running in self.columns]

    @property
    def stds(self) -> list[float]:
        """The standard deviation of each column."""
        return [running.std for running in self.columns]

    def save(self, file: Path) -> None:
        """Write the state to a JSON file, atomically."""
        write_text(file, json.dumps([astuple(running) for running in self.columns]))

    def load(self, file: Path) -> None:
        """Load the state that [`save`] wrote."""
        self.columns = [Running(*numbers) for numbers in json.loads(file.read_text())]


def whitened(values_M: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """
    Shift and scale `values_M` to mean 0 and standard deviation 1 over the values of all processes -> (M,).

    The standard deviation is that of a sample (divisor n - 1), with 1e-8 added to its square (TRL's PPO, 1.12). A
    single value becomes 0. Computed in float64 on the CPU, since not every accelerator has it.
    """
    x_M = values_M.detach().cpu().double()
    parts = [[float(len(x_M)), float(x_M.sum()), float(x_M.square().sum())]]
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    count, total, square = (sum(column) for column in zip(*parts, strict=True))
    mean = total / max(count, 1)
    variance = max(square / max(count, 1) - mean**2, 0.0) * count / max(count - 1, 1)
    return ((x_M - mean) / (variance + 1e-8) ** 0.5).to(values_M)
