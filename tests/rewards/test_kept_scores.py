# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Which scores of a failed scoring are used again: those of the same function, with the same arguments."""

import functools

import pytest

from trl_ext.rewards.functions import Reward
from trl_ext.rewards.kept_scores import BatchScores, KeptScores, source_of


def scaled(completions, scale=1.0, **_):
    return [scale] * len(completions)


def other(completions, **_):
    return [0.0] * len(completions)


def test_arguments_that_were_filled_in_are_part_of_the_function():
    twice, thrice = functools.partial(scaled, scale=2.0), functools.partial(scaled, scale=3.0)
    assert source_of(twice) != source_of(thrice) != source_of(scaled)
    assert source_of(twice) == source_of(functools.partial(scaled, scale=2.0))
    assert source_of(functools.partial(twice, scale=3.0)).endswith(source_of(scaled))


def test_a_function_without_source_is_called_again(tmp_path):
    """It may have changed, and nobody could tell."""
    assert source_of(len) == ""
    for func, times in ((len, 2), (other, 1)):
        file, calls = tmp_path / f"{func.__name__}.json", []
        for _ in range(2):
            kept = KeptScores(file)
            with pytest.raises(OSError), kept.keeping():
                kept.get(
                    Reward("r", func), {"prompts": ["a"]}, lambda calls=calls: calls.append(1) or BatchScores([1.0])
                )
                raise OSError
        assert len(calls) == times and file.exists() == (times == 1)
