# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Moments that do not depend on how numbers are cut into batches."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.training.statistics import Pairs, Running, whitened


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


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_figures_of_pairs(offset):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(200, generator=generator, dtype=torch.float64) * 2 + offset
    x = 0.5 * y + torch.randn(200, generator=generator, dtype=torch.float64) + 0.5 * offset + 0.3
    pairs = Pairs()
    for part in (slice(0, 3), slice(3, 150), slice(150, 200)):
        pairs.add("a", x[part].view(-1, 1), y[part].view(-1, 1))
    pairs.add("a", torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, torch.nan]))
    found = pairs.pop(Accelerator(cpu=True), ["a", "never"])
    assert set(found) == {"a"}
    error = y - x
    assert found["a"]["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert found["a"]["r2"] == pytest.approx((1 - (error**2).sum() / ((y - y.mean()) ** 2).sum()).item(), abs=1e-6)
    assert found["a"]["explained_variance"] == pytest.approx((1 - error.var() / y.var()).item(), abs=1e-6)
    assert found["a"]["mean"] == pytest.approx(x.mean().item())
    assert pairs.pop(Accelerator(cpu=True), ["a"]) == {}


def test_what_is_not_defined_is_left_out():
    pairs = Pairs()
    pairs.add("constant return", torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]))
    pairs.add("constant value", torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0]))
    found = pairs.pop(Accelerator(cpu=True), ["constant return", "constant value"])
    assert set(found["constant return"]) == {"mean"}
    assert set(found["constant value"]) == {"mean", "r2", "explained_variance"}
    assert found["constant value"]["explained_variance"] == pytest.approx(0.0)


def test_whitening():
    """By hand; the order stays, a single value has no scale, and in half precision sums do not overflow."""
    accelerator = Accelerator(cpu=True)
    values = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(whitened(values, accelerator), (values - 3) / 7**0.5)
    assert whitened(torch.tensor([3.0]), accelerator).tolist() == [0.0]
    assert whitened(torch.zeros(0), accelerator).shape == (0,)
    large = whitened(torch.tensor([60_000.0, 0.0, -60_000.0], dtype=torch.float16), accelerator)
    assert large.dtype == torch.float16 and large.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-3)
