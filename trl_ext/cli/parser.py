# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Fills dataclasses from a YAML file and flags, as TRL does, and rejects unknown keys and values of a wrong type."""

import argparse
import dataclasses
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from trl import TrlParser

from trl_ext.data.load import file_type
from trl_ext.settings_file import INPUTS
from trl_ext.upstream import parser_actions
from trl_ext.validation import convert, did_you_mean, unknown_settings

from .config_file import read_config, split_config


class Parser(TrlParser):
    """
    A strict [`~trl.TrlParser`].

    Unlike TRL's, it checks types and choices of values in the YAML file, names the key, the file and the nearest field
    in its errors, takes no abbreviations, and raises a one-line error where argparse would print the usage.

    Args:
        dataclass_types (`Iterable[type]`):
            Dataclasses to fill, in the order in which they are returned.
        prog (`str`):
            The command, for messages.
        description (`str`, *optional*, defaults to `""`):
            First paragraph of the help.
        epilog (`str`, *optional*, defaults to `""`):
            Last paragraph of the help.
    """

    def __init__(self, dataclass_types: Iterable[type], prog: str, description: str = "", epilog: str = "") -> None:
        super().__init__(list(dataclass_types), prog=prog, allow_abbrev=False, description=description, epilog=epilog)
        self.given: set[str] = set()  # names of the fields that the command line or its YAML file sets
        self._config_path = ""
        self._from_file: dict[str, Any] = {}  # the inputs that the YAML file names
        self._named: list[str] = []  # the same in their order, with those that the file sets to null
        self._environment: dict[str, Any] = {}  # `env` of the YAML file

    def parse_args_and_config(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **unsupported: Any
    ) -> tuple[Any, ...]:
        """
        One instance per dataclass, from flags and the file that `--config` names; flags win.

        Raises:
            `ValueError`: An unknown key or flag, a value of the wrong type, a file that is not a YAML mapping.
            `OSError`: The file cannot be read.
        """
        if unsupported:
            raise TypeError(f"the strict parser takes no {', '.join(sorted(unsupported))}")
        namespace = self.parse_flags(args)
        self.check_files(namespace)
        return self.build(namespace)

    def parse_flags(self, args: Sequence[str] | None = None) -> argparse.Namespace:
        """The value of every flag, from the command line and its YAML file; [`build`] makes dataclasses of them."""
        config_path, flags = split_config(sys.argv[1:] if args is None else args)
        self._config_path = config_path
        unknown_keys, keys = [], []
        config = read_config(config_path) if config_path else {}
        self._environment = config.pop("env", None) or {}  # `set_environment` has read it
        for key, value in config.items():
            if not self._actions_of(str(key)):
                unknown_keys.append(str(key))
            else:
                value = _beside(config_path, str(key), value)
                self._set_default(str(key), value, config_path)
                keys.append(str(key).replace("-", "_"))
                if keys[-1].endswith(INPUTS):
                    self._from_file[keys[-1]] = value
            if value is not None:
                self.given.add(str(key).replace("-", "_"))
        written = {word.partition("=")[0] for word in flags}
        of_flags = [action.dest for action in parser_actions(self) if written & set(action.option_strings)]
        self.given |= set(of_flags)
        self._named = list(dict.fromkeys([*keys, *of_flags]))
        namespace, words = self.parse_known_args(flags)
        self._refuse_unknown(unknown_keys, config_path, words)
        return namespace

    def named_settings(self, namespace: argparse.Namespace) -> dict[str, Any]:
        """The settings that the YAML file or a flag names, `env` of the file first, with their values."""
        environment = {"env": self._environment} if self._environment else {}
        return environment | {name: getattr(namespace, name) for name in self._named}

    def check_files(self, namespace: argparse.Namespace) -> None:
        """Raises a `ValueError` if the YAML file names a file of rows or a template that exists nowhere."""
        for key, value in vars(namespace).items():
            if not isinstance(value, str) or self._from_file.get(key) != value:
                continue
            path = Path(value)
            if (path.suffix == ".jinja" or file_type(path)) and not path.expanduser().exists():
                folder = Path(self._config_path).parent
                raise ValueError(
                    f"{self._config_path}: `{key}`: there is no file {value!r}, neither in the working directory "
                    f"({Path.cwd()}) nor beside the recipe ({folder})"
                )

    def _refuse_unknown(self, keys: list[str], config_path: str, words: list[str]) -> None:
        """Raise a `ValueError` that names all unknown keys and flags at once."""
        refused: dict[str, str] = {}
        for cls in self.dataclass_types:
            refused |= getattr(cls, "refused_settings", {})
        if words and not words[0].startswith("-"):
            hint = f" (for a recipe: --config {words[0]})" if words[0].endswith((".yaml", ".yml")) else ""
            raise ValueError(f"unexpected argument '{words[0]}'{hint}")
        # The other words are values of flags that are unknown.
        written = [word.partition("=")[0] for word in words if word.startswith("--")] or words[:1]
        flags = {word.lstrip("-").replace("-", "_"): word for word in written}
        lines = [
            f"{config_path}: {line}"
            for line in unknown_settings(
                keys, refused, "`{}`".format, lambda key: f"unknown key '{key}'{self._nearest(key)}"
            )
        ]
        lines += unknown_settings(
            flags,
            refused,
            flags.__getitem__,
            lambda name: f"unknown flag '{flags[name]}'{self._nearest(name, '--')}",
        )
        if lines:
            raise ValueError("\n".join(lines))

    def build(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """
        One instance per dataclass.

        Raises:
            `ValueError`: A dataclass rejects its values.
        """
        return tuple(self._build(cls, namespace) for cls in self.dataclass_types)

    def other_flags(self, namespace: argparse.Namespace) -> dict[str, Any]:
        """The values of flags that are no field of a dataclass."""
        fields = {field.name for cls in self.dataclass_types for field in dataclasses.fields(cls)}
        return {name: value for name, value in vars(namespace).items() if name not in fields}

    def explain(self, name: str, text: str) -> None:
        """Replace the help of a flag that comes from elsewhere and has another default here."""
        for action in self._actions_of(name):
            action.help = text

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a bad value: raises a `ValueError`, without the usage text of some hundred fields."""
        raise ValueError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Each dataclass's own fields in its section; those of every `transformers` training come last."""
        width = max(80, min(119, shutil.get_terminal_size().columns - 2))
        blocks = [f"usage: {self.prog} [--config FILE.yaml] [--FIELD VALUE ...]"]
        blocks += [textwrap.fill(self.description, width)] if self.description else []
        for title, actions in sections(self.dataclass_types, parser_actions(self)):
            blocks.append("\n".join([f"{title}:", *(_describe(action, width) for action in actions)]))
        blocks += [textwrap.fill(self.epilog, width)] if self.epilog else []
        return "\n\n".join(blocks) + "\n"

    def _set_default(self, key: str, value: Any, config_path: str) -> None:
        dest, actions = key.replace("-", "_"), self._actions_of(key)
        if value is None and any(dest in getattr(cls, "none_is_zero", ()) for cls in self.dataclass_types):
            value = 0
        for action in actions:
            try:
                action.default = convert(value, self._annotation(action), action.choices)
            except ValueError as error:
                raise ValueError(f"{config_path}: `{key}` {error}") from None
            action.required = False

    def _actions_of(self, key: str) -> list[argparse.Action]:
        dest = key.replace("-", "_")
        return [action for action in parser_actions(self) if action.dest == dest and dest != "help"]

    def _annotation(self, action: argparse.Action) -> Any:
        for cls in self.dataclass_types:
            if action.dest in {field.name for field in dataclasses.fields(cls)}:
                return get_type_hints(cls)[action.dest]
        if action.nargs == 0:  # a switch
            return bool
        return action.type if isinstance(action.type, type) else Any

    def _build(self, cls: type, namespace: argparse.Namespace) -> Any:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            return cls(**{name: value for name, value in vars(namespace).items() if name in names})
        except TypeError as error:  # a dataset of the mixture has a key that does not exist
            raise ValueError(str(error)) from error

    def _nearest(self, word: str, prefix: str = "") -> str:
        words = {action.dest for action in parser_actions(self)} | {"config"}
        question = did_you_mean(word.replace("-", "_"), words, lambda name: f"'{prefix}{name}'")
        return question or f"; {self.prog} --help lists what there is"


def _beside(config_path: str, key: str, value: Any) -> Any:
    """The value of a key, with what lies beside the recipe and not in the working directory as a path to it."""
    if isinstance(value, list):
        return [_beside(config_path, key, item) for item in value]
    if isinstance(value, dict):
        return {name: _beside(config_path, str(name), item) for name, item in value.items()}
    if not isinstance(value, str) or not key.replace("-", "_").endswith(INPUTS) or Path(value).expanduser().exists():
        return value
    beside = Path(config_path).parent / value
    return str(beside) if beside.exists() else value


def sections(classes: Iterable[type], actions: Iterable[argparse.Action]) -> list[tuple[str, list[argparse.Action]]]:
    """
    Titled groups of flags: one per dataclass, and last the fields that every `transformers` training has.

    A class's own fields come before those of its base classes.
    """
    shown = {action.dest: action for action in reversed(list(actions)) if action.dest != "help"}
    titled: list[tuple[str, list[argparse.Action]]] = []
    training: list[argparse.Action] = []
    for cls in classes:
        own: list[argparse.Action] = []
        names = dict.fromkeys(name for base in cls.__mro__ for name in inspect.get_annotations(base) if name in shown)
        for name in names:
            (training if _is_upstream_training(cls, name) else own).append(shown[name])
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


_COLUMN = 32  # where meanings begin


def _describe(action: argparse.Action, width: int) -> str:
    """A flag in one spelling, then its meaning, choices and default."""
    flag = f"  {action.option_strings[0]} {_placeholder(action)}"
    choices = list(action.choices or [])
    default = getattr(action.default, "value", action.default)
    parts = (
        (action.help or "").replace("%%", "%"),
        f"One of: {', '.join(map(str, choices))}." if len(choices) > 6 else "",
        f"(default: {'none' if default is None else default})",
    )
    lines = textwrap.wrap(" ".join(" ".join(parts).split()), width - _COLUMN)
    head = f"{flag:<{_COLUMN}}{lines.pop(0)}" if len(flag) < _COLUMN - 1 else flag
    return "\n".join([head, *(" " * _COLUMN + line for line in lines)])


def _placeholder(action: argparse.Action) -> str:
    """The placeholder of a flag's value in the help."""
    choices = [str(choice) for choice in action.choices or []]
    if 0 < len(choices) <= 6:
        return "{" + ",".join(choices) + "}"
    if action.nargs == "?":  # a boolean: the flag alone means true
        return "[true|false]"
    kind = {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "VALUE")
    return f"{kind} ..." if action.nargs == "+" else kind
