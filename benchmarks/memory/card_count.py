# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the tensors of `card_memory`'s cases occupy, counted without a card.

    python -m benchmarks.run card_count [--cases TEXT ...] [--output FOLDER]

The same steps run on the CPU, in bfloat16, at full size, in the forms of a GPU and without their arithmetic.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import trl_ext.logprobs.lm_head
import trl_ext.logprobs.shared_prefix
from trl_ext.logprobs.shared_prefix import Layout

from ..harness.measure import RESULTS, environment, refuse_dirty, write_result
from ..harness.models import SHAPES
from ..harness.suite import NOT_MEASURED
from .card_memory import GIB, TARGETS, Card, Case, cases, with_provenance
from .shape_only import Hollow
from .tally import Tally, occupied


# Logits at a time: some 100 MiB with what is made of them. TRL's head, on a GPU, has tiles of 66 to 256 MiB.
_CHUNKS = ("CHUNK_ELEMENTS", 1 << 23)


def countable() -> list[Case]:
    """Cases but for what moves tensors to the host, which is the same memory here."""
    return [case for case in cases() if not case.switches.get("offload_decisions")]


def gpu_layout(model: Any) -> Layout:
    """The form of shared rows on a GPU, whatever computes it."""
    return Layout("cascade", "as on a GPU")


def count(card: Card, case: Case) -> dict[str, int]:
    """Bytes before the second of two steps, and at its peak; the first makes the optimizer's states."""
    step = getattr(card, case.kind)(case.batch, **case.switches)
    step()
    before = occupied()
    with Tally() as tally:
        step()
    return {"static": before, "peak": before + tally.peak}


def counted(policy: str, value: str, chosen: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Cases with their counts, as soon as each is done."""
    rows, head = (
        patch.object(trl_ext.logprobs.shared_prefix, "supported_layout", gpu_layout),
        patch.object(trl_ext.logprobs.lm_head, *_CHUNKS),
    )
    with Hollow(), rows, head:
        card = Card(policy, value, torch.device("cpu"))
        for case in chosen:
            started = time.perf_counter()
            sizes = count(card, case)
            gib = {name: round(size / GIB, 2) for name, size in sizes.items()}
            print(f"{case.name}: {gib} GiB, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            yield {"name": case.name, "seed": 0, "settings": asdict(case), "metrics": sizes, "cost": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """Count and write a result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run card_count", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names of cases to run (default: all)")
    parser.add_argument("--policy", default="llama-8b", choices=SHAPES)
    parser.add_argument("--value", default="llama-1b", choices=SHAPES)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
    options = parser.parse_args(argv)
    chosen = [case for case in countable() if any(part in case.name for part in options.cases)]
    if not chosen:
        parser.error(f"--cases: no case has {' or '.join(options.cases)} in its name.")
    refuse_dirty(options.allow_dirty)
    facts = environment(torch.device("cpu"), measures())
    settings = {"seeds": [0], "policy": options.policy, "value": options.value}
    found = list(counted(options.policy, options.value, chosen))
    result = {"settings": settings, "environment": facts, "cases": found}
    print("wrote", write_result("card_count", torch.device("cpu"), result, options.output))
    return 0


def measures() -> set[Any]:
    """What measures; a result keeps fingerprints of all that it runs through."""
    return {counted, Card, Case}


def report(results: Sequence[dict[str, Any]]) -> str:
    """The table of README.md: of each case the newest count."""
    newest = {case["name"]: (case, result) for result in results for case in result["cases"]}
    lines = [["method", "what", "setting", "tensors at the peak, GiB", "before the step"]]
    for case in sorted(countable(), key=lambda c: c.method):
        shown = [NOT_MEASURED, "-"]
        if case.name in newest:
            found = newest[case.name][0]["metrics"]
            shown = [f"**{found['peak'] / GIB:.2f}**", f"{found['static'] / GIB:.2f}"]
        if case.name in TARGETS:
            shown[0] += f" [≤ {TARGETS[case.name]:g} reserved]"
        lines.append([case.method, case.what, case.setting, *shown])
    return with_provenance(lines, newest)


if __name__ == "__main__":
    sys.exit(main())
