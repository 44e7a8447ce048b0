# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of README.md about `proxy_decode` and `proxy_update`."""

from collections.abc import Sequence
from typing import Any

from ..harness.measure import table
from ..harness.suite import NOT_MEASURED, Rows, cell, sections
from . import proxy_decode, proxy_update
from .proxy_decode import CANDIDATES, OURS, PLAIN, SEQUENTIAL
from .proxy_update import GRADIENT, PPO


# ------------------------------------------------------------------------------------------------------------ decoding


def decode_tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each case the newest measurement, targets in brackets."""
    titles = {"cpu": "CPU", "cuda": "GPU"}
    heading = "Tokens a second, all rows together"
    return sections(results, proxy_decode.CASES, titles, _decode_ratios, heading, _decode_speeds)


def _decode_ratios(rows: Rows) -> list[str]:
    slow = [f"{name}: × the time of plain" for name in (*OURS.values(), SEQUENTIAL)]
    lines = [["decoding", *slow, f"{OURS[20]}: times faster than candidate by candidate", "tokens that differ"]]
    for case, _, measured in rows:
        goals = {name: f"≤ {value:g}" for name, value in case.targets.items()}
        lines.append(
            [
                _decode_label(case),
                *(cell(measured, f"{name} / {PLAIN}", goals.get(name, "")) for name in (*OURS.values(), SEQUENTIAL)),
                cell(measured, f"{SEQUENTIAL} / {OURS[20]}"),
                NOT_MEASURED if measured is None else f"{measured['agreement']['tokens']:.0%}",
            ]
        )
    return table(lines)


def _decode_speeds(rows: Rows) -> list[str]:
    variants = (PLAIN, SEQUENTIAL, *OURS.values())
    told = ", ".join(f"{k}" for k in CANDIDATES)
    lines = [["decoding", *variants, f"candidates examined a token: k = {told}", "forwards a token, one by one"]]
    for case, _, measured in rows:
        if measured is not None:
            clock, made, found = measured["settings"]["clock"], case.batch * case.new, measured["variants"]
            speeds = [made / found[name]["seconds"][clock]["median"] for name in variants]
            examined = ", ".join(f"{found[OURS[k]]['counts']['examined']:.2f}" for k in CANDIDATES)
            forwards = f"{found[SEQUENTIAL]['counts']['forwards']:.2f}"
            lines.append([_decode_label(case), *(f"{speed:.0f}" for speed in speeds), examined, forwards])
    return table(lines)


def _decode_label(case: proxy_decode.Case) -> str:
    return f"{case.model}, {case.dtype}: {case.batch} × (prompt {case.prompt}, {case.new} new)"


# ------------------------------------------------------------------------------------------------------------- update


def update_tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each case the newest measurement, targets in brackets."""
    titles = {"cpu": "CPU, float32", "cuda": "GPU, bfloat16"}
    return sections(results, proxy_update.CASES, titles, _update_ratios, "Seconds of an update", _update_seconds)


def _update_ratios(rows: Rows) -> list[str]:
    lines = [["update", f"{PPO}: times cheaper than {GRADIENT}", "decisions", "trained parameters: proxy, adapter"]]
    for case, _, measured in rows:
        goal = f"≥ {case.targets[GRADIENT]:g}" if GRADIENT in case.targets else ""
        settings = None if measured is None else measured["settings"]
        trained = settings and [f"{settings['trainable'][name]:,}" for name in (PPO, GRADIENT)]
        lines.append(
            [
                _update_label(case),
                cell(measured, f"{GRADIENT} / {PPO}", goal),
                f"{settings['decisions']:,}" if settings else NOT_MEASURED,
                " and ".join(trained) if trained else NOT_MEASURED,
            ]
        )
    return table(lines)


def _update_seconds(rows: Rows) -> list[str]:
    lines = [["update", GRADIENT, PPO]]
    for case, _, measured in rows:
        if measured is not None:
            clock, variants = measured["settings"]["clock"], measured["variants"]
            seconds = [variants[name]["seconds"][clock]["median"] for name in (GRADIENT, PPO)]
            lines.append([_update_label(case), *(f"{x:.3g} s" for x in seconds)])
    return table(lines)


def _update_label(case: proxy_update.Case) -> str:
    return f"{case.model}: {case.responses} × (prompt {case.prompt}, {case.new} tokens)"
