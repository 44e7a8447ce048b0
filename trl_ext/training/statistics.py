# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Moments of numbers that come in batches, on several processes: how well a prediction explains what happened."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from trl_ext.atomic_files import write_text


@dataclass
class Running:
    """
    Running mean and deviation (Chan, Golub and LeVeque 1979): the same however the numbers are cut into batches.

    Args:
        count (`float`, *optional*, defaults to `0.0`): How many numbers there were.
        mean (`float`, *optional*, defaults to `0.0`): Their mean.
        square (`float`, *optional*, defaults to `0.0`): Sum of their squared distances from it.
    """

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """Take in numbers; NaN is left out."""
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
        """Sample deviation; 1 where there are fewer than two numbers, or where all are the same."""
        variance = self.square / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 0 else 1.0


class RunningColumns:
    """
    A [`Running`] for each of several columns of numbers, alike on every process.

    Args:
        count (`int`): How many columns there are.
    """

    def __init__(self, count: int) -> None:
        self.columns = [Running() for _ in range(count)]

    def add(self, numbers: Sequence[Sequence[float]], accelerator: Accelerator | None = None) -> None:
        """Take in numbers for each column; with an accelerator, those of all its processes."""
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
        """The deviation of each column."""
        return [running.std for running in self.columns]

    def save(self, file: Path) -> None:
        """Write them to a JSON file, whole or not at all."""
        write_text(file, json.dumps([astuple(running) for running in self.columns]))

    def load(self, file: Path) -> None:
        """Go on from what [`save`] wrote."""
        self.columns = [Running(*numbers) for numbers in json.loads(file.read_text())]


def whitened(values_M: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """
    `values_M` moved to mean 0 and scaled to deviation 1, both over the values of all processes -> (M,).

    The deviation is that of a sample (divisor n - 1), its square raised by 1e-8 (TRL's PPO, 1.12). A single value
    becomes 0. In float64 on the CPU: not every accelerator has it.
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


@dataclass
class Pairs:
    """
    Sums over pairs of a prediction and what it predicts, by name.

    Sums, in float64, rather than means of means: a figure does not depend on how the pairs were split into batches.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, predicted: torch.Tensor, actual: torch.Tensor) -> None:
        """Take in pairs: two tensors of one shape; pairs with a NaN are left out."""
        known = ~(predicted.isnan() | actual.isnan())
        x, y = (z.detach()[known].double().cpu() for z in (predicted, actual))
        total = torch.stack(
            [torch.tensor(float(len(x)), dtype=torch.float64)]
            + [z.sum() for z in (x, y, x * x, y * y, x * y, (y - x).square())]
        )
        self.sums[name] = self.sums[name] + total if name in self.sums else total

    def pop(self, accelerator: Accelerator, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """
        Figures of the pairs of all processes since the last call.

        Args:
            accelerator ([`~accelerate.Accelerator`]): Adds up what the processes have.
            names (`Sequence[str]`): Names to report, the same on every process.

        Returns:
            `dict[str, dict[str, float]]`: For each name that has pairs `correlation`, `r2` (1 - sum (y - x)^2 / sum (y
            - mean y)^2), `explained_variance` (1 - Var(y - x) / Var y: as R^2, but without the constant error), and
            `mean` of the prediction. What is not defined (a constant) is left out.
        """
        zero = torch.zeros(7, dtype=torch.float64)
        table = torch.stack([self.sums.get(name, zero) for name in names]) if names else zero[None]
        if accelerator.num_processes > 1:
            # float64, which not every accelerator has, and a few numbers only
            from accelerate.utils import gather_object

            table = torch.stack(gather_object([table])).sum(dim=0)
        self.sums.clear()
        rows = zip(names, table.tolist(), strict=False)
        return {name: _figures(*row) for name, row in rows if row[0]}


def _figures(n: float, x: float, y: float, xx: float, yy: float, xy: float, error: float) -> dict[str, float]:
    figures = {"mean": x / n}
    var_x, var_y, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n**2
    if var_y > 1e-12 * max(1.0, yy / n):
        figures["r2"] = 1 - error / n / var_y
        figures["explained_variance"] = 1 - (error / n - ((y - x) / n) ** 2) / var_y
        if var_x > 1e-12 * max(1.0, xx / n):
            figures["correlation"] = cov / math.sqrt(var_x * var_y)
    return figures
