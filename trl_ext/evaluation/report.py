# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The report of `trl-ext evaluate`: a table of models, their completions side by side, and a JSON file."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.atomic_files import write_text

from .evaluate import Evaluation


_HEADINGS = {
    "kl": "KL to base\n(nats)",
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "completion_length": "length\n(tokens)",
    "ended": "ended",
}
_WIDTH_OF_PIPES = 140  # without a terminal rich uses 80 columns, which are too few for the table
_PROMPT_LENGTH = 400  # characters of a prompt in the printed table; the file has all


class Report:
    """
    Collects evaluations, writes them to a JSON file after each of them, and prints them.

    Args:
        prompts (`Sequence[Mapping[str, Any]]`): The rows that models are evaluated on.
        settings (`dict[str, Any]`): Settings of the evaluation, to be written beside the results.
        base (`str`, *optional*): Name of the base model.
        path (`str`, *optional*): JSON file to write.
        num_completions (`int`, *optional*, defaults to `4`): Number of prompts whose completions are shown.

    Attributes:
        rows (`list[dict]`): For each model `model`, the metrics of its [`~trl_ext.evaluation.evaluate.Evaluation`],
            `generation_seconds` (wall time of generating the evaluated completions), `notes` and, if it is one of
            several settings, `series` and `extras`. For a model whose evaluation failed, `model` and `error`.
        failed (`bool`): Whether an evaluation failed or the file could not be written.
    """

    def __init__(
        self,
        prompts: Sequence[Mapping[str, Any]],
        settings: dict[str, Any],
        *,
        base: str | None = None,
        path: str | None = None,
        num_completions: int = 4,
    ) -> None:
        self.prompts, self.settings, self.base, self.path = prompts, settings, base, path
        self.num_completions = num_completions
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        self._evaluations: dict[str, Evaluation] = {}

    def add(self, model: str, found: Evaluation, *, series: str = "", extras: Mapping[str, Any] | None = None) -> None:
        """Add the evaluation of a model, with the `series` and `extras` of its policy, and write the file."""
        self._evaluations[model] = found
        of_policy = {key: value for key, value in (("series", series), ("extras", dict(extras or {}))) if value}
        seconds = {"generation_seconds": round(found.seconds, 3)}
        self.rows.append({"model": model, **of_policy, **found.metrics, **seconds, "notes": found.notes})
        self._write()

    def fail(self, model: str, reason: str) -> None:
        """Add a model whose evaluation failed, and write the file."""
        self.failed = True
        self.rows.append({"model": model, "error": reason})
        self._write()

    def completions(self) -> list[dict[str, Any]]:
        """The first prompts: each with its `prompt`, and in `models` each model's first `completion` and `rewards`,
        and in `extra` what reward functions gave to `log_extra`.
        """
        entries = []
        for index, row in enumerate(self.prompts[: self.num_completions]):
            models = {}
            for model, found in self._evaluations.items():
                rewards = {name: _finite(values[index][0]) for name, values in found.rewards.items()}
                models[model] = {"completion": found.completions[index][0].text, "rewards": rewards}
                if found.extra:
                    models[model]["extra"] = {name: _plain(values[index][0]) for name, values in found.extra.items()}
            entries.append({"prompt": row["prompt"], "models": models})
        return entries

    def show(self) -> None:
        """Print each model's completions beside those of the base, then the table of models, then the notes."""
        if not self._evaluations:
            return
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH_OF_PIPES)
        short = short_names([row["model"] for row in self.rows])
        labels = {model: name + (" (base)" if model == self.base else "") for model, name in short.items()}
        base = [self.base] if self.base in self._evaluations else []
        for model in [name for name in self._evaluations if name not in base] or base:
            if self.num_completions:
                console.print(_completions_table(self.completions(), list(dict.fromkeys([*base, model])), labels))
        console.print(_models_table(self.rows, labels))
        for row in self.rows:
            notes = {"failed": row["error"]} if "error" in row else row["notes"]
            for key, note in notes.items():
                console.print(Text(f"{short[row['model']]}, {key}: {note}"))

    def _write(self) -> None:
        if self.path is None or not self._evaluations:
            return
        content = {"settings": self.settings, "models": self.rows, "completions": self.completions()}
        try:
            write_json(self.path, content)
        except OSError as error:  # such as a full disk: continue, so that the table is printed
            print(f"trl-ext evaluate: error: cannot write {self.path}: {error}", file=sys.stderr)
            self.failed = True


def _plain(value: Any) -> Any:
    """A value that JSON has, or its text."""
    if isinstance(value, float):
        return _finite(value)
    return value if isinstance(value, str | int | None) else str(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_writable(path: str | None, flag: str) -> None:
    """
    Check before a long evaluation that its output file can be written.

    This writes a temporary file to the same folder: permissions alone do not show whether a disk is read-only or full.

    Args:
        path (`str`, *optional*): The file. `None` is always valid.
        flag (`str`): Name of the flag, for the error.

    Raises:
        `ValueError`: The folder does not exist or cannot be written to, or `path` is a folder.
    """
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"the folder of --{flag} does not exist: {folder}")
    if Path(path).is_dir():
        raise ValueError(f"--{flag} is a folder, pass a file in it: {path}")
    try:
        with NamedTemporaryFile(dir=folder, prefix=".trl-ext-") as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise ValueError(f"--{flag} cannot be written in {folder} ({error.strerror}): pass another file") from error


def write_json(path: str, data: Any) -> None:
    """
    Write `data` to `path` as JSON, atomically.

    Raises:
        `OSError`: The file cannot be written, for instance because the disk is full.
    """
    write_text(Path(path), json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _models_table(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Table:
    rewards = dict.fromkeys(key for row in rows for key in row if key.startswith("reward/") and key + "_se" in row)
    logged = dict.fromkeys(key for row in rows for key in row if key.startswith("metric/"))
    keys = [*rewards, *logged, *_HEADINGS]
    table = Table(title="value ± standard error over prompts", title_justify="left")
    table.add_column("model", overflow="fold")
    for key in keys:
        table.add_column(Text(_HEADINGS.get(key, key.replace("/", "\n", 1))), justify="right", overflow="fold")
    for row in rows:
        cells = ["failed"] if "error" in row else [_cell(row.get(key), row.get(f"{key}_se")) for key in keys]
        if "kl_bound" in row:
            cells[keys.index("kl")] = f"≤ {row['kl_bound']:.2f}"
        table.add_row(Text(labels[row["model"]]), *cells)
    return table


def _cell(value: float | None, se: float | None) -> str:
    if value is None:
        return "-"
    if se is None:
        return f"{value:.3f}"
    digits = min(3, max(1, 1 - math.floor(math.log10(se)))) if se > 0 else 3  # two significant digits of the error
    return f"{round(value, digits) + 0.0:.{digits}f} ± {se:.{digits}f}"  # adding 0.0 makes 0.0 of -0.0


def _completions_table(
    completions: Sequence[Mapping[str, Any]], models: Sequence[str], labels: Mapping[str, str]
) -> Table:
    table = Table(show_lines=True)
    table.add_column("prompt", ratio=2)
    for model in models:
        table.add_column(Text(labels[model]), ratio=3)
    for entry in completions:
        table.add_row(_prompt_text(entry["prompt"]), *(_completion_text(entry["models"][m]) for m in models))
    return table


def _prompt_text(prompt: Any) -> Text:
    """A prompt for the printed table: the end of a long one, which the completions continue."""
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message['role']}: {message.get('content')}" for message in prompt)
    prompt = prompt.strip()
    return Text(prompt if len(prompt) <= _PROMPT_LENGTH else f"[...] {prompt[-_PROMPT_LENGTH:].lstrip()}")


def _completion_text(shown: Mapping[str, Any]) -> Text:
    text = Text(shown["completion"].strip())  # Text, because completions may contain rich's markup
    for name, value in shown["rewards"].items():
        text.append(f"\n{name} " + ("-" if value is None else f"{value:.2f}"), style="dim")
    for name, value in shown.get("extra", {}).items():
        text.append(f"\n{name} {value}", style="dim")
    return text


def short_names(names: Sequence[str]) -> dict[str, str]:
    """
    The last components of paths and ids, as many as are needed to distinguish them.

    For `run/a/last` and `run/b/last` these are `a/last` and `b/last`.
    """
    parts = {name: [part for part in name.split("/") if part] or [name] for name in names}
    for length in range(1, 1 + max(map(len, parts.values()), default=0)):
        short = {name: "/".join(of[-length:]) for name, of in parts.items()}
        if len(set(short.values())) == len(parts):
            return short
    return {name: name for name in names}
