# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of guidance in vLLM's `additional_config`, and the slots that requests have."""

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from conftest import HANGS, REPOSITORY

from trl_ext.serving.vllm.settings import ServingSettings, read_settings
from trl_ext.serving.vllm.slots import SlotPool


def test_settings_are_read_beside_those_of_others() -> None:
    found = read_settings({"other": 1, "trl_ext": {"value_model": "outputs/value", "top_k": 8}}, ServingSettings)
    assert found == ServingSettings("outputs/value", top_k=8)
    assert (found.top_k, ServingSettings("x").top_k, found.value_cache_gib) == (8, 20, 2.0)
    several = read_settings(
        {"trl_ext": {"value_model": {"a": "x", "b": "y"}, "trust_remote_code": True}}, ServingSettings
    )
    assert {name: (kind.model, kind.trust_remote_code) for name, kind in several.kinds.items()} == {
        "a": ("x", True),
        "b": ("y", True),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "is missing. Write, for example, --additional-config"),
        ("outputs/value", "must be an object, got 'outputs/value'. Write, for example"),
        ({}, "`value_model` is missing. Write, for example"),
        ({"value_model": ""}, "`value_model` is empty. Write, for example"),
        ({"value_model": "x", "topk": 5}, "unknown key 'topk'; did you mean 'top_k'"),
        ({"value_model": "x", "beta": 5}, "unknown key 'beta'; there is value_model, top_k"),
        ({"value_model": "x", "top_k": 0}, "`top_k` must be at least 1, got 0: without candidates"),
        ({"value_model": "x", "top_k": "many"}, "`top_k` "),
        ({"value_model": "x", "value_cache_gib": 0}, "`value_cache_gib` must be above 0, got 0"),
        ({"value_model": 3}, "`value_model` "),
    ],
)
def test_mistakes_say_where_they_are(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_settings({} if given is None else {"trl_ext": given}, ServingSettings)
    assert "--additional-config" in str(error.value)


def test_no_entry_point_is_declared() -> None:
    """vLLM would load it into every engine of the environment, TRL's own too."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(declared) == {"trl_ext.methods"}


def test_the_name_that_vllm_is_given() -> None:
    """Imported as vLLM does, in a process of its own; vLLM need not be installed."""
    code = "import importlib; print(importlib.import_module('trl_ext.vllm').ValueGuide.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.strip().endswith("ValueGuide")


# -------------------------------------------------------------------------------------------------------------- slots


def test_requests_keep_their_slots_and_take_the_lowest_free_one() -> None:
    pool = SlotPool(4)
    assert pool.assign(["a", "b", "c"]) == [0, 1, 2]
    pool.release("a")
    pool.release("unknown")
    assert pool.assign(["c", "d", "b"]) == [2, 0, 1]
    assert len(pool) == 3


def test_the_request_that_was_not_asked_for_longest_gives_its_slot() -> None:
    pool = SlotPool(2)
    pool.assign(["a"])
    pool.assign(["b"])
    pool.assign(["a"])
    assert pool.assign(["c"]) == [1]
    assert pool.assign(["a", "c"]) == [0, 1]


def test_waves_begin_with_requests_that_have_slots() -> None:
    pool = SlotPool(2)
    pool.assign(["c", "d"])
    assert list(pool.waves(["a", "b", "c", "d", "e"])) == [[2, 3], [0, 1], [4]]
    assert list(pool.waves(["a", "d"])) == [[0, 1]]
    assert list(pool.waves([])) == [[]]
