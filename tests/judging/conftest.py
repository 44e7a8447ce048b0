# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluations to be judged."""

from functools import partial

import pytest
from evaluation_files import write_evaluation


@pytest.fixture
def evaluated(tmp_path):
    """[`write_evaluation`] into the folder of the test."""
    return partial(write_evaluation, tmp_path)


@pytest.fixture
def two(evaluated):
    """Four prompts. By length, A wins, ties with another text, loses, and ties with the same text."""
    a = evaluated("a", {"outputs/run": [["long one"], ["ab"], ["x"], ["same"]]})
    b = evaluated("b", {"base": [["short"], ["cd"], ["longer"], ["same"]]})
    return a, b
