# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the suites `quality` and `chat` share: presets of a task, and arms that are done by commands."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.harness.results import ROOT

from .experiment import Bench, Experiment, merged, run_all
from .quality_arms import Arm
from .quality_bench import QualityBench


class Comparison(Experiment):
    """
    A suite that compares arms on a task.

    Attributes:
        presets (`dict[str, Any]`): The task for each kind of machine, by the name that `--preset` takes.
        arms (`Callable`): The arms of a task, each after those that it needs.
        bench_class (`type`): What does the arms.
    """

    presets: ClassVar[dict[str, Any]]
    arms: Callable[[Any], list[Arm]]
    bench_class: type[QualityBench]

    def flags(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--preset", choices=self.presets, default="cpu")

    def task_of(self, options: argparse.Namespace) -> Any:
        return self.presets[options.preset]

    def arms_of(self, task: Any, options: argparse.Namespace) -> list[Arm]:
        return self.arms(task)

    def work_of(self, options: argparse.Namespace) -> Path:
        return ROOT / "outputs" / self.name / options.preset

    def bench(self, task: Any, work: Path, overrides: dict[str, Any]) -> Bench:
        return self.bench_class(task, work, overrides)

    def settings(self, options: argparse.Namespace, task: Any) -> dict[str, Any]:
        return {"preset": options.preset, "fields": options.fields, "task": asdict(task)}

    def measures(self) -> set[Any]:
        return {self.bench_class, run_all, self.task, Arm}

    def by_preset(self, results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The results of each preset as one, without those of another task than the newest."""
        found = {}
        for preset in sorted({result["settings"]["preset"] for result in results}):
            of_preset = [result for result in results if result["settings"]["preset"] == preset]
            work = _work(of_preset[-1])
            of_task = [result for result in of_preset if _work(result) == work]
            found[preset] = merged(of_task, self.arms(self.presets[preset]))
        return found


def _work(result: dict[str, Any]) -> tuple[Any, Any]:
    """What results have to have in common."""
    return result["settings"].get("task"), result["settings"].get("fields", {})
