# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Peak memory as the number of rows grows: training on a streamed file or on one large round, sampling, scoring.

    python -m benchmarks.run row_count [--cases TEXT ...] [--most PROMPTS] [--scale SHARE] [--output FOLDER]

Each run is a process of its own. To read a million prompts takes a quarter of an hour of CPU time; `--most` ends the
training earlier. A sampling is killed (SIGKILL) when half of its rows are written, and started again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.process import Failed, run
from benchmarks.harness.results import RESULTS, ResultFile, environment, refuse_dirty
from benchmarks.harness.suite import Suite, chosen, names_help, report_failure
from benchmarks.harness.tables import Column, Table, provenance, unique

from .row_count_job import PER_PROMPT


WHAT = {
    "stream": "RRHF on a streamed file of prompts",
    "round": "RRHF, ten steps on one round of completions",
    "sample": "`trl-ext sample`, a model's completions",
    "score": "`trl-ext sample`, scoring a dataset's completions",
}
FLAT = 1.1  # goal: the peak with many rows is at most so many times that with few


@dataclass(frozen=True)
class Case:
    """
    Something that is done to two numbers of rows.

    Args:
        what (`str`): One of [`WHAT`].
        few (`int`), many (`int`): Numbers of prompts; of completions in a round, and where they are sampled or scored.
    """

    what: str
    few: int
    many: int

    @property
    def name(self) -> str:
        return WHAT[self.what]

    def scaled(self, share: float) -> "Case":
        """The same with a share of the rows, in whole prompts."""
        return Case(self.what, *(PER_PROMPT * max(1, round(n * share / PER_PROMPT)) for n in (self.few, self.many)))


CASES = (
    Case("stream", 10_000, 1_000_000),
    Case("sample", 20_000, 200_000),
    Case("score", 20_000, 200_000),
    Case("round", 20_000, 200_000),
)
KILLED = ("sample", "score")  # half-way, and started again


def measure(case: Case, folder: Path, most: int = 0) -> dict[str, dict[str, Any]]:
    """
    A case with few rows, then with many.

    Args:
        case ([`Case`]): The case.
        folder (`Path`): Where files are written to.
        most (`int`, *optional*, defaults to `0`): Prompts of a stream that are trained on at most. `0`: all.

    Returns:
        `dict`: By `"few"` and `"many"`, what the job found, and `seconds`, `cpu_seconds` and `peak_mib`.
    """
    found = {}
    for name, count in (("few", case.few), ("many", case.many)):
        place = folder / f"{case.what}-{count}"
        place.mkdir(parents=True)
        found[name] = one(case.what, count, place, most)
        print(f"  {count:>9,}: {found[name]}", file=sys.stderr, flush=True)
    return found


def one(what: str, count: int, folder: Path, most: int) -> dict[str, Any]:
    """A run, or two where the first is killed half-way."""
    job = ["-m", "benchmarks.memory.row_count_job", what, str(count), str(folder), "--most", str(most)]
    kept: dict[str, Any] = {}
    if what in KILLED:
        try:
            run([*job, "--kill_after", str(count // PER_PROMPT // 2)], folder / "killed.log", keep=True)
        except Failed as error:
            if "ended with status -9:" not in str(error):
                raise
        else:
            raise RuntimeError(f"{what}, {count}: the run had ended before it was killed.")
        state = json.loads((folder / "sampled.jsonl.state.json").read_text(encoding="utf-8"))
        kept = {"kept_rows": state["rows"]}
    cost = run(job, folder / "log", keep=True).cost
    return cost | json.loads((folder / "found.json").read_text(encoding="utf-8")) | kept


class RowCountSuite(Suite):
    """See the module."""

    name = "row_count"
    what = "Peak memory as the number of rows grows: training on a stream or a large round, sampling and scoring."

    def measures(self) -> set[Any]:
        return {measure, Case}

    def main(self, argv: Sequence[str] | None = None) -> int:
        parser = self.parser()
        parser.add_argument("--cases", nargs="+", default=[""], help=names_help("cases"))
        parser.add_argument("--most", type=int, default=0, help="prompts of a stream to train on at most (0: all)")
        parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a rehearsal")
        options = parser.parse_args(argv)
        some = [case.scaled(options.scale) for case in chosen(CASES, options)]
        if not some:
            parser.error(f"--cases: no case has {' or '.join(options.cases)} in its name.")
        refuse_dirty(options.allow_dirty)
        return int(not self.run(some, options))

    def run(self, some: list[Case], options: argparse.Namespace) -> bool:
        """Measure cases; the result file is written again after each."""
        device = torch.device("cpu")
        settings = {"seeds": [0], "scale": options.scale, "most": options.most}
        result = {"settings": settings, "environment": environment(device, self.measures()), "label": ""}
        file, measured = ResultFile(self.name, device, options.output), []
        for case in some:
            print(case.name, file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    metrics = measure(case, Path(folder), options.most)
                except Exception as error:
                    report_failure(case.name, error)
                    continue
            cost = {size: found["cpu_seconds"] for size, found in metrics.items()}
            measured.append({"name": case.name, "seed": 0, "settings": asdict(case), "metrics": metrics, "cost": cost})
            print("wrote", file.write(result | {"cases": measured}))
        return len(measured) == len(some)

    def pages(self, results: Sequence[dict[str, Any]]) -> dict[Path, str]:
        return {RESULTS / "memory.md": self.report(results)}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """The newest measurement of each case at full size."""
        whole = [result for result in results if result["settings"]["scale"] == 1]
        found = {case["name"]: (result, case) for result in whole for case in result["cases"]}
        rows = [(case, *found.get(case.name, (None, None))) for case in CASES]
        used = unique(result for _, result, _ in rows if result)
        return "\n".join([*_TABLE.lines(rows), *(f"\n{_provenance(result)}" for result in used)])


def ratio(measured: dict[str, Any]) -> float:
    """The peak with many rows, in peaks with few."""
    return float(measured["metrics"]["many"]["peak_mib"] / measured["metrics"]["few"]["peak_mib"])


def bytes_a_row(measured: dict[str, Any]) -> float:
    """How far the peak rises for a row more, in bytes."""
    metrics, settings = measured["metrics"], measured["settings"]
    rise = metrics["many"]["peak_mib"] - metrics["few"]["peak_mib"]
    return float(rise * (1 << 20) / (settings["many"] - settings["few"]))


def _both(measured: dict[str, Any], key: str, form: str) -> str:
    values = [measured["metrics"][size].get(key) for size in ("few", "many")]
    return "-" if None in values else " / ".join(format(value, form) for value in values)


def _kept(case: Case, measured: dict[str, Any]) -> str:
    values = [measured["metrics"][size].get("kept_rows") for size in ("few", "many")]
    if None in values:
        return "-"
    rows = (case.few // PER_PROMPT, case.many // PER_PROMPT)
    return " / ".join(f"{value:,} of {total:,}" for value, total in zip(values, rows, strict=True))


_TABLE = Table(
    "what is done",
    lambda case: f"{case.name}, {case.few:,} and {case.many:,}",
    (
        Column("peak resident, MiB", lambda case, found: _both(found, "peak_mib", ",.0f")),
        Column(
            "many / few",
            lambda case, found: f"**{ratio(found):.2f}**",
            lambda case, _: f"≤ {FLAT:g}",
        ),
        Column("bytes a row more", lambda case, found: f"{bytes_a_row(found):.0f}"),
        Column("prompts read", lambda case, found: _both(found, "rows_read", ",")),
        Column("CPU seconds to the end of the first step", lambda case, found: _both(found, "first_step_cpu", ".1f")),
        Column("rows kept when it was killed", _kept),
        Column("completions in two checkpoints, MiB", lambda case, found: _both(found, "rollouts_mib", ".1f")),
        Column("CPU seconds", lambda case, found: _both(found, "cpu_seconds", ",.0f")),
    ),
)


def _provenance(result: dict[str, Any]) -> str:
    facts = result["environment"]
    how = ", 1 thread; resident size of the process, libraries included"
    return provenance(result, how, on_cpu=facts["hardware"]["cpu"])


SUITE = RowCountSuite()
