# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What `trl-ext evaluate` shows and writes: a table of models, completions side by side, a JSON file."""

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
_WIDTH_OF_PIPES = 140  # rich takes 80 columns where there is no terminal, too few for the table


class Report:
    """
    What was found so far, in the file and for the screen.

    Args:
        prompts (`Sequence[Mapping[str, Any]]`): The rows that models are measured on.
        settings (`dict[str, Any]`): What to write beside the results.
        base (`str`, *optional*): The base model among those that will come.
        path (`str`, *optional*): JSON file to write.
        num_completions (`int`, *optional*, defaults to `4`): Prompts whose completions are shown.

    Attributes:
        rows (`list[dict]`): For each model `model`, the metrics of its [`~trl_ext.evaluation.evaluate.Evaluation`],
            `generation_seconds` (wall time of drawing the measured completions) and `notes`; where it is one of
            several settings `series` and `extras`; or `model` and `error`.
        failed (`bool`): Whether a model could not be measured or the file not be written.
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
        """Take in a measured model, with the `series` and `extras` of its policy, and write the file."""
        self._evaluations[model] = found
        of_policy = {key: value for key, value in (("series", series), ("extras", dict(extras or {}))) if value}
        seconds = {"generation_seconds": round(found.seconds, 3)}
        self.rows.append({"model": model, **of_policy, **found.metrics, **seconds, "notes": found.notes})
        self._write()

    def fail(self, model: str, reason: str) -> None:
        """Take in a model that could not be measured and write the file."""
        self.failed = True
        self.rows.append({"model": model, "error": reason})
        self._write()

    def completions(self) -> list[dict[str, Any]]:
        """For each of the first prompts `prompt` and `models`: by model its first `completion` and its `rewards`."""
        return [
            {
                "prompt": row["prompt"],
                "models": {
                    model: {
                        "completion": found.completions[index][0].text,
                        "rewards": {name: _finite(values[index][0]) for name, values in found.rewards.items()},
                    }
                    for model, found in self._evaluations.items()
                },
            }
            for index, row in enumerate(self.prompts[: self.num_completions])
        ]

    def show(self) -> None:
        """Print the completions side by side with the base's, below them the table of models, and the notes."""
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
        except OSError as error:  # a full disk, say: the table is still to be printed
            print(f"trl-ext evaluate: error: cannot write {self.path}: {error}", file=sys.stderr)
            self.failed = True


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_writable(path: str | None, flag: str) -> None:
    """
    Find out before hours of work whether a file can be written.

    A file is made beside it and removed: permissions alone do not say so of read-only, full or remote disks.

    Raises:
        `ValueError`: Its folder does not exist or cannot be written to, or it is a folder itself.
    """
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"the folder of --{flag} does not exist: {folder}")
    if Path(path).is_dir():
        raise ValueError(f"--{flag} is a folder, name a file in it: {path}")
    try:
        with NamedTemporaryFile(dir=folder, prefix=".trl-ext-") as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise ValueError(f"--{flag} cannot be written in {folder} ({error.strerror}): name another file") from error


def write_json(path: str, data: Any) -> None:
    """
    Write `data` to `path` in one piece: whatever happens, there is the old file or the new one.

    Raises:
        `OSError`: The file cannot be written, for instance because the disk is full.
    """
    write_text(Path(path), json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _models_table(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Table:
    rewards = dict.fromkeys(key for row in rows for key in row if key.startswith("reward/") and key + "_se" in row)
    keys = [*rewards, *_HEADINGS]
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
    digits = min(3, max(1, 1 - math.floor(math.log10(se)))) if se > 0 else 3  # two figures of the error
    return f"{value:.{digits}f} ± {se:.{digits}f}"


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
    if isinstance(prompt, str):
        return Text(prompt)
    return Text("\n".join(f"{message['role']}: {message.get('content')}" for message in prompt))


def _completion_text(shown: Mapping[str, Any]) -> Text:
    text = Text(shown["completion"].strip())  # Text, since completions may hold rich's own markup
    for name, value in shown["rewards"].items():
        text.append(f"\n{name} " + ("-" if value is None else f"{value:.2f}"), style="dim")
    return text


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last components of paths and ids, as many as tell them apart: `run/a/last` and `run/b/last` lose `run`."""
    parts = {name: [part for part in name.split("/") if part] or [name] for name in names}
    for length in range(1, 1 + max(map(len, parts.values()), default=0)):
        short = {name: "/".join(of[-length:]) for name, of in parts.items()}
        if len(set(short.values())) == len(parts):
            return short
    return {name: name for name in names}
