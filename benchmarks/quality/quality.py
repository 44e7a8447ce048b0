# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Reward, KL, fluency, diversity and cost of the four methods beside TRL's DPO, GRPO and PPO, best-of-n and a principle.

    python -m benchmarks.run quality --preset cpu

Each arm is trained and measured for each seed with the commands that users have; quality_arms.py has the arms. TRL's
PPO runs in an environment of its own (ppo_environment.py), and is skipped where that cannot be made.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import RESULTS
from benchmarks.harness.tables import NOT_MEASURED
from trl_ext.evaluation.frontier import frontier_note
from trl_ext.evaluation.frontier_plot import plot_frontier

from .comparison import Comparison
from .experiment import arm_of
from .quality_arms import PRESETS, Task, arms
from .quality_bench import QualityBench
from .tables import (
    DECIMALS,
    HEADS,
    Seeds,
    by_name,
    cost,
    cost_of_one,
    grid,
    mean_and_spread,
    metric,
    missing,
    outcome,
    sources,
)


PLOTS = {"light": "quality-{preset}.png", "dark": "quality-{preset}-dark.png"}


class Quality(Comparison):
    """All methods on one task that is in the repository."""

    name = "quality"
    what = "Reward, KL, fluency, diversity and cost of the four methods beside TRL's DPO, GRPO, PPO and best-of-n."
    task = Task
    jobs = 2
    presets = PRESETS
    arms = staticmethod(arms)
    bench_class = QualityBench

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """For each preset the outcomes, the costs, and where they come from."""
        found = self.by_preset(results)
        return "\n\n".join(_section(preset, result) for preset, result in found.items()) or NOT_MEASURED

    def plot(self, results: Sequence[dict[str, Any]], folder: Path = RESULTS) -> list[Path]:
        """Write the plots of each preset, for a light and for a dark page."""
        files = []
        for preset, result in self.by_preset(results).items():
            if not _is_plotted(result):
                continue
            for mode, name in PLOTS.items():
                files.append(folder / name.format(preset=preset))
                title = "Reward over KL to the base model"
                plot_frontier(points(result), str(files[-1]), title=title, dark=mode == "dark")
        return files


# -------------------------------------------------------------------------------------------------------------- tables


def _section(preset: str, result: dict[str, Any]) -> str:
    cases = by_name(result)
    light, dark = (name.format(preset=preset) for name in PLOTS.values())
    outcomes: dict[str, Callable[[Seeds], str]] = {HEADS[key]: metric(key, DECIMALS[key]) for key in HEADS}
    outcomes[HEADS["kl"]] = _kl
    if any("judge" in case["metrics"] for case in result["cases"]):
        outcomes["judge"] = metric("judge", 2)
    outcomes["reward, other prompts"] = lambda seeds: outcome([case["other"].get("reward") for case in seeds], 2)
    costs: dict[str, Callable[[Seeds], str]] = {
        "trained parameters": cost_of_one("trainable_parameters"),
        "CPU seconds: training, samples": _cpu_seconds,
        "peak memory, MiB": cost("peak_mib"),
        "completions sampled": cost_of_one("completions"),
        "tokens read in training": cost_of_one("tokens_read"),
        "time per token of a completion, × base": metric("time_of_base", 2),
        "through the model for a token": _through,
    }
    picture = [
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="Reward over KL to the base model, one point for each arm and setting"></picture>',
        "",
    ]
    lines = [
        f"### Preset `{preset}`",
        "",
        *grid("", cases, outcomes),
        "",
        *(picture if _is_plotted(result) else []),
        "What it cost",
        "",
        *grid("", cases, costs),
        "",
        sources(result, name_arms=True),
    ]
    return "\n".join([*lines, *missing(result)])


def _kl(seeds: Seeds) -> str:
    first = seeds[0]["metrics"]
    if first.get("kl") is None and first.get("kl_bound") is not None:
        return f"≤ {first['kl_bound']:.2f}"
    return metric("kl", 2)(seeds)


def _cpu_seconds(seeds: Seeds) -> str:
    training, samples = cost("cpu_seconds")(seeds), cost("samples_cpu_seconds")(seeds)
    return training if samples == "-" else f"{training}, {samples}"


def _through(seeds: Seeds) -> str:
    by_arm = {arm.name: arm.through for preset in PRESETS.values() for arm in arms(preset)}
    arm = arm_of(seeds[0]["name"], list(by_arm))
    return by_arm[arm] if arm in by_arm else str(seeds[0]["through"])


def _is_plotted(result: dict[str, Any]) -> bool:
    """Whether there is anything to compare beside the base: ablations are not plotted."""
    return len(points(result)["series"]) > 1


def points(result: dict[str, Any]) -> dict[str, Any]:
    """Mean over seeds of each arm and setting, in the form of [`~trl_ext.evaluation.frontier.frontier`]."""
    by_arm = {arm.name: arm for preset in PRESETS.values() for arm in arms(preset)}
    series: dict[str, dict[str, Any]] = {}
    for name, seeds in by_name(result).items():
        arm = by_arm.get(arm_of(name, list(by_arm)))
        if arm is not None and arm.ablation:
            continue
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
        first = seeds[0]
        own = first["series"] if varied or name == "base" else name
        method = first["series"] if first["series"] in name else ""
        candidates = f"top-k {first['settings']['top_k']}" if "proxy_name_or_path" in first["settings"] else ""
        found: dict[str, Any] = {"name": own, "method": method, "truncation": candidates, "points": []}
        series.setdefault(own, found)["points"].append(point)
    return {
        "x": {"name": "KL to the base model", "unit": "nats per response"},
        "y": {"name": "mean reward", "unit": "the reward model's logit", "bars": "mean of seeds and the farthest"},
        "note": frontier_note(result["settings"].get("task", {})),
        "rewards": ["reward"],
        "series": [found | {"points": sorted(found["points"], key=lambda p: p["kl"])} for found in series.values()],
    }


SUITE = Quality()
