# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Explained variance of value predictions against observed returns.

Letters: N completions, T tokens of the longest completion, H heads.
"""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from trl_ext.training.statistics import Pairs


THIRDS = ("early", "middle", "late")  # of a completion: late values are easier to predict than early ones


class ExplainedVariance:
    """
    Accumulates values and returns of tokens, for each head and, in evaluation, for each third of the completions.

    Args:
        heads (`Sequence[str]`): Names of the heads.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        self.heads = list(heads)
        self._pairs = {"train": Pairs(), "eval": Pairs()}

    def add(self, mode: str, values_NTH: torch.Tensor, returns_NTH: torch.Tensor, mask_NTH: torch.Tensor) -> None:
        """
        Add a batch.

        Args:
            mode (`str`): `"train"` or `"eval"`.
            values_NTH, returns_NTH (`torch.Tensor` of shape `(N, T, H)`): Predicted values and observed returns.
            mask_NTH (`torch.Tensor` of shape `(N, T, H)`): True at tokens with a known return.
        """
        lengths_N1 = mask_NTH.any(-1).sum(dim=1, keepdim=True).clamp(min=1)
        third_NT = torch.arange(mask_NTH.shape[1], device=mask_NTH.device) * len(THIRDS) // lengths_N1
        for h, head in enumerate(self.heads):
            mask_NT, values_NT, returns_NT = mask_NTH[..., h], values_NTH[..., h], returns_NTH[..., h]
            self._pairs[mode].add(head, values_NT[mask_NT], returns_NT[mask_NT])
            for i, third in enumerate(THIRDS if mode == "eval" else ()):
                part_NT = mask_NT & (third_NT == i)
                self._pairs[mode].add(f"{head}/{third}", values_NT[part_NT], returns_NT[part_NT])

    def pop(self, mode: str, accelerator: Accelerator) -> dict[str, float]:
        """
        `explained_variance`, `correlation` and `values/mean` of what all processes added since the last call.

        Metrics of thirds end in `/early`, `/middle` or `/late`. With several heads, all end in the head's name.

        Args:
            mode (`str`): `"train"` or `"eval"`.
            accelerator ([`~accelerate.Accelerator`]): Sums over the processes.
        """
        parts = ["", *(f"/{third}" for third in THIRDS)] if mode == "eval" else [""]
        names = [f"{head}{part}" for head in self.heads for part in parts]
        metrics = {}
        for name, figures in self._pairs[mode].pop(accelerator, names).items():
            head, _, third = name.rpartition("/") if name not in self.heads else (name, "", "")
            tail = (f"/{third}" if third else "") + (f"/{head}" if len(self.heads) > 1 else "")
            metrics[f"explained_variance{tail}"] = figures.get("explained_variance", math.nan)
            metrics[f"correlation{tail}"] = figures.get("correlation", math.nan)
            if not third:
                metrics[f"values/mean{tail}"] = figures["mean"]
        return {name: value for name, value in metrics.items() if not math.isnan(value)}
