# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The self-test of fast paths, with vectors of known distance instead of a model's hidden states."""

import pytest
import torch

from trl_ext.models.probe import Tolerance, probe


EXPECTED = torch.eye(4)  # four vectors of norm 1
TOLERANCE = Tolerance(precise=0.01, rounded=0.1, of_effect=0.25)


def run(found, dtype=torch.float32, model=None, altered=None, relaid=None, tolerance=TOLERANCE):
    model = torch.nn.Linear(2, 2, dtype=dtype) if model is None else model
    calls = {"altered": altered, "relaid": relaid}
    return probe(model, "key", lambda: found, lambda: EXPECTED, tolerance, **calls, quantity="states")


@pytest.mark.parametrize(
    ("distance", "dtype", "passes"),
    [
        (0.0, torch.float32, True),
        (0.009, torch.float32, True),
        (0.02, torch.float32, False),
        (0.3, torch.bfloat16, True),  # mean error 0.075
        (0.6, torch.bfloat16, False),  # mean error 0.15
        (float("nan"), torch.float32, False),
        (float("nan"), torch.bfloat16, False),
    ],
)
def test_the_largest_error_counts_in_float32_and_the_mean_in_half_precision(distance, dtype, passes):
    """One of four vectors is this far from its reference."""
    found = EXPECTED.clone()
    found[0, 1] = distance
    reason = run(found, dtype)
    assert reason is None if passes else f"something else (states differ by {distance:.2g} of their size)" in reason


@pytest.mark.parametrize(("effect", "passes"), [(0.5, False), (0.9, True)])
def test_in_half_precision_an_error_is_compared_with_the_effect_of_another_prompt(effect, passes):
    """A mean error of 0.2 is within 0.25 x 0.9, not within 0.25 x 0.5 (nor within 0.1)."""
    found = EXPECTED * 1.2
    assert (run(found, torch.bfloat16, altered=lambda: EXPECTED * (1 + effect)) is None) == passes
    assert run(found, torch.float32, altered=lambda: pytest.fail("not needed")) is not None


@pytest.mark.parametrize(
    ("error", "rounding", "effect", "passes"),
    [
        (0.15, 0.05, 0.5, True),  # within 4 x 0.05; the bounds without it are 0.1 and 0.125
        (0.15, 0.02, 0.5, False),
        (0.3, 0.5, 0.5, False),  # rounding hides the effect of the prompt: 0.4 x 0.5 is the most
        (0.19, 0.5, 0.5, True),
    ],
)
def test_in_half_precision_an_error_is_compared_with_rounding_itself(error, rounding, effect, passes):
    """The reference in another layout is `rounding` apart, which says how far a right path may be."""
    fast, altered = EXPECTED * (1 + error), lambda: EXPECTED * (1 + effect)
    found = run(fast, torch.bfloat16, altered=altered, relaid=lambda: EXPECTED * (1 + rounding))
    assert (found is None) == passes
    assert run(fast, torch.float32, altered=altered, relaid=lambda: pytest.fail("not needed")) is not None
    assert run(EXPECTED, torch.bfloat16, altered=altered, relaid=lambda: pytest.fail("not needed")) is None


def test_small_vectors_are_compared_by_their_absolute_error():
    assert run(EXPECTED * 1.2, tolerance=Tolerance(precise=0.021)) is not None
    assert run(EXPECTED * 1.2, tolerance=Tolerance(precise=0.021, smallest_norm=10.0)) is None


def test_an_exception_is_a_reason_and_missing_memory_is_not_remembered():
    def fails(error):
        raise error

    model = torch.nn.Linear(2, 2)
    tries = (lambda: fails(torch.OutOfMemoryError("full")), lambda: fails(TypeError("no mask")), lambda: EXPECTED)
    with pytest.raises(torch.OutOfMemoryError):
        probe(model, "key", tries[0], lambda: EXPECTED, TOLERANCE)
    for fast in tries[1:]:  # the second result is the remembered one
        assert probe(model, "key", fast, lambda: EXPECTED, TOLERANCE) == "its forward fails (no mask)"
    assert probe(model, "another key", tries[2], lambda: EXPECTED, TOLERANCE) is None


def test_a_result_is_remembered_per_dtype_and_autocast_setting():
    model, calls = torch.nn.Linear(2, 2), []

    def reference():
        calls.append(model.training)
        return EXPECTED

    def once():
        probe(model, "key", lambda: EXPECTED, reference, TOLERANCE)
        return len(calls)

    assert [once(), once()] == [1, 1]
    with torch.autocast("cpu", torch.bfloat16):
        assert [once(), once()] == [2, 2]
    model.to(torch.bfloat16)
    assert [once(), once()] == [3, 3]
    assert calls == [False] * 3 and model.training


def test_equal_vectors_have_no_error_of_any_size():
    """A relative error of 0 / 0 is 0; NaN itself stays an error."""
    model, zeros = torch.nn.Linear(2, 2), torch.zeros(3, 2)
    assert probe(model, "zeros", lambda: zeros, lambda: zeros.clone(), TOLERANCE) is None
    assert "inf of their size" in str(probe(model, "not zeros", lambda: zeros + 1, lambda: zeros, TOLERANCE))
    assert "nan of their size" in str(probe(model, "nan", lambda: zeros * torch.nan, lambda: zeros, TOLERANCE))
