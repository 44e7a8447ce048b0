# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Accumulates metrics over steps and processes: means, deviations, extremes, and how predictions match outcomes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator


Names = tuple[str, ...]  # of the metrics that one accumulated vector gives; empty: not reported


class Meters:
    """
    Accumulates named metrics, kept on the device until they are logged.

    It pools sums and counts rather than averages, so a metric does not depend on how prompts are split into
    micro-batches and processes. Nothing is synchronized before [`Meters.pop`].
    """

    def __init__(self) -> None:
        self._totals: dict[str, dict[Names, torch.Tensor]] = {kind: {} for kind in _KINDS}

    def _accumulate(self, kind: str, names: Names, values: torch.Tensor) -> None:
        table = self._totals[kind]
        table[names] = _KINDS[kind].combine(table[names], values.to(table[names])) if names in table else values

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float) -> None:
        """Add `total`, the sum of `count` values, to the mean `name`."""
        total = torch.as_tensor(total).detach().float()
        # Filled in on the device: a copy to it would wait for everything that the device has yet to compute.
        count = count.detach().to(total) if isinstance(count, torch.Tensor) else total.new_full((), count)
        self._accumulate("mean", (name,), torch.stack([total, count]))

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Add the values of a tensor that are not NaN to the mean `name`."""
        known = ~values.isnan()
        self.add(name, values.nan_to_num().sum(), known.sum())

    def add_deviation(self, name: str, values: torch.Tensor) -> None:
        """Add the values of a tensor that are not NaN to the sample standard deviation `name`."""
        known = values[~values.isnan()].detach().cpu().double()
        self._accumulate(
            "std", (name,), torch.stack([torch.ones_like(known).sum(), known.sum(), known.square().sum()])
        )

    def add_extremes(self, smallest: str, largest: str, values: torch.Tensor) -> None:
        """Add the values of a tensor to the minimum and the maximum of these names."""
        if len(values):
            values = values.detach().cpu().double()
            self._accumulate("min", (smallest,), values.min()[None])
            self._accumulate("max", (largest,), values.max()[None])

    def add_pairs(
        self,
        predicted: torch.Tensor,
        actual: torch.Tensor,
        *,
        mean: str = "",
        correlation: str = "",
        r2: str = "",
        explained_variance: str = "",
    ) -> None:
        """
        Add pairs of a prediction and its outcome.

        A metric without a name is not reported, and neither is one that is undefined, since a tensor is constant.

        Args:
            predicted, actual (`torch.Tensor`): Two tensors of one shape; pairs with a NaN are left out.
            mean (`str`, *optional*): Name of the mean prediction.
            correlation (`str`, *optional*): Name of Pearson's correlation.
            r2 (`str`, *optional*): Name of 1 - sum (y - x)^2 / sum (y - mean y)^2.
            explained_variance (`str`, *optional*): Name of 1 - Var(y - x) / Var y: R^2 without the constant error.
        """
        known = ~(predicted.isnan() | actual.isnan())
        x, y = (z.detach()[known].double().cpu() for z in (predicted, actual))
        count = torch.tensor(float(len(x)), dtype=torch.float64)
        sums = [z.sum() for z in (x, y, x * x, y * y, x * y, (y - x).square())]
        self._accumulate("pairs", (mean, correlation, r2, explained_variance), torch.stack([count, *sums]))

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """
        The metrics of all processes since the last call, without those that nothing was added to.

        A metric whose values were NaN is NaN: it shows where a run diverges.
        """
        keys = {kind: sorted(table) for kind, table in self._totals.items()}
        if accelerator.num_processes > 1:
            # A process may lack a metric: that of a round without rewards, say.
            from accelerate.utils import gather_object

            others = gather_object([keys])
            keys = {kind: sorted({names for each in others for names in each[kind]}) for kind in _KINDS}
        metrics: dict[str, float] = {}
        for kind, table in self._totals.items():
            for names, totals in _over_processes(_KINDS[kind], keys[kind], table, accelerator).items():
                found = zip(names, _KINDS[kind].metrics(*totals), strict=True)
                metrics |= {name: value for name, value in found if name and value is not None}
            table.clear()
        return metrics


def _mean(total: float, count: float) -> tuple[float | None]:
    return (total / count if count else None,)


def _deviation(count: float, total: float, squares: float) -> tuple[float | None]:
    return (max(0.0, (squares - total**2 / count) / (count - 1)) ** 0.5 if count > 1 else None,)


def _agreement(
    n: float, x: float, y: float, xx: float, yy: float, xy: float, error: float
) -> tuple[float | None, ...]:
    """Mean, correlation, R^2 and explained variance; `None` where undefined."""
    if not n:
        return (None,) * 4
    correlation = r2 = explained_variance = None
    var_x, var_y, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n**2
    if var_y > 1e-12 * max(1.0, yy / n):
        r2 = 1 - error / n / var_y
        explained_variance = 1 - (error / n - ((y - x) / n) ** 2) / var_y
        if var_x > 1e-12 * max(1.0, xx / n):
            correlation = cov / math.sqrt(var_x * var_y)
    return x / n, correlation, r2, explained_variance


class _Kind(NamedTuple):
    """How a kind of metric is accumulated: its initial totals, how two totals combine, and the metrics they give."""

    empty: torch.Tensor
    combine: Callable[[Any, Any], torch.Tensor]
    metrics: Callable[..., tuple[float | None, ...]]


_KINDS = {
    "mean": _Kind(torch.zeros(2), torch.add, _mean),
    "std": _Kind(torch.zeros(3, dtype=torch.float64), torch.add, _deviation),
    "min": _Kind(torch.tensor([math.inf], dtype=torch.float64), torch.minimum, lambda smallest: (smallest,)),
    "max": _Kind(torch.tensor([-math.inf], dtype=torch.float64), torch.maximum, lambda largest: (largest,)),
    "pairs": _Kind(torch.zeros(7, dtype=torch.float64), torch.add, _agreement),
}


def _over_processes(
    kind: _Kind, keys: list[Names], table: dict[Names, torch.Tensor], accelerator: Accelerator
) -> dict[Names, list[float]]:
    """The totals of all processes."""
    if not keys:
        return {}
    # Some accelerators (Apple's) have no float64. Those run one process, whose numbers stay on the CPU.
    device = accelerator.device if accelerator.num_processes > 1 else torch.device("cpu")
    totals = torch.stack([table.get(names, kind.empty).to(device).to(kind.empty.dtype) for names in keys])
    if kind.combine is torch.add:
        totals = accelerator.reduce(totals, reduction="sum")
    elif accelerator.num_processes > 1:
        parts = accelerator.gather(totals[None])
        totals = parts.amin(0) if kind.combine is torch.minimum else parts.amax(0)
    return dict(zip(keys, totals.tolist(), strict=True))
