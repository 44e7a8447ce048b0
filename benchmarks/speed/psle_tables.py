# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of README.md about `psle_step`."""

from collections.abc import Sequence
from typing import Any

from ..harness.measure import table
from ..harness.suite import NOT_MEASURED, Rows, cell, sections
from . import psle_step
from .psle_step import GRPO, PHASES, SEPARATE, SHARED


def step_tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each case the newest measurement, targets in brackets."""
    titles = {"cpu": "CPU, float32", "cuda": "GPU, bfloat16"}
    heading = f"Milliseconds a prompt: {GRPO}, {SHARED}"
    return sections(results, psle_step.CASES, titles, _ratios, heading, _seconds)


def _ratios(rows: Rows) -> list[str]:
    shown = [(phase, name) for phase, names in PHASES.items() for name in reversed(names) if name != GRPO]
    head = [f"{phase}: × the time of GRPO" if name == SHARED else f"{phase}, separate rows" for phase, name in shown]
    lines = [["batch", *head, "all three", "agreement"]]
    for case, _, measured in rows:
        goals = {(phase, SHARED): f"≤ {value:g}" for phase, value in case.targets.items()}
        cells = [cell(measured, f"{phase}: {name} / {GRPO}", goals.get((phase, name), "")) for phase, name in shown]
        if measured is None:
            whole = agreement = NOT_MEASURED
        else:
            ours, theirs = (sum(_of(measured, f"{phase}: {name}") for phase in PHASES) for name in (SHARED, GRPO))
            whole, agreement = f"{ours / theirs:.2f}", f"{max(measured['agreement'].values()):.0e}"
        lines.append([_label(case), *cells, whole, agreement])
    return table(lines)


def _seconds(rows: Rows) -> list[str]:
    lines = [["batch", *PHASES, f"update: {SEPARATE}"]]
    for case, _, measured in rows:
        if measured is not None:
            names = [(f"{phase}: {GRPO}", f"{phase}: {SHARED}") for phase in PHASES]
            shown = [*names, (f"update: {SEPARATE}",)]
            told = [", ".join(f"{_of(measured, n) / case.prompts * 1e3:.3g}" for n in some) for some in shown]
            lines.append([_label(case), *told])
    return table(lines)


def _of(measured: dict[str, Any], name: str) -> float:
    clock = measured["settings"]["clock"]
    return float(measured["variants"][name]["seconds"][clock]["median"])


def _label(case: psle_step.Case) -> str:
    return f"{case.model}: {case.prompts} × (prompt {case.prompt}, {case.answers} × {case.new})"
