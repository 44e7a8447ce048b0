# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The table of the goals that need a GPU, with what was measured, and the state of each part of the newest day."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.results import RESULTS, read_results
from benchmarks.harness.suite import Suite
from benchmarks.harness.tables import NOT_MEASURED, provenance, ratio_cell, table
from benchmarks.memory import card_memory
from benchmarks.speed import graph_decode, proxy_update, psle_step, rrhf_step, sampling
from benchmarks.speed.rrhf_workload import CASCADE, TRL_ROWS

from .day import NAME, Day, Worker, main
from .parts import SUITES


@dataclass(frozen=True)
class Goal:
    """
    A figure that a suite is to reach on a GPU.

    Args:
        what (`str`): What it is of.
        suite (`str`), case (`str`): Where it is in results.
        figure (`str`): Name of a ratio; or of a metric in bytes, shown in GiB.
        sign (`str`): `"≤"` or `"≥"`.
        value (`float`): The goal.
    """

    what: str
    suite: str
    case: str
    figure: str
    sign: str
    value: float

    def cells(self, measured: dict[str, Any] | None) -> list[str]:
        """The goal, what was measured, and whether it is met."""
        wanted = f"{self.sign} {self.value:g}"
        if measured is None or self.figure not in measured.get("ratios", measured.get("metrics", {})):
            return [self.what, wanted, NOT_MEASURED, ""]
        if "ratios" in measured:
            ratio = measured["ratios"][self.figure]
            found, shown = ratio["of_medians"], ratio_cell(ratio)
        else:
            found = measured["metrics"][self.figure] / card_memory.GIB
            shown = f"**{found:.2f}**"
        met = found <= self.value if self.sign == "≤" else found >= self.value
        return [self.what, wanted, shown, "yes" if met else "no"]


def goals() -> Iterator[Goal]:
    """The goals of the parts, in their order, from the targets of the suites' cases."""
    for name, gib in card_memory.TARGETS.items():
        yield Goal(f"{name}, 8B in 4 bits: GiB reserved", "card_memory", name, "reserved", "≤", gib)
    for rrhf in _on_gpu(rrhf_step.CASES, "rows"):
        model = rrhf.model + (" in 4 bits" if rrhf.qlora else "")
        what = f"RRHF's step, {model}, {rrhf.sizes}: times faster than TRL's fused rows"
        yield Goal(what, "rrhf_step", rrhf.name, f"{TRL_ROWS} / {CASCADE}", "≥", rrhf.targets["rows"])
    for decoding in _on_gpu(graph_decode.CASES):
        for name, most in decoding.targets.items():
            what = f"{name}, batch {decoding.batch}: × the time of unguided"
            yield Goal(what, "graph_decode", decoding.name, f"{name} / {graph_decode.PLAIN}", "≤", most)
    for sampled in _on_gpu(sampling.CASES):
        what = f"Sampling, {sampled.label}: times faster than `generate`"
        ratio = f"{sampling.GENERATE} / {sampling.OURS}"
        yield Goal(what, "sampling", sampled.name, ratio, "≥", sampled.targets[sampling.GENERATE])
    for psle in _on_gpu(psle_step.CASES):
        for phase, most in psle.targets.items():
            what = f"PSLE's {phase}, {psle.prompts} prompts × {psle.answers}: × the time of TRL's GRPO"
            ratio = f"{phase}: {psle_step.SHARED} / {psle_step.GRPO}"
            yield Goal(what, "psle_step", psle.name, ratio, "≤", most)
    for update in _on_gpu(proxy_update.CASES):
        ratio, least = f"{proxy_update.GRADIENT} / {proxy_update.PPO}", update.targets[proxy_update.GRADIENT]
        what = "Proxy-RLHF's update: times cheaper than an epoch of policy gradient"
        yield Goal(what, "proxy_update", update.name, ratio, "≥", least)


def _on_gpu(cases: Sequence[Any], target: str = "") -> list[Any]:
    return [case for case in cases if case.device == "cuda" and (not target or target in case.targets)]


class GPUDay(Suite):
    """The parts of a day, and the goals of their suites."""

    name = NAME
    what = "All that needs a GPU, most important first, in ten minutes."

    def main(self, argv: Sequence[str] | None = None) -> int:
        return main(argv)

    def measures(self) -> set[Any]:
        return {Day, Worker}

    def pages(self, results: Sequence[dict[str, Any]]) -> dict[Path, str]:
        return {RESULTS / f"{NAME}.md": self.report(results)}

    def report(self, results: Sequence[dict[str, Any]], folder: Path = RESULTS) -> str:
        """The goals with what was measured on a GPU, and the parts of the newest day of each kind."""
        sections = [goals_table(folder)]
        for kind in SUITES:
            days = [result for result in results if result["settings"]["kind"] == {"suite": kind, "rehearsal": False}]
            sections.append(parts_table(kind, days[-1] if days else None))
        return "\n\n".join(sections)


def goals_table(folder: Path) -> str:
    """Every goal, with the newest measurement on a GPU."""
    rows, cases = [["goal", "", "measured", "met"]], {}
    for goal in goals():
        if goal.suite not in cases:
            found = [result for result in read_results(goal.suite, folder) if result["environment"]["hardware"]["gpu"]]
            cases[goal.suite] = {case["name"]: case for result in found for case in result["cases"]}
        rows.append(goal.cells(cases[goal.suite].get(goal.case)))
    return "\n".join(table(rows))


def parts_table(kind: str, day: dict[str, Any] | None) -> str:
    """The parts of a day in their order, with their states and why one is not done."""
    cases = {case["name"]: case["metrics"] for case in day["cases"]} if day else {}
    rows = [["part", "what it answers", "state", "s"]]
    for part in SUITES[kind]:
        metrics = cases.get(part.name)
        state, seconds = NOT_MEASURED, ""
        if metrics is not None:
            reason = metrics["reason"].replace("|", "/")
            state, seconds = metrics["state"] + (f": {reason}" if reason else ""), f"{metrics['seconds']:.0f}"
        rows.append([f"`{part.name}`", part.question, state, seconds])
    lines = [f"`--suite {kind}`", "", *table(rows)]
    return "\n".join([*lines, "", provenance(day, "", on_cpu="no GPU")] if day else lines)


SUITE = GPUDay()
