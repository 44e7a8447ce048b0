# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads and checks prompts for generation and evaluation."""

from typing import Any

from .load import load_dataset, short_name
from .schema import DataError, where
from .scored_rows import to_scored_rows


def load_prompts(
    name: str,
    config: str | None = None,
    split: str | None = None,
    *,
    limit: int = 0,
    columns: dict[str, str] | str | None = None,
    dataset_format: str = "auto",
) -> list[dict[str, Any]]:
    """
    Load the rows of a dataset with their prompts. Other columns are kept.

    Args:
        name (`str`), config (`str`, *optional*): See [`~trl_ext.data.load.load_dataset`].
        split (`str`, *optional*): The split. By default `test`, or the only split.
        limit (`int`, *optional*, defaults to `0`): Number of rows to take from the start. `0` takes all.
        columns (`dict[str, str]`, *optional*), dataset_format (`str`, *optional*, defaults to `"auto"`):
            Where the prompts are; see [`~trl_ext.data.scored_rows.to_scored_rows`].

    Raises:
        [`~trl_ext.data.schema.DataError`]: `split` is not set and there are several splits, none of them `test`; there
            is no row or no column `prompt`; or a prompt is empty.
    """
    if split is None:
        splits = load_dataset(name, config)
        if "test" not in splits and len(splits) != 1:
            raise DataError(f"{name!r} has the splits {', '.join(splits)}: choose one with --dataset_test_split.")
        dataset = splits["test"] if "test" in splits else next(iter(splits.values()))
    else:
        dataset = load_dataset(name, config, split)
    rows = list(
        to_scored_rows(
            dataset,
            short_name(name),
            columns=columns,
            dataset_format=dataset_format,
            keep_columns=True,
            limit=limit,
        )
    )
    for index, row in enumerate(rows):
        if not row["prompt"]:
            raise DataError(f"{where(index, short_name(name), 'prompt')}: is empty. Remove the row.")
    return rows


def has_system_prompt(prompt: Any) -> bool:
    """Whether a prompt is messages that begin with instructions."""
    return isinstance(prompt, list) and prompt[0].get("role") in ("system", "developer")


def check_several(prompts: Any) -> None:
    """
    Check that `prompts` is a list of prompts and not a single prompt.

    A single prompt is a sequence as well: its characters, messages or token ids would each be taken for a prompt.

    Raises:
        `ValueError`: `prompts` is a single prompt, or not a sequence.
    """
    if not hasattr(prompts, "__len__"):
        raise ValueError(f"`prompts` must be a list of prompts, got {type(prompts).__name__}.")
    first = None if isinstance(prompts, str) else next(iter(prompts), None)
    for kind, found in (
        ("text", isinstance(prompts, str)),
        ("conversation", isinstance(first, dict)),
        ("list of token ids", isinstance(first, int)),
    ):
        if found:
            raise ValueError(f"`prompts` must be a list of prompts, got a single {kind}: put it in a list.")
