# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Fills dataclasses from a YAML file and flags, as TRL does, and rejects unknown keys and values of a wrong type."""

import argparse
import dataclasses
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from trl_ext.data.load import file_type
from trl_ext.settings_file import INPUTS
from trl_ext.training.trl_settings import wrong_values
from trl_ext.upstream import parser_actions
from trl_ext.validation import SettingErrors, convert, did_you_mean, unknown_settings

from .config_file import read_config, split_config
from .help import help_text, is_boolean
from .required import check_required, refuse_argument


class Parser(TrlParser):
    """
    A strict [`~trl.TrlParser`].

    Unlike TRL's, it checks types and choices of values in the YAML file, names the key, the file and the nearest field
    in its errors, takes no abbreviations, shows everything that is wrong at once, and raises a `ValueError` where
    argparse would print the usage. A setting that may be a list takes several words on the command line.

    Args:
        dataclass_types (`Iterable[type]`):
            Dataclasses to fill, in the order in which they are returned.
        prog (`str`):
            The command, for messages. What its last word requires is in [`trl_ext.commands`], or in its `Method`.
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
            exit_on_error=False,
            description=description,
            epilog=epilog,
        )
        self.given: set[str] = set()  # names of the fields that the command line or its YAML file sets
        self._config_path = ""
        self._from_file: dict[str, Any] = {}  # the inputs that the YAML file names
        self._named: list[str] = []  # the same in their order, with those that the file sets to null
        self._environment: dict[str, Any] = {}  # `env` of the YAML file
        self.add_argument("--help_all", "--help-all", action=_HelpAll)
        self._text_or_list = [action for action in parser_actions(self) if self._may_be_list(action)]
        for action in self._text_or_list:
            action.nargs = "+"
        for action in parser_actions(self):
            if is_boolean(action):  # the flag alone means true, also where the default is neither
                action.nargs, action.const = "?", True

    @property
    def name(self) -> str:
        """The command or method, without `trl-ext`."""
        return self.prog.rpartition(" ")[2]

    def parse_args_and_config(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **unsupported: Any
    ) -> tuple[Any, ...]:
        """
        One instance per dataclass, from flags and the file that `--config` names; flags win.

        Raises:
            `ValueError`: An unknown key or flag, a value of the wrong type, a file that is not a YAML mapping, or a
                required setting that is missing.
            `OSError`: The file cannot be read.
        """
        if unsupported:
            raise TypeError(f"the strict parser takes no {', '.join(sorted(unsupported))}")
        namespace = self.parse_flags(args)
        self.check_files(namespace)
        return self.build(namespace)

    def parse_flags(self, args: Sequence[str] | None = None) -> argparse.Namespace:
        """
        The value of every flag, from the command line and its YAML file; [`build`] makes dataclasses of them.

        Raises:
            `ValueError`: Everything that is unknown, or has a value that it cannot have.
            `OSError`: The file cannot be read.
        """
        config_path, flags = split_config(sys.argv[1:] if args is None else args)
        self._config_path = config_path
        unknown_keys: list[str] = []
        keys: list[str] = []
        problems: list[str] = []
        config = read_config(config_path) if config_path else {}
        self._environment = config.pop("env", None) or {}  # `set_environment` has read it
        for key, value in config.items():
            name = str(key).replace("-", "_")
            if not self._actions_of(str(key)):
                unknown_keys.append(str(key))
                continue
            keys.append(name)
            if value is not None:
                self.given.add(name)
            value = _beside(config_path, str(key), value)
            try:
                self._set_default(str(key), value)
            except ValueError as error:
                problems.append(f"{config_path}: `{key}` {error}")
            if name.endswith(INPUTS):
                self._from_file[name] = value
        written = {word.partition("=")[0] for word in flags}
        of_flags = [action.dest for action in parser_actions(self) if written & set(action.option_strings)]
        self.given |= set(of_flags)
        self._named = list(dict.fromkeys([*keys, *of_flags]))
        namespace, words, wrong = self._parse_words(flags)
        refuse_argument(words)
        problems = [*self._unknown(unknown_keys, config_path, words), *problems, *wrong]
        for cls in self.dataclass_types:
            problems += wrong_values(namespace, getattr(cls, "restricted_settings", {}))
        if problems:
            raise SettingErrors(problems)
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

    def build(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """
        One instance per dataclass.

        Raises:
            `ValueError`: A required setting has no value, or a dataclass rejects its values.
        """
        check_required(self.name, vars(namespace))
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
        """The example, what is required, and the settings of this package; `--help_all` shows all others too."""
        return help_text(self, everything=False)

    def _parse_words(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
        """The values of flags, the words that belong to none, and what is wrong with values."""
        problems: list[str] = []
        words = self._joined(words)
        while True:
            try:
                namespace, rest = self.parse_known_args(words)
                break
            except argparse.ArgumentError as error:  # of the first wrong flag: without it, that of the next one
                problems.append(self._take_wrong_flag(words, error))
        for action in self._text_or_list:
            value = getattr(namespace, action.dest)
            if value is not action.default and len(value) == 1:  # a text and a list of it may differ in meaning
                setattr(namespace, action.dest, value[0])
        return namespace, rest, problems

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words; the values of a flag that takes several and is given several times follow its first one."""
        lists = {flag for action in parser_actions(self) if action.nargs == "+" for flag in action.option_strings}
        groups: list[list[str]] = []
        first: dict[str, list[str]] = {}
        for word in words:
            flag, has_value, value = word.partition("=")
            if flag in first:  # again
                group = first[flag]
                if "=" in group[0]:
                    group[:] = [flag, group[0].partition("=")[2], *group[1:]]
                group += [value] if has_value else []
                current = group
            elif word.startswith("--") or not groups:
                current = [word]
                groups.append(current)
                if flag in lists:
                    first[flag] = current
            else:
                current.append(word)
        return [word for group in groups for word in group]

    def _take_wrong_flag(self, words: list[str], error: argparse.ArgumentError) -> str:
        """Remove the flag that an error is about from the words, and return what is wrong with it."""
        action = next(each for each in parser_actions(self) if "/".join(each.option_strings) == error.argument_name)
        flags = action.option_strings
        start = next(index for index, word in enumerate(words) if word.partition("=")[0] in flags)
        end = start + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        flag, has_value, value = words[start].partition("=")
        values = [value] if has_value else words[start + 1 : end]
        del words[start:end]
        if not values:
            return f"{flag} needs a value"
        try:
            convert(values if action.nargs == "+" else values[0], self._annotation(action), action.choices)
        except ValueError as reason:
            return f"{flag} {reason}"
        return f"{flag}: {error.message}"

    def _unknown(self, keys: list[str], config_path: str, words: list[str]) -> list[str]:
        """What to say about unknown keys and flags."""
        refused: dict[str, str] = {}
        for cls in self.dataclass_types:
            refused |= getattr(cls, "refused_settings", {})
        # The other words are values of flags that are unknown.
        written = [word.partition("=")[0] for word in words if word.startswith("--")] or words[:1]
        flags = {word.lstrip("-").replace("-", "_"): word for word in written}
        return [
            *(
                f"{config_path}: {line}"
                for line in unknown_settings(
                    keys, refused, "`{}`".format, lambda key: f"unknown key '{key}'{self._nearest(key)}"
                )
            ),
            *unknown_settings(
                flags,
                refused,
                flags.__getitem__,
                lambda name: f"unknown flag '{flags[name]}'{self._nearest(name, '--')}",
            ),
        ]

    def _may_be_list(self, action: argparse.Action) -> bool:
        """Whether a setting may be a text or a list: on the command line, TRL's parser takes one word for it."""
        annotation = self._annotation(action)
        kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
        return action.nargs is None and str in kinds and any(get_origin(kind) is list for kind in kinds)

    def _set_default(self, key: str, value: Any) -> None:
        dest, actions = key.replace("-", "_"), self._actions_of(key)
        if value is None and any(dest in getattr(cls, "none_is_zero", ()) for cls in self.dataclass_types):
            value = 0
        for action in actions:
            action.default = convert(value, self._annotation(action), action.choices)
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


class _HelpAll(argparse.Action):
    """`--help_all`: the help with every setting."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        print(help_text(parser, everything=True), end="")  # type: ignore[arg-type]
        parser.exit()


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
