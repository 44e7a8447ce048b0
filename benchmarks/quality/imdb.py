# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The four methods on the IMDB task, RRHF with each of its ranking losses: several settings and seeds at a time on one
GPU, in minutes.

    python -m benchmarks.quality.imdb_prompts  # once: the prompts, of the public dataset
    python -m benchmarks.run imdb --method psle --jobs 14 [--tune] [--time_limit 120]

The task is that of recipes/rrhf/README.md, its models are in benchmarks/models. `--tune` tries the settings of
`imdb_arms.tuned` with the first seed; without it the arms of `imdb_arms.chosen` are trained and measured with all
seeds.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.models import MODELS_7M
from benchmarks.harness.results import README, RESULTS, ROOT
from benchmarks.harness.tables import NOT_MEASURED, table
from benchmarks.harness.text import DATA

from .experiment import NOT_BEGUN, Bench, Experiment, arm_of, merged, run_all
from .imdb_arms import METHODS, Arm, Task, chosen, tuned
from .tables import DECIMALS, HEADS, Seeds, by_name, cost, cost_of_one, grid, metric, outcome, sources


TITLES = {"proxy_rlhf": "Proxy-RLHF", "psle": "PSLE", "rrhf": "RRHF", "vas": "VAS"}
# What makes results those of one task: how much goes through the model at once does not.
SAME_TASK = ("model", "reward", "prompts", "evaluated", "max_completion_length", "top_k")


class Imdb(Experiment):
    """Arms of one method on the IMDB task."""

    name = "imdb"
    what = "Proxy-RLHF, PSLE, RRHF and VAS on the IMDB task: settings, ablations and seeds, on one GPU."
    task = Task
    jobs = 8

    def flags(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--method", choices=METHODS, required=True)
        models = "folder of imdb-7m and imdb-7m-reward (default: benchmarks/models)"
        parser.add_argument("--models", type=Path, default=MODELS_7M, help=models)
        data = "folder of imdb_prompts_{train,eval}.jsonl (default: data, where imdb_prompts writes them)"
        parser.add_argument("--data", type=Path, default=DATA, help=data)
        parser.add_argument("--tune", action="store_true", help="try settings, with the first of the seeds")

    def task_of(self, options: argparse.Namespace) -> Task:
        return Task.of(options.models.resolve(), options.data.resolve())

    def arms_of(self, task: Task, options: argparse.Namespace) -> list[Arm]:
        return arms_of(options.method, options.tune)

    def work_of(self, options: argparse.Namespace) -> Path:
        return ROOT / "outputs" / "imdb" / options.method / ("tuned" if options.tune else "chosen")

    def seeds_of(self, options: argparse.Namespace) -> list[int]:
        return list(options.seeds[:1] if options.tune else options.seeds)

    def bench(self, task: Task, work: Path, overrides: dict[str, Any]) -> Bench:
        # What each worker would otherwise import by itself, which takes it seconds.
        import peft  # noqa: F401
        from trl import GRPOTrainer  # noqa: F401

        import trl_ext.methods.proxy_rlhf.trainer
        import trl_ext.methods.psle.trainer
        import trl_ext.methods.rrhf.trainer
        import trl_ext.methods.vas.trainer  # noqa: F401

        from .imdb_train import ImdbBench

        return ImdbBench(task, work, overrides)

    def settings(self, options: argparse.Namespace, task: Task) -> dict[str, Any]:
        names = {key: Path(value).name if isinstance(value, str) else value for key, value in asdict(task).items()}
        same = {name: getattr(options, name) for name in ("method", "tune", "jobs", "fields")}
        return same | {"task": names}

    def measures(self) -> set[Any]:
        from .imdb_train import ImdbBench

        return {ImdbBench, run_all, Task, Arm}

    def by_task(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [found for method in METHODS for tune in (False, True) for found in by_task(results, method, tune)]

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """Which method was measured when and on what."""
        rows = [["method", "settings tried", "measured"]]
        for method in METHODS:
            found = ["; ".join(map(_when, by_task(results, method, tune))) or NOT_MEASURED for tune in (True, False)]
            rows.append([f"[{TITLES[method]}](results/{method}.md)", *found])
        return "\n".join(table(rows))

    def pages(self, results: Sequence[dict[str, Any]]) -> dict[Path, str]:
        of_methods = {RESULTS / f"{method}.md": tables(results, method) for method in METHODS}
        return {README: self.report(results), **of_methods}


def arms_of(method: str, tune: bool) -> list[Arm]:
    """The settings tried with one seed, or the arms of the method's tables."""
    return tuned(method) if tune else chosen(method)


# -------------------------------------------------------------------------------------------------------------- tables


def by_task(results: Sequence[dict[str, Any]], method: str, tune: bool) -> list[dict[str, Any]]:
    """
    The results of a method, of its arms or of the settings that were tried: one for each task, larger ones first.

    What has no arm that a larger task of the same models lacks is left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if (result["settings"]["method"], result["settings"]["tune"]) == (method, tune):
            key = json.dumps([_of_task(result, SAME_TASK), result["settings"].get("fields", {})])
            groups.setdefault(key, []).append(result)
    arms = arms_of(method, tune)
    found = [merged(group, arms) for group in groups.values()]
    if tune:  # that a setting to try was not begun is no news
        for result in found:
            result["failures"] = [entry for entry in result["failures"] if entry["error"] != NOT_BEGUN]
    found.sort(key=lambda result: -_sizes(result)[0])
    names = [arm.name for arm in arms]
    done = [{arm_of(case["name"], names) for case in result["cases"]} for result in found]

    def is_held(i: int) -> bool:
        return any(done[i] <= done[j] and _is_smaller(found[i], found[j]) for j in range(i))

    return [result for i, result in enumerate(found) if not is_held(i)]


def _of_task(result: dict[str, Any], names: Sequence[str]) -> list[Any]:
    task = result["settings"].get("task", {})
    return [task.get(name) for name in names]


def _sizes(result: dict[str, Any]) -> list[int]:
    return [size or 0 for size in _of_task(result, ("prompts", "evaluated"))]


def _is_smaller(result: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the tasks differ only in numbers of prompts: the other has more to train on and no fewer to measure."""
    names = [name for name in SAME_TASK if name not in ("prompts", "evaluated")]
    alike = [(_of_task(each, names), each["settings"].get("fields", {})) for each in (result, other)]
    (prompts, evaluated), (more, no_less) = _sizes(result), _sizes(other)
    return alike[0] == alike[1] and prompts < more and evaluated <= no_less


def _when(result: dict[str, Any]) -> str:
    failed = len(result["failures"])
    places = sorted({source["environment"]["hardware"]["gpu"] or "CPU" for source in result["from"]})
    day = max(source["time"] for source in result["from"])[:10]
    return f"{day}, {_model(result)}, {' and '.join(places)}, {len(by_name(result))} rows" + (
        f", {failed} runs not done" if failed else ""
    )


def _model(result: dict[str, Any]) -> str:
    return str(result["settings"].get("task", {}).get("model", "imdb-7m"))


def tables(results: Sequence[dict[str, Any]], method: str) -> str:
    """A method's outcomes over seeds, then the settings that were tried with one seed."""
    parts = []
    for tune, title in ((False, ""), (True, "Settings tried, one seed")):
        for result in by_task(results, method, tune):
            fields = ", ".join(f"{name}: {value}" for name, value in result["settings"].get("fields", {}).items())
            heading = ", ".join(filter(None, [title, _model(result), fields and f"all with {fields}"]))
            parts.append("\n".join([f"{heading}:", "", *_section(result)]))
    return "\n\n".join(parts) or NOT_MEASURED


def _section(result: dict[str, Any]) -> list[str]:
    cases = by_name(result)
    values = {name: seeds for name, seeds in cases.items() if "r2" in seeds[0]["metrics"]}
    lines = [*_values(values), ""] if values else []
    lines += [*_outcomes({name: seeds for name, seeds in cases.items() if name not in values}), "", sources(result)]
    failed: dict[str, list[str]] = {}  # by what ended them
    for failure in result["failures"]:
        reason = failure["error"].strip().splitlines()[-1]
        failed.setdefault(reason, []).append(f"{failure['arm']} ({failure['seed']})")
    for reason, runs in failed.items():
        lines += ["", f"Not done (seed): {', '.join(runs)}: “{reason}”."]
    return lines


def _values(cases: dict[str, Seeds]) -> list[str]:
    columns = {
        "R² half-way": metric("r2", 3),
        "correlation": metric("correlation", 3),
        "trained parameters": cost_of_one("trainable_parameters"),
        "samples of the dataset": cost_of_one("samples"),
        "seconds of training": cost("seconds"),
    }
    return grid("value model", cases, columns)


def _outcomes(cases: dict[str, Seeds]) -> list[str]:
    bases = {case["seed"]: case["metrics"]["perplexity"] for case in cases.get("base", [])}

    def perplexity_ratio(seeds: Seeds) -> str:
        pairs = [(case["metrics"]["perplexity"], bases.get(case["seed"])) for case in seeds]
        return outcome([value / of if value and of else None for value, of in pairs], 2)

    def other_reward(seeds: Seeds) -> str:
        return outcome([case.get("other", {}).get("reward") for case in seeds], 2)

    def share(seeds: Seeds) -> str:
        found = seeds[0]["cost"].get("trainable_share")
        return "-" if found is None else f"{found:.1%}"

    decimals = DECIMALS | {"distinct_2": 3}
    columns: dict[str, Callable[[Seeds], str]] = {HEADS[key]: metric(key, decimals[key]) for key in HEADS}
    if any("judge" in case["metrics"] for seeds in cases.values() for case in seeds):
        columns["judge"] = metric("judge", 2)
    columns["perplexity, × base"] = perplexity_ratio
    if any(seeds[0].get("other") for seeds in cases.values()):
        columns["reward, other prompts"] = other_reward
    columns |= {"trained share": share, "seconds of training": cost("seconds")}
    return grid("", cases, columns)


SUITE = Imdb()
