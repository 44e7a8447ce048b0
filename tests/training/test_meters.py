# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics that do not depend on how values are split into micro-batches and processes."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import HANGS
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.training.meters import Meters


NAN = math.nan


class OneProcess:
    num_processes = 1
    device = torch.device("cpu")

    @staticmethod
    def reduce(table, reduction):
        assert reduction == "sum"
        return table


def test_a_mean_is_over_values_and_not_over_batches():
    meters = Meters()
    meters.add_values("reward", torch.tensor([1.0, 2.0, 3.0]))
    meters.add_values("reward", torch.tensor([10.0]))
    meters.add("pairs", 3.0, 4)
    meters.add("pairs", torch.tensor(0.0), torch.tensor(2.0))
    assert meters.pop(OneProcess()) == pytest.approx({"reward": 4.0, "pairs": 0.5})


def test_nan_is_no_value():
    meters = Meters()
    meters.add_values("tau", torch.tensor([NAN, 1.0, NAN, 0.0]))
    meters.add_values("never", torch.tensor([NAN]))
    assert meters.pop(OneProcess()) == {"tau": 0.5}


def test_a_metric_that_diverged_is_nan():
    """It is logged as NaN; a metric that nothing was added to is left out."""
    meters = Meters()
    meters.add("entropy", NAN, 5)
    meters.add("never", 0.0, 0)
    meters.add_extremes("smallest", "largest", torch.tensor([1.0, NAN]))
    found = meters.pop(OneProcess())
    assert set(found) == {"entropy", "smallest", "largest"}
    assert all(math.isnan(value) for value in found.values())


def test_pop_starts_again():
    meters = Meters()
    assert meters.pop(OneProcess()) == {}
    meters.add("x", 1.0, 1)
    assert meters.pop(OneProcess()) == {"x": 1.0}
    assert meters.pop(OneProcess()) == {}
    meters.add("x", 2.0, 1)
    meters.add("y", 3.0, 1)
    assert meters.pop(OneProcess()) == {"x": 2.0, "y": 3.0}


def test_meters_keep_no_graph():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    meters = Meters()
    meters.add_values("x", value)
    meters.add("y", value.sum(), 1)
    assert not any(total.requires_grad for table in meters._totals.values() for total in table.values())


def test_whole_numbers_and_truths_can_be_added():
    meters = Meters()
    meters.add("right", torch.tensor([True, False, True]).sum(), 3)
    meters.add_values("low precision", torch.tensor([0.5, 1.5], dtype=torch.bfloat16))
    assert meters.pop(OneProcess()) == pytest.approx({"right": 2 / 3, "low precision": 1.0})


def test_it_works_with_an_accelerator():
    meters = Meters()
    meters.add_values("x", torch.tensor([1.0, 4.0]))
    assert meters.pop(Accelerator(cpu=True)) == {"x": 2.5}


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), max_size=5), min_size=1, max_size=5))
def test_how_values_are_split_does_not_matter(batches):
    split, whole = Meters(), Meters()
    for batch in batches:
        split.add_values("x", torch.tensor(batch))
    whole.add_values("x", torch.tensor([value for batch in batches for value in batch]))
    assert split.pop(OneProcess()) == pytest.approx(whole.pop(OneProcess()), rel=1e-4, abs=1e-4)


class Processes:
    """Two processes in one: collects the tensors that each would send, and returns their sum to each."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, others):
        self.others = others

    def reduce(self, table, reduction):
        return table + self.others.to(table)


def test_processes_are_pooled_and_may_have_met_different_metrics(monkeypatch):
    keys = {kind: [] for kind in ("std", "min", "max", "pairs")} | {"mean": [("reward",), ("x",)]}
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, keys])
    meters = Meters()
    meters.add("x", 1.0, 1)
    meters.add("mine", 6.0, 2)
    # The other process: reward 9 over 3 values, x 5 over 2; the names are sorted: mine, reward, x.
    others = torch.tensor([[0.0, 0.0], [9.0, 3.0], [5.0, 2.0]])
    assert meters.pop(Processes(others)) == pytest.approx({"mine": 3.0, "reward": 3.0, "x": 2.0})


class OneOfTwo:
    """One of two processes, as threads of this one: each hands over its part and reads those of both."""

    num_processes = 2
    device = torch.device("cpu")
    current = threading.local()

    def __init__(self, number, parts, barrier):
        self.number, self.parts, self.barrier = number, parts, barrier

    def exchange(self, mine):
        self.parts[self.number] = mine
        self.barrier.wait()
        both = list(self.parts)
        self.barrier.wait()
        return both

    def reduce(self, table, reduction):
        assert reduction == "sum"
        return sum(self.exchange(table))

    def gather(self, table):
        return torch.cat(self.exchange(table))

    def pop(self, meters):
        self.current.process = self
        try:
            return meters.pop(self)
        except BaseException:
            self.barrier.abort()  # the other would wait
            raise


def test_every_kind_of_metric_is_over_both_processes(monkeypatch):
    """One process adds 1, 6 and 8, the other 3, and each has metrics of its own. Both log those of all four values."""

    def gather_object(mine):
        return [each for part in OneOfTwo.current.process.exchange(mine) for each in part]

    monkeypatch.setattr("accelerate.utils.gather_object", gather_object)
    x, y = torch.tensor([1.0, 6.0, 8.0, 3.0]), torch.tensor([2.0, 5.0, 9.0, 3.0])
    first, second = Meters(), Meters()
    for meters, part in ((first, slice(0, 3)), (second, slice(3, 4))):
        meters.add_values("mean", x[part])
        meters.add_deviation("std", x[part])
        meters.add_extremes("least", "most", x[part])
        meters.add_pairs(x[part], y[part], r2="r2", correlation="correlation")
    first.add_deviation("first std", torch.tensor([1.0, 3.0]))
    second.add_extremes("second least", "second most", torch.tensor([4.0]))
    second.add_pairs(x[:2], y[:2], mean="second mean")
    parts, barrier = [None, None], threading.Barrier(2, timeout=HANGS)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(OneOfTwo(i, parts, barrier).pop, meters) for i, meters in enumerate((first, second))]
    found, other = (job.result() for job in jobs)
    assert (
        found
        == other
        == pytest.approx(
            {
                "mean": 18 / 4,
                "std": (29 / 3) ** 0.5,  # squared distances to 4.5: 12.25, 2.25, 12.25 and 2.25, over 4 - 1
                "least": 1.0,
                "most": 8.0,
                "r2": 1 - 3 / 28.75,  # errors 1, -1, 1 and 0; squared distances of y to 4.75 add up to 28.75
                "correlation": float(np.corrcoef(x, y)[0, 1]),
                "first std": 2**0.5,
                "second least": 4.0,
                "second most": 4.0,
                "second mean": 7 / 2,
            }
        )
    )
    assert first.pop(OneProcess) == second.pop(OneProcess) == {}


def test_deviation_and_extremes_are_of_all_values():
    meters, values = Meters(), torch.tensor([3.0, -1.0, 7.0, 2.0])
    for part in (values[:1], values[1:], torch.tensor([NAN])):
        meters.add_deviation("std", part)
    for part in (values[:3], values[3:], values[:0]):
        meters.add_extremes("least", "most", part)
    assert meters.pop(OneProcess) == pytest.approx({"std": float(values.std()), "least": -1.0, "most": 7.0})
    assert meters.pop(OneProcess) == {}


FIGURES = ("mean", "correlation", "r2", "explained_variance")


def agreement(*parts):
    """All metrics of pairs, added in parts."""
    meters = Meters()
    for predicted, actual in parts:
        meters.add_pairs(predicted, actual, **{name: name for name in FIGURES})
    return meters.pop(OneProcess)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_agreement_of_pairs(offset):
    """Against NumPy's correlation and the definitions of R^2 and explained variance."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(200, generator=generator, dtype=torch.float64) * 2 + offset
    x = 0.5 * y + torch.randn(200, generator=generator, dtype=torch.float64) + 0.5 * offset + 0.3
    parts = [(x[part].view(-1, 1), y[part].view(-1, 1)) for part in (slice(0, 3), slice(3, 150), slice(150, 200))]
    found = agreement(*parts, (torch.tensor([NAN, 1.0]), torch.tensor([1.0, NAN])))
    error = y - x
    assert found["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert found["r2"] == pytest.approx((1 - (error**2).sum() / ((y - y.mean()) ** 2).sum()).item(), abs=1e-6)
    assert found["explained_variance"] == pytest.approx((1 - error.var() / y.var()).item(), abs=1e-6)
    assert found["mean"] == pytest.approx(x.mean().item())


def test_undefined_agreement_is_not_logged():
    constant_outcome = agreement((torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])))
    assert set(constant_outcome) == {"mean"}
    constant_prediction = agreement((torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])))
    assert set(constant_prediction) == {"mean", "r2", "explained_variance"}
    assert constant_prediction["explained_variance"] == pytest.approx(0.0)
    assert agreement() == {} == agreement((torch.tensor([NAN]), torch.tensor([1.0])))


def test_agreement_that_has_no_name_is_not_logged():
    meters = Meters()
    meters.add_pairs(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), correlation="c")
    assert meters.pop(OneProcess) == pytest.approx({"c": 1.0})
