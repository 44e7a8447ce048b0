# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of heads: numbers and dictionaries, for all rows or per row."""

import pytest
import torch

from trl_ext.guides.weights import RowWeights, parse_weights


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2.0),
        ("-1.5e0", -1.5),
        ("helpful=2", {"helpful": 2.0}),
        ("helpful=2,a/b=-0.5", {"helpful": 2.0, "a/b": -0.5}),
        (" helpful = 2 , concise = 1", {"helpful": 2.0, "concise": 1.0}),
    ],
)
def test_parse_weights(text, expected):
    assert parse_weights(text) == expected


@pytest.mark.parametrize("text", ["", "helpful", "helpful=", "=2", "a=1,a=2", "a=1,", "1,2", "a=b"])
def test_invalid_weights(text):
    with pytest.raises(ValueError, match="`beta` must be a number, or name=number"):
        parse_weights(text, "beta")


@pytest.mark.parametrize(
    ("given", "n", "expected"),
    [
        ({"b": 2}, 2, [[0, 2, 0], [0, 2, 0]]),
        ({"x": 1, "c": -1}, 1, [[1, 0, -1]]),
        ([{"a": 1}, {}], 4, [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_weights_per_row(given, n, expected):
    weights = RowWeights(given, ["a", "b", "c"], aliases={"x": "a"})
    assert weights.tensor(n, CPU).tolist() == expected
    assert weights.tensor(n, CPU) is weights.tensor(n, CPU)


def test_number_for_a_single_name():
    assert RowWeights(torch.tensor([1.0, 2.0]), ["a"]).tensor(2, CPU).tolist() == [[1], [2]]
    assert RowWeights(0, ["a"]).tensor(3, CPU).tolist() == [[0]] * 3


def test_any_nonzero_weight():
    weights = RowWeights([{"a": 0.0}, {"c": 1.0}], ["a", "b", "c"])
    assert weights.any()
    assert not weights.any(slice(0, 2))
    assert weights.any(slice(2, 3))


def test_invalid_row_weights():
    for given, message in (
        ({"d": 1}, "weights` has a weight for 'd', which does not exist; there is 'a', 'b'"),
        ([{"a": 1}, {"a": float("nan")}], "weights` of row 1 must be a finite number from .* got nan for 'a'"),
        ({"b": -1e39}, r"must be a finite number from -10000 to 10000, got -1e\+39 for 'b'"),
        ({"b": 10_001}, "must be a finite number from"),
        ({"b": 10**400}, "must be a finite number from"),
        (1.0, r"one number for a, b: say which, as in a=1 on the command line and \{'a': 1\} in Python"),
        ({"a": "x"}, "must be a finite number from -10000 to 10000, got 'x' for 'a'"),
        ([], "empty list"),
    ):
        with pytest.raises(ValueError, match=message):
            RowWeights(given, ["a", "b"])
    with pytest.raises(TypeError, match="must be a number or a dictionary, got NoneType"):
        RowWeights([None], ["a"])
    with pytest.raises(ValueError, match="has 2 rows and the batch has 3"):
        RowWeights([1.0, 2.0], ["a"]).tensor(3, CPU)
