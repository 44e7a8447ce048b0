# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What two evaluations must have in common for their numbers to be in one plot."""

from collections.abc import Mapping
from typing import Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """
    What two evaluations do not have in common, in words with both values; empty if they can be compared.

    Args:
        first, second (`Mapping[str, Any]`): The `comparison` of two reports: `prompts` (a hash of the rows),
            `base_model`, `rewards` (by name) and `sampling` (settings). A model or reward has its `name` and, if it is
            a folder, a hash of its `weights`; a function may have one of its `source`. Rewards that only one of them
            has are no difference.
    """
    found = []
    if not same_source(first["base_model"], second["base_model"]):
        found.append(f"base model: {_named(first['base_model'])} and {_named(second['base_model'])}")
    if first["prompts"] != second["prompts"]:
        found.append(f"prompts: {first['prompts']} and {second['prompts']}")
    for name in [name for name in first["rewards"] if name in second["rewards"]]:
        one, other = first["rewards"][name], second["rewards"][name]
        if not same_source(one, other):
            found.append(f"reward {name!r}: {_named(one)} and {_named(other)}")
    if not set(first["rewards"]) & set(second["rewards"]):
        names = " and ".join(", ".join(each["rewards"]) or "none" for each in (first, second))
        found.append(f"reward functions: {names}")
    for key in dict.fromkeys([*first["sampling"], *second["sampling"]]):
        one, other = first["sampling"].get(key), second["sampling"].get(key)
        if one != other:
            found.append(f"{key}: {one} and {other}")
    return found


def same_source(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two models or rewards are the same: by weights or source if both are known, otherwise by name."""
    if first is None or second is None:
        return first is second
    for key in ("weights", "source"):
        if first.get(key) and second.get(key):
            return bool(first[key] == second[key])
    return bool(first["name"] == second["name"])


def _named(source: Mapping[str, Any] | None) -> str:
    if source is None:
        return "none"
    known = [f"{key} {source[key]}" for key in ("weights", "source") if source.get(key)]
    return f"{source['name']} ({known[0]})" if known else str(source["name"])
