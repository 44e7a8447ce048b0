# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The column `value_prompt`: what value models read in place of a row's prompt.

A value model may know more than the language model: a principle, or a reference answer. It is trained on completions
behind this prompt, and guides a language model that sees the plain one.

Dimensions: B prompts, P columns of prompts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import template_kwargs
from trl_ext.data.schema import AnyDataset, DataError, column_names, where, with_check
from trl_ext.data.tokenization import encode_prompt


COLUMN, IDS = "value_prompt", "value_prompt_ids"


def encode_value_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """
    Token ids of a row's `value_prompt`, text or messages.

    Raises:
        [`~trl_ext.data.schema.DataError`]: The row has none, or it has no tokens.
    """
    prompt = row.get(COLUMN)
    if not prompt:
        raise DataError(
            f"has no `{COLUMN}`, which the value model reads in place of the prompt. Add the column, or use a value "
            "model that was trained without it."
        )
    ids = encode_prompt(tokenizer, prompt, **template_kwargs(row))
    if not ids:
        raise DataError(f"its `{COLUMN}` has no tokens.")
    return ids


def check_lengths(dataset: AnyDataset, context: int, *, name: str, max_new_tokens: int = 0) -> AnyDataset:
    """
    Check that each `value_prompt` fits in the context with its completions. Rows of a stream are checked as they come.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Tokenized rows.
        context (`int`): Context length of the value model. `0` means not known.
        name (`str`): Name of the dataset in messages.
        max_new_tokens (`int`, *optional*, defaults to `0`): Maximum length of completions that are sampled.

    Raises:
        [`~trl_ext.data.schema.DataError`]: A row is too long.
    """
    if not context or IDS not in column_names(dataset):
        return dataset

    def check(row: dict[str, Any]) -> None:
        length = len(row[IDS]) + max(max_new_tokens, *map(len, row.get("completion_ids") or ()), 0)
        if length > context:
            raise DataError(
                f"{where(row['row_index'], name, COLUMN)}: has {length} tokens with its longest completion, but the "
                f"context length is {context}: shorten it, or set `max_length` or `max_completion_length` lower."
            )

    return with_check(dataset, check, ("row_index", IDS, "completion_ids"))


def check_column(columns: Sequence[str], needed: bool, *, name: str) -> None:
    """Raise `ValueError` if a dataset has the column and the train dataset has not, or the other way round."""
    if (COLUMN in columns) != needed:
        has, lacks = ("train", name) if needed else (name, "train")
        raise ValueError(
            f"The {has} dataset has a column `{COLUMN}`, which the value model reads in place of the prompt, and the "
            f"{lacks} dataset has none: add it, or remove it from both."
        )


class ValuePrompts:
    """
    What value models read for the prompts of rows, found again by the token ids of the prompts.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[tuple[int, ...], list[int]] = {}

    def add_row(self, row: dict[str, Any], prompt_ids: list[int]) -> None:
        """
        Note a row, whose prompt has these token ids.

        Raises:
            [`~trl_ext.data.schema.DataError`]: As for [`encode_value_prompt`]; or another row has the same prompt and
                another `value_prompt`.
        """
        self.add(prompt_ids, encode_value_prompt(self.tokenizer, row))

    def add(self, prompt_ids: list[int], value_prompt_ids: list[int]) -> None:
        """The same with token ids."""
        if self._ids.setdefault(tuple(prompt_ids), value_prompt_ids) != value_prompt_ids:
            raise DataError(
                f"another row has the same prompt with another `{COLUMN}`, and value models could not tell which of "
                "them guides. Put such rows into datasets of their own."
            )

    def of(self, ids_BP: torch.Tensor, mask_BP: torch.Tensor) -> list[list[int]]:
        """
        What value models read for a batch of prompts, padded on the left.

        Raises:
            `KeyError`: A prompt was not noted.
        """
        rows = zip(ids_BP.tolist(), mask_BP.bool().tolist(), strict=True)
        return [self._ids[tuple(i for i, is_token in zip(*row, strict=True) if is_token)] for row in rows]
