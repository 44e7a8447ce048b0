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
from typing import Any
from unittest.mock import patch

import torch

import trl_ext.logprobs.lm_head
import trl_ext.logprobs.shared_prefix
from benchmarks.harness.tables import Column
from trl_ext.logprobs.shared_prefix import Layout
from trl_ext.memory.shape_only import ShapeOnlyMode
from trl_ext.memory.tally import Tally, occupied

from .card_memory import GIB, Card, CardSuite, Case, cases, goal


# Logits at a time: some 100 MiB with what is made of them. TRL's head, on a GPU, has tiles of 66 to 256 MiB.
_CHUNKS = ("CHUNK_ELEMENTS", 1 << 23)


def countable() -> list[Case]:
    """Cases but for those with a card's memory, and those that move tensors to the host, which is the same here."""
    return [case for case in cases() if not case.card and not case.switches.get("offload_decisions")]


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
    with ShapeOnlyMode(), rows, head:
        card = Card(policy, value, torch.device("cpu"))
        for case in chosen:
            started = time.perf_counter()
            sizes = count(card, case)
            gib = {name: round(size / GIB, 2) for name, size in sizes.items()}
            print(f"{case.name}: {gib} GiB, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            yield {"name": case.name, "seed": 0, "settings": asdict(case), "metrics": sizes, "cost": {}}


class CountSuite(CardSuite):
    """The cases of `card_memory`, counted without a card."""

    name = "card_count"
    what = "What the tensors of card_memory's cases occupy, counted on a CPU."
    devices = ("cpu",)
    columns = (
        Column(
            "tensors at the peak, GiB",
            lambda case, found: f"**{found['metrics']['peak'] / GIB:.2f}**",
            lambda case, _: goal(case) and f"{goal(case)} reserved",
        ),
        Column("before the step", lambda case, found: f"{found['metrics']['static'] / GIB:.2f}"),
    )

    def cases(self) -> list[Case]:
        return countable()

    def counted(self, options: argparse.Namespace, device: torch.device, some: list[Case]) -> Iterator[dict[str, Any]]:
        return counted(options.policy, options.value, some)

    def measures(self) -> set[Any]:
        return {counted, Card, Case}

    def shown(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(results)


SUITE = CountSuite()
