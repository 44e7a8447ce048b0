# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The four methods beside TRL's DPO, GRPO and SFT, best-of-n and a principle, on a real chat model.

    python -m benchmarks.run chat --model outputs/models/SmolLM2-135M-Instruct --jobs 2

The task: answer everyday requests so that their constraints are met, which code checks. chat_arms.py has the arms.
Each arm and seed is one job of at most half an hour, with the commands that users have; a later call goes on with the
jobs that are not done.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.results import ROOT
from benchmarks.harness.tables import NOT_MEASURED

from . import paired
from .chat_arms import PRESETS, Task, arms
from .chat_bench import ChatBench
from .experiment import Bench, Experiment, arm_of, merged, run_all
from .paired import Interval
from .quality_arms import Arm
from .tables import DECIMALS, HEADS, Seeds, by_name, cost, cost_of_one, grid, metric, outcome, sources


KLS = (2.0, 5.0, 10.0)  # nats at which rewards are compared
ASKED = 1_000  # prompts answered in the comparison of compute
RIVAL = "TRL's GRPO"


class Chat(Experiment):
    """All methods on requests with constraints that code checks."""

    name = "chat"
    what = "The four methods beside TRL's DPO, GRPO and SFT, best-of-n and a principle, on a real chat model."
    task = Task
    jobs = 1

    def flags(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--preset", choices=PRESETS, default="cpu")

    def task_of(self, options: argparse.Namespace) -> Task:
        return PRESETS[options.preset]

    def arms_of(self, task: Task, options: argparse.Namespace) -> list[Arm]:
        return arms(task)

    def work_of(self, options: argparse.Namespace) -> Path:
        return ROOT / "outputs" / "chat" / options.preset

    def bench(self, task: Task, work: Path, overrides: dict[str, Any]) -> Bench:
        return ChatBench(task, work, overrides)

    def settings(self, options: argparse.Namespace, task: Task) -> dict[str, Any]:
        return {"preset": options.preset, "fields": options.fields, "task": asdict(task)}

    def measures(self) -> set[Any]:
        return {ChatBench, run_all, Task, Arm}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """For each preset the outcomes, the comparisons, the costs, and where they come from."""
        sections = []
        for preset in sorted({result["settings"]["preset"] for result in results}):
            found = [result for result in results if result["settings"]["preset"] == preset]
            task = found[-1]["settings"]["task"]
            same = [result for result in found if result["settings"]["task"] == task]
            sections.append(_section(preset, merged(same, arms(Task()))))
        return "\n\n".join(sections) or NOT_MEASURED


# -------------------------------------------------------------------------------------------------------------- tables


def _section(preset: str, result: dict[str, Any]) -> str:
    cases = by_name(result)
    against = {name: cases[name] for name in ("base", RIVAL) if name in cases}
    outcomes: dict[str, Callable[[Seeds], str]] = {
        "constraints met": _mean("metrics", "reward"),
        "more than the base": lambda seeds: _compared(paired.difference, "metrics", "reward", seeds, against["base"]),
        "KL to base": metric("kl", 1),
        "kinds not trained on": _mean("other", "reward"),
        **{
            f"wins against {name}, {what}": _wins(place, key, seeds_of)
            for name, seeds_of in against.items()
            for what, place, key in (("kinds not trained on", "other", "reward"), ("readability", "metrics", "second"))
        },
    }
    text: dict[str, Callable[[Seeds], str]] = {
        HEADS[key]: metric(key, DECIMALS[key]) for key in HEADS if key != "reward"
    }
    text |= {"readability": metric("second", 1), "perplexity of human texts": metric("text_perplexity", 2)}
    equal = {f"at {kl:g} nats": _at_kl(cases, kl) for kl in KLS}
    costs: dict[str, Callable[[Seeds], str]] = {
        "trained parameters": cost_of_one("trainable_parameters"),
        "CPU seconds of training": cost("cpu_seconds"),
        "of samples": cost("samples_cpu_seconds"),
        "peak memory, MiB": cost("peak_mib"),
        "tokens read in training": cost_of_one("tokens_read"),
        "10^15 operations: training": lambda seeds: outcome([_operations(case)[0] for case in seeds], 2),
        f"answering {ASKED:,} prompts": lambda seeds: outcome([_operations(case)[1] for case in seeds], 2),
        "time per token of a completion, × base": metric("time_of_base", 2),
    }
    lines = [f"### Preset `{preset}`", "", *grid("", cases, outcomes), ""]
    if "base" in cases:
        least = paired.detectable(_values(cases["base"], "metrics", "reward"))
        prompts = len(_values(cases["base"], "metrics", "reward")[0])
        lines += [
            "Brackets are 95 % intervals by the bootstrap over prompts and seeds. By the spread of the base over its "
            f"{prompts} prompts, a difference of {least:.3f} in constraints met is found with a power of 80 %.",
            "",
        ]
    lines += [
        "The texts",
        "",
        *grid("", cases, text),
        "",
        "Constraints met at equal KL",
        "",
        *grid("", cases, equal),
        "",
    ]
    lines += ["What it cost", "", *grid("", cases, costs), "", sources(result, name_arms=True)]
    for kind, title in (("failures", "Failed or not done"), ("skipped", "Skipped")):
        if missing := [f"{entry['arm']} (seed {entry['seed']})" for entry in result[kind]]:
            lines.append(f"\n{title}: {', '.join(missing)}.")
    return "\n".join(lines)


def _values(seeds: Seeds, place: str, key: str) -> list[list[float | None]]:
    """The rewards of each prompt for each seed; `key` is `reward` or `second`. Empty where they were not measured."""
    found = [list((case[place].get("by_prompt") or {}).values()) for case in seeds]
    index = 0 if key == "reward" else 1
    return [values[index] for values in found if len(values) > index]


def _mean(place: str, key: str) -> Callable[[Seeds], str]:
    def cell(seeds: Seeds) -> str:
        values = _values(seeds, place, key)
        return paired.mean(values).text(3) if values else "-"

    return cell


def _compared(compare: Callable[..., Interval], place: str, key: str, seeds: Seeds, others: Seeds) -> str:
    """A comparison with another arm on the seeds that both have."""
    pairs = [(a, b) for a in seeds for b in others if a["seed"] == b["seed"] and a["name"] != b["name"]]
    first, second = (_values([pair[i] for pair in pairs], place, key) for i in (0, 1))
    return compare(first, second).text(2 if compare is paired.win_rate else 3) if first and second else "-"


def _wins(place: str, key: str, others: Seeds) -> Callable[[Seeds], str]:
    return lambda seeds: _compared(paired.win_rate, place, key, seeds, others)


def _at_kl(cases: dict[str, Seeds], kl: float) -> Callable[[Seeds], str]:
    """
    The reward where a series crosses a KL: by straight lines from the base through the points of the series.

    A series is concave, so this errs downwards for one with a single point.
    """

    def cell(seeds: Seeds) -> str:
        return outcome([_crossing(cases, case, kl) for case in seeds], 3)

    return cell


def _crossing(cases: dict[str, Seeds], case: dict[str, Any], kl: float) -> float | None:
    arm = arm_of(case["name"], [entry.name for entry in arms(Task())])
    points = [(0.0, c["metrics"]["reward"]) for c in cases.get("base", []) if c["seed"] == case["seed"]]
    for name, seeds in cases.items():
        if name == arm or name.startswith(f"{arm}, "):
            points += [(c["metrics"]["kl"], c["metrics"]["reward"]) for c in seeds
                       if c["seed"] == case["seed"] and c["metrics"].get("kl") is not None]  # fmt: skip
    points.sort()
    for (x, low), (z, high) in pairwise(points):
        if x <= kl <= z:
            return low + (high - low) * (kl - x) / (z - x) if z > x else high
    return None


def _operations(case: dict[str, Any]) -> tuple[float | None, float | None]:
    """
    10^15 operations of the arm's training, its samples included, and of answering 1,000 prompts.

    2 operations for each parameter and token forward, 4 more backward through a model of which an adapter is trained.
    """
    cost, metrics = case["cost"], case["metrics"]
    size = cost.get("model_parameters")
    if not size:
        return None, None
    answering = 2 * size * case["forwards"] * metrics["completion_length"] * ASKED / 1e15
    if not cost.get("completions"):
        return 0.0, answering
    sampled = 2 * size * cost["completions"] * metrics["completion_length"] * cost.get("sampling_forwards", 1)
    trained = 6 * size * (cost["tokens_read"] or 0) if cost["backward"] else 0
    return (sampled + trained) / 1e15, answering


SUITE = Chat()
