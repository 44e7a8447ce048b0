# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Dataclasses from a YAML file and flags, as TRL reads them, but nothing that is misspelt or mistyped passes."""

import argparse
import dataclasses
import difflib
import inspect
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, get_type_hints

from trl import TrlParser

from trl_ext.upstream import parser_actions
from trl_ext.validation import convert


@dataclasses.dataclass(frozen=True)
class Extra:
    """
    What the dataclasses have no field for.

    Attributes:
        config (`dict[str, Any]`):
            Keys of the YAML file with their values.
        flags (`list[str]`):
            Words of the command line, in order.
        config_path (`str`):
            The YAML file, or `""`.
    """

    config: dict[str, Any]
    flags: list[str]
    config_path: str


class Parser(TrlParser):
    """
    A [`~trl.TrlParser`] that is strict.

    Unlike TRL's, it checks the types and choices of values from the YAML file, names the key, the file and the nearest
    field in its errors, takes no abbreviations, and prints one line instead of a page of usage.

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
        super().__init__(
            list(dataclass_types),
            prog=prog,
            allow_abbrev=False,
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
        )

    def parse_args_and_config(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **unsupported: Any
    ) -> tuple[Any, ...]:
        """
        One instance per dataclass, from flags and the file that `--config` names; flags win.

        Raises:
            `ValueError`: an unknown key or flag, a value of the wrong type, a file that is no YAML mapping.
            `OSError`: the file cannot be read.
        """
        if unsupported:
            raise TypeError(f"the strict parser takes no {', '.join(sorted(unsupported))}")
        namespace, extra = self.parse_words(args)
        for key in extra.config:
            raise ValueError(self.unknown_key(key, extra.config_path))
        for word in extra.flags:
            raise ValueError(self.unknown_flag(word))
        return self.build(namespace)

    def parse_words(self, args: Sequence[str] | None = None) -> tuple[argparse.Namespace, Extra]:
        """The values of all fields, and the keys and flags that are no field. [`build`] makes the instances."""
        config_path, flags = split_config(sys.argv[1:] if args is None else args)
        config = read_config(config_path) if config_path else {}
        config.pop("env", None)
        unknown = {key: value for key, value in config.items() if not self._set_default(key, value, config_path)}
        namespace, rest = self.parse_known_args(flags)
        return namespace, Extra(unknown, rest, config_path)

    def build(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """
        One instance per dataclass.

        Raises:
            `ValueError`: what a dataclass itself refuses.
        """
        return tuple(self._build(cls, namespace) for cls in self.dataclass_types)

    def unknown_key(self, key: str, config_path: str, more_words: Iterable[str] = ()) -> str:
        """The message for a key of the YAML file that nobody knows."""
        return f"{config_path}: unknown key '{key}'{self._nearest(key, more_words)}"

    def unknown_flag(self, word: str, more_words: Iterable[str] = ()) -> str:
        """The message for a word of the command line that nobody knows."""
        if not word.startswith("-"):
            hint = f" (for a recipe: --config {word})" if word.endswith((".yaml", ".yml")) else ""
            return f"unexpected argument '{word}'{hint}"
        flag = word.partition("=")[0]
        return f"unknown flag '{flag}'{self._nearest(flag.lstrip('-'), more_words, '--')}"

    def error(self, message: str) -> NoReturn:
        """Print one line and leave; argparse would print the usage of some hundred fields first."""
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        """The fields of the caller's dataclasses first, those that every `transformers` training has last."""
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_text(f"usage: {self.prog} [--config FILE.yaml] [--FIELD VALUE ...]")
        formatter.add_text(self.description)
        for title, actions in sections(self.dataclass_types, parser_actions(self)):
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _set_default(self, key: str, value: Any, config_path: str) -> bool:
        dest = str(key).replace("-", "_")
        actions = [action for action in parser_actions(self) if action.dest == dest and dest != "help"]
        for action in actions:
            try:
                off = value is None and any(dest in getattr(of, "none_is_zero", ()) for of in self.dataclass_types)
                action.default = 0 if off else convert(value, self._annotation(dest), action.choices)
            except ValueError as error:
                raise ValueError(f"{config_path}: `{key}` {error}") from None
            action.required = False
        return bool(actions)

    def _annotation(self, dest: str) -> Any:
        for cls in self.dataclass_types:
            if dest in {field.name for field in dataclasses.fields(cls)}:
                return get_type_hints(cls)[dest]
        return Any

    def _build(self, cls: type, namespace: argparse.Namespace) -> Any:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            return cls(**{name: value for name, value in vars(namespace).items() if name in names})
        except TypeError as error:  # a data set of the mixture with a key that does not exist
            raise ValueError(str(error)) from error

    def _nearest(self, word: str, more_words: Iterable[str], prefix: str = "") -> str:
        words = {action.dest for action in parser_actions(self)} | set(more_words) | {"config"}
        near = difflib.get_close_matches(word.replace("-", "_"), sorted(words), n=1, cutoff=0.6)
        return f"; did you mean '{prefix}{near[0]}'?" if near else f"; {self.prog} --help lists what there is"


def split_config(args: Sequence[str]) -> tuple[str, list[str]]:
    """
    Take `--config FILE` (or `--config=FILE`) out of a command line.

    Returns:
        `tuple[str, list[str]]`: the file, `""` if there is none, and the other words.

    Raises:
        `ValueError`: no file follows, or the flag is given twice.
    """
    found: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, has_value, value = word.partition("=")
        if flag == "--config":
            path = value if has_value else next(words, "")
            if not path or path.startswith("--"):
                raise ValueError("--config needs a file, e.g. --config recipe.yaml")
            found.append(path)
        else:
            rest.append(word)
    if len(found) > 1:
        raise ValueError(f"--config was given {len(found)} times ({', '.join(found)}); one file is read")
    return (found[0] if found else ""), rest


def read_config(path: str) -> dict[str, Any]:
    """
    The mapping in a YAML file.

    Raises:
        `ValueError`: no YAML (with line and column), no mapping, or a key twice.
        `OSError`: the file cannot be read.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, Loader=_unique_keys())
    except FileNotFoundError:
        raise FileNotFoundError(f"config file not found: {path}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"the config {path} is a folder: name a YAML file in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(config, dict):
        kind = "empty" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"{path} must contain a YAML mapping (`key: value` lines), but is {kind}")
    spelt: dict[str, Any] = {}
    for key in config:
        other = spelt.setdefault(str(key).replace("-", "_"), key)
        if other != key:
            raise ValueError(f"{path}: {other!r} and {key!r} are two spellings of one key: leave one of them out")
    return config


def _unique_keys() -> Any:
    """YAML's safe loader, but that of two equal keys of a mapping it does not silently take the last."""
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            # As it is written: later, what `<<` brings in stands beside what replaces it, as often as it is merged.
            node = super().compose_mapping_node(anchor)
            seen: set[Any] = set()
            for key, _ in node.value:
                if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"the key {key.value!r} comes twice, in line {key.start_mark.line + 1} again")
                seen.add((key.tag, key.value))
            return node

    return UniqueKeys


def set_environment(args: Sequence[str]) -> None:
    """
    Set the variables under `env:` in the YAML file of a command line, before anything reads them.

    Raises:
        `ValueError`: `env` is no mapping.
    """
    path, _ = split_config(args)
    variables = read_config(path).get("env") if path else None
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise ValueError(f"{path}: `env` must be a mapping of variables to values, got {variables!r}")
    os.environ.update({str(key): str(value) for key, value in variables.items()})


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
