# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The schema of dataset rows that all methods share, and checks of rows.

    {"prompt": text or messages, "completions": [text or messages, ...], "scores": [number, ...]}

The optional column `ended` holds for each completion whether the model ended it. A completion that was cut off gets no
end-of-sequence token, so that training does not teach the model to stop there. Without the column every completion
counts as ended, as in TRL. `scored_rows` converts other forms of data to the schema: preference data (`chosen`,
`rejected`) is the case of K = 2 completions.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any, NoReturn, TypeAlias

from datasets import Dataset, IterableDataset


AnyDataset: TypeAlias = Dataset | IterableDataset


class DataError(ValueError):
    """A row or column that cannot be used. The message names it and the remedy."""


def check_dataset(value: Any, setting: str, *, streamed: bool = True) -> None:
    """
    Check that an argument is a dataset.

    Args:
        value (`Any`): The argument.
        setting (`str`): Its name, for the error.
        streamed (`bool`, *optional*, defaults to `True`): Whether it may be an [`~datasets.IterableDataset`].

    Raises:
        `TypeError`: It is something else. The message says how to make a dataset of it.
    """
    if isinstance(value, Dataset | IterableDataset if streamed else Dataset):
        return
    remedy = ""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(part, Dataset | IterableDataset) for part in value.values())
    ):
        remedy = f" It has the splits {', '.join(map(repr, value))}: pass one, as in `dataset[{next(iter(value))!r}]`."
    elif isinstance(value, list | tuple):
        remedy = " Make one of the rows: `Dataset.from_list(rows)`."
    elif isinstance(value, str | PathLike):
        remedy = f" Load it: `trl_ext.load_dataset({str(value)!r}, split='train')`."
    wanted = "a `Dataset` or `IterableDataset`" if streamed else "a `Dataset`"
    raise TypeError(f"`{setting}` must be {wanted}, got `{type(value).__name__}`.{remedy}")


def where(index: int, name: str = "", column: str = "") -> str:
    """The place of an error: "Row 3 of the train dataset, column 'prompt'"."""
    return f"Row {index}" + (f" of the {name} dataset" if name else "") + (f", column {column!r}" if column else "")


def is_conversational(row: dict[str, Any]) -> bool:
    """Whether the prompt of `row` is a list of messages, not text."""
    return isinstance(row["prompt"], list)


def as_completion(row: dict[str, Any], text: str) -> str | list[dict[str, str]]:
    """The text in the form of the row's prompt: unchanged, or as a message of the assistant."""
    return [{"role": "assistant", "content": text}] if is_conversational(row) else text


# Columns of the row schema, and those that this package adds to rows.
_OWN_COLUMNS = frozenset(
    "prompt completion completions ended scores rewards token_rewards trainer_state log_metric log_extra "
    "row_index data_row prompt_ids completion_ids tokenizers".split()
)


def extra_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The rows' other columns, which are passed to reward functions in training and in evaluation."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {}) if name not in _OWN_COLUMNS}


def column_names(dataset: AnyDataset) -> list[str]:
    """Column names of a dataset; empty if it has no rows. A stream that does not declare them is read for one row."""
    if isinstance(dataset, Dataset):
        return list(dataset.column_names) if len(dataset) else []
    return list(dataset.column_names or next(iter(dataset), {}))


def first_row(dataset: AnyDataset, name: str) -> dict[str, Any]:
    """First row of a dataset. Raises a [`DataError`] with the dataset's `name` if there is none."""
    row = next(iter(dataset), None)
    if row is None:
        raise DataError(f"The {name} dataset has no rows.")
    return row


def with_check(dataset: AnyDataset, check: Callable[[dict[str, Any]], None], columns: Sequence[str]) -> AnyDataset:
    """
    Check every row of a dataset: now, or for a stream when the row is read.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The dataset.
        check (`Callable`): Called with each row. Raises if there is an error in it.
        columns (`Sequence[str]`): Columns that `check` uses. Columns that the dataset does not have are ignored.

    Returns:
        The dataset. A stream is returned with the check added to it.
    """
    if isinstance(dataset, Dataset):
        for row in dataset.select_columns([name for name in columns if name in dataset.column_names]):
            check(row)
        return dataset

    def passed(row: dict[str, Any]) -> dict[str, Any]:
        check(row)
        return row

    return dataset.map(passed)


def check_row(
    row: dict[str, Any], index: int, conversational: bool, name: str = "", *, needs_scores: bool = True
) -> None:
    """
    Check that a row follows the schema.

    Args:
        row (`dict`): A row with `prompt`, and possibly `completions` and `scores`.
        index (`int`): Its number in the dataset, for error messages.
        conversational (`bool`): Whether the dataset's first row is conversational. All rows must be like the first.
        name (`str`, *optional*): Name of the dataset, for error messages.
        needs_scores (`bool`, *optional*, defaults to `True`): Whether completions must have scores.

    Raises:
        `DataError`: The row does not follow the schema. The message names the row, the column and the remedy.
    """

    def fail(column: str, problem: str, item: str = "") -> NoReturn:
        raise DataError(f"{where(index, name, column)}: {item}{problem}")

    remedy = "Remove the row: a model cannot predict the first token of a completion from an empty prompt."
    _check_text(row["prompt"], conversational, partial(fail, "prompt"), conversational, remedy)
    if isinstance(row.get("tools"), str) and row["tools"]:
        _check_tools(row["tools"], partial(fail, "tools"))
    if "completions" not in row:
        return
    completions, ended = row["completions"], row.get("ended")
    if not isinstance(completions, list):
        fail("completions", f"must be a list, got {_kind(completions)}.{_NO_LISTS if completions else ''}")
    if not completions:
        fail("completions", "is empty (K = 0). Remove the row or give it at least one completion.")
    if ended is not None and (not isinstance(ended, list) or len(ended) != len(completions)):
        fail("ended", f"must be a list of {len(completions)} booleans, one per completion, got {ended!r}.")
    for column in ("completion_ids", "tokenizers") if row.get("tokenizers") is not None else ():
        found = row.get(column)
        if not isinstance(found, list) or len(found) != len(completions):
            number = f"{len(found)} entries" if isinstance(found, list) else "nothing"
            remedy = "Keep them together, or remove the column 'tokenizers': completions are then tokenized again."
            fail(column, f"has {number} for {len(completions)} completions. {remedy}")
    for i, completion in enumerate(completions):
        # A completion is empty if its first token was the end. A message then still has its end of turn to learn from.
        # Empty text is an error unless the column `ended` is true for it.
        may_be_empty = bool(ended[i]) if ended else conversational
        remedy = "Remove it, or if a model ended the completion there, add a column `ended` that is true for it."
        _check_text(completion, conversational, partial(fail, "completions", item=f"[{i}] "), may_be_empty, remedy)
    if needs_scores:
        check_scores(row, index, name)


def check_scores(row: dict[str, Any], index: int, name: str = "") -> None:
    """Check that a row has a finite score for each of its completions; arguments and errors as of [`check_row`]."""

    def fail(problem: str) -> NoReturn:
        raise DataError(f"{where(index, name, 'scores')}: {problem}")

    scores, number = row.get("scores"), len(row["completions"])
    if not isinstance(scores, list):
        fail(f"must be a list with one number per completion, got {_kind(scores)}.{_NO_LISTS if scores else ''}")
    if len(scores) != number:
        fail(f"has {len(scores)} entries for {number} completions.")
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            fail(f"[{i}] must be a number, got {score!r}. Write it as one, or remove the completion.")
        if not math.isfinite(score):
            fail(f"[{i}] is {score}. Scores must be finite: remove the completion or score it.")


# What to do about a single value where a list belongs.
_NO_LISTS = (
    " A CSV file cannot hold lists: write .jsonl or .parquet, or one completion in each row, in columns called "
    "`completion` and `score` (`columns: {completion: ..., score: ...}`)."
)


def _check_tools(text: str, fail: Callable[[str], NoReturn]) -> None:
    try:
        tools = json.loads(text)
    except json.JSONDecodeError as error:
        fail(f"is text that is no JSON ({error}): {text[:60]!r}. Leave it empty where a row has no tools.")
    if not isinstance(tools, list | None):
        fail(f"must be a JSON list of tools, got {text[:60]!r}.")


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
            fail(f"holds {message!r}, which is not a message: messages have a `role` and a `content`.")
        if not isinstance(message.get("content"), str | None):
            fail(f"holds a message whose content is `{type(message['content']).__name__}`, not text: join its parts.")
    if not may_be_empty and not value[-1].get("content"):
        fail("ends with an empty message, although it was cut off (`ended` is false). Remove it.")
