# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Writes the tables, completions and plots of the tutorials, from the evaluations that their commands wrote.

    cp outputs/quickstart/evaluation.json docs/tutorials/rrhf.json    # after the commands of a tutorial
    python docs/build/tutorials.py

Tables and completions go between the marks of a page, plots beside it. A test compares both with the evaluations.
"""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_ext.evaluation.frontier import frontier, join
from trl_ext.evaluation.frontier_plot import plot_frontier
from trl_ext.evaluation.tables import number


TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
_BASE = "recipes/quickstart/models/imdb-2m"
# Tutorial -> its models, and what the page calls them: the base first, the one whose completions are shown last.
NAMES = {
    "rrhf": {
        _BASE: "base",
        f"{_BASE} best of 4": "best of 4",
        f"{_BASE} best of 16": "best of 16",
        "outputs/quickstart": "after RRHF",
    },
    "vas": {
        _BASE: "base",
        f"{_BASE} best of 4": "best of 4",
        f"{_BASE} best of 16": "best of 16",
        f"{_BASE} + quickstart_vas, beta 1": "weight 1",
        f"{_BASE} + quickstart_vas, beta 2": "weight 2",
        f"{_BASE} + quickstart_vas, beta 4": "weight 4",
    },
    "proxy_rlhf": {
        _BASE: "base",
        f"{_BASE} + untrained proxy": "untrained proxy",
        f"{_BASE} + quickstart-proxy": "trained proxy",
    },
    "psle": {_BASE: "base", "outputs/quickstart-psle": "after PSLE"},
}
PLOTS = {**{name: [name] for name in NAMES}, "index": list(NAMES)}  # plot -> whose evaluations it has
COLUMNS = {"kl": "KL to base (nats)", "perplexity": "perplexity", "distinct_2": "distinct-2", "ended": "ended"}


def read(tutorial: str) -> dict[str, Any]:
    """The evaluation of a tutorial."""
    return json.loads((TUTORIALS / f"{tutorial}.json").read_text(encoding="utf-8"))


def results(report: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The table of models: their reward and what it cost, with standard errors over prompts."""
    [reward] = report["comparison"]["rewards"]
    columns = {f"reward/{reward}": "reward", **COLUMNS}
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for row in report["models"]:
        cells = [_cell(row, key) for key in columns]
        lines.append(f"| {names[row['model']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key == "kl" and "kl_bound" in row:
        return f"at most {row['kl_bound']:.2f}"
    return number(row[key], row[f"{key}_se"]).replace("-", "−") if row[key] else "0"


def completions(report: Mapping[str, Any], names: Mapping[str, str], shown: list[str]) -> str:
    """The first prompts, each with a completion and its reward of each of the models that are `shown`."""
    lines = []
    for entry in report["completions"]:
        lines += [f"**{_inline(entry['prompt'])}** …", ""]
        for model in shown:
            found = entry["models"][model]
            [reward] = found["rewards"].values()
            lines.append(f"- {names[model]}, reward {_signed(reward)}: … {_inline(found['completion'])}")
        lines.append("")
    return "\n".join(lines).strip()


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _inline(text: str) -> str:
    """A text on one line, whose signs are not read as Markdown."""
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def page(tutorial: str) -> str:
    """The page of a tutorial with what belongs between its marks."""
    report, text = read(tutorial), (TUTORIALS / f"{tutorial}.md").read_text(encoding="utf-8")
    names = NAMES[tutorial]
    base, *_, last = names
    for mark, content in (
        ("results", results(report, names)),
        ("completions", completions(report, names, [base, last])),
    ):
        begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def plot(name: str, folder: Path = TUTORIALS) -> list[Path]:
    """Plot the frontier of a tutorial, or of all, as `trl-ext frontier` does, for a light and for a dark page."""
    joined = join({f"{tutorial}.json": read(tutorial) for tutorial in PLOTS[name]})
    data = frontier(joined.rows, joined.base, joined.sampling)
    files = [folder / f"{name}.png", folder / f"{name}-dark.png"]
    for file in files:
        plot_frontier(data, str(file), dark=file.stem.endswith("-dark"))
    return files


if __name__ == "__main__":
    for name in NAMES:
        (TUTORIALS / f"{name}.md").write_text(page(name), encoding="utf-8")
    for name in PLOTS:
        plot(name)
