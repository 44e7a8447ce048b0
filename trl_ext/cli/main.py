# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The command `trl-ext`: which word does what, and how errors look. Heavy imports wait until a command needs them."""

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from trl_ext.method import Broken, Discovery, canonical, discover

from .errors import guarded


# Commands that are no method: what they do, and `main(argv) -> int` of the module that does it.
_COMMANDS = {
    "sample": ("draw completions for prompts, score them, write a data set", "trl_ext.cli.sample"),
    "best_of_n": ("draw n completions a prompt and write them, the best first", "trl_ext.cli.best_of_n"),
    "evaluate": ("measure models on prompts: reward, KL, perplexity, diversity", "trl_ext.cli.evaluate"),
    "generate": ("answer prompts, on the terminal while it is written", "trl_ext.cli.generate"),
    "chat": ("the same as a conversation", "trl_ext.cli.chat"),
    "methods": ("list the methods and the packages they come from", "trl_ext.cli.main"),
    "env": ("print what a bug report needs", "trl_ext.cli.env"),
}

_USAGE = """\
usage: trl-ext <method> [--config FILE.yaml] [--FIELD VALUE ...] [flags of accelerate launch]
       trl-ext <command> [--FIELD VALUE ...]

Alignment methods that TRL does not have, used as TRL's own.

methods:
{methods}

commands:
{commands}

`trl-ext <word> --help` prints every field of a method or command, `trl-ext --version` the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments. If not set, those of the process.

    Returns:
        `int`: exit status. 2 for a user's error, 130 for Ctrl-C.
    """
    # bitsandbytes advises to install kernels for a path that models.py switches off.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = arguments[0] if arguments else "--help"
    return guarded("trl-ext" if word.startswith("-") else f"trl-ext {word}", lambda: _dispatch(word, arguments[1:]))


def _dispatch(word: str, arguments: list[str]) -> int:
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
    if word == "methods":
        return _print_methods(arguments)
    if (command := canonical(word)) in _COMMANDS:
        return int(importlib.import_module(_COMMANDS[command][1]).main(arguments))
    discovery = discover()
    if discovery.find(word) is None:
        raise ValueError(_unknown(word, discovery))
    from . import train as cli_train

    return cli_train.main([word, *arguments])


def _help(discovery: Discovery) -> str:
    methods = {name: found.method.summary for name, found in discovery.methods.items()}
    commands = {name: summary for name, (summary, _) in _COMMANDS.items()}
    width = max(map(len, [*methods, *commands]))

    def table(rows: dict[str, str]) -> str:
        return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in rows.items()) or "  (none installed)"

    text = _USAGE.format(methods=table(methods), commands=table(commands))
    if discovery.broken:
        text += f"\nUnusable plug-ins: {len(discovery.broken)} (see trl-ext methods).\n"
    return text


def _print_methods(arguments: list[str]) -> int:
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
    for *cells, summary in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), summary]))
    if discovery.broken:
        print("\nnot usable:")
        for broken in discovery.broken:
            print(f"  {_describe(broken)}")
    return 0


def _unknown(word: str, discovery: Discovery) -> str:
    name = canonical(word)
    for broken in discovery.broken:
        if canonical(broken.name) == name:
            return f"the plug-in is not usable: {_describe(broken)}"
    words = sorted([*discovery.methods, *_COMMANDS])
    near = difflib.get_close_matches(name, words, n=3)
    if near:
        return f"there is no method or command '{word}'; did you mean {' or '.join(near)}?"
    return f"there is no method or command '{word}'; there are {', '.join(words)}"


def _describe(broken: Broken) -> str:
    return f"{broken.name} of {broken.source}: {broken.error}"
