# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Which part of `chosen` and `rejected` is the prompt, for data without a column for it.

Messages: all that both share, but never the last message of the shorter one. Transcripts: up to the last mark of the
speaker who answers ("\n\nAssistant:") that both share. Other texts: up to the last word that both share, if an answer
is left to each and no other column could hold the prompt. TRL's `extract_prompt` compares letters: it cuts words, and
takes the first words of two answers that begin alike for a part of the prompt.
"""

import re
from typing import Any

from .chat_template import common_length
from .messages import is_messages
from .schema import DataError


# The beginning of a turn: a name at the start of a line, or the token of a chat template.
_ANSWERING = r"Assistant|ASSISTANT|AI|Bot|Chatbot|Answer|A|Response|TL;DR"
_SPEAKER = re.compile(
    r"(?:^|\n)[ \t]*(?:\#{1,4} ?|\*\*)?(?:(?P<name>" + _ANSWERING + r")|Human|HUMAN|User|USER|Question|Q|Instruction)"
    r":(?:\*\*)?\n*"
    r"|(?P<token><\|im_start\|>assistant\n|<\|assistant\|>\n?|<start_of_turn>model\n|\[/INST\]"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n)"
)
_METADATA = re.compile(
    r"(^|_|-)(ids?|idx|index|uuid|sources?|models?|category|categories|dataset|split|lang|language|domain|topic|subset"
    r"|type|task|tags?|url|date|time|created|license|hash|name|ratings?|scores?|ranks?|labels?|rationales?|critique"
    r"|feedback|status|worker|batch|author|margin)$"
)
_REMEDY = (
    "Name the column with the prompt, as in `columns: {prompt: question}` (on the command line `--columns "
    "prompt=question`)"
)


def split_pair(row: dict[str, Any], *, words: bool = False) -> tuple[Any, Any, Any]:
    """
    The prompt that `chosen` and `rejected` share, and what is left of each.

    Args:
        row (`dict`): A row with `chosen` and `rejected`, two texts or two lists of messages.
        words (`bool`, *optional*, defaults to `False`): Whether shared words are the prompt even if other columns have
            texts that could be it.

    Raises:
        `DataError`: It is not clear where the prompt ends. The message lists the columns and shows the setting.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if is_messages(chosen) and is_messages(rejected):
        shared = shared_messages(chosen, rejected)
        if all(message["role"] == "system" for message in chosen[:shared]):
            raise DataError(
                f"{_lacks_prompt(row)}, and `chosen` and `rejected` share no user's message. {_columns(row)}."
            )
        return chosen[:shared], chosen[shared:], rejected[shared:]
    end = transcript_end(chosen, rejected)
    if end == 0:
        others = [] if words else text_columns(row)
        if others:
            names = " or ".join(map(repr, others))
            raise DataError(
                f"`chosen` and `rejected` are no transcripts, and {names} may hold the prompt. {_columns(row)}; if "
                "there is none, remove these columns or set `dataset_format: implicit_prompt`."
            )
        end = words_end(chosen, rejected)
    if end == 0:
        raise DataError(
            f"{_lacks_prompt(row)}, and `chosen` and `rejected` do not begin with words that end before two different "
            f"answers. {_columns(row)}, or remove the row."
        )
    return chosen[:end], chosen[end:], rejected[end:]


def shared_messages(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> int:
    """Number of leading messages that are equal, without the last of the shorter list: an answer has to be left."""
    limit = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(limit) if chosen[i] != rejected[i]), max(limit, 0))


def transcript_end(chosen: str, rejected: str) -> int:
    """Where the prompt of two transcripts ends: behind the last shared mark of a speaker. 0 if they share none."""
    marks = list(_SPEAKER.finditer(chosen[: common_length(chosen, rejected)]))
    # Line breaks behind a name belong to the prompt, as far as both texts have them.
    answering = [mark.end() for mark in marks if mark["name"] or mark["token"]]
    return (answering or [mark.end() for mark in marks] or [0])[-1]


def words_end(chosen: str, rejected: str) -> int:
    """Where the last word ends that both texts share, if both go on. 0 if there is no such word."""
    end = common_length(chosen, rejected)
    if end == min(len(chosen), len(rejected)):
        return 0  # one is the beginning of the other: the answers cannot be told apart from the prompt
    while end and not chosen[end - 1].isspace():
        end -= 1
    if chosen[end - 1 : end] == " ":  # the space before a word belongs to its token
        end -= 1
    return end if chosen[:end].strip() else 0


def text_columns(row: dict[str, Any]) -> list[str]:
    """Columns that may hold a prompt: texts or messages, apart from the pair, and from ids, scores and the like."""
    return [
        name
        for name, value in row.items()
        if name not in ("chosen", "rejected", "tools")
        and not _METADATA.search(name.lower())
        and (is_messages(value) or (isinstance(value, str) and bool(value.strip())))
    ]


def _lacks_prompt(row: dict[str, Any]) -> str:
    return "the prompt is nothing (null)" if "prompt" in row else "there is no column for the prompt"


def _columns(row: dict[str, Any]) -> str:
    return f"The columns are {', '.join(map(repr, row))}. {_REMEDY}"
