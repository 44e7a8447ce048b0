# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does with the same global batch, however they share the models (two_processes.py)."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from two_processes import SOURCES, TYPES, assert_equal, module_of, on_one, on_two


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The folder and the results of a source's cases on one process, which all kinds are compared with."""

    @cache
    def of(source: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("one") / source
        return folder, on_one(module_of(source).CASES, folder)

    return of


@pytest.fixture(scope="module", params=TYPES)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A kind of launch, its folder, and the results of all sources on two processes."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, on_two(request.param, folder)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_two_processes_equal_one(source: str, one: Any, two: tuple[str, Path, dict[str, Any]]) -> None:
    kind, two_folder, results = two
    one_folder, expected = one(source)
    found = results[source]
    if not found:
        pytest.skip(f"{source} has no case of {kind}")
    compared = found.keys() & expected.keys()
    assert compared
    for name in compared:
        assert_equal(expected[name], found[name], kind)
    check = getattr(module_of(source), "check", None)
    if check:
        check(found, one_folder, two_folder / source)
