# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Figures that pages quote are those of the results: a text of quoted_figures.yaml, filled in, is in its page."""

import functools
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from benchmarks.harness.results import RESULTS, read_results
from benchmarks.quality.tables import by_name, mean_and_spread
from benchmarks.run import suite_of


PAGES = yaml.safe_load((Path(__file__).parent / "quoted_figures.yaml").read_text(encoding="utf-8"))
QUOTES = [(page, text) for page, texts in PAGES.items() for text in texts]
OUTCOMES = (("reward", "2"), ("kl", "0"), ("perplexity", "1"), ("distinct_2", "2"))


@functools.cache
def cases(suite: str) -> dict[str, Any]:
    """The cases of each name: of a comparison's preset `cpu`, or of the task of a method of `imdb` with most cases."""
    name, _, method = suite.partition(" ")
    found: Any = suite_of(name)
    if not method:
        return by_name(found.by_preset(read_results(name))["cpu"])
    of_method = [r for r in found.by_task(read_results(name)) if r["settings"]["method"] == method]
    return by_name(max(of_method, key=lambda result: len(result["cases"])))


def seeds_of(arm: str) -> list[dict[str, Any]]:
    suite, _, name = arm.rpartition(": ")
    found: list[dict[str, Any]] = cases(suite or "quality")[name]
    return found


def values(arms: str, column: str) -> list[float]:
    part, _, key = column.rpartition(".")
    return [case[part or "metrics"][key] for arm in arms.split("; ") for case in seeds_of(arm)]


def shown(value: float, decimals: str) -> str:
    if decimals == "-1":
        return f"{round(value, -1):,.0f}"
    digits = (1 if value < 9.95 else 0) if decimals == "nats" else int(decimals)
    return f"{value:.{digits}f}".replace("-", "−")


def row(page: str, name: str, count: str) -> str:
    tables = (RESULTS / page).read_text(encoding="utf-8").partition(": begin -->")[2]
    line = next(line for line in tables.splitlines() if line.startswith(f"| {name} | "))
    return " | ".join(line.strip("| ").split(" | ")[1 : 1 + int(count)])


def outcome(arm: str, column: str, decimals: str) -> str:
    found = mean_and_spread(values(arm, column))
    assert found is not None
    return " ± ".join(shown(x, decimals) for x in found) if any(found) else "0"


def figure(match: re.Match[str]) -> str:
    kind, what = match.group(1), match.group(2).split("|")
    if kind == "row":
        return row(*what)
    if kind == "seeds":
        return str(len(seeds_of(what[0])))
    if kind == "outcome":
        return " | ".join(outcome(what[0], *column) for column in OUTCOMES)
    found = values(*what[:2])
    ends = [fmean(found)] if kind == "mean" else [min(found), max(found)]
    return " to ".join(dict.fromkeys(shown(x, what[2]) for x in ends))


def filled(text: str) -> str:
    """A text with the figures of the results."""
    return re.sub(r"\{(span|mean|row|seeds|outcome) ([^{}]+)\}", figure, text)


def unwrapped(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(("page", "text"), QUOTES, ids=[f"{page}: {text[:40]}" for page, text in QUOTES])
def test_a_page_quotes_what_the_results_give(page: str, text: str) -> None:
    expected = unwrapped(filled(text))
    assert "{" not in expected and expected != text
    assert expected in unwrapped((REPOSITORY / page).read_text(encoding="utf-8")), expected


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds of 1.04 and -2.96, at 9.94 and 9.96 nats: one decimal below ten."""
    made = [
        {"metrics": {"reward": reward, "kl": kl, "perplexity": 2.0, "distinct_2": 0.5}, "cost": {"cpu_seconds": 634.0}}
        for reward, kl in ((1.04, 9.94), (-2.96, 9.96))
    ]
    monkeypatch.setitem(globals(), "cases", lambda suite: {"a": made})
    assert filled("{span a|reward|1} at {span a|kl|nats}: {mean a|reward|2}") == "−3.0 to 1.0 at 9.9 to 10: −0.96"
    assert filled("{mean a|cost.cpu_seconds|-1} of {seeds a}") == "630 of 2"
    assert filled("{outcome a}") == "−0.96 ± 2.00 | 10 ± 0 | 2.0 ± 0.0 | 0.50 ± 0.00"
