# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Real preference data: how trained models order held-out completions, and what RRHF and PSLE reach against a reward
model, by the judgement of another one.

    python -m benchmarks.run preferences --model outputs/models/SmolLM2-135M-Instruct --data data --seeds 0

preferences_data.py has the datasets, preferences_arms.py the arms. Each arm and seed is one job of at most half an
hour on one CPU core; a later call goes on with the jobs that are not done.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.tables import NOT_MEASURED, table

from . import paired
from .experiment import Bench, Experiment, require_files, run_all
from .preferences_arms import AGAINST, BASE, BEAMS, DATASET, DPO_ANSWERS, ROWS, SCORES, Task, arm_name, arms
from .preferences_bench import PreferencesBench
from .preferences_data import DATASETS
from .preferences_train import KINDS
from .quality_arms import Arm
from .tables import Seeds, by_name, cost, cost_of_one, grid, metric, missing, sources


REWARD_KEY, JUDGE_KEY = "reward-model", "judge"  # the reward models' names in reports
ANSWERS = "answers of the base"
COUNTS = {
    "given": "rows of the file",
    "usable": "of them used",
    "train": "to train on",
    "other": "for the judge",
    "held_out": "held out",
    "tokens": "tokens at most",
}


class Preferences(Experiment):
    """Pair accuracy, and training against a reward model, on real preference data."""

    name = "preferences"
    what = "Pair accuracy of RRHF, DPO and a reward model on real preference data; RRHF and PSLE against that model."
    task = Task
    jobs = 1
    places = ("data", "model")

    def arms_of(self, task: Task, options: argparse.Namespace) -> list[Arm]:
        return arms(task)

    def bench(self, task: Task, work: Path, overrides: dict[str, Any]) -> Bench:
        # Commands run in the root of the clone, wherever the suite was called.
        return PreferencesBench(replace(task, data=str(Path(task.data).resolve())), work, overrides)

    def require(self, task: Task) -> None:
        """
        Stop before each arm fails for the same reason.

        Raises:
            `SystemExit`: A dataset's file or the model is missing; the message has the flag and where the data is
                from.
        """
        for dataset in DATASETS.values():
            if not (Path(task.data) / dataset.file).is_file():
                raise SystemExit(
                    f"--data: there is no file {dataset.file} in {task.data}. It has rows of {dataset.source}. "
                    "benchmarks/results/preferences.md describes the three files."
                )
        require_files(replace(task, data=""))

    def measures(self) -> set[Any]:
        return {PreferencesBench, run_all, Task, Arm, *KINDS.values()}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """For each dataset the rows, how completions are ordered, and what training against the reward model gave."""
        if not results:
            return NOT_MEASURED
        found = self.newest(results, arms(Task()))
        cases = by_name(found)
        lines = ["### Rows", "", *_rows(cases), ""]
        for name in DATASETS:
            own = {case: seeds for case, seeds in cases.items() if case.startswith(f"{name}: ")}
            lines += _section(name, own)
        lines.append(sources(found, name_arms=True))
        return "\n".join([*lines, *missing(found)])


# -------------------------------------------------------------------------------------------------------------- tables


def _rows(cases: dict[str, Seeds]) -> list[str]:
    """How many rows of each dataset were used, and for what."""
    lines = [["", *COUNTS.values(), "completions of a held-out row"]]
    for name in DATASETS:
        if seeds := cases.get(arm_name(name, ROWS)):
            counts = seeds[0]["metrics"]
            shown = [f"{counts[key]:,}" for key in COUNTS]
            lines.append([name, *shown, f"{counts['completions']:.1f}"])
    return table(lines) if len(lines) > 1 else [NOT_MEASURED]


def _section(name: str, cases: dict[str, Seeds]) -> list[str]:
    """The tables of a dataset; none if nothing of it was measured."""
    ordering = {what: cases[arm_name(name, what)] for what in SCORES if arm_name(name, what) in cases}
    answers = {
        case.removeprefix(f"{name}: "): seeds
        for case, seeds in cases.items()
        if case.endswith((ANSWERS, AGAINST, DPO_ANSWERS, DATASET, BEAMS)) and seeds[0]["metrics"].get("by_prompt")
    }
    lines: list[str] = []
    if ordering:
        lines += [f"### {name}: pair accuracy", "", *grid("", ordering, _accuracy_columns(ordering)), ""]
    if answers:
        lines += [f"### {name}: {AGAINST}", "", *grid("", answers, _answer_columns(answers)), ""]
        judge = cases.get(arm_name(name, JUDGE_KEY), [])
        if any("harm_accuracy" in case["metrics"] for case in judge):
            right = metric("harm_accuracy", 2)(judge)
            lines += [f"Harmful is what the judge says; of the held-out completions it is right about {right}.", ""]
    return lines


def _accuracy_columns(cases: dict[str, Seeds]) -> dict[str, Callable[[Seeds], str]]:
    base = cases.get(BASE, [])
    return {
        "pair accuracy": _mean("accuracy"),
        "more than the base": _compared(paired.difference, "accuracy", base, 3),
        "rows better, worse (p)": _signs(base),
        "trained parameters": cost_of_one("trainable_parameters"),
        "CPU seconds of training": cost("cpu_seconds"),
        "peak memory, MiB": cost("peak_mib"),
    }


def _answer_columns(cases: dict[str, Seeds]) -> dict[str, Callable[[Seeds], str]]:
    base = cases.get(ANSWERS, [])
    of_harm = any("harmful" in case["metrics"] for seeds in cases.values() for case in seeds)
    return {
        "the reward model's score": _mean(REWARD_KEY),
        "the judge's score": _mean(JUDGE_KEY),
        "wins against the base, by the judge": _compared(paired.win_rate, JUDGE_KEY, base, 2),
        "by the reward model": _compared(paired.win_rate, REWARD_KEY, base, 2),
        **({"harmful": metric("harmful", 2)} if of_harm else {}),
        "KL to base": metric("kl", 1),
        "tokens": metric("completion_length", 1),
        "ended": metric("ended", 2),
        "distinct-2": metric("distinct_2", 2),
        "CPU seconds of training": cost("cpu_seconds"),
        "peak memory, MiB": cost("peak_mib"),
    }


def _values(seeds: Seeds, key: str) -> list[list[float | None]]:
    """The values of each row or prompt, for each seed that has them."""
    found = [case["metrics"].get("by_prompt", {}).get(key) for case in seeds]
    return [values for values in found if values is not None]


def _mean(key: str) -> Callable[[Seeds], str]:
    def cell(seeds: Seeds) -> str:
        values = _values(seeds, key)
        return paired.mean(values).text(3) if values else "-"

    return cell


def _pairs(key: str, seeds: Seeds, base: Seeds) -> list[list[list[float | None]]]:
    """The values of an arm and of the base, for the seeds that both have; empty for the base itself."""
    pairs = [(a, b) for a in seeds for b in base if a["seed"] == b["seed"] and a["name"] != b["name"]]
    return [_values([pair[i] for pair in pairs], key) for i in (0, 1)]


def _compared(compare: Callable[..., paired.Interval], key: str, base: Seeds, decimals: int) -> Callable[[Seeds], str]:
    def cell(seeds: Seeds) -> str:
        first, second = _pairs(key, seeds, base)
        return compare(first, second).text(decimals) if first and second else "-"

    return cell


def _signs(base: Seeds) -> Callable[[Seeds], str]:
    """On how many rows of the first seed an arm orders more pairs rightly than the base, and on how many fewer."""

    def cell(seeds: Seeds) -> str:
        first, second = _pairs("accuracy", seeds, base)
        if not first or not second:
            return "-"
        more, less, p = paired.better_and_worse(first[:1], second[:1])
        return f"{more}, {less} ({p:.3f})"

    return cell


SUITE = Preferences()
