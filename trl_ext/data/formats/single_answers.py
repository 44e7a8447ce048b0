# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats with one answer in a row, and a score: rows with the same prompt become one row of the schema."""

import json
from collections.abc import Callable
from typing import Any

from ..messages import is_messages
from ..schema import DataError
from .dataset_format import (
    CONVERSATIONS,
    DatasetFormat,
    Row,
    as_number,
    last_answer,
    required_prompt,
    scored_row,
    with_system,
)


ANSWERS = ("completion", "response", "answer", "output")
SCORES = ("score", "reward", "rating", "rank")
_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _grouped(answer_names: tuple[str, ...], score: Callable[[Row], Any], attributes: tuple[str, ...] = ()) -> Any:
    """The conversion of all rows: one row for each prompt, in the order in which the prompts come first."""

    def group(rows: list[Row]) -> list[Row]:
        groups: dict[str, list[Row]] = {}
        prompts: dict[str, Any] = {}
        for row in rows:
            prompt = required_prompt(row)
            key = json.dumps(prompt, sort_keys=True)
            prompts[key] = prompt
            groups.setdefault(key, []).append(row)
        column = next(name for name in answer_names if name in rows[0])
        shared = _constant_columns(list(groups.values()))
        found: list[Row] = []
        for key, members in groups.items():
            answers, scores = [row[column] for row in members], [score(row) for row in members]
            rewards = {name: [row.get(name) for row in members] for name in attributes if name in rows[0]}
            for made in scored_row(prompts[key], answers, scores, rewards=rewards):
                found.append({name: members[0][name] for name in shared} | made)
        return found

    return group


def _constant_columns(groups: list[list[Row]]) -> list[str]:
    """Columns that have one value in each group: they belong to the prompt, the others to the answers."""
    names = list(groups[0][0])
    return [name for name in names if all(row[name] == rows[0][name] for rows in groups for row in rows)]


def _conversations(score: Callable[[Row], Any]) -> Callable[[list[Row]], list[Row]]:
    """The same for conversations, whose last message has the score. Rows without a conversation are left out."""

    def group(rows: list[Row]) -> list[Row]:
        column = next(name for name in CONVERSATIONS if name in rows[0])
        split: list[Row] = []
        for index, row in enumerate(rows):
            if not row[column]:
                continue
            try:
                prompt, answer = last_answer(row[column], column)
            except DataError as error:
                raise DataError(f"row {index}, {error}") from None
            others = {name: value for name, value in row.items() if name != column}
            split.append(others | {"prompt": with_system(row, prompt), "completion": answer})
        return _grouped(("completion",), score)(split) if split else []

    return group


def _label(row: Row) -> Any:
    return float(row["label"]) if row["label"] in (0, 1) else None


def _score(row: Row) -> Any:
    name = next(name for name in SCORES if name in row)
    value = as_number(row[name])
    return -value if name == "rank" and value is not None else value


def _has_score(row: Row) -> bool:
    score = next((row[name] for name in SCORES if name in row), None)
    answer = next((row[name] for name in ANSWERS if name in row), None)
    return (score is None or as_number(score) is not None) and (answer is None or isinstance(answer, str | list))


def _has_scored_conversation(row: Row) -> bool:
    messages = next(row[name] for name in CONVERSATIONS if name in row)
    if "prompt" in row or not is_messages(messages) or messages[-1]["role"] != "assistant":
        return False
    return as_number(next(row[name] for name in SCORES if name in row)) is not None


FORMATS = [
    DatasetFormat(
        "helpsteer2",
        "nvidia/HelpSteer2, nvidia/HelpSteer",
        ("prompt", "response", "helpfulness"),
        group=_grouped(("response",), lambda row: row["helpfulness"], _HELPSTEER),
        consumes=("response", *_HELPSTEER),
    ),
    DatasetFormat(
        "unpaired_preference",
        "TRL's unpaired preference data",
        ("prompt", "completion", "label"),
        group=_grouped(("completion",), _label),
        labels=True,
        consumes=("completion", "label"),
        matches=lambda row: row["label"] in (True, False, None),
    ),
    DatasetFormat(
        "unpaired_conversation",
        "LLaMA-Factory's data for KTO",
        ("|".join(CONVERSATIONS), "label"),
        group=_conversations(_label),
        consumes=(*CONVERSATIONS, "completion", "label"),
        labels=True,
        matches=lambda row: "prompt" not in row and row["label"] in (True, False),
    ),
    DatasetFormat(
        "scored_conversation",
        "conversations with a score of their last message",
        ("|".join(CONVERSATIONS), "|".join(SCORES)),
        group=_conversations(_score),
        consumes=(*CONVERSATIONS, "completion", *SCORES),
        matches=_has_scored_conversation,
    ),
    DatasetFormat(
        "one_answer_per_row",
        "files with one answer and its score in each row",
        ("|".join(ANSWERS), "|".join(SCORES), "prompt|question|query|instruction"),
        group=_grouped(ANSWERS, _score),
        consumes=(*ANSWERS, *SCORES),
        matches=_has_score,
    ),
]
