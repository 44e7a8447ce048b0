# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How well values explain returns, in each third of a completion, against loops over its tokens."""

from types import SimpleNamespace

import pytest
import torch

from trl_ext.methods.vas.explained_variance import measure_values
from trl_ext.training.meters import Meters


# The third of each token: early, middle or late.
THIRDS = ["eemmll", "eml", "em", "e", "eeemmll"]
ONE_PROCESS = SimpleNamespace(num_processes=1, reduce=lambda totals, reduction: totals)


def variance(numbers):
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers) / len(numbers)


def explained(pairs):
    return 1 - variance([y - x for x, y in pairs]) / variance([y for _, y in pairs])


def test_each_token_counts_in_its_third():
    torch.manual_seed(0)
    lengths = [len(thirds) for thirds in THIRDS]
    values, returns = torch.randn(2, len(lengths), max(lengths), 2)
    mask = torch.zeros(len(lengths), max(lengths), 2, dtype=torch.bool)
    for n, length in enumerate(lengths):
        mask[n, :length, 0] = True
        mask[n, :length, 1] = n != 0  # the reward of the second head is not known for the first completion
    meters = Meters()
    measure_values(meters, ["a", "b"], values, returns, mask, thirds=True)
    found = meters.pop(ONE_PROCESS)
    for h, head in enumerate("ab"):
        pairs = {"": [], "e": [], "m": [], "l": []}
        for n, thirds in enumerate(THIRDS):
            for t, third in enumerate(thirds if mask[n, 0, h] else ""):
                pair = float(values[n, t, h]), float(returns[n, t, h])
                pairs[""].append(pair)
                pairs[third].append(pair)
        assert found[f"explained_variance/{head}"] == pytest.approx(explained(pairs[""]))
        assert found[f"values/mean/{head}"] == pytest.approx(sum(x for x, _ in pairs[""]) / len(pairs[""]))
        for third in ("early", "middle", "late"):
            assert found[f"explained_variance/{third}/{head}"] == pytest.approx(explained(pairs[third[0]]))
