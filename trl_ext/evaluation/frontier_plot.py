# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The plot of a reward-KL frontier, for a column of a paper or a page.

Colours are those of methods. Every series has a marker of its own and lines have styles, so that the plot can be read
without colours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


# Colours of Okabe and Ito, which colour-blind people can distinguish, without those that are faint on white, and more.
_COLOURS = "#0072B2 #D55E00 #009E73 #AA4499 #8C6D00 #4B3F9E #882255 #44AA99 #8B4513 #666666".split()
# The same hues, light enough for a dark background.
_ON_DARK = "#56B4E9 #FF8C42 #2EC4A0 #D77FCB #E0B400 #A79BFF #F28CA5 #9BE8D8 #D9A066 #B8C0C8".split()
_MARKERS = (*"osD^vPX<>dp8h", (4, 1, 0), (6, 1, 0), (3, 1, 180))  # stars of 4, 6 and 3 rays
_LINES: tuple[Any, ...] = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_OF_BOUNDS = (0, (4, 2))  # dashes
_WIDTH, _HEIGHT = 4.0, 3.0  # of a panel, in inches
_FONT, _LEGEND, _SMALL = 8, 7, 6.5  # in points


@dataclass(frozen=True)
class _Page:
    """Colours of the background, the text, the grid and the methods."""

    background: str
    ink: str
    grid: str
    colours: list[str]


_LIGHT = _Page("white", "#222222", "#e3e3e3", _COLOURS)
_DARK = _Page("#0d1117", "#e6edf3", "#30363d", _ON_DARK)


@dataclass(frozen=True)
class _Style:
    """How a series is plotted; `line` is `"none"` if its points are not connected."""

    label: str
    colour: str
    marker: Any
    line: Any = "none"
    hollow: bool = False
    varied: tuple[str, ...] = ()

    def look(self, page: _Page) -> dict[str, Any]:
        """Arguments of a line of matplotlib for the markers."""
        return {
            "marker": self.marker,
            "color": self.colour,
            "markersize": 9 if self.marker == "*" else 5,
            "markerfacecolor": page.background if self.hollow else self.colour,
            "markeredgecolor": self.colour if self.hollow else page.background,
            "markeredgewidth": 1.1 if self.hollow else 0.5,
        }


def plot_frontier(data: Mapping[str, Any], path: str, *, title: str = "", dark: bool = False) -> None:
    """
    Plot a frontier: one panel per reward, one line per series, error bars of one standard error.

    Series of a method have its colour, and each its own marker. A line connects the settings of a series, whose values
    are beside the points, and starts at the base or at the untrained policy. If the KL is an upper bound, markers are
    hollow and the line is dashed, and the legend states it: the KL itself is further left. The plot has a background
    of its own, so that it is readable on pages of any colour.

    Args:
        data (`Mapping[str, Any]`): Result of [`~trl_ext.evaluation.frontier.frontier`].
        path (`str`): File to write, .png, .svg or .pdf.
        title (`str`, *optional*): Title of the plot.
        dark (`bool`, *optional*, defaults to `False`): Whether the background is dark.

    Raises:
        `ValueError`: There are no points.
        `OSError`: The file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not data["series"] or not data["rewards"]:
        raise ValueError("no model has both a KL and a reward")
    page, panels = _DARK if dark else _LIGHT, len(data["rewards"])
    styles = _styles(data, page)
    legend, columns = _in_columns(list(styles.values()), panels)
    note = str(data.get("note", "")).replace(". ", ".\n")
    lines = -(-len(legend) // columns) + len(note.splitlines())
    with rc_context({"font.size": _FONT, "svg.hashsalt": "trl-ext"}):
        size = (_WIDTH * panels, _HEIGHT + 0.165 * lines)
        figure = Figure(figsize=size, layout="constrained", facecolor=page.background)
        panel_axes = figure.subplots(1, panels, squeeze=False)[0]
        labels = [
            _plot_panel(axes, data, reward, page, styles)
            for axes, reward in zip(panel_axes, data["rewards"], strict=True)
        ]
        handles = [Line2D([], [], linestyle=style.line, label=style.label, **style.look(page)) for style in legend]
        below = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, labelcolor=page.ink, title=note,
            fontsize=_LEGEND, handlelength=2.6, labelspacing=0.3, columnspacing=1.0,
        )  # fmt: skip
        below.get_title().set(color=page.ink, fontsize=_SMALL, ha="center")
        if title:
            figure.suptitle(title, color=page.ink)
        figure.draw_without_rendering()  # labels are placed in the final layout
        for axes, texts in zip(panel_axes, labels, strict=True):
            _place(axes, texts, page)
        figure.savefig(path, dpi=240)


def _styles(data: Mapping[str, Any], page: _Page) -> dict[str, _Style]:
    """The style of each series: colours and lines by method, markers by series."""
    methods = list(dict.fromkeys(_method(series) for series in data["series"] if series["name"] != "base"))
    names = [series["name"] for series in data["series"]]
    markers = [name for name in names if name != "base"]
    styles = {}
    for series in data["series"]:
        if series["name"] == "base":
            styles["base"] = _Style("base", page.ink, "*")
            continue
        method = methods.index(_method(series))
        bound = any(point["bound"] for point in series["points"])
        varied = _varied(series["points"])
        styles[series["name"]] = _Style(
            label=_label(series, bound, varied),
            colour=page.colours[method % len(page.colours)],
            marker=_MARKERS[markers.index(series["name"]) % len(_MARKERS)],
            line=(_OF_BOUNDS if bound else _LINES[method % len(_LINES)])
            if varied or series.get("start") in names
            else "none",
            hollow=bound,
            varied=varied,
        )
    return styles


def _in_columns(styles: list[_Style], panels: int) -> tuple[list[_Style], int]:
    """The series in the order of the legend, and its number of columns: two, the short texts first, if they fit."""
    half = -(-len(styles) // 2)
    short = sorted(styles, key=lambda style: len(style.label))[:half]
    columns = [style for style in styles if style in short], [style for style in styles if style not in short]
    # 0.53 of the font's size is the mean width of a letter; beside a text there are 34 points for its line and marker.
    room = (_WIDTH * panels * 72 - 2 * 34) / (0.53 * _LEGEND)
    if len(styles) < 4 or sum(max(len(style.label) for style in column) for column in columns) > room:
        return styles, 1
    return [style for column in columns for style in column], 2


def _method(series: Mapping[str, Any]) -> str:
    return str(series.get("method") or series["name"])


def _varied(points: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The settings in which the points of a series differ."""
    keys = points[0]["extras"]
    return tuple(key for key in keys if len({str(point["extras"].get(key)) for point in points}) > 1)


def _label(series: Mapping[str, Any], bound: bool, varied: Sequence[str]) -> str:
    """The text in the legend: name, method, settings beside the points, and what the KL is if it is not as usual."""
    method = series.get("method", "")
    parts = [method] if method and method.lower() not in series["name"].lower() else []
    parts += [f"by {' and '.join(varied)}"] if varied else []
    parts += [series["truncation"]] if series.get("truncation") else []
    parts += ["KL: upper bound"] if bound else []
    return series["name"] + (f" ({', '.join(parts)})" if parts else "")


# A text beside a point: what, where in data coordinates, in which colour.
_Text = tuple[str, float, float, str]


def _plot_panel(
    axes: Any, data: Mapping[str, Any], reward: str, page: _Page, styles: Mapping[str, _Style]
) -> list[_Text]:
    """Plot the series of one reward, and return the texts to be placed beside their points."""
    _prepare(axes, data, reward, page)
    known = {
        series["name"]: [point for point in series["points"] if point["rewards"][reward]["value"] is not None]
        for series in data["series"]
    }
    texts: list[_Text] = []
    for series in data["series"]:
        points, style = known[series["name"]], styles[series["name"]]
        if not points:
            continue
        if style.line != "none":
            start = known.get(series.get("start") or "base", [])
            line = sorted([*start[:1], *points], key=lambda point: float(point["kl"]))
            xy = [(point["kl"], point["rewards"][reward]["value"]) for point in line]
            axes.plot(*zip(*xy, strict=True), color=style.colour, linewidth=1.1, linestyle=style.line, alpha=0.8)
        _plot_points(axes, points, reward, style, page)
        for point in points:
            text = ", ".join(_short(point["extras"].get(key)) for key in style.varied)
            if text:
                texts.append((text, point["kl"], point["rewards"][reward]["value"], style.colour))
    return texts


def _prepare(axes: Any, data: Mapping[str, Any], reward: str, page: _Page) -> None:
    axes.set_facecolor(page.background)
    axes.set_xlabel(f"{data['x']['name']} ({data['x']['unit']})", color=page.ink)
    axes.set_ylabel(f"{reward} ({data['y'].get('bars', 'mean ± 1 s.e.')})", color=page.ink)
    axes.grid(color=page.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=page.ink)
    axes.margins(x=0.06, y=0.08)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(page.ink)


def _plot_points(axes: Any, points: Sequence[Mapping[str, Any]], reward: str, style: _Style, page: _Page) -> None:
    axes.errorbar(
        [point["kl"] for point in points],
        [point["rewards"][reward]["value"] for point in points],
        yerr=[point["rewards"][reward]["se"] or 0.0 for point in points],
        xerr=[point["kl_se"] or 0.0 for point in points],
        linestyle="none",
        elinewidth=0.8,
        capsize=1.8,
        zorder=4 if style.marker == "*" else 3,
        **style.look(page),
    )


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_short(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value).removesuffix(".0")


# ------------------------------------------------------------------------------------------------- texts beside points


def _place(axes: Any, texts: Sequence[_Text], page: _Page) -> None:
    """Write each text where it covers no point, bar, line or other text, as near to its point as possible."""
    from matplotlib.patheffects import withStroke

    taken = list(_occupied(axes))
    for text, x, y, colour in texts:
        written = axes.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=_SMALL,
            color=colour,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=1.6, foreground=page.background)],
            zorder=5,
        )
        written.set_in_layout(False)
        best = None
        for offset in _offsets(len(text)):
            written.set_position(offset)
            box = written.get_window_extent()
            covered = sum(_overlap(box, other) for other in taken) + 10 * _outside(box, axes.bbox)
            if best is None or covered < best[0]:
                best = covered, offset, box
            if not covered:
                break
        if best is not None:
            written.set_position(best[1])
            taken.append(best[2])


def _offsets(length: int) -> Iterator[tuple[float, float]]:
    """Positions around a point, in points, the nearest first."""
    half = 0.3 * _SMALL * length
    sides = ((1, -1), (-1, 1), (1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (1, -0.5), (-1, 0.5))
    for distance in (6, 9, 13, 18, 24, 31):
        for dx, dy in sides:
            yield dx * (distance * (0.6 if dy else 1) + half), dy * distance


def _occupied(axes: Any) -> Iterator[Any]:
    """Boxes in pixels of the markers, the error bars and small parts of the lines."""
    import numpy as np
    from matplotlib.transforms import Bbox

    pixels = axes.figure.dpi / 72
    for line in axes.lines:
        xy = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        if line.get_linestyle() == "None":
            parts, half = xy, max(line.get_markersize() / 2, 1) * pixels
        else:
            parts = np.concatenate([np.linspace(a, b, 40) for a, b in pairwise(xy)] or [xy])
            half = 0.8 * pixels
        yield from (Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in parts)
    for bars in axes.collections:
        yield from (Bbox(axes.transData.transform(segment)).padded(0.6 * pixels) for segment in bars.get_segments())


def _overlap(first: Any, second: Any) -> float:
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _outside(box: Any, panel: Any) -> float:
    """Area of a box that is not in the panel."""
    return float(box.width * box.height) - _overlap(box, panel)
