# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The command line of a suite, and the pieces that its tables are made of."""

import argparse
import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .measure import RESULTS, clock_of, environment, origin, refuse_dirty, write_result


NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Suite:
    """
    What is measured, and how.

    Args:
        name (`str`): Of the module, in results and for `python -m benchmarks.run`.
        what (`str`): One line for `--help`.
        cases (`Sequence`): Settings of what is measured; each has a `name`, and a `device` (`"cpu"` or `"cuda"`).
        measure (`Callable`): `(case, rounds=, batches=, seed=) -> dict`, a case of a result file.
    """

    name: str
    what: str
    cases: Sequence[Any]
    measure: Callable[..., dict[str, Any]]

    def measures(self) -> set[Any]:
        """What measures; a result keeps fingerprints of all that it runs through, and the settings of its cases."""
        return {self.measure, *map(type, self.cases)}

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Measure and write one result file a device."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.what)
        parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
        parser.add_argument("--cases", nargs="+", default=[""], help="parts of names of cases to run (default: all)")
        parser.add_argument("--rounds", type=int, default=5, help="timed runs of each variant")
        parser.add_argument("--batches", type=int, default=2, help="different batches, each also a run of warm-up")
        parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
        parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
        parser.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
        options = parser.parse_args(argv)
        failed = False
        for device in map(torch.device, options.devices):
            if device.type == "cuda" and not torch.cuda.is_available():
                print("no GPU: the cases for one were not run")
                continue
            refuse_dirty(options.allow_dirty)
            chosen = [c for c in self.cases if any(part in c.name for part in options.cases)]
            failed |= not self.run([c for c in chosen if c.device == device.type], device, options)
        return int(failed)

    def run(self, cases: Sequence[Any], device: torch.device, options: argparse.Namespace) -> bool:
        """Measure cases of one device and write their result file; one that fails does not cost the others."""
        facts = environment(device, self.measures())
        measured = []
        for case in cases:
            print(case.name, file=sys.stderr, flush=True)
            try:
                measured.append(self.measure(case, rounds=options.rounds, batches=options.batches, seed=options.seed))
            except Exception:
                traceback.print_exc()
                continue
            finally:
                gc.collect()  # a model and the trainer around it hold one another
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            for name, value in measured[-1]["ratios"].items():
                print(f"  {value['of_medians']:6.2f}  {name}", file=sys.stderr, flush=True)
        settings = {name: getattr(options, name) for name in ("seed", "rounds", "batches")}
        if measured:
            result = {"settings": settings | {"clock": clock_of(device)}, "environment": facts, "cases": measured}
            print("wrote", write_result(self.name, device, result, options.output))
        return len(measured) == len(cases)


# ------------------------------------------------------------------------------------------------------------ tables


def newest(results: Sequence[dict[str, Any]], cases: Sequence[Any], device: str) -> list[tuple[Any, Any, Any]]:
    """The cases of a device, each with the result that holds its newest measurement, and with this: or `None`s."""
    found = {case["name"]: (result, case) for result in results for case in result["cases"]}
    return [(case, *found.get(case.name, (None, None))) for case in cases if case.device == device]


Rows = Sequence[tuple[Any, Any, Any]]  # of `newest`


def sections(
    results: Sequence[dict[str, Any]],
    cases: Sequence[Any],
    titles: dict[str, str],
    ratios: Callable[[Rows], list[str]],
    heading: str,
    more: Callable[[Rows], list[str]],
) -> str:
    """
    The tables of a suite: a section a device, of each case the newest measurement.

    Args:
        results, cases: As for [`newest`].
        titles (`dict[str, str]`): By device, in order.
        ratios (`Callable`): Lines of the first table.
        heading (`str`), more (`Callable`): A second table, left out where nothing has been measured.
    """
    made = []
    for device, title in titles.items():
        rows = newest(results, cases, device)
        text = [f"### {title}", "", *or_goals(ratios(rows))]
        if any(measured for _, _, measured in rows):
            text += ["", heading, "", *more(rows)]
        made.append("\n".join([*text, *provenances(rows)]))
    return "\n\n".join(made)


def or_goals(lines: Sequence[str]) -> list[str]:
    """The lines of a table, or where nothing in it was measured, those of a list of its cases and their goals."""
    head, _, *rows = ([part.strip() for part in line.strip("| ").split(" | ")] for line in lines)
    if not all(value.startswith(NOT_MEASURED) or value in ("-", "default") for row in rows for value in row[1:]):
        return list(lines)
    made = [f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]} yet:", ""]
    for name, *values in rows:
        asked = [
            (of, value.removeprefix(NOT_MEASURED).strip(" []")) for of, value in zip(head[1:], values, strict=True)
        ]
        goals = [f"{of} {goal}" for of, goal in asked if goal not in ("", "-")]
        made.append(f"- {name}" + (f"; goals: {', '.join(goals)}" if goals else ""))
    return made


def cell(measured: dict[str, Any] | None, name: str, goal: str = "") -> str:
    """A ratio, the smallest and largest of a round in parentheses, the goal in brackets."""
    goal = f" [{goal}]" if goal else ""
    if measured is None:
        return NOT_MEASURED + goal
    value = measured["ratios"].get(name)
    if value is None:
        return "-"
    rounds = f" ({value['min']:.2f} to {value['max']:.2f})" if value["min"] != value["max"] else ""
    return f"**{value['of_medians']:.2f}**{rounds}{goal}"


def provenance(result: dict[str, Any]) -> str:
    """When, on what and with what a result was measured."""
    facts, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}, {facts['hardware']['vector']}"
    batches = f"{settings['batches']} batch{'es' if settings['batches'] > 1 else ''}"
    clock = {"cpu": "CPU time of the process", "wall": "wall time"}[settings["clock"]]
    return (
        f"{result['time'][:10]}: {hardware}, {facts['threads']['torch']} thread(s); {clock}, {settings['rounds']} "
        f"rounds over {batches}, seed {settings['seed']}; {versions}; {origin(result)}."
    )


def provenances(rows: Sequence[tuple[Any, Any, Any]]) -> list[str]:
    """A paragraph for each result that `newest` chose from."""
    used = {id(result): result for _, result, _ in rows if result is not None}
    return [f"\n{provenance(result)}" for result in used.values()]
