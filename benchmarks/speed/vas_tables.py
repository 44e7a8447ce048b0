# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of README.md about `vas_decode` and `vas_train`."""

from collections.abc import Sequence
from typing import Any

from ..harness.measure import table
from ..harness.memory import needed_memory
from ..harness.suite import NOT_MEASURED, Rows, cell, sections
from . import vas_decode, vas_train
from .vas_decode import BY_ONE, OURS, PLAIN, TILED
from .vas_train import REWARD, SEPARATE, SHARED


SIGNS = {PLAIN: "≤", BY_ONE: "≥"}

# ------------------------------------------------------------------------------------------------------------ decoding


def decode_tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each case the newest measurement, targets in brackets."""
    titles = {"cpu": "CPU", "cuda": "GPU"}
    heading = "Tokens a second, all rows together"
    return sections(results, vas_decode.CASES, titles, _decode_ratios, heading, _decode_speeds)


def _decode_ratios(rows: Rows) -> list[str]:
    head = ["decoding", "ours: × the time of unguided", *(f"ours: times faster than {n}" for n in (BY_ONE, TILED))]
    lines = [[*head, "guidance alone", "agreement of values"]]
    for case, _, measured in rows:
        goals = {name: f"{sign} {case.targets[name]:g}" for name, sign in SIGNS.items() if name in case.targets}
        lines.append(
            [
                _decode_label(case),
                cell(measured, f"{OURS} / {PLAIN}", goals.get(PLAIN, "")),
                cell(measured, f"{BY_ONE} / {OURS}", goals.get(BY_ONE, "")),
                cell(measured, f"{TILED} / {OURS}"),
                NOT_MEASURED if measured is None else _guidance_alone(measured),
                NOT_MEASURED if measured is None else f"{measured['agreement']['values']:.0e}",
            ]
        )
    return table(lines)


def _guidance_alone(measured: dict[str, Any]) -> str:
    """How many times faster than candidate by candidate ours is, without the time of the policy."""
    clock = measured["settings"]["clock"]
    seconds = {name: variant["seconds"][clock]["median"] for name, variant in measured["variants"].items()}
    slow, fast = (seconds[name] - seconds[PLAIN] for name in (BY_ONE, OURS))
    return f"{slow / fast:.1f}" if fast > 0 else "-"


def _decode_speeds(rows: Rows) -> list[str]:
    variants = (PLAIN, BY_ONE, TILED, OURS)
    lines = [["decoding", *variants, "value tokens fed: one by one, tiled, ours"]]
    for case, _, measured in rows:
        if measured is not None:
            clock, made = measured["settings"]["clock"], case.batch * case.new
            speeds = [made / measured["variants"][name]["seconds"][clock]["median"] for name in variants]
            fed = [measured["variants"][name]["value_model"] for name in (BY_ONE, TILED, OURS)]
            told = ", ".join(f"{f['tokens']:,} in {f['calls']:,}" for f in fed)
            lines.append([_decode_label(case), *(f"{speed:.0f}" for speed in speeds), told])
    return table(lines)


def _decode_label(case: vas_decode.Case) -> str:
    return f"{case.policy} + {case.value}, {case.dtype}: {case.batch} × (prompt {case.prompt}, {case.new} new)"


# ------------------------------------------------------------------------------------------------------------ training


def train_tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each case the newest measurement, targets in brackets."""
    titles = {"cpu": "CPU, float32", "cuda": "GPU, bfloat16"}
    heading = "Completion tokens a second, and peak memory above the weights"
    return sections(results, vas_train.CASES, titles, _train_ratios, heading, _train_speeds)


def _train_ratios(rows: Rows) -> list[str]:
    """The form that the trainer's default takes is the one that has the target."""
    lines = [["step", "positions", SHARED, SEPARATE, "`auto` takes", f"memory: {SHARED}", "agreement of variants"]]
    for case, _, measured in rows:
        goal = f"≥ {case.targets[REWARD]:g}" if REWARD in case.targets else ""
        separate = measured is not None and measured["auto"] == "separate"
        if measured is None:
            fall = auto = agreement = NOT_MEASURED
        else:
            positions = {name: variant["positions"] for name, variant in measured["variants"].items()}
            fall = f"÷ {positions[REWARD] / positions[SHARED]:.2f}"
            auto = "separate rows" if separate else "shared prompts"
            agreement = f"{max(measured['agreement'].values()):.0e}"
        lines.append(
            [
                _train_label(case),
                fall,
                cell(measured, f"{REWARD} / {SHARED}", "" if separate else goal),
                cell(measured, f"{REWARD} / {SEPARATE}", goal if separate else ""),
                auto,
                cell(measured, f"memory: {REWARD} / {SHARED}"),
                agreement,
            ]
        )
    return table(lines)


def _train_speeds(rows: Rows) -> list[str]:
    lines = [["step", *vas_train.ORDER]]
    for case, _, measured in rows:
        if measured is not None:
            clock, tokens = measured["settings"]["clock"], measured["settings"]["tokens"]
            variants = [measured["variants"][name] for name in vas_train.ORDER]
            speeds = [tokens / variant["seconds"][clock]["median"] for variant in variants]
            space = [needed_memory(variant["memory"]) / 2**20 for variant in variants]
            told = [f"{speed:,.0f}, {size:.0f} MiB" for speed, size in zip(speeds, space, strict=True)]
            lines.append([_train_label(case), *told])
    return table(lines)


def _train_label(case: vas_train.Case) -> str:
    prompt, completion = (
        f"{low}" if low == high else f"{low} to {high}" for low, high in (case.prompt_length, case.completion_length)
    )
    return f"{case.model}: {case.prompts} × (prompt {prompt}, {case.completions} × {completion})"
