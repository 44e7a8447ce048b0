# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of the suite `imdb`: what each method reached, with which settings, and what was tried before."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..harness.measure import table
from ..harness.suite import NOT_MEASURED
from .imdb_arms import METHODS, NOT_BEGUN, chosen, tuned
from .quality_tables import HEADS, by_name, outcome, provenance


TITLES = {"proxy_rlhf": "Proxy-RLHF", "psle": "PSLE", "vas": "VAS"}


# What makes results those of one task: how much goes through the model at once does not.
_TASK = ("model", "reward", "prompts", "evaluated", "max_completion_length", "top_k")


def merged(results: Sequence[dict[str, Any]], method: str, tune: bool) -> list[dict[str, Any]]:
    """
    The results of a method, of its arms or of the settings that were tried: one for each task.

    A later file may bring an arm or a seed: of each arm and seed the cases of the newest file that has any count, and
    none of an arm whose needs, a value say, have come out otherwise since.

    Args:
        results (`Sequence[dict]`): Oldest first.
        method (`str`), tune (`bool`): Which.

    Returns:
        `list[dict]`: Each with `cases`, in the order of the suite's arms; `failures` without those done since; under
            `from` the results that cases come from; `settings` of the newest. Larger tasks first; what has no arm
            that a larger task of the same models lacks is left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if (result["settings"]["method"], result["settings"]["tune"]) == (method, tune):
            task = result["settings"].get("task", {})
            key = json.dumps([[task.get(name) for name in _TASK], result["settings"].get("fields", {})])
            groups.setdefault(key, []).append(result)
    arms_of = (tuned if tune else chosen)(method)
    order, needs = [arm.name for arm in arms_of], {arm.name: arm.needs for arm in arms_of}

    def arm_of(name: str) -> str:
        found = [arm for arm in order if name == arm or name.startswith(f"{arm}, ")]
        return max(found, key=len) if found else name

    def place(name: str) -> tuple[int, str]:
        return (order.index(arm_of(name)) if arm_of(name) in order else len(order)), name

    made = []
    for of in groups.values():
        newest, kept = _current(of, arm_of, needs)
        kept.sort(key=lambda pair: place(pair[0]["name"]))
        failures = {(f["arm"], f["seed"]): (f, i) for i, result in enumerate(of) for f in result.get("failures", [])}
        made.append(
            {
                "cases": [case for case, _ in kept],
                # Of settings to try, those that nobody began are no news.
                "failures": [
                    f
                    for key, (f, i) in failures.items()
                    if newest.get(key, i) <= i and not (tune and f["error"] == NOT_BEGUN)
                ],
                "from": [result for result in of if any(result is source for _, source in kept)],
                "settings": of[-1]["settings"],
            }
        )
    made.sort(key=lambda result: -_sizes(result)[0])
    arms = [{arm_of(case["name"]) for case in result["cases"]} for result in made]

    def is_held(i: int) -> bool:
        return any(arms[i] <= arms[j] and _is_smaller(made[i], made[j]) for j in range(i))

    return [result for i, result in enumerate(made) if not is_held(i)]


def _current(
    of: Sequence[dict[str, Any]], arm_of: Callable[[str], str], needs: dict[str, tuple[str, ...]]
) -> tuple[dict[tuple[str, int], int], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Of each arm and seed the number of its newest file, and the cases with their files that are shown."""
    came: list[dict[tuple[str, int], list[Any]]] = [{} for _ in of]  # by file, what came out of an arm
    for i, result in enumerate(of):
        for case in result["cases"]:
            came[i].setdefault((arm_of(case["name"]), case["seed"]), []).append(case["metrics"])
    newest = {key: i for i, found in enumerate(came) for key in found}

    def is_current(arm: str, seed: int, i: int) -> bool:
        # What the arm was given: of its own file, or of the last one before that has it.
        given = [
            (key, next((j for j in range(i, -1, -1) if key in came[j]), None))
            for key in ((need, seed) for need in needs.get(arm, ()))
        ]
        same = (came[j][key] == came[newest[key]][key] for key, j in given if j is not None)
        return newest[arm, seed] == i and all(same)

    kept = [
        (case, result)
        for i, result in enumerate(of)
        for case in result["cases"]
        if is_current(arm_of(case["name"]), case["seed"], i)
    ]
    return newest, kept


def _sizes(result: dict[str, Any]) -> tuple[int, int]:
    task = result["settings"].get("task", {})
    return task.get("prompts") or 0, task.get("evaluated") or 0


def _is_smaller(result: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the tasks differ in prompts alone, of which the other has more to train on and no fewer to measure."""
    alike = [
        [*(each["settings"].get("task", {}).get(name) for name in _TASK if name not in ("prompts", "evaluated")),
         each["settings"].get("fields", {})]
        for each in (result, other)
    ]  # fmt: skip
    (prompts, evaluated), (more, no_less) = _sizes(result), _sizes(other)
    return alike[0] == alike[1] and prompts < more and evaluated <= no_less


def overview(results: Sequence[dict[str, Any]]) -> str:
    """Which method was measured when and on what."""
    rows = [["method", "settings tried", "measured"]]
    for method in METHODS:
        found = [merged(results, method, tune) for tune in (True, False)]
        told = ["; ".join(map(_when, of)) or NOT_MEASURED for of in found]
        rows.append([f"[{TITLES[method]}](results/{method}.md)", *told])
    return "\n".join(table(rows))


def _when(result: dict[str, Any]) -> str:
    failed = len(result["failures"])
    places = sorted({source["environment"]["hardware"]["gpu"] or "CPU" for source in result["from"]})
    day = max(source["time"] for source in result["from"])[:10]
    return f"{day}, {_model(result)}, {' and '.join(places)}, {len(by_name(result))} rows" + (
        f", {failed} runs not done" if failed else ""
    )


def _model(result: dict[str, Any]) -> str:
    return str(result["settings"].get("task", {}).get("model", "imdb-7m"))


def tables(results: Sequence[dict[str, Any]], method: str) -> str:
    """A method's outcomes over seeds, then the settings that were tried with one seed."""
    parts = []
    for tune, title in ((False, ""), (True, "Settings tried, one seed")):
        for result in merged(results, method, tune):
            fields = ", ".join(f"{name}: {value}" for name, value in result["settings"].get("fields", {}).items())
            told = ", ".join(filter(None, [title, _model(result), fields and f"all with {fields}"]))
            parts.append("\n".join([f"{told}:", "", *_section(result)]))
    return "\n\n".join(parts) or NOT_MEASURED


def _section(result: dict[str, Any]) -> list[str]:
    cases = by_name(result)
    lines = []
    values = {name: seeds for name, seeds in cases.items() if "r2" in seeds[0]["metrics"]}
    if values:
        lines += [*table(_values(values)), ""]
    lines += [*table(_outcomes({name: seeds for name, seeds in cases.items() if name not in values})), ""]
    lines.append("\n\n".join(map(provenance, result["from"])))
    failed: dict[str, list[str]] = {}  # by what ended them
    for failure in result["failures"]:
        failed.setdefault(failure["error"].strip().splitlines()[-1], []).append(
            f"{failure['arm']} ({failure['seed']})"
        )
    told = [f"Not done (seed): {', '.join(runs)}: “{error}”." for error, runs in failed.items()]
    return [*lines, *(line for each in told for line in ("", each))]


def _values(cases: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows = [
        [
            "value model",
            "R² half-way",
            "correlation",
            "trained parameters",
            "samples of the data set",
            "seconds of training",
        ]
    ]
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
