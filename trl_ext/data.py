# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One row schema for every method, and the ways into it.

    {"prompt": text or messages, "completions": [text or messages, ...], "scores": [number, ...]}

Optional column `ended`: for each completion, whether the model ended it itself. Completions that were cut off get no
end-of-sequence token, so that training does not teach the model to stop there. Without the column every completion
counts as ended, as in TRL. Preference data (`chosen`, `rejected`, with or without `prompt`) is the case K = 2.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import extract_prompt


TOKENIZED_COLUMNS = ("row_index", "prompt_ids", "completion_ids", "ended", "scores")


class DataError(ValueError):
    """A row or column that cannot be used; the message says which one and what to do."""


# ----------------------------------------------------------------------------------------------------------- schema


def is_conversational(row: dict[str, Any]) -> bool:
    """Whether the prompt of `row` is a list of messages rather than text."""
    return isinstance(row["prompt"], list)


def preference_to_scored(row: dict[str, Any]) -> dict[str, Any]:
    """`chosen` and `rejected` as two completions scored 1 and 0; without `prompt`, it is their common beginning."""
    if "prompt" not in row:
        row = extract_prompt(dict(row))
    return {
        "prompt": row["prompt"],
        "completions": [row["chosen"], row["rejected"]],
        "scores": [1.0, 0.0],
    }


def to_scored_rows(dataset: Dataset | IterableDataset, name: str, **map_kwargs: Any) -> Dataset | IterableDataset:
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


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Columns of a data set, read off its first row where a stream does not declare them; empty without rows."""
    if isinstance(dataset, Dataset):
        return list(dataset.column_names) if len(dataset) else []
    return list(dataset.column_names or next(iter(dataset), {}))


def _first_row(dataset: Dataset | IterableDataset, name: str) -> dict[str, Any]:
    row = next(iter(dataset), None)
    if row is None:
        raise DataError(f"The {name} data set has no rows.")
    return row


def check_row(row: dict[str, Any], index: int, conversational: bool) -> None:
    """
    Raise a [`DataError`] that names row, column and remedy if `row` does not follow the schema.

    Args:
        row (`dict`): A row with `prompt`, and possibly `completions` and `scores`.
        index (`int`): Its number in the data set, for messages.
        conversational (`bool`): The form of the data set's first row; all rows must have it.
    """

    def fail(column: str, problem: str, item: str = "") -> None:
        raise DataError(f"Row {index}, column {column!r}: {item}{problem}")

    _check_text(row["prompt"], conversational, partial(fail, "prompt"), may_be_empty=conversational)
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
        _check_text(completion, conversational, partial(fail, "completions", item=f"[{i}] "), may_be_empty)
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


def _check_text(value: Any, conversational: bool, fail: Callable[[str], None], may_be_empty: bool) -> None:
    if not isinstance(value, list if conversational else str):
        expected = "a list of messages" if conversational else "text"
        fail(f"must be {expected}, as in the first row, got {_kind(value)}.")
    if isinstance(value, str):
        if not value and not may_be_empty:
            fail("is empty text. Remove it; if a model ended it there, say so in a column `ended`.")
        return
    if not value:
        fail("has no messages.")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            fail(f"holds {message!r}, which is no message: messages have a `role` and a `content`.")
    if not may_be_empty and not value[-1].get("content"):
        fail("ends with an empty message, although it was cut off (`ended` is false). Remove it.")


# ----------------------------------------------------------------------------------------------------- tokenisation


def use_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Give `tokenizer` the chat template in a Jinja file, or of the tokenizer in a directory or on the Hub."""
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    else:
        tokenizer.chat_template = AutoTokenizer.from_pretrained(path).chat_template
    if not tokenizer.chat_template:
        raise DataError(f"`chat_template_path`: {path!r} holds no chat template.")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], **chat_template_kwargs: Any
) -> list[int]:
    """
    Token ids that a model continues: a chat prompt is rendered up to the start of the answer.

    Raises:
        `DataError`: The prompt is conversational and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return _encode(tokenizer, prompt)
    return _render(tokenizer, prompt, add_generation_prompt=True, **chat_template_kwargs)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, with the tokenizer's start token if it has one, without the end that some put after any text."""
    ids = list(tokenizer(text)["input_ids"])
    puts_end = tokenizer.eos_token_id is not None and tokenizer("x")["input_ids"][-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if puts_end else ids


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs: Any) -> list[int]:
    if tokenizer.chat_template is None:
        raise DataError(
            "The rows are conversational but the tokenizer has no chat template. Use a chat model's tokenizer, set "
            "`tokenizer.chat_template`, or turn the rows into text."
        )
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)["input_ids"])


def _encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, ended: bool, **chat_template_kwargs: Any
) -> list[int]:
    """Ids of prompt and completion together, so that neither a second start token nor another split can arise."""
    if isinstance(prompt, str):
        eos = tokenizer.eos_token or ""
        text = prompt + completion + (eos if ended and not completion.endswith(eos) else "")
        return _encode(tokenizer, text)
    # An answer that was cut off is rendered without the template's end of turn.
    return _render(tokenizer, prompt + completion, continue_final_message=not ended, **chat_template_kwargs)


def _common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokenize_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Token ids of a row of the schema.

    Returns:
        `dict`: `prompt_ids` (`list[int]`); for rows with completions also `completion_ids` (`list[list[int]]`),
        `ended` (`list[bool]`) and `scores` (`list[float]`). The prompt ends where the K renderings of prompt plus
        completion begin to differ from the prompt alone, which is earlier than its last token when tokens merge.
    """
    tools = row.get("tools")
    kwargs = dict(row.get("chat_template_kwargs") or {})
    if tools:
        kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    prompt_ids = encode_prompt(tokenizer, row["prompt"], **kwargs)
    if row.get("completions") is None:
        return {"prompt_ids": prompt_ids}
    ended = [bool(flag) for flag in row.get("ended") or [True] * len(row["completions"])]
    answers = [
        _encode_answer(tokenizer, row["prompt"], completion, flag, **kwargs)
        for completion, flag in zip(row["completions"], ended, strict=True)
    ]
    length = min(_common_prefix(prompt_ids, answer) for answer in answers)
    return {
        "prompt_ids": prompt_ids[:length],
        "completion_ids": [answer[length:] for answer in answers],
        "ended": ended,
        "scores": [float(score) for score in row["scores"]],
    }


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, int]:
    """
    Check, tokenise and truncate a data set of any form that [`to_scored_rows`] takes.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows; other columns are kept.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        name (`str`): What messages call the data set.
        max_length (`int`): Longest prompt plus completion, in tokens (`0`: no limit).
        num_proc (`int`, *optional*): Processes that tokenise.

    Returns:
        The data set with the columns of [`tokenize_row`] and `row_index` (the row's number) added, and how many rows
        were dropped because their prompt alone fills `max_length` (0 for a stream, which is not read ahead).

    Raises:
        `DataError`: A row or column is unusable, or no row is left.
    """
    kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}
    dataset = to_scored_rows(dataset, name, **kwargs)
    conversational = is_conversational(_first_row(dataset, name))

    def tokenize(row: dict[str, Any], index: int) -> dict[str, Any]:
        check_row(row, index, conversational)
        tokens = {"row_index": index, **tokenize_row(row, tokenizer)}
        if not tokens["prompt_ids"]:
            raise DataError(
                f"Row {index}, column 'prompt': has no tokens, so nothing predicts the first answer token."
            )
        for i, ids in enumerate(tokens.get("completion_ids", ())):
            if not ids:
                raise DataError(f"Row {index}, column 'completions': [{i}] has no tokens (the tokenizer has no end).")
        if max_length and "completion_ids" in tokens:
            room = max(max_length - len(tokens["prompt_ids"]), 0)
            tokens["completion_ids"] = [ids[:room] for ids in tokens["completion_ids"]]
        return tokens

    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Tokenising {name} data set"
    dataset = dataset.map(tokenize, with_indices=True, **kwargs)
    if not max_length:
        return dataset, 0
    kwargs.pop("desc", None)
    kept = dataset.filter(lambda prompt_ids: len(prompt_ids) < max_length, input_columns="prompt_ids", **kwargs)
    if not isinstance(dataset, Dataset):
        return kept, 0
    if len(kept) == 0:
        raise DataError(f"Every prompt of the {name} data set fills max_length={max_length}. Raise `max_length`.")
    return kept, len(dataset) - len(kept)
