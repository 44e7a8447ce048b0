# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Explained variance of value predictions against observed returns.

Dimensions: N completions, T tokens of the longest completion, H heads.
"""

from collections.abc import Sequence

import torch

from trl_ext.training.meters import Meters


THIRDS = ("early", "middle", "late")  # of a completion: late values are easier to predict than early ones


def measure_values(
    meters: Meters,
    heads: Sequence[str],
    values_NTH: torch.Tensor,
    returns_NTH: torch.Tensor,
    mask_NTH: torch.Tensor,
    *,
    thirds: bool = False,
) -> None:
    """
    Add a batch to `explained_variance`, `correlation` and `values/mean`.

    Metrics of thirds of the completions end in `/early`, `/middle` or `/late`. With several heads, all end in the
    head's name.

    Args:
        meters ([`~trl_ext.training.meters.Meters`]): The metrics.
        heads (`Sequence[str]`): Names of the heads.
        values_NTH, returns_NTH (`torch.Tensor` of shape `(N, T, H)`): Predicted values and observed returns.
        mask_NTH (`torch.Tensor` of shape `(N, T, H)`): True at tokens with a known return.
        thirds (`bool`, *optional*, defaults to `False`): Whether to measure the thirds as well.
    """
    lengths_N1 = mask_NTH.any(-1).sum(dim=1, keepdim=True).clamp(min=1)
    third_NT = torch.arange(mask_NTH.shape[1], device=mask_NTH.device) * len(THIRDS) // lengths_N1
    for h, head in enumerate(heads):
        mask_NT, values_NT, returns_NT = mask_NTH[..., h], values_NTH[..., h], returns_NTH[..., h]
        suffix = f"/{head}" if len(heads) > 1 else ""
        meters.add_pairs(
            values_NT[mask_NT],
            returns_NT[mask_NT],
            mean=f"values/mean{suffix}",
            correlation=f"correlation{suffix}",
            explained_variance=f"explained_variance{suffix}",
        )
        for i, third in enumerate(THIRDS if thirds else ()):
            part_NT = mask_NT & (third_NT == i)
            meters.add_pairs(
                values_NT[part_NT],
                returns_NT[part_NT],
                correlation=f"correlation/{third}{suffix}",
                explained_variance=f"explained_variance/{third}{suffix}",
            )
