# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Data preparation of VAS: from rows with scored completions to token ids and rewards per token and head.

A row has a number for each completion in `scores`, or a list of numbers, one per token. A column `rewards`
(`{"name": [number, ...], ...}`, as `trl-ext sample` writes it for several reward functions) gives each name a head;
`null` means that the reward does not apply. All of these become the column `token_rewards`: for each completion and
head a list of one number (paid at the last token), of one number per token, or an empty list (unknown).

Dimensions: B prompts, N completions in the batch, T tokens of the longest completion, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.data.row_cache import this_version
from trl_ext.data.row_errors import located
from trl_ext.data.schema import AnyDataset, DataError, column_names, first_row, where
from trl_ext.data.tokenization import prepare_dataset, truncate_completions, without_full_prompts

from .value_prompts import COLUMN as VALUE_PROMPT
from .value_prompts import IDS as VALUE_PROMPT_IDS
from .value_prompts import encode_value_prompt


DEFAULT_HEAD = "reward"  # learns `scores`, or the weighted sum of the reward functions


@dataclass
class DataCollatorForValues:
    """
    Collates tokenised rows without padding: how rows are laid out is chosen later, for each batch.

    A batch is a `dict` with `row_index` (`torch.Tensor` of shape (B,)), `prompt_ids` (`list[list[int]]`), which are
    those of the column `value_prompt` if there is one, `completion_ids` (`list[list[list[int]]]`), `token_rewards`,
    and `rows` (the unchanged rows, for reward functions). `completion_ids` and `token_rewards` are empty lists for
    rows whose completions are sampled in training.

    Examples:
    ```python
    >>> from trl_ext.methods.vas.data import DataCollatorForValues

    >>> row = {"row_index": 7, "prompt_ids": [1, 2], "completion_ids": [[3], [4, 5]]}
    >>> batch = DataCollatorForValues()([row | {"token_rewards": [[[0.5]], [[1.0]]]}])
    >>> batch["completion_ids"], batch["token_rewards"]
    ([[[3], [4, 5]]], [[[[0.5]], [[1.0]]]])
    ```
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "row_index": torch.tensor([row["row_index"] for row in rows]),
            "prompt_ids": [read_prompt(row) for row in rows],
            "completion_ids": [row.get("completion_ids") or [] for row in rows],
            "token_rewards": [row.get("token_rewards") or [] for row in rows],
            "rows": rows,
        }


def read_prompt(row: dict[str, Any]) -> list[int]:
    """Token ids of the prompt that the value model reads for a tokenized row."""
    ids: list[int] = row.get(VALUE_PROMPT_IDS) or row["prompt_ids"]
    return ids


def reward_tensors(
    token_rewards: Sequence[Sequence[Sequence[Sequence[float]]]], lengths: Sequence[int], num_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rewards of a batch as tensors.

    Args:
        token_rewards (`list`): For each prompt, completion and head, a list of numbers; see above.
        lengths (`list[int]`): Number of tokens of each of the N completions.
        num_heads (`int`): H.

    Returns:
        Rewards of shape (N, T, H), 0 at tokens without one, and a mask of shape (N, H), True for known rewards.
    """
    flat = [completion for group in token_rewards for completion in group]
    rewards = torch.zeros(len(flat), max(lengths, default=0), num_heads)
    known = torch.zeros(len(flat), num_heads, dtype=torch.bool)
    for n, (by_head, length) in enumerate(zip(flat, lengths, strict=True)):
        for h, numbers in enumerate(by_head):
            if len(numbers):
                known[n, h] = True
                rewards[n, length - len(numbers) : length, h] = torch.tensor(numbers)
    return rewards, known


def total_rewards(token_rewards: Sequence[Sequence[Sequence[Sequence[float]]]], head: int) -> list[float]:
    """The reward of each completion for one head, summed over its tokens; NaN where it is unknown."""
    totals = []
    for group in token_rewards:
        for by_head in group:
            numbers = by_head[head]
            totals.append(math.fsum(numbers) if len(numbers) else math.nan)
    return totals


def dataset_heads(dataset: AnyDataset, name: str) -> list[str]:
    """Names of the heads that a dataset has rewards for: those of the column `rewards`, or the default one."""
    if "rewards" in column_names(dataset):
        return list(_named_rewards(first_row(dataset, name), 0, name)) or [DEFAULT_HEAD]
    return [DEFAULT_HEAD]


def _named_rewards(row: dict[str, Any], index: int, name: str) -> dict[str, Any]:
    """The column `rewards` of a row; empty if there is none."""
    rewards = row.get("rewards")
    if rewards is not None and not isinstance(rewards, dict):
        raise DataError(
            f"{where(index, name, 'rewards')}: must be a dictionary from names to lists with an entry for every "
            f"completion, as in {{'kind': [0.5, 1.0]}}, got {type(rewards).__name__} {str(rewards)[:60]!r}. If this "
            "column means something else, rename it."
        )
    return rewards or {}


def choose_heads(
    dataset: AnyDataset, names: Sequence[str], asked: Sequence[str] | None, *, rewarded: bool
) -> list[str]:
    """
    Choose the names of the heads.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The train dataset, before preparation.
        names (`Sequence[str]`): Names of the reward functions.
        asked (`Sequence[str]`, *optional*): The config's `heads`.
        rewarded (`bool`): Whether completions are sampled even if the dataset has some.

    Raises:
        `ValueError`: Completions are sampled, and no reward function scores them for one of the heads.
    """
    scored = bool({"completions", "chosen"} & set(column_names(dataset)))
    if asked:
        heads = list(asked)
    elif scored:
        heads = dataset_heads(dataset, "train")
    else:
        heads = list(names) if len(names) > 1 else [DEFAULT_HEAD]
    unknown = [head for head in heads if head not in [*names, DEFAULT_HEAD]]
    if unknown and (not scored or rewarded):
        raise ValueError(
            f"No reward function scores sampled completions for the head {unknown[0]!r}. The reward functions are "
            f"{', '.join(map(repr, names)) or 'none'}; {DEFAULT_HEAD!r} is their weighted sum. Change `heads`."
        )
    return heads


def prepare_values(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    num_proc: int | None = None,
    heads: Sequence[str] = (DEFAULT_HEAD,),
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[AnyDataset, int]:
    """
    Check, tokenise and truncate a dataset, and add the rewards of its completions as `token_rewards`.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with scored completions, or a
            prompt-only dataset.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
        name (`str`): Name of the dataset in messages.
        max_length (`int`): Maximum length of prompt plus completion, in tokens (`0`: no limit).
        num_proc (`int`, *optional*): Number of processes for tokenisation.
        heads (`Sequence[str]`, *optional*, defaults to `("reward",)`): Names of the heads. `reward` is the column
            `scores`, unless the column `rewards` has that name.
        chat_template_kwargs (`dict[str, Any]`, *optional*): See [`~trl_ext.data.tokenization.prepare_dataset`].

    Returns:
        The dataset, with `value_prompt_ids` if it has a column `value_prompt`, and the number of rows that were
        dropped because a prompt fills `max_length`.

    Raises:
        [`~trl_ext.data.schema.DataError`]: A row or column is unusable; the message names it.
    """
    kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}
    if "completions" in column_names(dataset) and _has_lists(first_row(dataset, name).get("scores")):
        dataset = dataset.map(this_version(_split_scores), with_indices=True, fn_kwargs={"name": name}, **kwargs)
    # Truncation comes last: rewards per token are compared with the lengths before it.
    dataset, _ = prepare_dataset(
        dataset, tokenizer, name=name, max_length=0, num_proc=num_proc, chat_template_kwargs=chat_template_kwargs
    )
    if VALUE_PROMPT in column_names(dataset):
        arguments: dict[str, Any] = {"name": name, "tokenizer": tokenizer}
        dataset = dataset.map(this_version(_add_value_prompt), fn_kwargs=arguments, **kwargs)
    if "completion_ids" in column_names(dataset):
        arguments = {"heads": list(heads), "max_length": max_length, "name": name, "tokenizer": tokenizer}
        dataset = dataset.map(this_version(_add_rewards), fn_kwargs=arguments, **kwargs)
    kept, dropped = without_full_prompts(dataset, max_length, name=name, num_proc=num_proc)
    if VALUE_PROMPT not in column_names(dataset):
        return kept, dropped
    kept, more = without_full_prompts(kept, max_length, name=name, num_proc=num_proc, column=VALUE_PROMPT_IDS)
    return kept, dropped + more


def _add_value_prompt(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    with located(where(row["row_index"], name)):
        return {VALUE_PROMPT_IDS: encode_value_prompt(tokenizer, row)}


def _has_lists(scores: Any) -> bool:
    return isinstance(scores, list) and any(isinstance(score, list) for score in scores)


def _split_scores(row: dict[str, Any], index: int, name: str) -> dict[str, Any]:
    """Move scores per token to the column `token_scores`, and leave their sums, which the schema expects."""
    scores = row["scores"]
    if not isinstance(scores, list):
        raise DataError(f"{where(index, name, 'scores')}: must be a list with an entry for every completion.")
    for i, numbers in enumerate(scores):
        if not isinstance(numbers, list) or any(not isinstance(x, int | float) for x in numbers):
            raise DataError(
                f"{where(index, name, 'scores')}: [{i}] must be a list of numbers, one per token, as in the first "
                f"row, got {numbers!r}."
            )
    return {"scores": [math.fsum(numbers) for numbers in scores], "token_scores": scores}


def _add_rewards(
    row: dict[str, Any], heads: list[str], max_length: int, name: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    ids, ended, index = row["completion_ids"], row["ended"], row["row_index"]
    rewards: list[list[list[float]]] = [[] for _ in ids]
    for head in heads:
        column, entries = _entries(row, head, len(ids), name)
        for i, entry in enumerate(entries):
            place = f"{where(index, name)}, column {column}: [{i}] "
            rewards[i].append(_numbers(entry, len(ids[i]), ended[i], place))
    if not max_length:
        return {"token_rewards": rewards}
    # The completion has to fit behind the longer of the two prompts.
    excess = max(len(read_prompt(row)) - len(row["prompt_ids"]), 0)
    cut = truncate_completions(row, max_length - excess, tokenizer)
    for by_head, ids in zip(rewards, cut["completion_ids"], strict=True):
        # A single number is of the complete completion, and stays.
        by_head[:] = [numbers[: len(ids)] if len(numbers) > 1 else numbers for numbers in by_head]
    return cut | {"token_rewards": rewards}


def _entries(row: dict[str, Any], head: str, count: int, name: str) -> tuple[str, list[Any]]:
    """The column with the rewards of a head, for messages, and its entry for each completion."""
    named = _named_rewards(row, row["row_index"], name)
    place = where(row["row_index"], name, "rewards")
    if head in named:
        entries = named[head] if named[head] is not None else [None] * count
        if not isinstance(entries, list) or len(entries) != count:
            raise DataError(f"{place}, {head!r}: must be a list of {count} entries, one per completion.")
        return f"'rewards', {head!r}", entries
    if head == DEFAULT_HEAD:
        return "'scores'", row.get("token_scores") or row["scores"]
    have = ", ".join(map(repr, named)) or "no column `rewards`"
    raise DataError(f"{place}: has no rewards for the head {head!r}; there is {have}.")


def _numbers(entry: Any, length: int, ended: bool, place: str) -> list[float]:
    """The rewards of one completion for one head: one number, one per token, or none if `entry` is `None`."""
    if entry is None:
        return []
    numbers = entry if isinstance(entry, list) else [entry]
    for x in numbers:
        if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
            raise DataError(f"{place}must be finite numbers, got {x!r}. Remove the completion, or score it.")
    if isinstance(entry, list) and ended and len(numbers) == length - 1:
        numbers = [*numbers, 0.0]  # no reward for the end-of-sequence token that was added here
    if isinstance(entry, list) and len(numbers) != length:
        raise DataError(
            f"{place}has {len(numbers)} rewards for {length} tokens. Rewards per token refer to the tokens of the "
            "language model's tokenizer; the reward of the end of sequence may be omitted."
        )
    return [float(x) for x in numbers]
