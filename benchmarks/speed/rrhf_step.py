# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds and peak memory of an RRHF training step (forward, loss, backward), one way against another.

    python -m benchmarks.run rrhf_step [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness.memory import needed_memory
from benchmarks.harness.models import SHAPES
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import (
    BY_DTYPE,
    Column,
    Rows,
    Table,
    agreement_column,
    median_seconds,
    newest,
    ratio_column,
    section,
)
from benchmarks.harness.timing import Variant, relative_difference

from .rrhf_workload import CASCADE, CASES, DPO, NAIVE, ORDER, OUR_ROWS, TRL_ROWS, Case, Workload


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare losses and gradients of all variants with those of the first, the naive one unless it is left out, on the
    first batch, before anything is timed.

    Returns:
        `dict`: The largest difference of a loss, and the largest relative difference of all gradients together.

    Raises:
        `RuntimeError`: They differ by more than 1e-4 in float32 (in bfloat16, by more than the rounding of 16 layers
            of random weights, which parts gradients by 0.05 to 0.15 whichever way rows are laid out); or the loss of
            DPO is not log 2, which it is while policy and reference are the same.
    """
    limits = {"loss": 1e-4, "gradient": 1e-4} if work.case.exact else {"loss": 5e-2, "gradient": 0.25}
    found = dict.fromkeys(limits, 0.0)
    first: tuple[str, float, list[torch.Tensor]] | None = None
    for variant in variants:
        variant.prepare()
        loss = variant.step(0)
        if variant.name == DPO:
            if abs(loss - math.log(2)) > limits["loss"]:
                raise RuntimeError(f"{work.case.name}: the loss of DPO is {loss}, not log 2: its reference differs.")
            continue
        gradients = [p.grad for p in work.model.parameters() if p.grad is not None]
        if first is None:
            first = variant.name, loss, [g.clone() for g in gradients]
            continue
        name, its_loss, its_gradients = first
        differences = {"loss": abs(loss - its_loss), "gradient": relative_difference(gradients, its_gradients)}
        if any(differences[key] > limit for key, limit in limits.items()):
            raise RuntimeError(f"{work.case.name}: {variant.name!r} disagrees with {name!r}: {differences}.")
        found = {key: max(value, differences[key]) for key, value in found.items()}
    return found


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file."""
    work = Workload(case, batches, seed)
    variants = work.variants()
    agreement = check_agreement(work, variants)
    return compare(
        case,
        variants,
        rounds=rounds,
        batches=batches,
        facts=lambda name: {"positions": work.positions[name]},
        settings={
            "dtype": str(case.dtype).removeprefix("torch."),
            "weights": "random" if case.qlora else SHAPES[case.model].weights_name,
            "shape": asdict(SHAPES[case.model]),
        },
        agreement=agreement,
        auto=work.chosen_form(),
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much faster and smaller the best form is than the others, seconds and memory."""
    return "\n\n".join(_section(title, newest(results, CASES, device), device) for device, title in BY_DTYPE.items())


def _section(title: str, rows: Rows, device: str) -> str:
    variants = [name for name in ORDER if name != (CASCADE if device == "cpu" else OUR_ROWS)]
    *_, second, best = variants

    def fall(case: Case, measured: dict[str, Any]) -> str:
        return f"÷ {_positions(measured, TRL_ROWS, best):.2f}"

    def faster(case: Case, measured: dict[str, Any] | None) -> str:
        """Where sharing takes a third off the positions it has to be faster."""
        return "≥ 1" if measured and device == "cpu" and _positions(measured, second, best) >= 1.5 else ""

    def reserved(case: Case, measured: dict[str, Any]) -> str:
        return f"{measured['variants'][best]['memory']['reserved'] / 2**30:.2f}"

    def reserved_goal(case: Case, measured: dict[str, Any] | None) -> str:
        return f"≤ {case.targets['reserved']:g}" if "reserved" in case.targets else ""

    of_second = ratio_column(second if device == "cpu" else "dense mask", f"{second} / {best}")
    speed = [
        Column("positions", fall),
        ratio_column(NAIVE, f"{NAIVE} / {best}", "≥", "naive"),
        ratio_column(TRL_ROWS, f"{TRL_ROWS} / {best}", "≥", "rows"),
        replace(of_second, goal=faster),
        ratio_column(DPO, f"{DPO} / {best}"),
    ]
    memory = [
        ratio_column(NAIVE, f"memory: {NAIVE} / {best}"),
        ratio_column(TRL_ROWS, f"memory: {TRL_ROWS} / {best}", "≥", "memory"),
        ratio_column(second, f"memory: {second} / {best}"),
        ratio_column(DPO, f"memory: {DPO} / {best}"),
        agreement_column("agreement of variants"),
    ]
    if device == "cpu":
        speed.append(ratio_column("rows: TRL's head / ours", f"{TRL_ROWS} / {OUR_ROWS}"))
    else:
        memory.append(Column("peak reserved, GiB", reserved, reserved_goal))
    absolute = [Column(name, partial(_absolute, name)) for name in variants]
    found = [
        Table("step", _label, speed, f"“{best}” is so many times faster than"),
        Table("step", _label, memory, f"“{best}” takes so many times less memory than"),
        Table("step", _label, absolute, "Seconds a step, and peak memory above the weights", measured_only=True),
    ]
    measured = [case for _, _, case in rows if case]
    return section(title, rows, found, ["", _summary(measured, variants)] if measured else [])


def _summary(cases: Sequence[dict[str, Any]], variants: Sequence[str]) -> str:
    """The range of each ratio over the cases."""
    *others, best = variants
    ranges = []
    for name in others:
        values = [c["ratios"][f"{name} / {best}"]["of_medians"] for c in cases if f"{name} / {best}" in c["ratios"]]
        if values:
            ranges.append(f"{min(values):.1f} to {max(values):.1f} times faster than “{name}”")
    return f"Over these {len(cases)} steps, “{best}” is {', '.join(ranges)}."


def _absolute(name: str, case: Case, measured: dict[str, Any]) -> str:
    if name not in measured["variants"]:
        return "-"
    mebibytes = needed_memory(measured["variants"][name]["memory"]) / 2**20
    return f"{median_seconds(measured, name):.3g} s, {mebibytes:.0f} MiB"


def _label(case: Case) -> str:
    model = case.model + (", nf4 + LoRA + checkpointing" if case.qlora else "")
    return f"{model}: {case.sizes}" + (", with AdamW" if case.optimizer else "")


def _positions(measured: dict[str, Any], many: str, few: str) -> float:
    """How many times more positions one variant computes than another."""
    return float(measured["variants"][many]["positions"] / measured["variants"][few]["positions"])


SUITE = TimedSuite("rrhf_step", "Seconds and peak memory of an RRHF training step.", CASES, measure, tables)
