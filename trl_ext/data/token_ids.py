# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Checks that a model has an embedding for every token. Without them the error is one of the GPU, or of indexing."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .schema import AnyDataset, DataError, where, with_check


def check_token_ids(ids: Iterable[int], embeddings: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Check token ids against the embeddings of a model.

    Args:
        ids (`Iterable[int]`): Token ids.
        embeddings (`int`): Number of token ids that the model has an embedding for. `0` means not known.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer that the ids are from.

    Raises:
        `DataError`: One has no embedding.
    """
    highest = max(ids, default=0)
    if 0 < embeddings <= highest:
        raise DataError(
            f"token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) has no embedding: the model has "
            f"{embeddings}. Use the model's own tokenizer, or make room for added tokens with "
            "`model.resize_token_embeddings(len(tokenizer))`, and train or initialise them."
        )


def check_token_ids_of_rows(
    dataset: AnyDataset, embeddings: int, tokenizer: PreTrainedTokenizerBase, *, name: str
) -> AnyDataset:
    """
    The same for all rows of a tokenized dataset; those of a stream are checked when they are read.

    Nothing is read if the tokenizer has no token beyond the embeddings, as is usual.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with `row_index`, and with token ids.
        embeddings (`int`), tokenizer ([`~transformers.PreTrainedTokenizerBase`]): As for [`check_token_ids`].
        name (`str`): Name of the dataset in error messages.

    Returns:
        The dataset. A stream is returned with the check added to it.

    Raises:
        `DataError`: A row has such a token. The message names it and the column.
    """
    if not embeddings or max(tokenizer.get_vocab().values(), default=0) < embeddings:
        return dataset
    columns = {"prompt_ids": "prompt", "guided_ids": "prompt", "completion_ids": "completions"}

    def check(row: dict[str, Any]) -> None:
        for ids, column in columns.items():
            try:
                check_token_ids(_flat(row.get(ids) or ()), embeddings, tokenizer)
            except DataError as error:
                raise DataError(f"{where(row['row_index'], name, column)}: {error}") from None

    return with_check(dataset, check, ("row_index", *columns))


def _flat(ids: Sequence[Any]) -> Iterable[int]:
    return ids if not ids or isinstance(ids[0], int) else (token for sequence in ids for token in sequence)
