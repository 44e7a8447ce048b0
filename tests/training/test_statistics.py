# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Running means and deviations, which do not depend on how numbers are split into batches."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.training.statistics import Running, whitened


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
