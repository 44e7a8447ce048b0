# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext completion`: a script that lets a shell complete methods, commands, flags, choices and files.

It is made of the parsers of all commands and installed methods, and imports nothing when the shell uses it. After a
plug-in or another TRL is installed, it is written again.
"""

import argparse
import importlib
from collections.abc import Sequence

import shtab

from trl_ext.commands import COMMANDS
from trl_ext.method import discover

from .recipes import quickstart_methods


SHELLS = ("bash", "zsh", "fish")
_HELP = """\
usage: trl-ext completion {bash,zsh,fish}

Print a script that lets a shell complete methods, commands, flags and files.
To use it in every new shell:

  bash  mkdir -p ~/.local/share/bash-completion/completions
        trl-ext completion bash \\
            > ~/.local/share/bash-completion/completions/trl-ext
  zsh   trl-ext completion zsh > FOLDER/_trl-ext     (a folder of your $fpath)
  fish  mkdir -p ~/.config/fish/completions
        trl-ext completion fish > ~/.config/fish/completions/trl-ext.fish

Write it again after you have installed a method or another version of TRL.
"""

# Settings whose value is a file or a folder, by the end of their name. A dataset or model may be one as well.
_PATHS = ("_file", "_dir", "_path", "config", "dataset_name", "reward_funcs", "judge_func", "rubric", "_output")


def main(argv: Sequence[str]) -> int:
    """`trl-ext completion`."""
    words = list(argv)
    if not words or words[0] in ("--help", "-h"):
        print(_HELP, end="")
        return 0
    if len(words) > 1 or words[0] not in SHELLS:
        raise ValueError(f"there are scripts for {', '.join(SHELLS)}, got {' '.join(words)!r}")
    print(script(words[0]))
    return 0


def script(shell: str) -> str:
    """
    The script for a shell.

    Args:
        shell (`str`): `"bash"`, `"zsh"` or `"fish"`.
    """
    return shtab.complete(command_line(), shell)


def command_line() -> argparse.ArgumentParser:
    """A parser of the whole command line: `trl-ext`, and below it each method and command with its flags."""
    from . import train

    root = argparse.ArgumentParser("trl-ext")
    root.add_argument("--version", action="store_true", help="print the version")
    words = root.add_subparsers()
    for name, found in discover().methods.items():
        below = words.add_parser(name, help=found.method.summary, add_help=False)
        _copy_flags(train.make_parser(found.method), below)
    for name, command in COMMANDS.items():
        below = words.add_parser(name, help=command.summary, add_help=False)
        if command.parser:
            module, function = command.parser.split(":")
            make_parser = getattr(importlib.import_module(f"trl_ext.cli.{module}"), function)
            _copy_flags(make_parser(f"trl-ext {name}"), below)
        else:
            below.add_argument("--help", action="help", help="show the help")
        for words_of in _words(name):
            below.add_argument(words_of[0], choices=words_of)
    return root


def _words(name: str) -> list[tuple[str, ...]]:
    """The words that follow a command that has no flags: choices for each place."""
    words: dict[str, list[tuple[str, ...]]] = {
        "completion": [SHELLS],
        "recipes": [("copy",)],
        "quickstart": [tuple(quickstart_methods())],
    }
    return words.get(name, [])


def _copy_flags(source: argparse.ArgumentParser, target: argparse.ArgumentParser) -> None:
    """Add the flags of a parser to another one, in one spelling, with the files that complete them."""
    from trl_ext.upstream import parser_actions

    from .help import is_boolean
    from .parser import Parser

    if isinstance(source, Parser):
        target.add_argument("--config", help="YAML file").complete = shtab.FILE  # type: ignore[attr-defined]
    for action in parser_actions(source):
        if not action.option_strings:  # files, as of `frontier`
            target.add_argument(action.dest, nargs=action.nargs).complete = shtab.FILE  # type: ignore[attr-defined]
            continue
        name = next(flag for flag in action.option_strings if flag.startswith("--"))
        if action.nargs == 0:
            target.add_argument(name, action="store_true", help=_sentence(action.help))
            continue
        choices = [str(choice) for choice in action.choices or []]
        if is_boolean(action) and not choices:
            choices = ["true", "false"]
        # One value each: after "+", bash would complete no further flag.
        copy = target.add_argument(name, choices=choices or None, help=_sentence(action.help))
        if name.endswith(_PATHS) and not choices:
            copy.complete = shtab.FILE  # type: ignore[attr-defined]


def _sentence(text: str | None) -> str:
    """The beginning of a help text, for the shells that show one beside each flag."""
    return " ".join((text or "").replace("%", " percent").split()).partition(". ")[0][:80]
