# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables and the picture of README.md about the suite `quality`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_ext.evaluation.frontier import plot_frontier

from ..harness.measure import origin, table
from ..harness.suite import NOT_MEASURED
from .quality_arms import Task, arms


PICTURES = {"light": "quality-{preset}.png", "dark": "quality-{preset}-dark.png"}
_DECIMALS = {"reward": 2, "kl": 2, "perplexity": 1, "distinct_2": 2, "completion_length": 1, "ended": 2}
HEADS = {
    "reward": "reward",
    "kl": "KL to base",
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "completion_length": "tokens",
    "ended": "ended",
}


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Of each preset the newest measurement of each arm and seed: outcomes, costs, where they come from."""
    found = merged(results)
    if not found:
        return NOT_MEASURED
    return "\n\n".join(_section(preset, result) for preset, result in sorted(found.items()))


def merged(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    The results of each preset as one, so that a later file may bring an arm or a seed.

    Args:
        results (`Sequence[dict]`): Oldest first. Those of another task than the newest of their preset are left out.

    Returns:
        `dict`: By preset a result with the newest case of each name and seed, in the order of the suite's arms; what
            failed or was skipped and has no case; and under `from` the results that cases come from.
    """
    found = {}
    for preset in sorted({result["settings"]["preset"] for result in results}):
        of_preset = [result for result in results if result["settings"]["preset"] == preset]
        task = of_preset[-1]["settings"].get("task")
        used = [result for result in of_preset if result["settings"].get("task") == task]
        newest = {(case["name"], case["seed"]): (case, result) for result in used for case in result["cases"]}
        kept = sorted(newest.values(), key=lambda pair: _place(pair[0]["name"]))
        measured = {(_arm(name), seed) for name, seed in newest}
        missing = {
            kind: [
                gone for result in used for gone in result.get(kind, []) if (gone["arm"], gone["seed"]) not in measured
            ]
            for kind in ("failures", "skipped")
        }
        sources = [result for result in used if any(result is source for _, source in kept)]
        found[preset] = {"cases": [case for case, _ in kept], "from": sources, **missing}
        for source in sources:  # whose cases are which
            names = dict.fromkeys(_arm(case["name"]) for case, result in kept if result is source)
            found[preset].setdefault("arms", []).append(list(names))
    return found


def _arm(case: str) -> str:
    """The arm of a case, whose name may go on with a setting: "VAS, beta 2.0"."""
    names = [arm.name for arm in arms(Task()) if case == arm.name or case.startswith(f"{arm.name}, ")]
    return max(names, key=len, default=case)


def _place(case: str) -> int:
    names = [arm.name for arm in arms(Task())]
    return names.index(_arm(case)) if _arm(case) in names else len(names)


def _section(preset: str, result: dict[str, Any]) -> str:
    cases = by_name(result)
    light, dark = (name.format(preset=preset) for name in PICTURES.values())
    lines = [
        f"### Preset `{preset}`",
        "",
        *table(_outcomes(cases)),
        "",
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="results/{dark}">'
        f'<img src="results/{light}" alt="Reward over KL to the base model, one point an arm and setting"></picture>',
        "",
        "What it cost",
        "",
        *table(_costs(cases)),
        "",
        "\n\n".join(_provenances(result)),
    ]
    for kind, told in (("failures", "Failed"), ("skipped", "Skipped")):
        if gone := [f"{failure['arm']} (seed {failure['seed']})" for failure in result[kind]]:
            lines.append(f"\n{told}: {', '.join(gone)}.")
    return "\n".join(lines)


def by_name(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The cases of each arm and setting, one a seed, in the order of the result."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in result["cases"]:
        found.setdefault(case["name"], []).append(case)
    return found


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean over seeds, and how far the farthest seed is from it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = statistics.fmean(known)
    return mean, max(abs(value - mean) for value in known)


def _outcomes(cases: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows = [["", *HEADS.values(), "reward, other prompts"]]
    for name, seeds in cases.items():
        metrics = [case["metrics"] for case in seeds]
        cells = [outcome([m.get(key) for m in metrics], _DECIMALS[key]) for key in HEADS]
        if metrics[0].get("kl") is None and metrics[0].get("kl_bound") is not None:
            cells[1] = f"≤ {metrics[0]['kl_bound']:.2f}"
        rows.append([name, *cells, outcome([case["other"].get("reward") for case in seeds], 2)])
    return rows


def _costs(cases: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows = [
        [
            "",
            "trained parameters",
            "CPU seconds: training, samples",
            "peak memory, MiB",
            "completions sampled",
            "tokens read in training",
            "time of an answer's token, × base",
            "through the model for a token",
        ]
    ]
    for name, seeds in cases.items():
        costs = [case["cost"] for case in seeds]
        trained = [outcome([cost.get(key) for cost in costs], 0) for key in ("cpu_seconds", "samples_cpu_seconds")]
        rows.append(
            [
                name,
                *(outcome([cost.get(key) for cost in costs[:1]], 0) for key in ("trainable_parameters",)),
                trained[0] + (f", {trained[1]}" if trained[1] != "-" else ""),
                outcome([cost.get("peak_mib") for cost in costs], 0),
                outcome([cost.get("completions") for cost in costs[:1]], 0),
                outcome([cost.get("tokens_read") for cost in costs[:1]], 0),
                outcome([case["metrics"].get("time_of_base") for case in seeds], 2),
                seeds[0]["through"],
            ]
        )
    return rows


def outcome(values: Sequence[float | None], decimals: int) -> str:
    """`mean ± largest distance of a seed`; one seed alone has none."""
    found = mean_and_spread(values)
    if found is None:
        return "-"
    mean, spread = found
    return f"{mean:,.{decimals}f}" + (f" ± {spread:,.{decimals}f}" if len(values) > 1 else "")


def _provenances(result: dict[str, Any]) -> list[str]:
    """A line for each result that cases come from; where there are several, all but the one with most say which."""
    most = max(result["arms"], key=len)
    return [
        provenance(source, "" if names is most else f" ({', '.join(names)})")
        for source, names in zip(result["from"], result["arms"], strict=True)
    ]


def provenance(result: dict[str, Any], told: str = "") -> str:
    facts, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}, one thread a process"
    seeds = ", ".join(map(str, settings["seeds"]))
    return (
        f"{result['time'][:10]}{told}: {hardware}; seeds {seeds}: mean ± the largest distance of a seed from it; "
        f"{versions}; {origin(result)}."
    )


def points(result: dict[str, Any]) -> dict[str, Any]:
    """Mean over seeds of each arm and setting, in the form of [`~trl_ext.evaluation.frontier.frontier`]."""
    series: dict[str, list[dict[str, Any]]] = {}
    for name, seeds in by_name(result).items():
        metrics = [case["metrics"] for case in seeds]
        bound = metrics[0].get("kl") is None
        kl = mean_and_spread([m.get("kl_bound" if bound else "kl") for m in metrics])
        reward = mean_and_spread([m["reward"] for m in metrics])
        if kl is None or reward is None:
            continue
        word, _, value = name.rpartition(", ")[2].partition(" ")  # "VAS, beta 2"
        varied = word in ("beta", "n") and value
        point = {
            "model": name,
            "kl": kl[0],
            "kl_se": None if bound else kl[1],
            "bound": bound,
            "extras": {word: value} if varied else {},
            "rewards": {"reward": {"value": reward[0], "se": reward[1]}},
        }
        series.setdefault(seeds[0]["series"] if varied or name == "base" else name, []).append(point)
    return {
        "x": {"name": "KL to the base model", "unit": "nats per response"},
        "y": {"name": "mean reward", "unit": "the reward model's logit", "bars": "mean of seeds and the farthest"},
        "rewards": ["reward"],
        "series": [{"name": name, "points": sorted(found, key=lambda p: p["kl"])} for name, found in series.items()],
    }


def draw(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw the pictures of each preset, for a light and for a dark page."""
    drawn = []
    for preset, result in merged(results).items():
        for mode, name in PICTURES.items():
            drawn.append(folder / name.format(preset=preset))
            title = "Reward over KL to the base model"
            plot_frontier(points(result), str(drawn[-1]), title=title, dark=mode == "dark")
    return drawn
