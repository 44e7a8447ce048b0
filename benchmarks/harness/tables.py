# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Tables of results in Markdown: columns, sections for each device, and where the figures come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .results import origin


NOT_MEASURED = "not measured"
BY_DTYPE = {"cpu": "CPU, float32", "cuda": "GPU, bfloat16"}  # titles of sections
Rows = Sequence[tuple[Any, Any, Any]]  # a case, the result with its newest measurement, the measurement


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


@dataclass(frozen=True)
class Column:
    """
    A column of a table of cases.

    Args:
        head (`str`): Its title.
        value (`Callable`): `(case, measured) -> str`, the cell of a measured case; `"-"` if it has no such figure.
        goal (`Callable`, *optional*): `(case, measured | None) -> str`, shown in brackets unless empty.
        of_case (`bool`, *optional*, defaults to `False`): Whether `value` describes the case, measured or not.
    """

    head: str
    value: Callable[[Any, dict[str, Any]], str]
    goal: Callable[[Any, dict[str, Any] | None], str] = lambda case, measured: ""
    of_case: bool = False

    def cell(self, case: Any, measured: dict[str, Any] | None) -> str:
        value = NOT_MEASURED if measured is None and not self.of_case else self.value(case, measured or {})
        goal = self.goal(case, measured)
        return f"{value} [{goal}]" if goal and value != "-" else value


def ratio_column(head: str, name: str, sign: str = "", target: str = "") -> Column:
    """
    A column of ratios: the ratio of the medians, and the smallest and largest of a round in parentheses.

    Args:
        head (`str`): Its title.
        name (`str`): Of the ratio in results.
        sign (`str`, *optional*): Of the goal: `"≤"` or `"≥"`.
        target (`str`, *optional*): Key of the goal in the case's targets.
    """

    def value(case: Any, measured: dict[str, Any]) -> str:
        return ratio_cell(measured["ratios"][name]) if name in measured["ratios"] else "-"

    def goal(case: Any, measured: dict[str, Any] | None) -> str:
        return f"{sign} {case.targets[target]:g}" if target and target in case.targets else ""

    return Column(head, value, goal)


def ratio_cell(ratio: dict[str, float]) -> str:
    rounds = f" ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio["min"] != ratio["max"] else ""
    return f"**{ratio['of_medians']:.2f}**{rounds}"


def median_seconds(measured: dict[str, Any], variant: str) -> float:
    """Seconds of a variant by the clock that ratios are of."""
    return float(measured["variants"][variant]["seconds"][measured["settings"]["clock"]]["median"])


def seconds_column(variant: str) -> Column:
    """Seconds of a variant by the clock that ratios are of."""
    return Column(variant, lambda case, measured: f"{median_seconds(measured, variant):.3g} s")


def agreement_column(head: str) -> Column:
    """The largest difference that was found before anything was timed."""
    return Column(head, lambda case, measured: f"{max(measured['agreement'].values()):.0e}")


@dataclass(frozen=True)
class Table:
    """
    A table with a row for each case.

    Args:
        first (`str`): Title of the first column.
        label (`Callable`): `(case) -> str`, its cells.
        columns (`Sequence[Column]`): The others.
        heading (`str`, *optional*): A line above it.
        measured_only (`bool`, *optional*, defaults to `False`): Leave out cases that were not measured, and the table
            if none was. Otherwise a table without a measurement becomes a list of the cases and their goals.
    """

    first: str
    label: Callable[[Any], str]
    columns: Sequence[Column]
    heading: str = ""
    measured_only: bool = False

    def lines(self, rows: Rows) -> list[str]:
        shown = []
        for case, _, measured in rows:
            if measured is not None or not self.measured_only:
                shown.append((case, measured))
        if self.measured_only and not shown:
            return []
        heading = [self.heading, ""] if self.heading else []
        if all(measured is None for _, measured in shown):
            return [*heading, "Not measured yet:", "", *(self._goals(case) for case, _ in shown)]
        cells = [[self.first, *(column.head for column in self.columns)]]
        for case, measured in shown:
            cells.append([self.label(case), *(column.cell(case, measured) for column in self.columns)])
        return [*heading, *table(cells)]

    def _goals(self, case: Any) -> str:
        goals = [f"{column.head} {goal}" for column in self.columns if (goal := column.goal(case, None))]
        return f"- {self.label(case)}" + (f"; goals: {', '.join(goals)}" if goals else "")


def newest(results: Sequence[dict[str, Any]], cases: Sequence[Any], device: str) -> list[tuple[Any, Any, Any]]:
    """The cases of a device, each with the result that holds its newest measurement, and with this: or `None`s."""
    found = {case["name"]: (result, case) for result in results for case in result["cases"]}
    return [(case, *found.get(case.name, (None, None))) for case in cases if case.device == device]


def section(title: str, rows: Rows, tables: Sequence[Table], closing: Sequence[str] = ()) -> str:
    """A heading, tables of the same cases, more lines, and where the figures come from."""
    lines = [f"### {title}"]
    for part in tables:
        if made := part.lines(rows):
            lines += ["", *made]
    return "\n".join([*lines, *closing, *provenances(rows)])


def sections(
    results: Sequence[dict[str, Any]], cases: Sequence[Any], titles: dict[str, str], tables: Sequence[Table]
) -> str:
    """The tables of a suite: a section for each device, with the newest measurement of each case."""
    return "\n\n".join(section(title, newest(results, cases, device), tables) for device, title in titles.items())


def provenance(result: dict[str, Any], how: str, *, on_cpu: str, note: str = "") -> str:
    """
    When, on what and with what a result was measured.

    Args:
        result (`dict`): The result.
        how (`str`): The method of measuring.
        on_cpu (`str`): What names the hardware where it was not a GPU.
        note (`str`, *optional*): Follows the date.
    """
    facts = result["environment"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    hardware = facts["hardware"]["gpu"] or on_cpu
    return f"{result['time'][:10]}{note}: {hardware}{how}; {versions}; {origin(result)}."


def provenances(rows: Rows) -> list[str]:
    """A paragraph for each result that `newest` chose from."""
    return [f"\n{_timed_provenance(result)}" for result in unique(result for _, result, _ in rows if result)]


def unique(results: Any) -> list[dict[str, Any]]:
    """Results without repetitions, in order."""
    return list({id(result): result for result in results}.values())


def _timed_provenance(result: dict[str, Any]) -> str:
    facts, settings = result["environment"], result["settings"]
    batches = f"{settings['batches']} batch{'es' if settings['batches'] > 1 else ''}"
    clock = {"cpu": "CPU time of the process", "wall": "wall time"}[settings["clock"]]
    rounds = f"{settings['rounds']} rounds over {batches}, seed {settings['seed']}"
    how = f", {facts['threads']['torch']} thread(s); {clock}, {rounds}"
    return provenance(result, how, on_cpu=f"{facts['hardware']['cpu']}, {facts['hardware']['vector']}")
