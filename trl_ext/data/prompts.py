# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads and checks prompts for generation and evaluation."""

from typing import Any

from .load import load_dataset
from .schema import DataError


def load_prompts(
    name: str, config: str | None = None, split: str | None = None, *, limit: int = 0
) -> list[dict[str, Any]]:
    """
    Load the rows of a dataset that has a column `prompt`. Other columns are kept.

    Args:
        name (`str`), config (`str`, *optional*): See [`~trl_ext.data.load.load_dataset`].
        split (`str`, *optional*): The split. By default `test`, or the only split.
        limit (`int`, *optional*, defaults to `0`): Number of rows to take from the start. `0` takes all.

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
    if len(dataset) == 0:
        raise DataError(f"{name!r} has no rows: there are no prompts.")
    if "prompt" not in dataset.column_names:
        raise DataError(f"{name!r} has no column 'prompt'; it has {', '.join(map(repr, dataset.column_names))}.")
    rows = list(dataset.select(range(min(limit or len(dataset), len(dataset)))))
    for index, row in enumerate(rows):
        if not row["prompt"]:
            raise DataError(f"{name!r}, row {index}: the prompt is empty.")
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
