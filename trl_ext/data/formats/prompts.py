# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats without scores: prompts, and prompts with an answer."""

from typing import Any

from ..messages import is_messages
from ..schema import as_completion
from .answer_lists import SCORE_LISTS
from .dataset_format import (
    CONVERSATIONS,
    PROMPT_COLUMNS,
    DatasetFormat,
    Row,
    has_prompt,
    has_system,
    last_answer,
    required_prompt,
    with_system,
)
from .single_answers import ANSWERS, SCORES


def _has_answer(row: Row) -> bool:
    return has_prompt(row) and any(isinstance(row.get(name), str) or is_messages(row.get(name)) for name in ANSWERS)


def _prompt_completion(row: Row) -> list[Row]:
    """One answer without a score."""
    prompt, column = required_prompt(row), next(name for name in ANSWERS if name in row)
    answer = row[column]
    if isinstance(answer, str):
        answer = as_completion({"prompt": prompt}, answer)
    return [{"prompt": prompt, "completions": [answer], "ended": [True]}]


def _column(row: Row) -> str:
    return next(name for name in CONVERSATIONS if name in row)


def _conversation(row: Row) -> list[Row]:
    """The last answer of a conversation is its completion."""
    prompt, answer = last_answer(row[_column(row)], _column(row))
    return [{"prompt": with_system(row, prompt), "completions": [answer], "ended": [True]}]


def _prompt(row: Row) -> list[Row]:
    return [{"prompt": required_prompt(row)}]


def _is_answered(row: Row) -> bool:
    messages = row[_column(row)]
    return is_messages(messages) and messages[-1]["role"] == "assistant"


def _is_pair(row: Row) -> bool:
    """Whether a row has one column of a pair, so that the other must have been forgotten."""
    return "chosen" in row or "rejected" in row


def _is_schema(row: Row) -> bool:
    """Whether completions are texts or messages, not dictionaries with a text and a score."""
    completions = row["completions"]
    if not isinstance(completions, list) or not completions or not isinstance(completions[0], dict):
        return True
    return "role" in completions[0] and not any(name in completions[0] for name in SCORES)


def _behind_system(row: Row) -> list[Row]:
    """The row behind its system prompt, unless it begins with that, as in files of `trl-ext sample`."""
    return _alike(row | {"prompt": with_system(row, row["prompt"])})


def _alike(row: Row) -> list[Row]:
    """Prompt and completions as messages, where the one or the others are."""
    prompt, completions = row["prompt"], row["completions"]
    if not isinstance(completions, list):
        return [{"prompt": prompt}]
    if isinstance(prompt, str) and any(map(_is_talk, completions)):
        prompt = [{"role": "user", "content": prompt}]
    if is_messages(prompt):
        completions = [[each] if isinstance(each, dict) else each for each in completions]
        completions = [as_completion({"prompt": prompt}, x) if isinstance(x, str) else x for x in completions]
    return [{"prompt": prompt, "completions": completions}]


def _is_talk(completion: Any) -> bool:
    """Whether a completion is messages, or one message without a list."""
    return is_messages(completion) or (isinstance(completion, dict) and "role" in completion)


def _differs(row: Row) -> bool:
    """Whether the prompt is messages and the first completion is not a list of them, or the other way round."""
    prompt, completions = row["prompt"], row["completions"]
    if not isinstance(completions, list) or not completions:
        return False
    if is_messages(prompt):
        return isinstance(completions[0], str | dict)
    return isinstance(prompt, str) and _is_talk(completions[0])


def _is_unscored(row: Row) -> bool:
    """Whether no column could hold a list of scores."""
    return _is_schema(row) and not any(isinstance(row.get(name), list) for name in (*SCORES, *SCORE_LISTS))


def _is_row(row: Row) -> bool:
    """Whether the columns are those of the row schema, with scores or without."""
    return ("scores" in row and _is_schema(row)) or _is_unscored(row)


_BESIDE_SYSTEM = DatasetFormat(
    "scored_behind_system",
    "the row schema, beside a column `system` or `system_prompt`",
    ("prompt", "completions"),
    _behind_system,
    matches=lambda row: has_system(row) and _is_row(row),
)
_MIXED = DatasetFormat(
    "messages_and_texts",
    "the row schema with messages as the prompt and texts as completions, or the other way round",
    ("prompt", "completions"),
    _alike,
    matches=lambda row: _differs(row) and _is_row(row),
)
AS_THEY_ARE = [
    _BESIDE_SYSTEM,
    _MIXED,
    DatasetFormat("scored", "the row schema", ("prompt", "completions", "scores"), matches=_is_schema),
    DatasetFormat("completions", "the row schema without scores", ("prompt", "completions"), matches=_is_unscored),
]

FORMATS = [
    DatasetFormat(
        "prompt_completion",
        "TRL's prompt-completion data, Alpaca instructions, GSM8K",
        ("|".join(ANSWERS), "|".join(("prompt", *PROMPT_COLUMNS))),
        _prompt_completion,
        matches=_has_answer,
        consumes=ANSWERS,
    ),
    DatasetFormat(
        "prompt_only",
        "TRL's prompt-only data",
        ("prompt",),
        matches=lambda row: not has_system(row) and not _is_pair(row),
    ),
    DatasetFormat(
        "conversation",
        "TRL's language modeling data with `messages`; ShareGPT",
        ("|".join(CONVERSATIONS),),
        _conversation,
        matches=_is_answered,
    ),
    DatasetFormat(
        "question",
        "prompts in a column `question`, `query`, `instruction` or `conversations`, or beside a column `system`",
        ("|".join(("prompt", *PROMPT_COLUMNS)),),
        _prompt,
        matches=lambda row: has_prompt(row) and not _is_pair(row),
    ),
]
