# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The report of `trl-ext evaluate`: a JSON file and a Parquet file of completions, and what is printed."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.text import Text

from .completions import completion_rows, completions_file, write_completions
from .evaluate import Evaluation
from .files import short_names, write_json
from .metrics import finite, paired_difference
from .tables import models_table, print_completions


class Report:
    """
    Collects evaluations, writes them to files after each of them, and prints them.

    Args:
        prompts (`Sequence[Mapping[str, Any]]`): The rows that models are evaluated on.
        settings (`dict[str, Any]`): Settings of the evaluation, to be written beside the results.
        base (`str`, *optional*): Name of the base model.
        path (`str`, *optional*): JSON file to write. All completions go to a Parquet file beside it.
        num_completions (`int`, *optional*, defaults to `4`): Number of prompts whose completions are shown.
        comparison (`dict[str, Any]`, *optional*): What has to be equal for two reports to be compared, see
            [`~trl_ext.evaluation.comparison`].

    Attributes:
        rows (`list[dict]`): For each model `model`, the metrics of its [`~trl_ext.evaluation.evaluate.Evaluation`],
            `difference/<reward>` (to the base, paired by prompt, with its standard error), `generation_seconds` (wall
            time of generating the evaluated completions), `notes` and those of `DESCRIPTION` that it has. For a
            model whose evaluation failed, `model` and `error`.
        failed (`bool`): Whether an evaluation failed or a file could not be written.
    """

    def __init__(
        self,
        prompts: Sequence[Mapping[str, Any]],
        settings: dict[str, Any],
        *,
        base: str | None = None,
        path: str | None = None,
        num_completions: int = 4,
        comparison: dict[str, Any] | None = None,
    ) -> None:
        self.prompts, self.settings, self.base, self.path = prompts, settings, base, path
        self.num_completions, self.comparison = num_completions, comparison
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        self._evaluations: dict[str, Evaluation] = {}
        self._tables: list[pa.Table] = []

    def add(self, model: str, found: Evaluation, **described: Any) -> None:
        """
        Add the evaluation of a model, and write the files.

        Args:
            model (`str`): Name of the model.
            found ([`~trl_ext.evaluation.evaluate.Evaluation`]): Its evaluation.
            described: Those of `DESCRIPTION` (in `completions.py`) that its policy has; empty ones are left out.
        """
        self._evaluations[model] = found
        described = {key: value for key, value in described.items() if value}
        seconds = {"generation_seconds": round(found.seconds, 3)}
        metrics = {**found.metrics, **self._differences(model, found)}
        self.rows.append({"model": model, **described, **metrics, **seconds, "notes": found.notes})
        if self.path is not None:
            self._tables.append(completion_rows(self.prompts, model, described, found))
        self._write()

    def fail(self, model: str, reason: str) -> None:
        """Add a model whose evaluation failed, and write the files."""
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
                rewards = {name: finite(values[index][0]) for name, values in found.rewards.items()}
                models[model] = {"completion": found.completions[index][0].text, "rewards": rewards}
                if found.extra:
                    models[model]["extra"] = {name: _plain(values[index][0]) for name, values in found.extra.items()}
            entries.append({"prompt": row["prompt"], "models": models})
        return entries

    def show(self) -> None:
        """Print the first completions of each prompt, then the table of models, then the notes."""
        if not self._evaluations:
            return
        console = Console()
        short = short_names([row["model"] for row in self.rows])
        labels = {model: name + (" (base)" if model == self.base else "") for model, name in short.items()}
        print_completions(console, self.completions(), labels)
        console.print(models_table(self.rows, labels, console.width))
        for row in self.rows:
            notes = {"failed": row["error"]} if "error" in row else row["notes"]
            for key, note in notes.items():
                console.print(Text(f"{short[row['model']]}, {key}: {note}"))

    def _differences(self, model: str, found: Evaluation) -> dict[str, float | None]:
        """Each reward minus that of the base, paired by prompt."""
        base = None if model == self.base or self.base is None else self._evaluations.get(self.base)
        differences: dict[str, float | None] = {}
        for name, values in found.rewards.items() if base is not None else ():
            if base is not None and name in base.rewards:
                value, se = paired_difference(values, base.rewards[name])
                differences |= {f"difference/{name}": finite(value), f"difference/{name}_se": finite(se)}
        return differences

    def _write(self) -> None:
        if self.path is None or not self._evaluations:
            return
        content = {
            "settings": self.settings,
            "comparison": self.comparison,
            "models": self.rows,
            "completions": self.completions(),
        }
        try:
            write_completions(completions_file(self.path), self._tables)
            write_json(self.path, content)
        except OSError as error:  # such as a full disk: continue, so that the table is printed
            print(f"trl-ext evaluate: error: cannot write {self.path}: {error}", file=sys.stderr)
            self.failed = True


def _plain(value: Any) -> Any:
    """A value that JSON has, or its text."""
    if isinstance(value, float):
        return finite(value)
    return value if isinstance(value, str | int | None) else str(value)
