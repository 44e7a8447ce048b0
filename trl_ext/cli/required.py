# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What a command or method cannot run without: looked for before anything slow is imported, and again in what was parsed.

The first look takes the names that a command line and its YAML file mention; the parser checks that they exist, and
their values.
"""

import difflib
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trl_ext.commands import COMMANDS, MODEL, Required, example, missing
from trl_ext.method import Method, discover
from trl_ext.plugins import canonical
from trl_ext.validation import SettingErrors

from .config_file import read_config, split_config


HELP_FLAGS = ("--help", "-h", "--help_all", "--help-all")


def required_settings(name: str) -> tuple[Required, ...]:
    """What a command or a method needs; nothing if there is none of this name."""
    command = COMMANDS.get(canonical(name))
    methods = discover().methods
    if command is None:
        found = methods.get(canonical(name))
        return () if found is None else (MODEL, _dataset(found.method), *found.method.required)
    servers = tuple(setting for found in methods.values() for setting in found.method.server_settings)
    return tuple(replace(each, names=(*each.names, *servers)) if each.served else each for each in command.required)


def example_of(name: str) -> str:
    """
    A command that runs, over lines of at most 80 columns; empty if nothing is required, or there is no such command.
    """
    required, command = required_settings(name), COMMANDS.get(canonical(name))
    if not required:
        return ""
    flags: list[str] = []  # each with its values
    for word in shlex.split(example(name, required, f"--output_dir {name}" if command is None else command.example)):
        if flags and not word.startswith("--"):
            flags[-1] += f" {word}" if " " not in word else f' "{word}"'
        else:
            flags.append(word)
    lines = [f"  {flags[0]}"]
    for flag in flags[1:]:
        if len(lines[-1]) + len(flag) > 76:
            lines.append(f"      {flag}")
        else:
            lines[-1] += f" {flag}"
    return " \\\n".join(lines)


def check_words(name: str, arguments: Sequence[str]) -> None:
    """
    Raise a `ValueError` if a command line and its YAML file do not mention what is required.

    Args:
        name (`str`): The command or method.
        arguments (`Sequence[str]`): The words after it.
    """
    path, words = split_config(arguments)
    if not required_settings(name) or any(word in HELP_FLAGS for word in words):
        return
    refuse_argument(words[:1])
    check_required(name, {**(_underscored(read_config(path)) if path else {}), **_flags(words)})


def check_required(name: str, given: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names everything that is required and has no value, with an example."""
    required = required_settings(name)
    lacking = missing(required, given)
    if lacking:
        others = set(given).difference(*(each.names for each in required))
        problems = [f"{each.flags}: {each.meaning}{_instead(each.names, others)}" for each in lacking]
        title = f"{len(lacking)} required setting{' is' if len(lacking) == 1 else 's are'} missing:"
        raise SettingErrors(problems, title, f"For example:\n{example_of(name)}", always_list=True)


def refuse_argument(words: Sequence[str]) -> None:
    """Raise a `ValueError` if there are words and the first one is no flag."""
    if words and not words[0].startswith("-"):
        hint = f" (for a recipe: --config {words[0]})" if words[0].endswith((".yaml", ".yml")) else ""
        hint = " (write --help)" if words[0] == "help" else hint
        raise ValueError(f"unexpected argument '{words[0]}'{hint}")


def _dataset(method: Method) -> Required:
    sets = "ultrafeedback_binarized" if "completions" in method.columns else "ultrafeedback-prompt"
    return Required(
        ("dataset_name", "datasets"), "the dataset, by Hub id, directory or file of rows", f"trl-lib/{sets}"
    )


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """The flags of a command line, each with the word behind it, or `True` if another flag follows."""
    given: dict[str, Any] = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
        if word.startswith("--"):
            flag, has_value, value = word[2:].partition("=")
            given[flag] = value if has_value else True if following.startswith("--") else following
    return _underscored(given)


def _instead(names: Sequence[str], others: Iterable[str]) -> str:
    """A note on another flag that looks like one of these: `--model` for `--model_name_or_path`."""
    for name in sorted(others):
        meant = any(known.startswith(f"{name}_") for known in names)
        if meant or difflib.get_close_matches(name, names, n=1, cutoff=0.85):
            return f" (not '--{name}')"
    return ""
