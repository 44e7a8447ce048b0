# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reward-KL frontier: mean reward of guided or trained models against their KL to the base model.

[`frontier`] computes the points from evaluations, [`plot_frontier`] plots them, and [`write_frontier`] writes both the
points and the plot. Points are plain data, so that those of several runs can be combined in one plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .report import check_writable, short_names, write_json


_SUFFIXES = (".png", ".svg", ".pdf")
# Colours of Okabe and Ito, which colour-blind people can distinguish, without the two that are faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8C6D00", "#333333")
_MARKERS = "osD^vP"


@dataclass(frozen=True)
class _Page:
    """Colours of the background, the text and the grid."""

    background: str
    ink: str
    grid: str


_LIGHT = _Page("white", "#222222", "#e3e3e3")
_DARK = _Page("#0d1117", "#e6edf3", "#30363d")
# The same hues, light enough for a dark background.
_ON_DARK = ("#56B4E9", "#FF8C42", "#2EC4A0", "#D77FCB", "#E0B400", "#B8C0C8")


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


def frontier(rows: Sequence[Mapping[str, Any]], base: str | None) -> dict[str, Any]:
    """
    Compute the points of the frontier.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): Evaluated models: the `rows` of a [`~trl_ext.evaluation.report.Report`].
        base (`str`, *optional*): Name of the base model among them.

    Returns:
        `dict[str, Any]`: `x` and `y` (labels and units of the axes), `rewards` (their names) and `series`. A series
        has a `name` and `points`, sorted by KL. A point has `model`, `kl`, `kl_se`, `bound` (whether the KL is an
        upper bound that was not measured), `extras` (the setting), and `rewards` with `value` and `se` by name. The
        series of the base model is called `base`. Models without a KL, and those whose evaluation failed, are left
        out.
    """
    short = short_names([row["model"] for row in rows])
    names = list(dict.fromkeys(_reward(key) for row in rows for key in row if _reward(key) and f"{key}_se" in row))
    series: dict[str, list[dict[str, Any]]] = {}
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
        name = "base" if row["model"] == base else row.get("series") or short[row["model"]]
        if base is not None:  # a series is named after the model that it guides, perhaps by a long path
            name = name.replace(base, short.get(base, base))
        series.setdefault(name, []).append(point)
    return {
        "x": {"name": "KL to the base model", "unit": "nats per response"},
        "y": {"name": "mean reward", "unit": "the reward function's own"},
        "rewards": names,
        "series": [{"name": name, "points": sorted(points, key=_kl)} for name, points in series.items()],
    }


def _reward(key: str) -> str:
    """Name of the reward that a metric is about; empty for other metrics."""
    return key.removeprefix("reward/") if key.startswith("reward/") else ""


def _kl(point: Mapping[str, Any]) -> float:
    return float(point["kl"])


def write_frontier(data: Mapping[str, Any], path: str) -> None:
    """
    Plot the frontier, and write its points to a JSON file beside the plot: those of `out.png` to `out.points.json`.

    Args:
        data (`Mapping[str, Any]`): Result of [`frontier`].
        path (`str`): File of the plot, .png, .svg or .pdf.

    Raises:
        `ValueError`: There are no points.
        `OSError`: A file cannot be written.
    """
    write_json(str(Path(path).with_suffix(".points.json")), data)
    plot_frontier(data, path)


def plot_frontier(data: Mapping[str, Any], path: str, *, title: str = "", dark: bool = False) -> None:
    """
    Plot a frontier: one panel per reward, one line per series, error bars of one standard error.

    If the KL is an upper bound, markers are hollow and the line is dashed, and the legend states it: the KL itself is
    further left. The plot has a background of its own, so that it is readable on pages of any colour.

    Args:
        data (`Mapping[str, Any]`): Result of [`frontier`].
        path (`str`): File to write, .png, .svg or .pdf.
        title (`str`, *optional*): Title of the plot.
        dark (`bool`, *optional*, defaults to `False`): Whether the background is dark.

    Raises:
        `ValueError`: There are no points.
        `OSError`: The file cannot be written.
    """
    from matplotlib.figure import Figure

    if not data["series"] or not data["rewards"]:
        raise ValueError("no model has both a KL and a reward")
    panels, page = len(data["rewards"]), _DARK if dark else _LIGHT
    # Each row of the legend makes the panels smaller.
    height = 4.8 + 0.3 * max(0, len(data["series"]) // 2 - 2)
    figure = Figure(figsize=(6.4 * panels + 0.6, height), layout="constrained", facecolor=page.background)
    for axes, reward in zip(figure.subplots(1, panels, squeeze=False)[0], data["rewards"], strict=True):
        _plot_panel(axes, data, reward, page, _ON_DARK if dark else _COLOURS)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) * len(labels) < 90 else 2  # three columns of long names would be cut off
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, len(labels)),
        frameon=False,
        labelcolor=page.ink,
    )
    if title:
        figure.suptitle(title, color=page.ink)
    figure.savefig(path, dpi=160)


def _plot_panel(axes: Any, data: Mapping[str, Any], reward: str, page: _Page, colours: Sequence[str]) -> None:
    axes.set_facecolor(page.background)
    axes.set_xlabel(f"{data['x']['name']} ({data['x']['unit']})", color=page.ink)
    axes.set_ylabel(f"{reward} (mean reward, {data['y'].get('bars', '± 1 s.e.')})", color=page.ink)
    axes.grid(color=page.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=page.ink)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(page.ink)
    base = next((s["points"][0] for s in data["series"] if s["name"] == "base"), None)
    # With more series than colours, colours repeat with other markers.
    styles = ((colours[i % len(colours)], _MARKERS[(i + i // len(colours)) % len(_MARKERS)]) for i in count())
    axes.margins(x=0.09, y=0.08)
    for number, series in enumerate(data["series"]):
        points = [p for p in series["points"] if p["rewards"][reward]["value"] is not None]
        if not points:
            continue
        if series["name"] == "base":
            _plot_points(axes, points, reward, label="base", colour=page.ink, marker="*", page=page)
            continue
        colour, marker = next(styles)
        bound = any(point["bound"] for point in points)
        # A line connects the values of one setting. It starts at the base, where the setting is off.
        if any(point["extras"] for point in points):
            with_base = [base, *points] if base and base["rewards"][reward]["value"] is not None else points
            xy = [(point["kl"], point["rewards"][reward]["value"]) for point in sorted(with_base, key=_kl)]
            axes.plot(*zip(*xy, strict=True), color=colour, linewidth=1.3, linestyle="--" if bound else "-", alpha=0.7)
        label = series["name"] + (" (KL: upper bound, not measured)" if bound else "")
        _plot_points(axes, points, reward, label=label, colour=colour, marker=marker, page=page)
        _annotate(axes, points, reward, colour, page, above=number % 2 == 1)


def _plot_points(
    axes: Any,
    points: Sequence[Mapping[str, Any]],
    reward: str,
    *,
    label: str,
    colour: str,
    marker: str,
    page: _Page,
) -> None:
    bound = any(point["bound"] for point in points)
    axes.errorbar(
        [point["kl"] for point in points],
        [point["rewards"][reward]["value"] for point in points],
        yerr=[point["rewards"][reward]["se"] or 0.0 for point in points],
        xerr=[point["kl_se"] or 0.0 for point in points],
        fmt=marker,
        color=colour,
        markersize=11 if marker == "*" else 6,
        markerfacecolor=page.background if bound else colour,
        elinewidth=1.1,
        capsize=2.5,
        label=label,
        zorder=4 if marker == "*" else 3,
    )


def _annotate(
    axes: Any, points: Sequence[Mapping[str, Any]], reward: str, colour: str, page: _Page, *, above: bool
) -> None:
    """Write beside each point the settings in which the points of its series differ, on one side of the line."""
    from matplotlib.patheffects import withStroke

    varied = [key for key in points[0]["extras"] if len({str(point["extras"].get(key)) for point in points}) > 1]
    for point in points:
        text = ", ".join(f"{key} {_short(point['extras'].get(key))}" for key in varied)
        if text:
            axes.annotate(
                text,
                (point["kl"], point["rewards"][reward]["value"]),
                xytext=(-6, 6) if above else (6, -11),
                ha="right" if above else "left",
                textcoords="offset points",
                fontsize=8,
                color=colour,
                path_effects=[withStroke(linewidth=2.5, foreground=page.background)],
                zorder=2.2,  # above the lines, below the points
            )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
