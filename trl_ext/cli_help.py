# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How `trl-ext <command> --help` looks: every field once, with meaning and default, grouped by where it comes from."""

import argparse
import dataclasses
import inspect
import shutil
from collections.abc import Iterable


class HelpFormatter(argparse.HelpFormatter):
    """One spelling of a flag, then its meaning, default and choices."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=max(80, min(119, shutil.get_terminal_size().columns - 2)))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._metavar(action)}"

    def _metavar(self, action: argparse.Action) -> str:
        if action.choices is not None and len(list(action.choices)) <= 6:
            return "{" + ",".join(str(choice) for choice in action.choices) + "}"
        kind = "N" if action.type is int else "X" if action.type is float else "VALUE"
        if action.nargs == "?":  # booleans: the bare flag means true
            kind = "[true|false]"
        return f"{kind} ..." if action.nargs == "+" else kind

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        if action.choices is not None and len(list(action.choices)) > 6:
            text += " One of: " + ", ".join(str(choice) for choice in action.choices) + "."
        if action.default is argparse.SUPPRESS:
            return text
        default = getattr(action.default, "value", action.default)
        shown = "none" if default is None else str(default).replace("%", "%%")
        return f"{text} (default: {shown})".strip()


def sections(classes: Iterable[type], actions: Iterable[argparse.Action]) -> list[tuple[str, list[argparse.Action]]]:
    """Titled groups of flags: one per dataclass, and last the fields that every `transformers` training has."""
    shown = {action.dest: action for action in reversed(list(actions)) if action.dest != "help"}
    titled: list[tuple[str, list[argparse.Action]]] = []
    training: list[argparse.Action] = []
    for cls in classes:
        own: list[argparse.Action] = []
        for field in dataclasses.fields(cls):
            if field.name in shown:
                (training if _is_upstream_training(cls, field.name) else own).append(shown[field.name])
        titled.append((cls.__name__, own))
    if training:
        titled.append(("TrainingArguments", training))
    return [section for section in titled if section[1]]


def _is_upstream_training(cls: type, name: str) -> bool:
    """Whether a field comes from transformers' or TRL's base config and is not declared again below them."""
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    if owner.__module__.partition(".")[0] not in ("transformers", "trl"):
        return False
    return any(base.__name__ == "TrainingArguments" for base in cls.__mro__)
