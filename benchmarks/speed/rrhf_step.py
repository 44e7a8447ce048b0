# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds and peak memory of an RRHF training step (forward, loss, backward), one way against another.

    python -m benchmarks.run rrhf_step [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]
"""

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..harness.measure import ROOT, Variant, alternate, clock_of, pair_ratios, ratio, spreads
from ..harness.memory import needed_memory, peak_memory
from ..harness.models import SHAPES
from ..harness.suite import Suite
from .rrhf_cases import CASES, DPO, NAIVE, ORDER, Case
from .rrhf_tables import report
from .rrhf_workload import Workload


__all__ = ["main", "report"]


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare losses and gradients of all variants with the naive ones on the first batch, before anything is timed.

    Returns:
        `dict`: The largest difference of a loss, and the largest relative difference of all gradients together.

    Raises:
        `RuntimeError`: They differ by more than 1e-4 in float32 (in bfloat16, by more than the rounding of 16 layers
            of random weights, which parts gradients by 0.05 to 0.15 whichever way rows are laid out); or the loss of
            DPO is not log 2, which it is while policy and reference are the same.
    """
    limits = {"loss": 1e-4, "gradient": 1e-4} if work.case.exact else {"loss": 5e-2, "gradient": 0.25}
    found = dict.fromkeys(limits, 0.0)
    first: tuple[float, list[torch.Tensor]] | None = None
    for variant in variants:
        variant.prepare()
        loss = variant.step(0)
        if variant.name == DPO:
            if abs(loss - math.log(2)) > limits["loss"]:
                raise RuntimeError(f"{work.case.name}: the loss of DPO is {loss}, not log 2: its reference differs.")
            continue
        gradients = [p.grad for p in work.model.parameters() if p.grad is not None]
        if first is None:
            first = loss, [g.clone() for g in gradients]
            continue
        apart = math.sqrt(sum(_squares(a - b) for a, b in zip(first[1], gradients, strict=True)))
        differences = {
            "loss": abs(loss - first[0]),
            "gradient": apart / math.sqrt(sum(_squares(g) for g in first[1])),
        }
        if any(differences[key] > limit for key, limit in limits.items()):
            raise RuntimeError(f"{work.case.name}: {variant.name!r} disagrees with {NAIVE!r}: {differences}.")
        found = {key: max(value, differences[key]) for key, value in found.items()}
    return found


def _squares(values: torch.Tensor) -> float:
    return values.float().pow(2).sum().item()


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; ratios first, each of a variant to a later one of [`ORDER`]."""
    work = Workload(case, batches, seed)
    variants = work.variants()
    agreement = check_agreement(work, variants)
    seconds = alternate(variants, rounds=rounds, batches=batches, device=work.device)
    memory = {variant.name: peak_memory(variant, 0, work.device) for variant in variants}
    needed = {name: needed_memory(value) for name, value in memory.items()}
    clock = clock_of(work.device)
    order = [name for name in ORDER if name in seconds]
    timing = pair_ratios(seconds, order, clock)
    space = {f"memory: {a} / {b}": ratio([needed[a]], [needed[b]]) for a, b in itertools.combinations(order, 2)}
    weights = None if case.qlora else SHAPES[case.model].weights
    return {
        "ratios": timing | space,
        "name": case.name,
        "settings": {
            **asdict(case),
            "clock": clock,
            "dtype": str(case.dtype).removeprefix("torch."),
            "weights": weights.relative_to(ROOT).as_posix() if weights else "random",
            "shape": asdict(SHAPES[case.model]),
        },
        "variants": {
            name: {
                "seconds": spreads(clocks),
                "memory": memory[name],
                "positions": work.positions[name],
            }
            for name, clocks in seconds.items()
        },
        "agreement": agreement,
        "auto": work.chosen_form(),
    }


SUITE = Suite(
    name="rrhf_step",
    what="Seconds and peak memory of an RRHF training step.",
    cases=CASES,
    measure=measure,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write one result file a device."""
    return SUITE.main(argv)


if __name__ == "__main__":
    sys.exit(main())
