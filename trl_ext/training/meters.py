# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics over more than one step and more than one process: means, deviations, extremes."""

from typing import Any

import torch
from accelerate import Accelerator


class Meters:
    """
    Weighted means, deviations and extremes of named metrics, kept on the device until they are logged.

    Pooling sums and counts, rather than averaging averages, makes a metric independent of how prompts were split into
    micro-batches and processes. Nothing is synchronised before [`Meters.pop`].
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._moments: dict[str, torch.Tensor] = {}  # count, sum, sum of squares
        self._largest: dict[str, torch.Tensor] = {}  # smallest values are kept negated

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float) -> None:
        """Add `total`, the sum of `count` values of the metric `name`."""
        total = torch.as_tensor(total).detach().float()
        # Filled in on the device: a copy to it would wait for all that the device still has to do.
        count = count.detach().to(total) if isinstance(count, torch.Tensor) else total.new_full((), count)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts[name] + count if name in self._counts else count

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Add the values of a tensor that are not NaN."""
        known = ~values.isnan()
        self.add(name, values.nan_to_num().sum(), known.sum())

    def add_deviation(self, name: str, values: torch.Tensor) -> None:
        """Let `name` be the standard deviation of all values added so, kept on the CPU; NaN is left out."""
        known = values[~values.isnan()].detach().cpu().double()
        moments = torch.stack([torch.ones_like(known).sum(), known.sum(), known.square().sum()])
        self._moments[name] = self._moments[name] + moments if name in self._moments else moments

    def add_extremes(self, smallest: str, largest: str, values: torch.Tensor) -> None:
        """Let the two names be the smallest and the largest of all values added so."""
        for name, signed in ((f"-{smallest}", -values), (largest, values)):
            if len(values):
                most = signed.detach().cpu().double().max()
                self._largest[name] = torch.maximum(self._largest[name], most) if name in self._largest else most

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The figures over all processes since the last call; a metric that no value was added to is left out."""
        kept = (self._sums, self._moments, self._largest)
        names = [sorted(of) for of in kept]
        if accelerator.num_processes > 1:
            # A process may have met none of some metric (a round without rewards, say).
            from accelerate.utils import gather_object

            others = gather_object([names])
            names = [sorted({name for one in others for name in one[kind]}) for kind in range(len(kept))]
        pairs = {name: torch.stack([self._sums[name], self._counts[name]]) for name in self._sums}
        totals = _reduced(names[0], pairs, torch.zeros(2), accelerator)
        moments = _reduced(names[1], self._moments, torch.zeros(3, dtype=torch.double), accelerator)
        largest = _reduced(
            names[2], self._largest, torch.tensor(-torch.inf, dtype=torch.double), accelerator, most=True
        )
        for of in (*kept, self._counts):
            of.clear()
        found = {name: total / count for name, (total, count) in totals.items() if count}
        for name, (count, total, squares) in moments.items():
            if count > 1:
                found[name] = max(0.0, (squares - total**2 / count) / (count - 1)) ** 0.5
        found |= {name.removeprefix("-"): -x if name[0] == "-" else x for name, x in largest.items()}
        return found


def _reduced(
    names: list[str],
    found: dict[str, torch.Tensor],
    empty: torch.Tensor,
    accelerator: Accelerator,
    *,
    most: bool = False,
) -> dict[str, Any]:
    """By name the sum, or the largest, over processes; `empty` stands for what this one has not met."""
    if not names:
        return {}
    # Not every accelerator has float64 (Apple's), and such a one is not asked where there is nobody to add up with.
    device = accelerator.device if accelerator.num_processes > 1 else torch.device("cpu")
    table = torch.stack([found.get(name, empty).to(device).to(empty.dtype) for name in names])
    if most and accelerator.num_processes > 1:
        table = accelerator.gather(table[None]).amax(0)
    elif not most:
        table = accelerator.reduce(table, reduction="sum")
    return dict(zip(names, table.tolist(), strict=True))
