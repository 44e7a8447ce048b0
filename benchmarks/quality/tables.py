# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The pieces of the tables about experiments: means over seeds, columns of arms, and where the figures come from."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness.tables import provenance, table


Seeds = list[dict[str, Any]]  # the cases of one name, one for each seed
HEADS = {
    "reward": "reward",
    "kl": "KL to base",
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "completion_length": "tokens",
    "ended": "ended",
}
DECIMALS = {"reward": 2, "kl": 2, "perplexity": 1, "distinct_2": 2, "completion_length": 1, "ended": 2}


def by_name(result: dict[str, Any]) -> dict[str, Seeds]:
    """The cases of each arm and setting, in the order of the result."""
    found: dict[str, Seeds] = {}
    for case in result["cases"]:
        found.setdefault(case["name"], []).append(case)
    return found


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean over seeds, and how far the farthest seed is from it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = statistics.fmean(known)
    return mean, max(abs(value - mean) for value in known)


def outcome(values: Sequence[float | None], decimals: int) -> str:
    """`mean ± largest distance of a seed`; one seed alone has none."""
    found = mean_and_spread(values)
    if found is None:
        return "-"
    mean, spread = found
    return f"{mean:,.{decimals}f}" + (f" ± {spread:,.{decimals}f}" if len(values) > 1 else "")


def metric(key: str, decimals: int) -> Callable[[Seeds], str]:
    """A column of a metric."""
    return lambda seeds: outcome([case["metrics"].get(key) for case in seeds], decimals)


def cost(key: str, decimals: int = 0) -> Callable[[Seeds], str]:
    """A column of a cost over all seeds."""
    return lambda seeds: outcome([case["cost"].get(key) for case in seeds], decimals)


def cost_of_one(key: str) -> Callable[[Seeds], str]:
    """A column of a cost that is the same for all seeds."""
    return lambda seeds: cost(key)(seeds[:1])


def grid(first: str, cases: dict[str, Seeds], columns: dict[str, Callable[[Seeds], str]]) -> list[str]:
    """Lines of a table with a row for each arm and setting."""
    rows = [[name, *(cell(seeds) for cell in columns.values())] for name, seeds in cases.items()]
    return table([[first, *columns], *rows])


def sources(result: dict[str, Any], *, name_arms: bool = False) -> str:
    """
    A paragraph for each result that the cases of a merged one come from.

    Args:
        result (`dict`): Of [`~benchmarks.quality.experiment.merged`].
        name_arms (`bool`, *optional*, defaults to `False`): Whether all but the result with most arms name theirs.
    """
    most: list[str] = max(result["arms"], key=len, default=[])
    made = []
    for source, arms in zip(result["from"], result["arms"], strict=True):
        note = f" ({', '.join(arms)})" if name_arms and arms is not most else ""
        seeds = ", ".join(map(str, source["settings"]["seeds"]))
        how = f"; seeds {seeds}: mean ± the largest distance of a seed from it"
        on_cpu = f"{source['environment']['hardware']['cpu']}, one thread a process"
        made.append(provenance(source, how, on_cpu=on_cpu, note=note) + _given(source))
    return "\n\n".join(made)


def _given(source: dict[str, Any]) -> str:
    """What other code than that of a result had left for its arms."""
    needs: dict[str, list[str]] = {}
    for entry in source.get("given", []):
        names = needs.setdefault(f"commit {entry['commit']}, code {entry['code']}", [])
        if entry["need"] not in names:
            names.append(entry["need"])
    return "".join(f" What they read is of {code}: {', '.join(names)}." for code, names in needs.items())


def missing(result: dict[str, Any]) -> list[str]:
    """Lines that name the arms and seeds of a merged result that failed, were not done or were skipped."""
    lines = []
    for kind, title in (("failures", "Failed or not done"), ("skipped", "Skipped")):
        if entries := [f"{entry['arm']} (seed {entry['seed']})" for entry in result[kind]]:
            lines.append(f"\n{title}: {', '.join(entries)}.")
    return lines
