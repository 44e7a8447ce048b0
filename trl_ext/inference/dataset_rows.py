# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Rows of the schema from what was sampled and what a data set has: the policies of the RRHF paper, section 4.1.

Sampled by a beam search with the data set's own responses (BP), by a diverse one with them (DP) or without (D), or the
data set's responses alone (P); and mixtures of several models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import extract_prompt

from trl_ext.data.completion import Completion
from trl_ext.data.load import load_dataset
from trl_ext.data.schema import DataError, as_completion, check_row, is_conversational
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import score


# Columns that are made here; those of the same name in the data set give way.
MADE_COLUMNS = ("prompt", "completions", "scores", "ended", "sources", "rewards")


@dataclass(frozen=True)
class Answer:
    """
    One completion of a row, wherever it comes from.

    Args:
        content (`str` or `list[dict[str, str]]`): As the column `completions` has it.
        ids (`list[int]`, *optional*): Its token ids.
        ended (`bool`): Whether it is whole, as opposed to cut off at a number of tokens.
        source (`str`): The model's name, or the data set's column (or what its own `sources` say).
    """

    content: str | list[dict[str, Any]]
    ids: list[int] | None
    ended: bool
    source: str


def load_rows(
    name: str, config: str | None, split: str, *, limit: int = 0, own: bool = False, asked: Sequence[str] | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """
    The rows to sample for, all of them checked, and the columns whose completions are to join.

    Args:
        name (`str`), config (`str`, *optional*), split (`str`): See [`~trl_ext.data.load.load_dataset`].
        limit (`int`, *optional*, defaults to `0`): Take the first so many rows (`0`: all).
        own (`bool`, *optional*, defaults to `False`): Whether the data set's own completions join.
        asked (`Sequence[str]`, *optional*): The columns they are in.

    Raises:
        [`~trl_ext.data.schema.DataError`]: There is no row, no prompt, or no completion where some were asked for.
    """
    dataset = load_dataset(name, config, split)
    columns = list(dataset.column_names)
    if len(dataset) == 0:
        raise DataError(f"{name!r} has no rows.")
    if "prompt" not in columns and not {"chosen", "rejected"} <= set(columns):
        raise DataError(f"{name!r} has no column 'prompt'; it has {', '.join(map(repr, columns))}.")
    own_columns = completion_columns(columns, asked) if own else ()
    dataset = dataset.select(range(min(limit or len(dataset), len(dataset))))
    conversational = is_conversational(with_prompt(dataset[0]))
    for index, raw in enumerate(dataset):
        row = with_prompt(raw)
        if not isinstance(row["prompt"], (str, list)):
            raise DataError(f"Row {index}, column 'prompt': must be text or messages, got {row['prompt']!r}.")
        check_row({"prompt": row["prompt"]}, index, conversational)
        own_answers(row, index, own_columns)
    return dataset, own_columns


def completion_columns(columns: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """
    The columns with the data set's own completions: those that are asked for, or the first that are there of
    `completions`, `chosen` with `rejected`, and `completion`.

    Raises:
        [`~trl_ext.data.schema.DataError`]: They are not there.
    """
    candidates = [tuple(asked)] if asked else [("completions",), ("chosen", "rejected"), ("completion",)]
    for names in candidates:
        if all(name in columns for name in names):
            return names
    wanted = " or ".join(" and ".join(map(repr, names)) for names in candidates)
    raise DataError(f"The data set has no completions of its own: it lacks {wanted}. It has {', '.join(columns)}.")


def with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a `prompt`: that of a preference row without one is what `chosen` and `rejected` begin with."""
    return row if "prompt" in row else row | extract_prompt({name: row[name] for name in ("chosen", "rejected")})


def own_answers(
    row: dict[str, Any], index: int, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Answer]:
    """
    The data set's own completions of a row.

    Args:
        row (`dict[str, Any]`): With a `prompt`.
        index (`int`): Its number in the data set, for messages.
        columns (`Sequence[str]`): Where they are: lists of completions (of the column `completions`), or one each.
        tokenizer (*optional*): Gives them token ids, which some reward functions want.

    Raises:
        [`~trl_ext.data.schema.DataError`]: There are none, or they are not of the prompt's form.
    """
    conversational, answers = is_conversational(row), []
    for column in columns:
        listed = column == "completions"
        values = row[column] if listed else [row[column]]
        if not isinstance(values, list):
            raise DataError(f"Row {index}, column {column!r}: must be a list of completions, got {values!r}.")
        flags = row.get("ended") if listed else None
        sources = (row.get("sources") if listed else None) or [column] * len(values)
        contents = [as_completion(row, value) if isinstance(value, str) else value for value in values]
        scores = [0.0] * len(values)  # made anew, so that those that are there need not be right
        checked = {"prompt": row["prompt"], "completions": contents, "scores": scores, "ended": flags}
        check_row(checked, index, conversational)
        flags = flags or [True] * len(values)
        if len(sources) != len(values):
            raise DataError(
                f"Row {index}, column 'sources': has {len(sources)} entries for {len(values)} completions."
            )
        answers += [
            Answer(content, _ids(content, tokenizer), bool(ended), source)
            for content, ended, source in zip(contents, flags, sources, strict=True)
        ]
    return answers


def _ids(content: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
    if tokenizer is None:
        return None
    text = content if isinstance(content, str) else "".join(message.get("content") or "" for message in content)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def sampled_answers(row: dict[str, Any], completions: Sequence[Completion], source: str) -> list[Answer]:
    """What a model said, in the form of the row's prompt."""
    return [Answer(as_completion(row, c.text), c.ids, c.ended, source) for c in completions]


def merge(answers: Sequence[Answer], deduplicate: bool) -> list[Answer]:
    """The answers in their order; of those with the same content the first, if asked to."""
    first: dict[str, Answer] = {}
    for answer in answers:
        first.setdefault(str(answer.content), answer)
    return list(first.values()) if deduplicate else list(answers)


def scored_rows(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Answer]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    used_columns: Sequence[str] = (),
    name_sources: bool = False,
    best_first: bool = False,
) -> list[dict[str, Any]]:
    """
    Rows of the schema: `prompt`, `completions`, `scores`, `ended`, and the other columns of the data set.

    Completions that no reward function applies to are left out, and so are rows that none are left of. With several
    reward functions a column `rewards` has what each said, `null` where it did not apply.

    Args:
        rows (`list[dict]`): Rows with a `prompt`.
        groups (`list[list[Answer]]`): Their completions.
        rewards (`list[Reward]`): May be empty; the rows then have no scores.
        weights (`list[float]`, *optional*): One a reward, 1 by default.
        used_columns (`Sequence[str]`, *optional*): Columns of the data set that have become completions.
        name_sources (`bool`, *optional*, defaults to `False`): Whether a column `sources` says where each comes from.
        best_first (`bool`, *optional*, defaults to `False`): Whether the best score comes first; equals keep their
            order.

    Raises:
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    hidden = {*MADE_COLUMNS, *used_columns}
    owners = [row for row, group in zip(rows, groups, strict=True) for _ in group]
    answers = [answer for group in groups for answer in group]
    names = [name for name in (rows[0] if rows else {}) if name not in {*hidden, "completion", "completion_ids"}]
    ids = [answer.ids for answer in answers]
    table = score(
        rewards,
        weights,
        [row["prompt"] for row in owners],
        [answer.content for answer in answers],
        None if None in ids else ids,  # type: ignore[arg-type]
        {name: [row[name] for row in owners] for name in names},
    )
    made, start = [], 0
    for row, group in zip(rows, groups, strict=True):
        numbers = range(start, start + len(group))
        start += len(group)
        kept = [n for n in numbers if not rewards or not math.isnan(table.total[n])]
        if not kept:
            continue
        if rewards and best_first:
            kept.sort(key=lambda n: -table.total[n])
        new = {"prompt": row["prompt"], "completions": [answers[n].content for n in kept]}
        if rewards:
            new["scores"] = [table.total[n] for n in kept]
        new["ended"] = [answers[n].ended for n in kept]
        if name_sources:
            new["sources"] = [answers[n].source for n in kept]
        if len(rewards) > 1:
            new["rewards"] = {
                name: [None if math.isnan(values[n]) else values[n] for n in kept]
                for name, values in table.by_name.items()
            }
        made.append(new | {name: value for name, value in row.items() if name not in hidden})
    return made
