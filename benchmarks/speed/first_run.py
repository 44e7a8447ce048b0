# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Whether it runs at all: the tests that need a GPU, and a few steps of each quickstart and its evaluation, shortened.

    python -m benchmarks.run first_run [--devices cuda] [--cases TEXT ...] [--output FOLDER]

All of it runs at once, each in a process and an empty folder of its own: what takes how long is not the question here.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.process import Failed, run
from benchmarks.harness.results import ROOT, ResultFile, environment
from benchmarks.harness.suite import FAILED, Suite, add_case_flags, chosen, not_measured, present_devices
from benchmarks.harness.tables import NOT_MEASURED, Column, Table, provenance, unique
from trl_ext.cli.recipes import quickstart_methods


TESTS = "tests that need a GPU"
RECIPES = "recipes/quickstart"
SHORT = {"--max_completion_length": "16"}
FEW = "few.jsonl"  # the first prompts
TRAINING = SHORT | {"--max_steps": "4", "--dataset_name": FEW}
EVALUATION = SHORT | {"--max_num_prompts": "8"}


@dataclass(frozen=True)
class Case:
    """
    Commands.

    Args:
        name (`str`): What they show.
        commands (`tuple[tuple[str, ...], ...]`): What Python runs, one after another. Words that begin with `ROOT/`
            are paths in the clone.
        rows (`int`, *optional*, defaults to `32`): Prompts in the file `FEW` of the folder where they run.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    rows: int = 32

    def tiny(self) -> "Case":
        """The same with one step on a few rows, for a rehearsal on a CPU."""
        smaller = {"4": "1", "8": "2", "16": "4"}
        commands = (tuple(smaller.get(word, word) for word in words) for words in self.commands)
        return replace(self, commands=tuple(commands), rows=8)


def cases() -> list[Case]:
    """The tests, and each quickstart: its training and its evaluation, shortened."""
    found = [Case(TESTS, (("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *gpu_tests()),))]
    for method in quickstart_methods():
        train = ("-m", "trl_ext.cli", method, "--config", f"ROOT/{RECIPES}/{method}.yaml", *_words(TRAINING))
        recipe = f"ROOT/{RECIPES}/{method}_evaluate.yaml"
        evaluate = ("-m", "trl_ext.cli", "evaluate", "--config", recipe, *_words(EVALUATION))
        found.append(Case(f"quickstart {method}", (train, evaluate)))
    return found


def _words(flags: dict[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]


def gpu_tests() -> list[str]:
    """Files of tests that need a GPU; pytest would import all to find them."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [file for file in files if "@pytest.mark.gpu" in file.read_text(encoding="utf-8")]
    return [f"ROOT/{file.relative_to(ROOT).as_posix()}" for file in marked]


def measure(case: Case) -> dict[str, Any]:
    """Run commands: a case of a result file, with the end of the log of the first that failed."""
    started, error, text = time.perf_counter(), "", ""
    with tempfile.TemporaryDirectory() as name:
        log, folder = Path(name) / "log", Path(name) / "folder"
        folder.mkdir()
        prompts = (ROOT / RECIPES / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / FEW).write_text("".join(prompts[: case.rows]), encoding="utf-8")
        for words in case.commands:
            paths = [str(ROOT / word.removeprefix("ROOT/")) if word.startswith("ROOT/") else word for word in words]
            try:
                run(paths, log, keep=True, folder=folder)
            except Failed as failure:
                error = str(failure)
                break
            finally:
                text = log.read_text(encoding="utf-8")
    summary = text[-300:] if case.name == TESTS else ""
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped)", summary)}
    metrics = {"runs": not error, "seconds": round(time.perf_counter() - started, 1), **counts}
    return {"name": case.name, "seed": 0, "settings": asdict(case), "metrics": metrics, "cost": {}, "error": error}


def measured(some: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """All cases at once, each as soon as it is done."""
    with ThreadPoolExecutor(max(1, len(some))) as pool:
        for future in as_completed([pool.submit(measure, case) for case in some]):
            yield future.result()


class FirstRun(Suite):
    """Commands that run or do not."""

    name = "first_run"
    what = "Whether it runs at all: the tests that need a GPU, and a few steps of each quickstart."

    def measures(self) -> set[Any]:
        return {measure, Case}

    def main(self, argv: Sequence[str] | None = None) -> int:
        parser = self.parser()
        add_case_flags(parser, ("cpu", "cuda"), default=("cuda",))
        options = parser.parse_args(argv)
        done = True
        for device in present_devices(options):
            some = [case.tiny() if options.rehearse else case for case in chosen(cases(), options)]
            done &= self.run(not_measured(self.name, some, options), device, options)
        return int(not done)

    def run(self, some: list[Case], device: torch.device, options: argparse.Namespace) -> bool:
        """Run commands; the result file is written again after each. A command that fails is a result too."""
        result = {"settings": {"seeds": [0]}, "environment": environment(device, self.measures())}
        file, found = ResultFile(self.name, device, options.output), []
        for case in measured(some):
            found.append(case)
            file.write(result | {"label": options.label, "cases": found})
            print(f"{case['name']}: {case['metrics']}", file=sys.stderr, flush=True)
            if case["error"]:
                print(f"{case['error']}\n{FAILED}{case['name']}: it fails", file=sys.stderr, flush=True)
        return all(case["metrics"]["runs"] for case in found)

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """The newest run of each command on a GPU."""
        on_gpu = [result for result in results if result["environment"]["hardware"]["gpu"]]
        newest = {case["name"]: (result, case) for result in on_gpu for case in result["cases"]}
        if not newest:
            return f"On a GPU: {NOT_MEASURED} yet."
        rows = [(case, *newest.get(case.name, (None, None))) for case in cases()]
        columns = [
            Column("on a GPU", lambda case, found: "runs" if found["metrics"]["runs"] else "**fails**"),
            Column("tests", lambda case, found: _counts(found["metrics"])),
            Column("s", lambda case, found: f"{found['metrics']['seconds']:.0f}"),
        ]
        lines = Table("what", lambda case: case.name, columns).lines(rows)
        used = unique(result for _, result, _ in rows if result)
        return "\n".join([*lines, *(f"\n{provenance(result, '', on_cpu='')}" for result in used)])


def _counts(metrics: dict[str, Any]) -> str:
    found = [f"{metrics[name]} {name}" for name in ("passed", "failed", "skipped") if name in metrics]
    return ", ".join(found) or "-"


SUITE = FirstRun()
