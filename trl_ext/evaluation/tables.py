# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The tables that are printed of evaluations: models with their metrics, and completions by prompt.

They fit a terminal of 80 columns: names are broken between words, standard errors are below their values, and columns
that do not fit are in a further table.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from trl_ext.data.messages import lines_of


# Headings of metrics, in the order of the columns. Rewards and what their functions log come first.
HEADINGS = {
    "kl": "KL to base (nats)",
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "completion_length": "length (tokens)",
    "ended": "ended",
    "guided_tokens": "guided tokens",
}
_WHERE_KNOWN = ("guided_tokens",)  # no column where no model has them
_PROMPT_LENGTH = 400  # characters of a prompt that are printed; the file has all
_NAME_WIDTH = 24  # of the column of models
_HEADING_WIDTH = 10
_PADDING = 2  # of a column


def metrics_of(rows: Iterable[Mapping[str, Any]], others: Sequence[str] = tuple(HEADINGS)) -> list[str]:
    """Keys of the metrics that rows have: each reward, beside it its difference to the base, and `others`."""
    rows = list(rows)
    found = dict.fromkeys(key for row in rows for key in row)
    known = [key for key in others if key not in _WHERE_KNOWN or key in found]
    rewards = []
    for key in found:
        if key.startswith("reward/") and f"{key}_se" in found:
            difference = key.replace("reward/", "difference/", 1)
            rewards += [key, *([difference] if difference in found else [])]
    return [*rewards, *(key for key in found if key.startswith("metric/")), *known]


def models_table(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], width: int, metrics: Sequence[str] | None = None
) -> Group:
    """
    A row for each model and a column for each metric; several tables if the columns do not fit.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): The `rows` of a [`~trl_ext.evaluation.report.Report`].
        labels (`Mapping[str, str]`): Names of the models as they are printed.
        width (`int`): Width of the terminal.
        metrics (`Sequence[str]`, *optional*): Keys of the metrics. By default all, see [`metrics_of`].
    """
    columns = {}
    for key in metrics_of(rows) if metrics is None else metrics:
        heading = "\n".join(_broken(line, _HEADING_WIDTH) for line in _heading(key))
        columns[key] = heading, [_cell(row, key) for row in rows]
    names = [_broken(labels[row["model"]], _NAME_WIDTH) for row in rows]
    name_width = max((_width(name) for name in ["model", *names]), default=0)
    tables = []
    for keys in _that_fit(columns, width - name_width - _PADDING):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        table.add_column("model", no_wrap=True, vertical="top")
        for key in keys:
            table.add_column(Text(columns[key][0]), justify="right", no_wrap=True)
        for index, name in enumerate(names):
            table.add_row(Text(name), *(columns[key][1][index] for key in keys))
        tables.append(table)
    return Group(*_separated(tables))


def _separated(tables: Sequence[Table]) -> Iterator[Table | Text]:
    yield Text("mean ± standard error over prompts", style="italic")
    for table in tables:
        yield Text("")
        yield table


def _that_fit(columns: Mapping[str, tuple[str, list[str]]], width: int) -> list[list[str]]:
    """The columns in groups that are not wider than `width`."""
    groups: list[list[str]] = [[]]
    used = 0
    for key, (heading, cells) in columns.items():
        needed = max(map(_width, [heading, *cells])) + _PADDING
        if groups[-1] and used + needed > width:
            groups.append([])
            used = 0
        groups[-1].append(key)
        used += needed
    return groups


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _heading(key: str) -> list[str]:
    kind, _, name = key.partition("/")
    if kind == "reward":
        return ["reward", name]
    if kind == "difference":
        return [name, "minus base"]
    return [HEADINGS.get(key, name or key)]


def _broken(text: str, width: int) -> str:
    """A text in lines of at most `width`, broken at spaces, and longer words after "/", "_", "-" and the like."""
    lines = [""]
    for word in text.split():
        parts = [word] if len(word) <= width else re.findall(r"[^/_.,=-]*[/_.,=-]+|[^/_.,=-]+", word)
        for index, part in enumerate(parts):
            space = " " if index == 0 and lines[-1] else ""
            if lines[-1] and len(lines[-1] + space + part) > width:
                lines.append(part)
            else:
                lines[-1] += space + part
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], key: str) -> str:
    if "error" in row:
        return "failed"
    if key == "kl" and "kl_bound" in row:
        return f"≤ {row['kl_bound']:.2f}"
    return number(row.get(key), row.get(f"{key}_se"), "\n")


def number(value: float | None, se: float | None, between: str = " ") -> str:
    """
    A value and its standard error with two significant digits of the error; "-" without a value.

    Args:
        value (`float`, *optional*): The value.
        se (`float`, *optional*): Its standard error.
        between (`str`, *optional*, defaults to `" "`): What is between them.
    """
    if value is None:
        return "-"
    if se is None:
        return f"{value:.3f}"
    digits = min(3, max(1, 1 - math.floor(math.log10(se)))) if se > 0 else 3
    return f"{round(value, digits) + 0.0:.{digits}f}{between}± {se:.{digits}f}"  # adding 0.0 makes 0.0 of -0.0


def print_completions(console: Console, completions: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    """
    Print each prompt once, and below it the completions of all models.

    Args:
        console ([`~rich.console.Console`]): Where to print.
        completions (`Sequence[Mapping[str, Any]]`): From [`~trl_ext.evaluation.report.Report.completions`].
        labels (`Mapping[str, str]`): Names of the models as they are printed.
    """
    for entry in completions:
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_row(Text("prompt", style="bold"), prompt_text(entry["prompt"]))
        for model, shown in entry["models"].items():
            table.add_row()
            table.add_row(Text(_broken(labels[model], _NAME_WIDTH), style="bold"), _completion_text(shown))
        console.print(table)
        console.rule(style="dim")


def prompt_text(prompt: Any) -> Text:
    """A prompt to be printed: the end of a long one, which the completions continue."""
    if not isinstance(prompt, str):
        prompt = lines_of(prompt)
    prompt = prompt.strip()
    return Text(prompt if len(prompt) <= _PROMPT_LENGTH else f"[...] {prompt[-_PROMPT_LENGTH:].lstrip()}")


def _completion_text(shown: Mapping[str, Any]) -> Text:
    text = Text(shown["completion"].strip())  # Text, because completions may contain rich's markup
    values = {name: "-" if value is None else f"{value:.2f}" for name, value in shown["rewards"].items()}
    for name, value in (values | shown.get("extra", {})).items():
        text.append(f"\n{name} {value}", style="dim")
    return text
