# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The result of a judgement as text of at most 80 columns."""

import textwrap
from collections.abc import Iterator

from .endpoint import FAULTS
from .judge import JudgeResult
from .scores import NO_SCORE
from .win_rate import Estimate


WIDTH = 80
_COLUMN = 18  # where values begin
_MEANINGS = {**FAULTS, NO_SCORE: "a completion has no score"}


def report(result: JudgeResult) -> str:
    """
    The result as lines of at most 80 columns, a name and its value each.

    Args:
        result ([`~trl_ext.judging.judge.JudgeResult`]): The result.
    """
    lines = []
    for name, value in _entries(result):
        lines += textwrap.wrap(
            f"{name:<{_COLUMN}}{value}", WIDTH, subsequent_indent=" " * _COLUMN, drop_whitespace=True
        )
    return "\n".join(lines)


def _entries(result: JudgeResult) -> Iterator[tuple[str, str]]:
    for side, policy in result.policies.items():
        yield side, f"{policy['policy']} ({policy['file']})"
    yield "judge", result.judge
    yield "win rate of A", _estimate(result.win_rate)
    yield "length-controlled", _estimate(result.length_controlled)
    yield "wins of A", f"{result.wins} of {result.num_judged} pairs, on {result.num_judged_prompts} prompts"
    yield "ties", f"{result.ties}{_kinds_of_ties(result)}"
    yield "losses", str(result.losses)
    if result.lengths:
        yield "mean length", f"A {result.lengths['A']:.0f}, B {result.lengths['B']:.0f} characters"
    if result.first_shown is not None:
        yield "order", f"{result.first_shown:.1%} of decided verdicts are for the completion shown first"
    yield from _faults(result)
    if result.cost:
        cost = {name: f"{value:,}" for name, value in result.cost.items()}
        uncounted = f"; {cost['uncounted']} answers without a count" if result.cost["uncounted"] else ""
        yield (
            "cost",
            f"{cost['requests']} requests in this run ({cost['retries']} retries); all kept verdicts: "
            f"{cost['prompt_tokens']} prompt and {cost['completion_tokens']} completion tokens{uncounted}",
        )
    for note in result.notes:
        yield "note", note


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return "-"
    interval = f"   95 % interval {found.interval[0]:.1%} to {found.interval[1]:.1%}" if found.interval else ""
    return f"{found.value:>6.1%}{interval}"


def _kinds_of_ties(result: JudgeResult) -> str:
    kinds = {"equal texts": result.identical, "opposite verdicts in the two orders": result.inconsistent}
    shown = [f"{count} {name}" for name, count in kinds.items() if count]
    return f" ({', '.join(shown)})" if shown else ""


def _faults(result: JudgeResult) -> Iterator[tuple[str, str]]:
    left_out = result.num_pairs - result.num_judged
    if left_out:
        yield "faults", f"{sum(result.faults.values())} verdicts: {left_out} of {result.num_pairs} pairs are left out"
    for kind, count in result.faults.items():
        meaning = f": {_MEANINGS[kind]}" if kind in _MEANINGS else ""
        shown = result.fault_examples[kind]
        yield f"  {kind}", f"{count}{meaning}{f'. The first one: {shown!r}' if shown else ''}"
