# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts from the terminal, and answers on it. Answers are stdout's, all else is stderr's."""

import sys
from collections.abc import Iterator
from typing import Any

from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError
from trl_ext.inference.completer import Completer


def as_message(row: dict[str, Any], start: list[dict[str, str]] | None) -> dict[str, Any]:
    """The row with its text as the user's next message after those of `start`; as it is if that is `None`."""
    if start is None or not isinstance(row["prompt"], str):
        return row
    return row | {"prompt": [*start, {"role": "user", "content": row["prompt"]}]}


def answer_typed(
    completer: Completer, file: ResumableFile | None, start: list[dict[str, str]] | None, *, keep: bool
) -> None:
    """
    Answer each line of the input, until it ends.

    Args:
        completer ([`~trl_ext.inference.completer.Completer`]): What answers.
        file ([`~trl_ext.data.resumable_file.ResumableFile`], *optional*): Where the answers are written.
        start (`list[dict[str, str]]`, *optional*): Messages that a conversation begins with; `None` continues text.
        keep (`bool`): Whether each line goes on with the conversation.
    """
    messages, number, asked = start, 0 if file is None else file.rows, False
    for line in _lines(keep):
        asked = True
        if keep and line == "/reset":
            messages = start
            continue
        row = as_message({"prompt": line}, messages)
        try:
            answer = show_answer(completer, row, number)
        except (ValueError, DataError) as error:  # too long, say: what was said before is not to be lost for it
            print(f"{error}{' /reset begins anew.' if keep else ''}", file=sys.stderr)
            continue
        number += 1
        if keep:
            messages = [*row["prompt"], *answer["completions"][0]]
        if file is not None:
            file.append([answer])
    if not asked and not sys.stdin.isatty():
        raise ValueError("there are no prompts: pass --prompt or --dataset_name, or write some to the standard input.")


def _lines(keep: bool) -> Iterator[str]:
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"Ctrl-D ends{', /reset begins a new conversation' if keep else ''}.", file=sys.stderr)
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        if not terminal and not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def show_answer(completer: Completer, row: dict[str, Any], number: int, with_prompt: bool = False) -> dict[str, Any]:
    """Answer a row and print the answers while they are written."""
    several = len(completer.policies) > 1 or completer.settings.num_generations > 1
    if with_prompt:
        print(f"> {_text(row['prompt'])}")
    written = False

    def title(name: str) -> None:
        nonlocal written
        if written:
            print()
        written = True
        if several:
            print(f"[{name}]")

    answer = completer.one(row, number, lambda piece: print(piece, end="", flush=True), title)
    print(flush=True)
    return answer


def print_row(row: dict[str, Any]) -> None:
    """Print a row that is answered."""
    print(f"> {_text(row['prompt'])}")
    for index, completion in enumerate(row["completions"]):
        if "sources" in row:
            print(f"[{row['sources'][index]}]")
        print(_text(completion), flush=True)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else str(content[-1]["content"])
