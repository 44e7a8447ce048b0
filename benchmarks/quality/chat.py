# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The four methods beside TRL's DPO, GRPO and SFT, best-of-n and a principle, on a real chat model.

    python -m benchmarks.run chat --model outputs/models/SmolLM2-135M-Instruct --jobs 2

The task: answer everyday requests so that their constraints are met, which code checks. chat_arms.py has the arms.
Each arm and seed is one job of at most half an hour, with the commands that users have; a later call goes on with the
jobs that are not done.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.harness.tables import NOT_MEASURED
from trl_ext.instructions.readability import TEXTSTAT
from trl_ext.packages import require_package

from . import paired
from .chat_arms import PRESETS, Task, arms, base_of
from .chat_bench import ChatBench
from .comparison import Comparison
from .experiment import arm_of
from .paired import Interval
from .tables import DECIMALS, HEADS, Seeds, by_name, cost, cost_of_one, grid, metric, missing, outcome, sources


KLS = (2.0, 5.0, 10.0)  # nats at which rewards are compared
ASKED = 1_000  # prompts answered in the comparison of compute
RIVAL = "TRL's GRPO"


class Chat(Comparison):
    """All methods on requests with constraints that code checks."""

    name = "chat"
    what = "The four methods beside TRL's DPO, GRPO and SFT, best-of-n and a principle, on a real chat model."
    task = Task
    jobs = 1
    presets = PRESETS
    arms = staticmethod(arms)
    bench_class = ChatBench

    def require(self, task: Any) -> None:
        """
        Stop before each arm fails for the same reason.

        Raises:
            `SystemExit`: A file, the model or a package is missing.
        """
        super().require(task)
        try:
            require_package("chat", TEXTSTAT)
        except ImportError as error:
            raise SystemExit(str(error)) from error

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """For each preset the outcomes, the comparisons, the costs, and where they come from."""
        found = self.by_preset(results)
        return "\n\n".join(_section(preset, result) for preset, result in found.items()) or NOT_MEASURED


# -------------------------------------------------------------------------------------------------------------- tables


def _section(preset: str, result: dict[str, Any]) -> str:
    cases = by_name(result)
    against = {name: cases[name] for name in ("base", RIVAL) if name in cases}
    outcomes: dict[str, Callable[[Seeds], str]] = {
        "constraints met": _mean("metrics", "reward"),
        "more than the base": lambda seeds: _compared(
            paired.difference, "metrics", "reward", seeds, against.get("base", [])
        ),
        "KL to base": _kl,
        "kinds not trained on": _mean("other", "reward"),
        **{
            f"wins against {name}, {what}": _wins(place, key, seeds_of)
            for name, seeds_of in against.items()
            for what, place, key in (("kinds not trained on", "other", "reward"), ("readability", "metrics", "second"))
        },
    }
    text: dict[str, Callable[[Seeds], str]] = {
        HEADS[key]: metric(key, DECIMALS[key]) for key in HEADS if key != "reward"
    }
    text |= {"readability": metric("second", 1), "perplexity of human texts": metric("text_perplexity", 2)}
    equal = {f"at {kl:g} nats": _at_kl(cases, kl) for kl in KLS}
    costs: dict[str, Callable[[Seeds], str]] = {
        "trained parameters": cost_of_one("trainable_parameters"),
        "CPU seconds of training": cost("cpu_seconds"),
        "of samples": cost("samples_cpu_seconds"),
        "peak memory, MiB": cost("peak_mib"),
        "tokens read in training": cost_of_one("tokens_read"),
        "10^12 operations: training": lambda seeds: outcome([_operations(case)[0] for case in seeds], 0),
        f"answering {ASKED:,} prompts": lambda seeds: outcome([_operations(case)[1] for case in seeds], 0),
        "constraints met by best-of-n for the operations of both": _best_of_n(cases),
        "time per token of a completion, × base": metric("time_of_base", 2),
    }
    lines = [f"### Preset `{preset}`", "", *grid("", cases, outcomes), ""]
    if "base" in cases:
        least = paired.detectable(_values(cases["base"], "metrics", "reward"))
        prompts = len(_values(cases["base"], "metrics", "reward")[0])
        lines += [
            "Brackets are 95 % intervals by the bootstrap over prompts and seeds. By the spread of the base over its "
            f"{prompts} prompts, a difference of {least:.3f} in constraints met is found with a power of 80 %.",
            "",
        ]
    lines += [
        "The texts",
        "",
        *grid("", cases, text),
        "",
        "Constraints met at equal KL",
        "",
        *grid("", cases, equal),
        "",
    ]
    lines += ["What it cost", "", *grid("", cases, costs), "", sources(result, name_arms=True)]
    return "\n".join([*lines, *missing(result)])


def _values(seeds: Seeds, place: str, key: str) -> list[list[float | None]]:
    """The rewards of each prompt for each seed; `key` is `reward` or `second`. Empty where they were not measured."""
    found = [list((case[place].get("by_prompt") or {}).values()) for case in seeds]
    index = 0 if key == "reward" else 1
    return [values[index] for values in found if len(values) > index]


def _kl(seeds: Seeds) -> str:
    """The measured KL, or the bound of best-of-n."""
    bound = metric("kl_bound", 1)(seeds)
    return metric("kl", 1)(seeds) if bound == "-" else f"≤ {bound}"


def _mean(place: str, key: str) -> Callable[[Seeds], str]:
    def cell(seeds: Seeds) -> str:
        values = _values(seeds, place, key)
        return paired.mean(values).text(3) if values else "-"

    return cell


def _compared(compare: Callable[..., Interval], place: str, key: str, seeds: Seeds, others: Seeds) -> str:
    """A comparison with another arm on the seeds that both have."""
    pairs = [(a, b) for a in seeds for b in others if a["seed"] == b["seed"] and a["name"] != b["name"]]
    first, second = (_values([pair[i] for pair in pairs], place, key) for i in (0, 1))
    return compare(first, second).text(2 if compare is paired.win_rate else 3) if first and second else "-"


def _wins(place: str, key: str, others: Seeds) -> Callable[[Seeds], str]:
    """
    The win rate over pairs of answers to a prompt.

    The first results have only the means of each prompt. They are compared with arms of as many answers: a mean of two
    varies less than a single answer, so that it wins more often or less often than it should.
    """

    def cell(seeds: Seeds) -> str:
        pairs = [(a, b) for a in seeds for b in others if a["seed"] == b["seed"] and a["name"] != b["name"]]
        answers = [[case[place].get("by_answer") for case in pair] for pair in pairs]
        if answers and all(all(pair) for pair in answers):
            index = 0 if key == "reward" else 1
            first, second = ([list(pair[i].values())[index] for pair in answers] for i in (0, 1))
            return paired.win_rate(first, second).text(2)
        if any(_answers(a) != _answers(b) for a, b in pairs):
            return "-"
        return _compared(paired.win_rate, place, key, seeds, others)

    return cell


def _answers(case: dict[str, Any]) -> int:
    """The answers to a prompt that were measured of a case."""
    task = PRESETS["cpu"]
    by_arm = {arm.name: arm.answers or task.answers for arm in arms(task)}
    return by_arm.get(arm_of(case["name"], list(by_arm)), task.answers)


def _at_kl(cases: dict[str, Seeds], kl: float) -> Callable[[Seeds], str]:
    """
    The reward where a series crosses a KL: by straight lines from the base through the points of the series.

    The base is that which the KL is to: of an arm in 4 bits, the base in 4 bits. A series is concave, so this errs
    downwards for one with a single point.
    """

    def cell(seeds: Seeds) -> str:
        return outcome([_crossing(cases, case, kl) for case in seeds], 3)

    return cell


def _crossing(cases: dict[str, Seeds], case: dict[str, Any], kl: float) -> float | None:
    names = _arm_names()
    arm = arm_of(case["name"], names)
    bases = [c for c in cases.get(base_of(arm), []) if c["seed"] == case["seed"]]
    if not bases:
        return None
    points = [(0.0, c["metrics"]["reward"]) for c in bases]
    for name, seeds in cases.items():
        if arm_of(name, names) == arm:
            points += [(c["metrics"]["kl"], c["metrics"]["reward"]) for c in seeds
                       if c["seed"] == case["seed"] and c["metrics"].get("kl") is not None]  # fmt: skip
    points.sort()
    for (x, low), (z, high) in pairwise(points):
        if x <= kl <= z:
            return low + (high - low) * (kl - x) / (z - x) if z > x else high
    return None


def _arm_names() -> list[str]:
    return [arm.name for preset in PRESETS.values() for arm in arms(preset)]


def _best_of_n(cases: dict[str, Seeds]) -> Callable[[Seeds], str]:
    """
    What best-of-n meets with as many operations as an arm takes for its training and 1,000 answers.

    By straight lines over log n from the base (n = 1) through the measured n; no value beyond the largest, and none
    for an arm in 4 bits, as best-of-n was measured in full precision.
    """

    def at(case: dict[str, Any]) -> float | None:
        points, base = [], None
        for other in (c for seeds in cases.values() for c in seeds if c["seed"] == case["seed"]):
            if other["name"] == "base":
                base = other
                points.append((0.0, other["metrics"]["reward"]))
            elif other["series"] == "best of n":
                points.append((math.log(other["forwards"]), other["metrics"]["reward"]))
        trained, answering = _operations(case)
        if base is None or trained is None or answering is None:
            return None
        points.sort()
        place = math.log(max(1.0, (trained + answering) / (_operations(base)[1] or 1.0)))
        for (x, low), (z, high) in pairwise(points):
            if x <= place <= z:
                return low + (high - low) * (place - x) / (z - x)
        return None

    def cell(seeds: Seeds) -> str:
        no_rival = seeds[0]["series"] == "best of n" or base_of(arm_of(seeds[0]["name"], _arm_names())) != "base"
        return "-" if no_rival else outcome([at(case) for case in seeds], 3)

    return cell


def _operations(case: dict[str, Any]) -> tuple[float | None, float | None]:
    """
    10^12 operations of the arm's training, its samples included, and of answering 1,000 prompts.

    2 operations for each parameter and token forward, and 2 backward: only an adapter is trained, so the weights need
    no gradient. TRL's DPO and a KL term read each token with the reference too. Prompts of sampled answers are left
    out, and sampled answers count with the length of those measured.
    """
    cost, metrics = case["cost"], case["metrics"]
    size = cost.get("model_parameters")
    if not size:
        return None, None
    answering = 2 * size * case["forwards"] * metrics["completion_length"] * ASKED / 1e12
    if not cost.get("completions"):
        return 0.0, answering
    sampled = 2 * size * cost["completions"] * metrics["completion_length"] * cost.get("sampling_forwards", 1)
    with_reference = case["series"] == "TRL's DPO" or (case["series"] == "RRHF" and case["settings"].get("beta"))
    for_token = 6 if with_reference else 4
    trained = for_token * size * (cost["tokens_read"] or 0) if cost["backward"] else 0
    return (sampled + trained) / 1e12, answering


SUITE = Chat()
