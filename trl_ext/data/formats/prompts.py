# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats without scores: prompts, and prompts with an answer."""

from ..messages import is_messages
from ..schema import DataError, as_completion
from .answer_lists import SCORE_LISTS
from .dataset_format import (
    CONVERSATIONS,
    PROMPT_COLUMNS,
    DatasetFormat,
    Row,
    has_prompt,
    has_system,
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
    messages = row[_column(row)]
    roles = [message["role"] for message in messages] if is_messages(messages) else []
    if len(roles) < 2 or roles[-1] != "assistant":
        raise DataError(
            f"column {_column(row)!r}: must be a conversation whose last message is the assistant's; its roles are "
            f"{', '.join(map(repr, roles)) or 'none'}. Remove the row."
        )
    return [{"prompt": with_system(row, messages[:-1]), "completions": [messages[-1:]], "ended": [True]}]


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
    return not isinstance(completions, list) or not completions or not isinstance(completions[0], dict)


def _behind_system(row: Row) -> list[Row]:
    """The row behind its system prompt, unless it begins with that, as in files of `trl-ext sample`."""
    return [{"prompt": with_system(row, row["prompt"])}]


def _is_unscored(row: Row) -> bool:
    """Whether no column could hold a list of scores."""
    return _is_schema(row) and not any(isinstance(row.get(name), list) for name in (*SCORES, *SCORE_LISTS))


_BESIDE_SYSTEM = DatasetFormat(
    "scored_behind_system",
    "the row schema, beside a column `system` or `system_prompt`",
    ("prompt", "completions"),
    _behind_system,
    matches=lambda row: has_system(row) and (("scores" in row and _is_schema(row)) or _is_unscored(row)),
)
AS_THEY_ARE = [
    _BESIDE_SYSTEM,
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
