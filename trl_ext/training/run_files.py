# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The files that every run leaves in `output_dir`: its settings, its metrics and the model card."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import logging

from trl_ext.atomic_files import write_text
from trl_ext.settings_file import RunSettings

from .run_settings import command_of, python_settings


logger = logging.get_logger(__name__)

SETTINGS = "config.yaml"
METRICS = "metrics.jsonl"


class RunFiles(TrainerCallback):
    """
    Writes `config.yaml` when training begins, a line of `metrics.jsonl` for each log, and the model card at the end.

    Only the main process writes. A trainer of an earlier phase shares it, and with it the files.

    Args:
        trainer ([`~trl_ext.training.trainer.ExtTrainer`]): The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.settings: RunSettings | None = None  # of the command, if that started the run
        self._trained = False
        self._file = _Lines(Path(trainer.args.output_dir) / METRICS)

    def run_settings(self) -> RunSettings:
        """The settings that repeat the run."""
        return python_settings(self.trainer) if self.settings is None else self.settings

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._trained = False
        folder = Path(self.trainer.args.output_dir)
        command = command_of(self.trainer)
        write_text(
            folder / SETTINGS,
            self.run_settings().text(
                f"{self.trainer._name}, trained by trl-ext",
                f"{command} --config {folder.resolve() / SETTINGS}" if command else "",
            ),
        )
        self._file.begin([_line(entry) for entry in state.log_history])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._file.append(_line(state.log_history[-1]))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._file.end()
        if args.output_dir == self.trainer.args.output_dir:  # not an earlier phase
            self._trained = True
            self.trainer.create_model_card()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._trained:  # the card has the new results
            self.trainer.create_model_card()


class _Lines:
    """
    A file of lines that grows while a run goes on.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own: int | None = None  # number of lines before those of this process, once it has written
        self._start: int | None = None  # number of lines before the training that is running

    def begin(self, earlier: list[str]) -> None:
        """
        Training begins. Lines of another run, and those after the checkpoint that this one resumes from, are removed.

        Args:
            earlier (`list[str]`): The lines of the checkpoint, empty if there is none.
        """
        lines = self._read()
        if earlier:
            found = [n for n, line in enumerate(lines) if line == earlier[-1]]
            lines = lines[: found[-1] + 1] if found else earlier
        elif self._start is not None:  # it begins again, with a smaller batch
            lines = lines[: self._start]
        else:
            lines = [] if self._own is None else lines[self._own :]
        self._start, self._own = len(lines), 0
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def append(self, line: str) -> None:
        """Add a line. A disk that is full does not end training."""
        try:
            if self._own is None:  # an evaluation without training, or before it
                self._own = len(self._read())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            data = f"{line}\n".encode()
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)  # the next line does not continue half a line
                    raise
        except OSError as error:
            logger.warning_once(f"{self.path} cannot be written to: {error}")

    def end(self) -> None:
        """Training has ended."""
        self._start = None

    def _read(self) -> list[str]:
        """The complete lines of the file."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        return text.split("\n")[:-1]


def _line(entry: dict[str, Any]) -> str:
    """A log as a line of JSON, step and epoch first. JSON has no NaN: it is null."""
    ordered = {name: entry[name] for name in ("step", "epoch") if name in entry} | entry
    return json.dumps({name: _number(value) for name, value in ordered.items()}, default=str)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
