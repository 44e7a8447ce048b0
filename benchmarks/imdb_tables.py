# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of the suite `imdb`: what each method reached, with which settings, and what was tried before."""

from collections.abc import Sequence
from typing import Any

from .harness import table
from .imdb_arms import METHODS
from .quality_tables import HEADS, by_name, outcome, provenance
from .suite import NOT_MEASURED


TITLES = {"proxy_rlhf": "Proxy-RLHF", "psle": "PSLE", "vas": "VAS"}


def newest(results: Sequence[dict[str, Any]], method: str, tune: bool) -> dict[str, Any] | None:
    """The newest result of a method, of its arms or of the settings that were tried."""
    of = [r for r in results if (r["settings"]["method"], r["settings"]["tune"]) == (method, tune)]
    return max(of, key=lambda result: result["time"], default=None)


def overview(results: Sequence[dict[str, Any]]) -> str:
    """Which method was measured when and on what."""
    rows = [["method", "settings tried", "measured"]]
    for method in METHODS:
        found = [newest(results, method, tune) for tune in (True, False)]
        told = [NOT_MEASURED if result is None else _when(result) for result in found]
        rows.append([f"[{TITLES[method]}](../trl_ext/{method}/README.md)", *told])
    return "\n".join(table(rows))


def _when(result: dict[str, Any]) -> str:
    failed = len(result.get("failures", []))
    where = result["environment"]["hardware"]["gpu"] or "CPU"
    return f"{result['time'][:10]}, {where}, {len(by_name(result))} rows" + (
        f", {failed} runs failed" if failed else ""
    )


def tables(results: Sequence[dict[str, Any]], method: str) -> str:
    """A method's outcomes over seeds, then the settings that were tried with one seed."""
    parts = []
    for tune, title in ((False, ""), (True, "Settings tried, one seed")):
        result = newest(results, method, tune)
        if result is not None:
            parts.append("\n".join([*([title, ""] if title else []), *_section(result)]))
    return "\n\n".join(parts) or NOT_MEASURED


def _section(result: dict[str, Any]) -> list[str]:
    cases = by_name(result)
    lines = []
    values = {name: seeds for name, seeds in cases.items() if "r2" in seeds[0]["metrics"]}
    if values:
        lines += [*table(_values(values)), ""]
    lines += [*table(_outcomes({name: seeds for name, seeds in cases.items() if name not in values})), ""]
    lines.append(provenance(result))
    failed = [f"{failure['arm']} (seed {failure['seed']})" for failure in result.get("failures", [])]
    return [*lines, *(["", f"Not done: {', '.join(failed)}."] if failed else [])]


def _values(cases: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows = [["value model", "R² half-way", "correlation", "trained parameters", "samples", "seconds of training"]]
    for name, seeds in cases.items():
        cells = [outcome([case["metrics"][key] for case in seeds], 3) for key in ("r2", "correlation")]
        costs = [seeds[0]["cost"].get(key) for key in ("trainable_parameters", "samples")]
        rows.append([name, *cells, *(outcome([cost], 0) for cost in costs), _seconds(seeds)])
    return rows


def _outcomes(cases: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    other = any(seeds[0].get("other") for seeds in cases.values())
    rows = [["", *HEADS.values(), "perplexity, × base", *(["reward, other prompts"] if other else []),
             "trained share", "seconds of training"]]  # fmt: skip
    bases = {case["seed"]: case["metrics"]["perplexity"] for case in cases.get("base", [])}
    for name, seeds in cases.items():
        metrics = [case["metrics"] for case in seeds]
        decimals = {"reward": 2, "kl": 2, "perplexity": 1, "distinct_2": 3, "completion_length": 1, "ended": 2}
        cells = [outcome([m.get(key) for m in metrics], decimals[key]) for key in HEADS]
        pairs = [(case["metrics"]["perplexity"], bases.get(case["seed"])) for case in seeds]
        ratio = outcome([value / of if value and of else None for value, of in pairs], 2)
        elsewhere = [outcome([case.get("other", {}).get("reward") for case in seeds], 2)] if other else []
        share = seeds[0]["cost"].get("trainable_share")
        rows.append([name, *cells, ratio, *elsewhere, "-" if share is None else f"{share:.1%}", _seconds(seeds)])
    return rows


def _seconds(seeds: list[dict[str, Any]]) -> str:
    """Of one seed's training, on a GPU that others shared."""
    return outcome([case["cost"].get("seconds") for case in seeds], 0)
