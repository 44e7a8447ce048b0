# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The text of `--help`: an example, what is required, the settings of the command or method, and the most used others.

`--help_all` shows all of TRL's and transformers' settings as well: with them, a method has over three hundred.
"""

import argparse
import inspect
import shutil
import textwrap
from collections.abc import Iterable
from typing import Protocol

from trl_ext.upstream import parser_actions

from .required import example_of, required_settings


# Settings of TRL and transformers that most recipes have. The short help shows no others.
OFTEN_SET = (
    *("output_dir", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "bf16", "optim", "logging_steps", "report_to"),
    *("save_strategy", "save_steps", "resume_from_checkpoint", "eval_strategy", "push_to_hub"),
    *("dtype", "use_peft", "lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"),
)


class HasSettings(Protocol):
    """What the help needs of a [`~trl_ext.cli.parser.Parser`]."""

    prog: str
    name: str
    description: str | None
    epilog: str | None
    dataclass_types: list[type]


class Section:
    """A titled group of flags; `upstream` if TRL or transformers declare them."""

    def __init__(self, title: str, actions: Iterable[argparse.Action], upstream: bool = False) -> None:
        self.title, self.actions, self.upstream = title, list(actions), upstream


def help_text(parser: HasSettings, *, everything: bool) -> str:
    """
    The help of a command or method.

    Args:
        parser ([`~trl_ext.cli.parser.Parser`]): Its parser.
        everything (`bool`): Whether to show all settings of TRL and transformers too.
    """
    width = max(80, min(119, shutil.get_terminal_size().columns - 2))
    blocks = [f"usage: {parser.prog} [--config FILE.yaml] [--FIELD VALUE ...]"]
    if example := example_of(parser.name):
        blocks.append(f"example:\n{example}")
    blocks += [textwrap.fill(parser.description, width)] if parser.description else []
    actions = {each.dest: each for each in reversed(parser_actions(parser))}  # type: ignore[arg-type]
    required = {
        each.names[0]: f"required{''.join(f', or --{name}' for name in (*each.names[1:], *each.instead[:1]))}"
        for each in required_settings(parser.name)
        if each.names[0] in actions
    }
    shown = sections(parser, required)
    if required:
        shown.insert(0, Section("required", [actions[name] for name in required]))
    left_out = [] if everything else [section for section in shown if section.upstream]
    if left_out:
        often = {each.dest: each for section in left_out for each in section.actions if each.dest in OFTEN_SET}
        shown = [section for section in shown if not section.upstream]
        most_used = Section("often set, of TRL and transformers", [often[name] for name in OFTEN_SET if name in often])
        shown.insert(len(shown) - 1, most_used)  # the last are those that methods share
    for section in shown:
        entries = [_describe(action, width, required.get(action.dest, "")) for action in section.actions]
        blocks.append("\n".join([f"{section.title}:", *entries]))
    if left_out:
        rest = sum(len(section.actions) for section in left_out) - len(often)
        blocks.append(f"`{parser.prog} --help_all` shows {rest} more settings, of TRL and transformers.")
    blocks += [textwrap.fill(parser.epilog, width)] if parser.epilog else []
    return "\n\n".join(blocks) + "\n"


def sections(parser: HasSettings, without: Iterable[str] = ()) -> list[Section]:
    """
    The flags of a parser, a group for each of its dataclasses.

    Of a training config, the settings that the method declares come first of all, those that methods share after the
    other dataclasses of this package, and those of TRL and transformers last.
    """
    actions = {each.dest: each for each in reversed(parser_actions(parser))}  # type: ignore[arg-type]
    for name in ("help", argparse.SUPPRESS, *without):
        actions.pop(name, None)
    first: list[Section] = []
    ours: list[Section] = []
    shared: list[Section] = []
    theirs: list[Section] = []
    for cls in parser.dataclass_types:
        bases = [base for base in cls.__mro__ if "__annotations__" in vars(base)]
        names = [name for base in bases for name in inspect.get_annotations(base)]
        owners = {name: base for base in reversed(bases) for name in inspect.get_annotations(base)}
        fields = {name: actions[name] for name in dict.fromkeys(names) if name in actions}
        if not any(base.__name__ == "TrainingArguments" for base in bases):
            source = _library(cls)
            (theirs if source else ours).append(Section(f"{cls.__name__}{source}", fields.values(), bool(source)))
            continue
        package = cls.__module__.rpartition(".")[0] or cls.__module__  # a plug-in may be one module
        own = [name for name in fields if f"{owners[name].__module__}.".startswith(f"{package}.")]
        upstream = [name for name in fields if _library(owners[name])]
        both = [name for name in fields if name not in {*own, *upstream}]
        first.append(Section(f"{cls.__name__}, the settings of {parser.name}", map(fields.__getitem__, own)))
        shared.append(Section("settings that methods share", map(fields.__getitem__, both)))
        theirs.append(Section("TrainingArguments of transformers", map(fields.__getitem__, upstream), True))
    return [section for section in [*first, *ours, *shared, *theirs] if section.actions]


def _library(cls: type) -> str:
    """Whose class it is, for a title; empty if it is of this package or a plug-in's."""
    names = {"trl": " of TRL", "transformers": " of transformers"}
    return names.get(cls.__module__.partition(".")[0], "")


_COLUMN = 32  # where meanings begin


def _describe(action: argparse.Action, width: int, note: str = "") -> str:
    """A flag in one spelling, then its meaning, choices, and a note or the default."""
    flag = f"  {action.option_strings[0]} {_placeholder(action)}"
    choices = list(action.choices or [])
    default = getattr(action.default, "value", action.default)
    parts = (
        (action.help or "").replace("%%", "%"),
        f"One of: {', '.join(map(str, choices))}." if len(choices) > 6 else "",
        f"({note})" if note else f"(default: {'none' if default is None else default})",
    )
    lines = textwrap.wrap(" ".join(" ".join(parts).split()), width - _COLUMN, break_long_words=False)
    head = f"{flag:<{_COLUMN}}{lines.pop(0)}" if len(flag) < _COLUMN - 1 else flag
    return "\n".join([head, *(" " * _COLUMN + line for line in lines)])


def is_boolean(action: argparse.Action) -> bool:
    """Whether the value of a flag is true or false; with `nargs` "?", the flag alone means true."""
    return action.nargs == "?" or getattr(action.type, "__name__", "") == "string_to_bool"


def _placeholder(action: argparse.Action) -> str:
    """The placeholder of a flag's value in the help."""
    choices = [str(choice) for choice in action.choices or []]
    if 0 < len(choices) <= 6:
        return "{" + ",".join(choices) + "}"
    if is_boolean(action):
        return "[true|false]"
    kind = {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "VALUE")
    return f"{kind} ..." if action.nargs == "+" else kind
