# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One row schema for every method, and the ways into it.

    {"prompt": text or messages, "completions": [text or messages, ...], "scores": [number, ...]}

Optional column `ended`: for each completion, whether the model ended it itself. Completions that were cut off get no
end-of-sequence token, so that training does not teach the model to stop there. Without the column every completion
counts as ended, as in TRL. Preference data (`chosen`, `rejected`, with or without `prompt`) is the case K = 2.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias

from datasets import Dataset, IterableDataset
from trl import extract_prompt


AnyDataset: TypeAlias = Dataset | IterableDataset


class DataError(ValueError):
    """A row or column that cannot be used; the message says which one and what to do."""


def is_conversational(row: dict[str, Any]) -> bool:
    """Whether the prompt of `row` is a list of messages rather than text."""
    return isinstance(row["prompt"], list)


def as_completion(row: dict[str, Any], text: str) -> str | list[dict[str, str]]:
    """Text in the form of the row's prompt: as it is, or as a message of the assistant."""
    return [{"role": "assistant", "content": text}] if is_conversational(row) else text


# What rows have of ours: from the data set's form, and from tokenisation.
_OWN_COLUMNS = frozenset(
    "prompt completion completions ended scores rewards token_rewards trainer_state row_index data_row prompt_ids "
    "completion_ids".split()
)


def extra_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The data set's other columns of some rows, which reward functions are given, in training as in evaluation."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {}) if name not in _OWN_COLUMNS}


def preference_to_scored(row: dict[str, Any]) -> dict[str, Any]:
    """`chosen` and `rejected` as two completions scored 1 and 0; without `prompt`, it is their common beginning."""
    if "prompt" not in row:
        row = extract_prompt(dict(row))
    return {
        "prompt": row["prompt"],
        "completions": [row["chosen"], row["rejected"]],
        "scores": [1.0, 0.0],
    }


def to_scored_rows(dataset: AnyDataset, name: str, **map_kwargs: Any) -> AnyDataset:
    """
    Bring a data set into the row schema; preference data becomes K = 2.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with `prompt`, `completions`, `scores`,
            or with `chosen` and `rejected`, or with `prompt` alone (completions are then sampled in training).
        name (`str`): What error messages call the data set.
        map_kwargs: Passed to `dataset.map`.

    Raises:
        `DataError`: The data set is empty, or has neither form.
    """
    columns = list(column_names(dataset))
    if not columns:
        raise DataError(f"The {name} data set has no rows.")
    if "completions" in columns:
        wanted = ["prompt", "completions", "scores"]
    elif "chosen" in columns or "rejected" in columns:
        wanted = ["chosen", "rejected"]
    else:
        wanted = ["prompt"]
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise DataError(
            f"The {name} data set lacks the column {' and '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, columns))}. Rows are either `prompt`, `completions`, `scores`, or `prompt`, "
            "`chosen`, `rejected`, or (with `reward_funcs`) `prompt` alone."
        )
    if wanted[0] == "chosen":
        return dataset.map(preference_to_scored, remove_columns=["chosen", "rejected"], **map_kwargs)
    return dataset


def column_names(dataset: AnyDataset) -> list[str]:
    """Columns of a data set, read off its first row where a stream does not declare them; empty without rows."""
    if isinstance(dataset, Dataset):
        return list(dataset.column_names) if len(dataset) else []
    return list(dataset.column_names or next(iter(dataset), {}))


def first_row(dataset: AnyDataset, name: str) -> dict[str, Any]:
    row = next(iter(dataset), None)
    if row is None:
        raise DataError(f"The {name} data set has no rows.")
    return row


def with_check(dataset: AnyDataset, check: Callable[[dict[str, Any]], None], columns: Sequence[str]) -> AnyDataset:
    """
    A data set all of whose rows pass a check, which raises for one that does not.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Its rows. They are read at once; those of a stream are looked at when they come.
        check (`Callable`): Called with each row.
        columns (`Sequence[str]`): What it looks at.
    """
    if isinstance(dataset, Dataset):
        for row in dataset.select_columns([name for name in columns if name in dataset.column_names]):
            check(row)
        return dataset

    def passed(row: dict[str, Any]) -> dict[str, Any]:
        check(row)
        return row

    return dataset.map(passed)


def check_row(row: dict[str, Any], index: int, conversational: bool) -> None:
    """
    Raise a [`DataError`] that names row, column and remedy if `row` does not follow the schema.

    Args:
        row (`dict`): A row with `prompt`, and possibly `completions` and `scores`.
        index (`int`): Its number in the data set, for messages.
        conversational (`bool`): The form of the data set's first row; all rows must have it.
    """

    def fail(column: str, problem: str, item: str = "") -> NoReturn:
        raise DataError(f"Row {index}, column {column!r}: {item}{problem}")

    remedy = "Remove the row, or begin the text: nothing predicts the first token of an answer to it."
    _check_text(row["prompt"], conversational, partial(fail, "prompt"), conversational, remedy)
    if "completions" not in row:
        return
    completions, ended, scores = row["completions"], row.get("ended"), row.get("scores")
    if not isinstance(completions, list):
        fail("completions", f"must be a list, got {_kind(completions)}.")
    if not completions:
        fail("completions", "is empty (K = 0). Remove the row or give it at least one completion.")
    if ended is not None and (not isinstance(ended, list) or len(ended) != len(completions)):
        fail("ended", f"must be a list of {len(completions)} booleans, one a completion, got {ended!r}.")
    for i, completion in enumerate(completions):
        # An answer may be empty if its first token was the end. Messages then still have their end of turn to learn;
        # empty text is a mistake unless a column says that it ended.
        may_be_empty = bool(ended[i]) if ended else conversational
        remedy = "Remove it; if a model ended a completion there, say so in a column `ended`."
        _check_text(completion, conversational, partial(fail, "completions", item=f"[{i}] "), may_be_empty, remedy)
    if not isinstance(scores, list):
        fail("scores", "must be a list with a number for every completion (ranks will do; higher is better).")
    if len(scores) != len(completions):
        fail("scores", f"has {len(scores)} entries for {len(completions)} completions.")
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            fail("scores", f"[{i}] must be a number, got {score!r}.")
        if not math.isfinite(score):
            fail("scores", f"[{i}] is {score}. Scores must be finite; remove the completion or score it.")


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list of messages", type(None): "nothing (null)"}
    return kinds.get(type(value), f"`{type(value).__name__}`")


def _check_text(
    value: Any, conversational: bool, fail: Callable[[str], None], may_be_empty: bool, remedy: str
) -> None:
    if not isinstance(value, list if conversational else str):
        expected = "a list of messages" if conversational else "text"
        fail(f"must be {expected}, as in the first row, got {_kind(value)}.")
    if isinstance(value, str):
        if not value and not may_be_empty:
            fail(f"is empty text. {remedy}")
        return
    if not value:
        fail("has no messages.")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            fail(f"holds {message!r}, which is no message: messages have a `role` and a `content`.")
    if not may_be_empty and not value[-1].get("content"):
        fail("ends with an empty message, although it was cut off (`ended` is false). Remove it.")
