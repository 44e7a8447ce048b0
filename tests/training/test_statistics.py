# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Running means and deviations, which do not depend on how numbers are split into batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.training.statistics import Running, RunningColumns, whitened


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=6))
def test_running_moments_are_those_of_all_numbers(batches):
    running = Running()
    for batch in batches:
        running.add([*batch, math.nan])
    numbers = [x for batch in batches for x in batch]
    assert running.count == len(numbers)
    if numbers:
        assert running.mean == pytest.approx(np.mean(numbers), abs=1e-6)
    if len(numbers) > 1 and np.std(numbers) > 1e-3:
        assert running.std == pytest.approx(np.std(numbers, ddof=1), rel=1e-5)


def test_a_constant_has_no_scale():
    running = Running()
    running.add([2.0, 2.0, 2.0])
    assert (running.mean, running.std) == (2.0, 1.0)


def test_whitening():
    """By hand; the order stays, a single value has no scale, and in half precision sums do not overflow."""
    accelerator = Accelerator(cpu=True)
    values = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(whitened(values, accelerator), (values - 3) / 7**0.5)
    assert whitened(torch.tensor([3.0]), accelerator).tolist() == [0.0]
    assert whitened(torch.zeros(0), accelerator).shape == (0,)
    large = whitened(torch.tensor([60_000.0, 0.0, -60_000.0], dtype=torch.float16), accelerator)
    assert large.dtype == torch.float16 and large.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-3)


def test_columns_are_counted_apart_and_kept(tmp_path):
    columns = RunningColumns(2)
    columns.add([[1.0, 3.0], [5.0]])
    columns.add([[5.0], [math.nan]], SimpleNamespace(num_processes=1))
    assert columns.means == [3.0, 5.0] and columns.stds == [2.0, 1.0]
    columns.save(tmp_path / "statistics.json")
    found = RunningColumns(2)
    found.load(tmp_path / "statistics.json")
    assert found.columns == columns.columns == [Running(3, 3.0, 8.0), Running(1, 5.0, 0.0)]
    found.add([[3.0], []])
    assert found.columns[0].count == 4 and found.stds[0] == pytest.approx((8 / 3) ** 0.5)


def test_columns_and_whitening_over_processes(monkeypatch):
    """Each process has its own numbers, all get the moments of all."""
    other = {"columns": [[7.0], [1.0, 2.0]], "sums": [2.0, 5.0, 13.0]}
    two = SimpleNamespace(num_processes=2)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, other["columns"]])
    columns = RunningColumns(2)
    columns.add([[1.0], [3.0]], two)
    assert columns.means == [4.0, 2.0] and [each.count for each in columns.columns] == [2, 3]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, other["sums"]])  # of 2 and 3
    found = whitened(torch.tensor([4.0, 7.0]), two)
    every = torch.tensor([4.0, 7.0, 2.0, 3.0])
    torch.testing.assert_close(found, (every[:2] - every.mean()) / every.std())


def test_equal_values_have_no_scale():
    """1e-8 is added to the variance, as in TRL's PPO."""
    assert whitened(torch.full((3,), 0.1), Accelerator(cpu=True)).abs().max() < 1e-3
    found = whitened(torch.tensor([0.0, 2e-4]), Accelerator(cpu=True))
    torch.testing.assert_close(found, torch.tensor([-1e-4, 1e-4]) / (2e-8 + 1e-8) ** 0.5)
