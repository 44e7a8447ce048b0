# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics that are means over more than one step and more than one process."""

import torch
from accelerate import Accelerator


class Meters:
    """
    Weighted means of named metrics, kept on the device until they are logged.

    Pooling sums and counts, rather than averaging averages, makes a metric independent of how prompts were split into
    micro-batches and processes. Nothing is synchronised before [`Meters.pop`].
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float) -> None:
        """Add `total`, the sum of `count` values of the metric `name`."""
        total, count = (torch.as_tensor(x).detach().float() for x in (total, count))
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts[name] + count if name in self._counts else count

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Add the values of a tensor that are not NaN."""
        known = ~values.isnan()
        self.add(name, values.nan_to_num().sum(), known.sum())

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; a metric that no value was added to is left out."""
        names = sorted(self._sums)
        if accelerator.num_processes > 1:
            # A process may have met none of some metric (a round without rewards, say).
            from accelerate.utils import gather_object

            names = sorted({name for others in gather_object([names]) for name in others})
        if not names:
            return {}
        zero = torch.zeros(())
        pairs = [(self._sums.get(name, zero), self._counts.get(name, zero)) for name in names]
        table = torch.stack([torch.stack([s.to(accelerator.device), c.to(accelerator.device)]) for s, c in pairs])
        totals = accelerator.reduce(table, reduction="sum").tolist()
        self._sums.clear()
        self._counts.clear()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
