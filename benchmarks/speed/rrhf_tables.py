# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of README.md about `rrhf_step`."""

from collections.abc import Sequence
from typing import Any

from ..harness.measure import origin, table
from ..harness.memory import needed_memory
from ..harness.suite import NOT_MEASURED, or_goals
from .rrhf_cases import CASCADE, CASES, DENSE, DPO, NAIVE, ORDER, OUR_ROWS, TRL_ROWS, Case


def report(results: Sequence[dict[str, Any]]) -> str:
    """The tables of README.md: of each case the newest measurement, targets in brackets."""
    newest = {case["name"]: (result, case) for result in results for case in result["cases"]}
    sections = []
    for device, title in (("cpu", "CPU, float32"), ("cuda", "GPU, bfloat16")):
        cases = [(case, newest.get(case.name, (None, None))[1]) for case in CASES if case.device == device]
        variants = [name for name in ORDER if name != (CASCADE if device == "cpu" else OUR_ROWS)]
        best = variants[-1]
        text = [
            f"### {title}",
            "",
            f"“{best}” is so many times faster than",
            "",
            *or_goals(_speed_table(cases, device)),
        ]
        text += ["", f"“{best}” takes so many times less memory than", "", *or_goals(_memory_table(cases, device))]
        if any(measured for _, measured in cases):
            text += ["", "Seconds a step, and peak memory above the weights", "", *_absolute_table(cases, variants)]
            text += ["", _summary([measured for _, measured in cases if measured], variants)]
        used = {id(newest[c.name][0]): newest[c.name][0] for c, measured in cases if measured}
        text += [f"\n{_provenance(result)}" for result in used.values()]
        sections.append("\n".join(text))
    return "\n\n".join(sections)


def _summary(cases: Sequence[dict[str, Any]], variants: Sequence[str]) -> str:
    """The range of each ratio over the cases."""
    *others, best = variants
    ranges = []
    for name in others:
        values = [c["ratios"][f"{name} / {best}"]["of_medians"] for c in cases if f"{name} / {best}" in c["ratios"]]
        if values:
            ranges.append(f"{min(values):.1f} to {max(values):.1f} times faster than “{name}”")
    return f"Over these {len(cases)} steps, “{best}” is {', '.join(ranges)}."


def _speed_table(cases: Sequence[tuple[Case, Any]], device: str) -> list[str]:
    best, head = (DENSE, "rows: TRL's head / ours") if device == "cpu" else (CASCADE, "dense mask")
    rows = [["step", "positions", NAIVE, TRL_ROWS, OUR_ROWS if device == "cpu" else "dense mask", DPO]]
    if device == "cpu":
        rows[0].append(head)
    for case, measured in cases:
        third = measured is not None and _fall(measured, OUR_ROWS, DENSE) >= 1.5 if device == "cpu" else False
        row = [
            _label(case),
            NOT_MEASURED if measured is None else f"÷ {_fall(measured, TRL_ROWS, best):.2f}",
            _cell(measured, f"{NAIVE} / {best}", case.targets.get("naive")),
            _cell(measured, f"{TRL_ROWS} / {best}", case.targets.get("rows")),
            _cell(measured, f"{OUR_ROWS if device == 'cpu' else DENSE} / {best}", 1.0 if third else None),
            _cell(measured, f"{DPO} / {best}"),
        ]
        if device == "cpu":
            row.append(_cell(measured, f"{TRL_ROWS} / {OUR_ROWS}"))
        rows.append(row)
    return table(rows)


def _memory_table(cases: Sequence[tuple[Case, Any]], device: str) -> list[str]:
    best = DENSE if device == "cpu" else CASCADE
    rows = [["step", NAIVE, TRL_ROWS, OUR_ROWS if device == "cpu" else DENSE, DPO, "agreement of variants"]]
    if device == "cuda":
        rows[0].append("peak reserved, GiB")
    for case, measured in cases:
        row = [
            _label(case),
            _cell(measured, f"memory: {NAIVE} / {best}"),
            _cell(measured, f"memory: {TRL_ROWS} / {best}", case.targets.get("memory")),
            _cell(measured, f"memory: {OUR_ROWS if device == 'cpu' else DENSE} / {best}"),
            _cell(measured, f"memory: {DPO} / {best}"),
            NOT_MEASURED if measured is None else f"{max(measured['agreement'].values()):.0e}",
        ]
        if device == "cuda":
            reserved = measured and measured["variants"][best]["memory"]["reserved"] / 2**30
            goal = f" [≤ {case.targets['reserved']:g}]" if "reserved" in case.targets else ""
            row.append((f"{reserved:.2f}" if measured else NOT_MEASURED) + goal)
        rows.append(row)
    return table(rows)


def _absolute_table(cases: Sequence[tuple[Case, Any]], variants: Sequence[str]) -> list[str]:
    rows = [["step", *variants]]
    for case, measured in cases:
        if measured is not None:
            clock = measured["settings"]["clock"]
            rows.append([_label(case), *(_absolute(measured["variants"].get(name), clock) for name in variants)])
    return table(rows)


def _absolute(variant: dict[str, Any] | None, clock: str) -> str:
    if variant is None:
        return "-"
    seconds, mebibytes = variant["seconds"][clock]["median"], needed_memory(variant["memory"]) / 2**20
    return f"{seconds:.3g} s, {mebibytes:.0f} MiB"


def _label(case: Case) -> str:
    model = case.model + (", nf4 + LoRA + checkpointing" if case.qlora else "")
    lengths = (
        f"{low}" if low == high else f"{low} to {high}" for low, high in (case.prompt_length, case.completion_length)
    )
    prompt, completion = lengths
    optimizer = ", with AdamW" if case.optimizer else ""
    return f"{model}: {case.prompts} × (prompt {prompt}, {case.completions} × {completion}){optimizer}"


def _fall(measured: dict[str, Any], many: str, few: str) -> float:
    return measured["variants"][many]["positions"] / measured["variants"][few]["positions"]


def _cell(measured: dict[str, Any] | None, name: str, target: float | None = None) -> str:
    """A ratio, the smallest and largest of a round in parentheses, the target in brackets."""
    goal = f" [≥ {target:g}]" if target else ""
    if measured is None:
        return NOT_MEASURED + goal
    value = measured["ratios"].get(name)
    if value is None:
        return "-"
    spread_of_rounds = f" ({value['min']:.2f} to {value['max']:.2f})" if value["min"] != value["max"] else ""
    return f"**{value['of_medians']:.2f}**{spread_of_rounds}{goal}"


def _provenance(result: dict[str, Any]) -> str:
    facts, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}, {facts['hardware']['vector']}"
    clock = {"cpu": "CPU time of the process", "wall": "wall time"}[settings["clock"]]
    return (
        f"{result['time'][:10]}: {hardware}, {facts['threads']['torch']} thread(s); {clock}, {settings['rounds']} "
        f"rounds over {settings['batches']} batches, seed {settings['seed']}; {versions}; "
        f"{origin(result)}."
    )
