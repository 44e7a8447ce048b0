# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reward-KL frontier: mean reward of guided or trained models against their KL to the base model.

[`frontier`] computes the points from evaluations, [`join`] joins several evaluations before, and [`write_frontier`]
writes the points and the plot of `frontier_plot.py`. Points are plain data. Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .comparison import differences
from .files import check_writable, short_names, write_json


_SUFFIXES = (".png", ".svg", ".pdf")


def check_frontier(path: str) -> None:
    """
    Check before a long evaluation that the plot can be written.

    Args:
        path (`str`): File of the plot.

    Raises:
        `ValueError`: The suffix is not .png, .svg or .pdf, or the file cannot be written.
    """
    if Path(path).suffix not in _SUFFIXES:
        raise ValueError(f"--frontier_file must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, got {path!r}")
    check_writable(path, "frontier_file")


def frontier(
    rows: Sequence[Mapping[str, Any]], base: str | None, sampling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Compute the points of the frontier.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): Evaluated models: the `rows` of a [`~trl_ext.evaluation.report.Report`].
        base (`str`, *optional*): Name of the base model among them.
        sampling (`Mapping[str, Any]`, *optional*): Settings that the rewarded completions were sampled with.

    Returns:
        `dict[str, Any]`: `x` and `y` (labels and units of the axes), `note` (how KL and reward were measured),
        `rewards` (their names) and `series`. A series has a `name`, its `method`, its `truncation`, the name of the
        series that its line starts at (`start`), and `points`, sorted by KL. A point has `model`, `kl`, `kl_se`,
        `bound` (whether the KL is an upper bound that was not measured), `extras` (the setting), and `rewards` with
        `value` and `se` by name. The series of the base model is called `base`. Models without a KL, and those whose
        evaluation failed, are left out.
    """
    short = short_names([row["model"] for row in rows])
    names = list(dict.fromkeys(_reward(key) for row in rows for key in row if _reward(key) and f"{key}_se" in row))
    series: dict[str, dict[str, Any]] = {}

    def short_series(name: str) -> str:
        # A series is named after the model that it guides, perhaps by a long path.
        return name if base is None else replaced_name(name, base, short.get(base, base))

    for row in rows:
        bound = row.get("kl") is None
        kl = row.get("kl_bound") if bound else row["kl"]
        if "error" in row or kl is None:
            continue
        point = {
            "model": row["model"],
            "kl": kl,
            "kl_se": None if bound else row.get("kl_se"),
            "bound": bound,
            "extras": row.get("extras", {}),
            "rewards": {name: {"value": row[f"reward/{name}"], "se": row[f"reward/{name}_se"]} for name in names},
        }
        name = "base" if row["model"] == base else short_series(row.get("series") or short[row["model"]])
        described = {key: row.get(key, "") for key in ("method", "truncation")}
        start = short_series(row.get("start", ""))
        series.setdefault(name, {"name": name, **described, "start": start, "points": []})["points"].append(point)
    for found in series.values():
        found["points"].sort(key=lambda point: float(point["kl"]))
    return {
        "x": {"name": "KL to the base model", "unit": "nats per response"},
        "y": {"name": "mean reward", "unit": "the reward function's own"},
        "note": frontier_note(sampling or {}),
        "rewards": names,
        "series": list(series.values()),
    }


def _reward(key: str) -> str:
    """Name of the reward that a metric is about; empty for other metrics."""
    return key.removeprefix("reward/") if key.startswith("reward/") else ""


# Settings that change the distribution of completions: their names in a note, and the values that change nothing.
_SHAPING = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top-k", 0),
    "top_p": ("top-p", 1.0),
    "min_p": ("min-p", 0.0),
    "repetition_penalty": ("repetition penalty", 1.0),
}


def frontier_note(sampling: Mapping[str, Any]) -> str:
    """
    How KL and reward were measured, in a sentence or two below the plot.

    Args:
        sampling (`Mapping[str, Any]`): Sampling settings of the rewarded completions, as far as they are known.
    """
    length = sampling.get("max_completion_length")
    note = "KL: full vocabulary, temperature 1" + (f", at most {length} tokens" if length else "") + "."
    changed = [f"{name} {sampling[key]:g}" for key, (name, off) in _SHAPING.items() if sampling.get(key, off) != off]
    return note + (f" Rewards: sampled with {', '.join(changed)}." if changed else "")


def write_frontier(data: Mapping[str, Any], path: str, *, title: str = "") -> None:
    """
    Plot the frontier, and write its points to a JSON file beside the plot: those of `out.png` to `out.points.json`.

    Args:
        data (`Mapping[str, Any]`): Result of [`frontier`].
        path (`str`): File of the plot, .png, .svg or .pdf.
        title (`str`, *optional*, defaults to `""`): Title of the plot.

    Raises:
        `ValueError`: There are no points.
        `OSError`: A file cannot be written.
    """
    from .frontier_plot import plot_frontier

    write_json(str(Path(path).with_suffix(".points.json")), data)
    plot_frontier(data, path, title=title)


# ------------------------------------------------------------------------------------------------ several evaluations


@dataclass
class Joined:
    """
    Several evaluations as one.

    Args:
        rows (`list[dict]`): The models of all of them, the base once.
        base (`str`): Name of the base model.
        sampling (`dict[str, Any]`): The sampling settings that they share.
        notes (`list[str]`): What was merged, renamed or left out.
    """

    rows: list[dict[str, Any]]
    base: str
    sampling: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def join(reports: Mapping[str, Mapping[str, Any]]) -> Joined:
    """
    Join evaluations that were measured in the same way.

    The base model, and best-of-n of it, count once. A model that two evaluations measured with different results is
    two models, each named with its file. Rewards that not all evaluations have are left out.

    Args:
        reports (`Mapping[str, Mapping[str, Any]]`): By file, the JSON content of an evaluation.

    Raises:
        `ValueError`: Base models, prompts, rewards or sampling settings differ (the message names each with its
            values), or an evaluation has no base model.
    """
    for file, report in reports.items():
        if not report.get("comparison"):
            raise ValueError(f"{file} was written by an earlier version of trl-ext evaluate: evaluate again")
        if report["comparison"]["base_model"] is None:
            raise ValueError(f"{file} has no base model, so no KL: evaluate with --base_model_name_or_path")
    (first, head), *others = reports.items()
    wrong = [
        f"{first} and {file} differ in {each}"
        for file, report in others
        for each in differences(head["comparison"], report["comparison"])
    ]
    if wrong:
        raise ValueError("these evaluations cannot be compared: " + "; ".join(wrong))
    base = head["comparison"]["base_model"]["name"]
    joined = Joined([], base, head["comparison"]["sampling"])
    shared = [name for name in head["comparison"]["rewards"] if all(_has_reward(r, name) for r in reports.values())]
    by_name: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    short = short_names([str(Path(file).with_suffix("")) for file in reports])
    for file, report in reports.items():
        left_out = [name for name in report["comparison"]["rewards"] if name not in shared]
        if left_out:
            joined.notes.append(f"left out, as not all have it: reward {', '.join(left_out)} of {file}")
        for row in report["models"]:
            renamed = _with_base(row, report["comparison"]["base_model"]["name"], base)
            kept = {key: value for key, value in renamed.items() if not _is_of(key, left_out)}
            by_name.setdefault(kept["model"], []).append((file, kept))
    for name, found in by_name.items():
        joined.rows += _merged(name, found, joined, short)
    return joined


def _has_reward(report: Mapping[str, Any], name: str) -> bool:
    return name in report["comparison"]["rewards"]


def _is_of(key: str, rewards: Sequence[str]) -> bool:
    return any(key in (f"{kind}/{name}", f"{kind}/{name}_se") for kind in ("reward", "difference") for name in rewards)


def _with_base(row: Mapping[str, Any], own: str, base: str) -> dict[str, Any]:
    """A row with another name of the base model, which names of guided models begin with."""
    return {
        **row,
        **{key: replaced_name(str(row[key]), own, base) for key in ("model", "series", "start") if row.get(key)},
    }


def replaced_name(text: str, old: str, new: str) -> str:
    """A model or series named `old`, or `old` with settings behind it, under the name `new`; any other as it is."""
    rest = text.removeprefix(old)
    return new + rest if rest != text and rest[:1] in ("", " ", ",") else text


def _merged(
    name: str, found: Sequence[tuple[str, dict[str, Any]]], joined: Joined, short: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of one model in several evaluations: one if they are equal or depend on the base alone."""
    different: list[tuple[str, dict[str, Any]]] = []
    for file, row in found:
        if all(_result(row) != _result(other) for _, other in different):
            different.append((file, row))
    (first, row), *others = different
    if not others:
        return [row]
    files = ", ".join(file for file, _ in others)
    if name == joined.base or row.get("series") == "best-of-n" or "error" in row:
        joined.notes.append(f"{name}: measured again in {files} with other results; those of {first} are shown")
        return [row]
    joined.notes.append(f"{name}: has other results in {first} and {files}; each is named with its file")
    return [_named_with(each, short[str(Path(file).with_suffix(""))]) for file, each in different]


def _named_with(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A row whose model and series are named with the file that they are from."""
    return {**row, **{key: f"{row[key]} ({file})" for key in ("model", "series") if row.get(key)}}


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """What two measurements of the same model share."""
    return {key: value for key, value in row.items() if key.startswith(("reward/", "kl"))}


def renamed_series(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """
    A frontier whose series have other names.

    Args:
        data (`Mapping[str, Any]`): Result of [`frontier`].
        names (`Mapping[str, str]`): New names by name.

    Raises:
        `ValueError`: There is no series of a name.
    """
    known = [series["name"] for series in data["series"]]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no series {name!r}; there are {', '.join(map(repr, known))}")
    new = {name: names.get(name, name) for name in known}
    series = [
        {**found, "name": new[found["name"]], "start": new.get(found["start"], found["start"])}
        for found in data["series"]
    ]
    return {**data, "series": series}
