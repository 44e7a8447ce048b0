# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Slopes are those of the measured times and of the arithmetic of the same steps."""

import pytest
import torch

from benchmarks.harness import results
from benchmarks.harness.models import SHAPES, build
from benchmarks.speed import scaling
from benchmarks.speed.rrhf_workload import DENSE, NAIVE, OUR_ROWS, Case
from benchmarks.speed.scaling import Axis, Point
from benchmarks.speed.scaling_processes import Processes


def tiny(k):
    return Case("tiny", "cpu", k, 1, (8, 8), (4, 4))


@pytest.fixture(scope="module")
def measured():
    axis = Axis("cpu/rrhf/tiny", "tiny", tuple(Point(k, tiny(k)) for k in (2, 4)), (NAIVE, OUR_ROWS, DENSE))
    return scaling.measure(axis, rounds=2, batches=1, seed=0)


def test_slope_is_that_of_a_power():
    assert scaling.slope([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
    assert scaling.slope([1, 10], [5, 5]) == pytest.approx(0)


def test_weights_are_those_of_the_model():
    model = build("tiny", device=torch.device("cpu"), dtype=torch.float32)
    counted = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert scaling.linear_weights(SHAPES["tiny"]) == counted


def test_separate_rows_grow_with_k_and_shared_ones_less(measured):
    expected = {name: slopes["expected"] for name, slopes in measured["slopes"].items()}
    assert expected[NAIVE] == pytest.approx(1) and expected[OUR_ROWS] == pytest.approx(1)
    assert 0 < expected[DENSE] < 1
    assert set(measured["variants"]) == {f"{name}, {k}" for name in (NAIVE, OUR_ROWS, DENSE) for k in (2, 4)}


def test_a_result_is_well_formed_and_its_table_says_the_slopes(measured, result_of, monkeypatch):
    result = result_of(scaling.SUITE, measured)
    results.check_result(result)
    axis = Axis("cpu/rrhf/tiny", "tiny", (Point(2, tiny(2)), Point(4, tiny(4))), (NAIVE, OUR_ROWS, DENSE))
    monkeypatch.setattr(scaling, "CASES", [axis])
    assert f"| tiny | {NAIVE} | {measured['slopes'][NAIVE]['measured']:.2f} | 1.00 |" in scaling.tables([result])
    assert "ot measured" in scaling.tables([])


def test_axes_are_named_apart_and_grow():
    assert len({axis.name for axis in scaling.CASES}) == len(scaling.CASES)
    for axis in scaling.CASES:
        processes = isinstance(axis, Processes)  # as many as the machine has cores
        sizes = list(axis.sizes) if processes else [point.size for point in axis.points]
        assert sizes == sorted(set(sizes)) and len(sizes) >= (2 if processes else 3)
