# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The command `trl-ext`: runs the subcommand that the first word names, and imports the modules that it needs then."""

import difflib
import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from trl_ext.commands import COMMANDS, TRL_COMMANDS
from trl_ext.method import Discovery, discover
from trl_ext.plugins import Broken, canonical

from .config_file import set_environment
from .errors import guarded
from .required import check_words


_USAGE = """\
usage: trl-ext <method> [--config FILE.yaml] [--FIELD VALUE ...]
       trl-ext <command> [--FIELD VALUE ...]

example:
  trl-ext quickstart {first}

Alignment methods that TRL does not have, used in the same way as TRL's.

methods:
{methods}

commands:
{commands}

`trl-ext <method or command> --help` shows an example and the settings,
`trl-ext --version` prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments. If not set, those of the process.

    Returns:
        `int`: Exit status: 2 after an error that the user can correct, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = arguments[0] if arguments else "--help"
    return guarded("trl-ext" if word.startswith("-") else f"trl-ext {word}", lambda: _dispatch(word, arguments[1:]))


def _dispatch(word: str, arguments: list[str]) -> int:
    if word == "help" and arguments:  # `trl-ext help rrhf`
        word, arguments = arguments[0], ["--help"]
    if word in ("--help", "-h", "help"):
        print(_help(discover()), end="")
        return 0
    if word in ("--version", "-V"):
        import trl_ext

        print(f"trl-ext {trl_ext.__version__}")
        return 0
    # A user's reward functions lie in the working directory. Last, so that nothing there hides an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    command = COMMANDS.get(canonical(word))
    if command is None and (discovery := discover()).find(word) is None:
        raise ValueError(_unknown(word, discovery))
    set_environment(arguments)
    check_words(word, arguments)
    if command is None:
        from . import train

        return train.main([word, *arguments])
    module, function = command.run.split(":")
    return int(getattr(importlib.import_module(f"trl_ext.cli.{module}"), function)(arguments))


def _help(discovery: Discovery) -> str:
    methods = {name: found.method.summary for name, found in discovery.methods.items()}
    commands = {name: command.summary for name, command in COMMANDS.items()}
    width = max(map(len, [*methods, *commands]))
    text = _USAGE.format(
        first=next(iter(methods), "METHOD"),
        methods=_table(methods, width) or "  (none installed)",
        commands=_table(commands, width),
    )
    if discovery.broken:
        text += f"\nPlug-ins that cannot be used: {len(discovery.broken)} (see `trl-ext methods`).\n"
    return text


def _table(rows: dict[str, str], width: int, indent: str = "  ") -> str:
    """Names and what they are, in the columns of the terminal: lines end between words."""
    columns = max(80, shutil.get_terminal_size().columns)
    start = len(indent) + width + 2
    return "\n".join(
        textwrap.fill(text, columns, initial_indent=f"{indent}{name:<{width}}  ", subsequent_indent=" " * start)
        for name, text in rows.items()
    )


def print_methods(arguments: list[str]) -> int:
    """`trl-ext methods`."""
    if arguments in (["--help"], ["-h"]):
        print("usage: trl-ext methods\n\nList the methods, their papers, and the packages they come from.")
        return 0
    if arguments:
        raise ValueError(f"takes no arguments, got {' '.join(arguments)}")
    discovery = discover()
    rows = [("name", "paper", "from", "summary")] + [
        (name, found.method.paper or "-", found.source, found.method.summary)
        for name, found in discovery.methods.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    cells = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
    print(_table(dict(zip(cells, [row[3] for row in rows], strict=True)), len(cells[0]), indent=""))
    if discovery.broken:
        print("\nnot usable:")
        for broken in discovery.broken:
            print(f"  {_describe(broken)}")
    return 0


def _unknown(word: str, discovery: Discovery) -> str:
    if word.startswith("-"):
        return f"'{word}' comes after a method or a command, as in `trl-ext sample {word}`; trl-ext --help lists them"
    name = canonical(word)
    for broken in discovery.broken:
        if canonical(broken.name) == name:
            return f"the plug-in is not usable: {_describe(broken)}"
    words = sorted([*discovery.methods, *COMMANDS])
    if name in map(canonical, TRL_COMMANDS):
        trl = next(command for command in TRL_COMMANDS if canonical(command) == name)
        return f"'{word}' is a command of TRL: trl {trl}"
    near = difflib.get_close_matches(name, words, n=3)
    if near:
        return f"there is no method or command '{word}'; did you mean {' or '.join(near)}?"
    return f"there is no method or command '{word}'; there are {', '.join(words)}"


def _describe(broken: Broken) -> str:
    return f"{broken.name} of {broken.source}: {broken.error}"
