# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Settings in YAML files: read strictly, and written so that they repeat a run from any working directory, with absolute
paths and without secrets.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml


# What the numbers of a run depend on.
PACKAGES = ("trl-ext", "trl", "transformers", "torch", "peft", "datasets", "accelerate", "bitsandbytes", "tokenizers")

# Names, or ends of names, of settings that name files and folders to read; `path` is that of a dataset in TRL's
# `datasets`.
INPUTS = (
    *("path", "dataset_name", "reward_funcs", "accelerate_config", "datasets"),
    *("principles_file", "config_file", "data_files", "data_dir", "deepspeed", "guide"),
)
_OUTPUTS = ("output_dir", "logging_dir", "output_file")

_INDENTED: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "  "}

_SECRET = re.compile(r"(^|[_-])(token|secret|password|passwd|credentials?|authorization|cookie)$|api[_-]?key$", re.I)
_SPECIAL_TOKEN = re.compile(r"(pad|eos|bos|unk|sep|cls|mask|image|stop)_token")
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(_|$)", re.I)
_SECRET_VALUE = re.compile(r"\bhf_\w{20,}|\bsk-[\w-]{20,}|://[^/@\s]+@")


def versions() -> dict[str, str]:
    """The version of each of `PACKAGES` that is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "torch" in found and "torch" in sys.modules:
        found["torch"] = str(sys.modules["torch"].__version__)  # with the build (+cu130), which the metadata may omit
    return found


@dataclass
class RunSettings:
    """
    Settings that repeat a run, and what no setting expresses.

    Args:
        values (`dict[str, Any]`): The settings, as they would be written in YAML.
        notes (`list[str]`, *optional*): Sentences about what is missing among them.
    """

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any], notes: Iterable[str] = ()) -> "RunSettings":
        """
        Settings for a file: paths are made absolute, secrets and objects are replaced by notes.

        Args:
            values (`dict[str, Any]`): The settings, from a YAML file, from flags or from Python.
            notes (`Iterable[str]`, *optional*): Sentences about what is missing already.
        """
        made = cls({}, list(notes))
        for name, value in values.items():
            try:
                value = _without_secrets(name, plain(value), name, made.notes)
            except TypeError:
                made.notes.append(f"`{name}` is a Python object and is not written here: {_shortened(value)}")
                continue
            if value is not _LEFT_OUT:
                made.values[name] = _absolute(name, value)
        made.notes += _local_modules(values.get("reward_funcs"))
        return made

    def text(self, title: str, command: str = "") -> str:
        """
        The file.

        Args:
            title (`str`): What was run, for the first line.
            command (`str`, *optional*): The command that repeats the run. Empty if there is none.
        """
        lines = [f"{title}, {datetime.now().astimezone():%Y-%m-%d %H:%M %z}."]
        lines += ["To run it again:", f"  {command}"] if command else []
        lines += ["Settings that are not here have the defaults of these versions:"]
        lines += textwrap.wrap(", ".join(f"{name} {number}" for name, number in versions().items()), 100, **_INDENTED)
        lines += ["Not expressed by these settings:"] if self.notes else []
        lines += [f"  - {note}" for note in self.notes]
        comment = "\n".join(f"# {line}" for text in lines for line in text.splitlines())
        return f"{comment}\n\n{self.yaml()}"

    def yaml(self) -> str:
        """The settings alone."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=110) if self.values else ""


def nondefault(
    config: Any, filled_in: Collection[str] = (), given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """
    The fields of a dataclass that differ from their defaults.

    Args:
        config (`Any`): The instance.
        filled_in (`Collection[str]`, *optional*): Fields that the class sets itself where they have their defaults.
        given (`Mapping[str, Any]`, *optional*): What the constructor was called with, by which those are told apart.
    """
    found = {}
    for each in dataclasses.fields(config):
        default = each.default_factory() if callable(each.default_factory) else each.default
        values = [getattr(config, each.name)]
        if each.name in filled_in:
            values.append(given.get(each.name, default))
        if each.init and not any(value is default or getattr(value, "value", value) == default for value in values):
            found[each.name] = values[0]
    return found


def plain(value: Any) -> Any:
    """
    A value as YAML writes it.

    Raises:
        `TypeError`: It is an object that YAML has no form for.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str | Path):
        return str(value)
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = nondefault(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no form in YAML")


_LEFT_OUT = object()


def _without_secrets(name: str, value: Any, shown: str, notes: list[str]) -> Any:
    """A setting's value without the secrets in it, each of which becomes a note; `_LEFT_OUT` if it is one itself."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):  # the command line gives mappings as JSON
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        is_secret = _SECRET_VARIABLE.search if shown == "env" else _is_secret
        kept = {}
        for key, item in value.items():
            if item not in (None, "") and is_secret(key):
                notes.append(
                    f"`{shown}` had a value for `{key}`, a secret: set it again"
                    + (", or the variable in the environment." if shown == "env" else ".")
                )
                continue
            kept[key] = _without_secrets(key, item, f"{shown}.{key}", notes)
        return {key: item for key, item in kept.items() if item is not _LEFT_OUT}
    if isinstance(value, list):
        items = [_without_secrets(name, item, shown, notes) for item in value]
        return [item for item in items if item is not _LEFT_OUT]
    if value not in (None, "") and isinstance(value, str) and (_is_secret(name) or _SECRET_VALUE.search(value)):
        hint = "set HF_TOKEN in the environment" if "token" in name else "set it again"
        notes.append(f"`{shown}` was set to a secret: {hint}.")
        return _LEFT_OUT
    return value


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _SPECIAL_TOKEN.fullmatch(name)


def _absolute(name: str, value: Any) -> Any:
    """A setting's value with absolute paths, where it names files and folders."""
    if isinstance(value, list):
        return [_absolute(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(key, item) for key, item in value.items()}
    if not isinstance(value, str) or not value:
        return value
    path = os.path.abspath(os.path.expanduser(value))
    return path if name in _OUTPUTS or (name.endswith(INPUTS) and os.path.exists(path)) else value


def _local_modules(reward_funcs: Any) -> list[str]:
    """A note for each reward function by its dotted path that is found in the working directory only."""
    names = [reward_funcs] if isinstance(reward_funcs, str) else reward_funcs or []
    notes = []
    for name in names:
        first, dot, _ = str(name).partition(".")
        if dot and first.isidentifier() and (Path(first).is_dir() or Path(f"{first}.py").is_file()):
            notes.append(f"`reward_funcs`: {name} is imported from {os.getcwd()}: run the command there.")
    return notes


def _shortened(value: Any, limit: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def read_config(path: str) -> dict[str, Any]:
    """
    The mapping in a YAML file.

    Raises:
        `ValueError`: The file is not YAML (with line and column), not a mapping, or has a key twice.
        `OSError`: The file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, Loader=_UniqueKeys)  # a safe loader # noqa: S506
    except FileNotFoundError:
        raise FileNotFoundError(f"config file not found: {path}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"the config {path} is a folder: name a YAML file in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        kind = "empty" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"{path} must contain a YAML mapping (`key: value` lines), but is {kind}")
    spelt: dict[str, Any] = {}
    for key in config:
        other = spelt.setdefault(str(key).replace("-", "_"), key)
        if other != key:
            raise ValueError(f"{path}: {other!r} and {key!r} are two spellings of one key: remove one of them")
    return config


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but a key that appears twice in a mapping is an error; YAML keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Keys are compared as they are written: later, what `<<` merges stands beside the keys that override it.
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(
                    f"the key {key.value!r} appears twice, the second time in line {key.start_mark.line + 1}"
                )
            seen.add((key.tag, key.value))
        return node
