# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The figures that claims name: rows of result files, and cells of the tables that were written by hand."""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.results import RESULTS, read_results
from benchmarks.quality.experiment import Experiment
from benchmarks.quality.tables import Seeds, by_name, mean_and_spread
from benchmarks.run import SUITES, suite_of


LABELS = {
    "kl": "KL",
    "kl_bound": "KL of at most",
    "distinct_2": "distinct-2",
    "cpu_seconds": "CPU seconds",
    "samples_best": "best of its training samples",
    "samples_mean": "mean of its training samples",
}
# Columns of seconds, which count for nothing between two processors.
TIMES = ("cost.cpu_seconds", "cost.samples_cpu_seconds", "cost.seconds")
_CELL = re.compile(r"\*{0,2}([-−]?[\d,]*\.?\d+)(?:\s*%)?\*{0,2}(?:\s*(?:±|\+-)\s*([\d,]*\.?\d+))?")


class Missing(LookupError):
    """No result has what a claim names; the message says what."""


@dataclass(frozen=True)
class Figure:
    """
    A measured figure.

    Args:
        name (`str`): Of what was measured.
        value (`float`): The mean over seeds, or what one seed gave.
        spread (`float`): The largest distance of a seed from the mean. Of one seed, twice the standard error over
            prompts; infinite where none is known.
        seeds (`int`): How many; 0 for a number that no run measured.
        shown (`tuple[str, ...]`, *optional*): Other columns of the same row, as text.
        by_prompt (`tuple[float | None, ...]`, *optional*): Of one seed, the mean of each prompt, where it is known:
            two figures on the same prompts are compared prompt by prompt.
        processors (`tuple[str, ...]`, *optional*): Of seconds, what they were measured on.
    """

    name: str
    value: float
    spread: float
    seeds: int
    shown: tuple[str, ...] = ()
    by_prompt: tuple[float | None, ...] = ()
    processors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """
    Where figures come from: the results of a suite that have certain settings, or a page.

    Args:
        what (`str`): One sentence about the setting, in Markdown.
        suite (`str`, *optional*): Its name; empty: the figures are in a page's tables.
        where (`dict`, *optional*): Settings that its results must have, such as `{"task.prompts": 6000}`.
        page (`str`, *optional*), section (`str`, *optional*): A page of `results/`, and a heading of it.
        run (`str`, *optional*): The command that measures its rows.
    """

    what: str
    suite: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    section: str = ""
    run: str = ""


class Sources:
    """
    Results and pages, each read once.

    Args:
        folder (`Path`, *optional*): Of results.
        pages (`Path`, *optional*): Of pages.
    """

    def __init__(self, folder: Path = RESULTS, pages: Path = RESULTS) -> None:
        self.folder, self.pages = folder, pages
        self._tasks: dict[str, list[dict[str, Any]]] = {}

    def results(self, suite: str) -> list[dict[str, Any]]:
        """The results of a suite, those of one task as one."""
        if suite not in self._tasks:
            found = suite_of(suite) if suite in SUITES else None
            if not isinstance(found, Experiment):
                raise ValueError(f"there is no suite {suite!r} of arms and seeds")
            self._tasks[suite] = found.by_task(read_results(suite, self.folder))
        return self._tasks[suite]

    def rows(self, task: Task, names: Sequence[str]) -> dict[str, Seeds]:
        """
        The cases of each name for all seeds, from results of one task.

        Raises:
            [`Missing`]: No task that fits has all of them.
        """
        fitting = [by_name(result) for result in self.results(task.suite) if _fits(result["settings"], task.where)]
        for found in fitting:
            if all(name in found for name in names):
                return found
        lacking = [name for name in names if not any(name in found for found in fitting)] or list(names)
        raise Missing(f"no result of the suite `{task.suite}` has {_listed(lacking)}")

    @functools.cached_property
    def _pages(self) -> dict[str, str]:
        return {path.name: path.read_text(encoding="utf-8") for path in self.pages.glob("*.md")}

    def tables(self, page: str, section: str) -> list[list[list[str]]]:
        """
        The cells of the tables below a heading, up to the next one.

        Raises:
            `ValueError`: There is no such page or heading.
        """
        if page not in self._pages:
            raise ValueError(f"there is no page {page} in {self.pages.name}/")
        parts = re.split(r"^(#+ .*)$", self._pages[page], flags=re.MULTILINE)
        headings = [heading.lstrip("# ") for heading in parts[1::2]]
        if section not in headings:
            raise ValueError(f"{page} has no heading {section!r}")
        text = parts[2 + 2 * headings.index(section)]
        blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
        return [[[cell.strip() for cell in line.strip("|").split("|")] for line in b.splitlines()] for b in blocks]


def _fits(settings: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    for path, wanted in where.items():
        value: Any = settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value != wanted:
            return False
    return True


def _listed(names: Sequence[str]) -> str:
    return " or ".join(f"“{name}”" for name in names)


# --------------------------------------------------------------------------------------------------------- references


@dataclass(frozen=True)
class Reference:
    """
    What a claim compares, as it is written in the file.

    Args:
        row (`str`, *optional*): A name of cases; of a page, the first cells of a line, joined by commas.
        column (`str`, *optional*): `reward`, `cost.cpu_seconds`, `other.reward`, ...; of a page, a title.
        rows (`list[str]`, *optional*): Several, such as the weights of one method, between which `at` interpolates.
        at (`dict`, *optional*): A column and its value, such as `{"kl": 5}`; or the row that has it.
        seeds (`list[int]`, *optional*): Of these only.
        value (`float`, *optional*): A number instead.
        spread (`float`, *optional*): Instead of what the source gives.
        name (`str`, *optional*): What to call it.
    """

    row: str = ""
    column: str = ""
    rows: Sequence[str] = ()
    at: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    value: float | None = None
    spread: float | None = None
    name: str = ""

    @property
    def names(self) -> list[str]:
        """The rows that it needs."""
        asked = [value for value in self.at.values() if isinstance(value, str)]
        return [*filter(None, [self.row]), *self.rows, *asked]


def figure(reference: Reference, task: Task, sources: Sources, names: Sequence[str], show: Sequence[str]) -> Figure:
    """
    The figure of a reference.

    Args:
        reference ([`Reference`]): What is asked for.
        task ([`Task`]): Where.
        sources ([`Sources`]): Results and pages.
        names (`Sequence[str]`): All rows that the comparison needs: they come from one task.
        show (`Sequence[str]`): Columns that are shown beside it.

    Raises:
        [`Missing`]: There is none.
    """
    if reference.value is not None:
        return Figure(reference.name, float(reference.value), reference.spread or 0.0, 0)
    if task.page:
        return _of_page(reference, task, sources)
    rows = sources.rows(task, names)
    if reference.rows:
        return _between(reference, rows)
    seeds = [case for case in rows[reference.row] if not reference.seeds or case["seed"] in reference.seeds]
    if reference.column in TIMES:
        seeds = _on_one_processor(seeds, [rows[name] for name in names])
    found = _measured(reference.row, seeds, reference.column)
    shown = [text for column in show if (text := _shown(seeds, column))]
    return replace(found, name=reference.name or reference.row, shown=tuple(shown))


def _on_one_processor(seeds: Seeds, compared: Sequence[Seeds]) -> Seeds:
    """Those seeds that ran on the processor with the most runs, if one has run all that is compared; else all."""
    runs = [Counter(case.get("processor") for case in row) for row in compared]
    common = set.intersection(*(set(counted) for counted in runs)) - {None}
    if not common:
        return seeds
    most = max(common, key=lambda processor: (sum(counted[processor] for counted in runs), str(processor)))
    return [case for case in seeds if case.get("processor") == most]


def _value(case: Mapping[str, Any], column: str) -> float | None:
    part, _, key = column.rpartition(".")
    found: float | None = case.get(part or "metrics", {}).get(key)
    return found


def _measured(name: str, seeds: Seeds, column: str) -> Figure:
    # A column can be newer than some of the results.
    seeds = [case for case in seeds if _value(case, column) is not None]
    found = mean_and_spread([_value(case, column) for case in seeds])
    if found is None:
        raise Missing(f"no result has the {label(column)} of “{name}”")
    processors = tuple(sorted({case["processor"] for case in seeds})) if column in TIMES else ()
    if len(seeds) > 1:
        return Figure(name, *found, len(seeds), processors=processors)
    error = _value(seeds[0], f"{column}_se")
    alone = math.inf if error is None else 2 * error
    return Figure(name, found[0], alone, 1, by_prompt=_by_prompt(seeds[0], column), processors=processors)


def _by_prompt(case: Mapping[str, Any], column: str) -> tuple[float | None, ...]:
    """The values of each prompt of a column that has them: the rewards, in the order in which they were measured."""
    part, _, key = column.rpartition(".")
    found = case.get(part or "metrics", {}).get("by_prompt") or {}
    if key in found:
        return tuple(found[key])
    rewards = list(found.values())
    place = {"reward": 0, "second": 1}.get(key, len(rewards))
    return tuple(rewards[place]) if place < len(rewards) else ()


def _shown(seeds: Seeds, column: str) -> str:
    try:
        found = _measured("", seeds, column)
    except Missing:
        return ""
    of = f" of {' and '.join(found.processors)}" if found.processors else ""
    return f"{label(column)} {number(found)}{of}"


def label(column: str) -> str:
    """What a page calls a column."""
    key = column.rpartition(".")[2]
    return LABELS.get(key, key.replace("_", " "))


def _between(reference: Reference, rows: Mapping[str, Seeds]) -> Figure:
    """A column at a value of another one, on the lines from row to row; of each seed, or of one with its error."""
    [(axis, place)] = reference.at.items()
    name = reference.name or _listed(reference.rows)
    x = _measured(place, rows[place], axis).value if isinstance(place, str) else float(place)
    common = set.intersection(*({case["seed"] for case in rows[row]} for row in reference.rows))
    values, errors = [], []
    for seed in common:
        points = []
        for row in reference.rows:
            [case] = [case for case in rows[row] if case["seed"] == seed]
            measured = [_measured(row, [case], column) for column in (axis, reference.column)]
            points.append((measured[0].value, measured[1]))
        for (low, a), (high, b) in pairwise(sorted(points, key=lambda point: point[0])):
            if low <= x <= high:
                part = (x - low) / (high - low)
                values.append((1 - part) * a.value + part * b.value)
                errors.append(max(a.spread, b.spread))
                break
    found = mean_and_spread(values)
    if found is None or len(values) < len(common):
        raise Missing(f"{name} does not reach from below to above a {label(axis)} of {x:.3g} for every seed")
    spread = found[1] if len(values) > 1 else errors[0]
    return Figure(f"{name} at a {label(axis)} of {x:.3g}", found[0], spread, len(values))


def _of_page(reference: Reference, task: Task, sources: Sources) -> Figure:
    for head, _, *lines in sources.tables(task.page, task.section):
        if reference.column not in head:
            continue
        place = head.index(reference.column)
        for line in lines:
            if f"{', '.join(line)}, ".startswith(f"{reference.row}, "):
                found = _CELL.match(line[place])
                if found is None:
                    raise Missing(f"“{reference.row}” has no {reference.column} in {task.page}")
                value, error = (float(x.replace("−", "-").replace(",", "")) if x else None for x in found.groups())
                spread = math.inf if error is None else 2 * error  # the tables have standard errors
                spread = spread if reference.spread is None else reference.spread
                assert value is not None
                return Figure(reference.name or reference.row, value, spread, 1)
    raise ValueError(f"{task.page} has no row {reference.row!r} with a {reference.column!r} under {task.section!r}")


def number(figure: Figure) -> str:
    """`value ± spread`, with decimals that suit the value."""
    size = abs(figure.value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2
    spread = f" ± {figure.spread:,.{decimals}f}" if figure.seeds and math.isfinite(figure.spread) else ""
    return f"{figure.value:,.{decimals}f}{spread}".replace("-", "−")
