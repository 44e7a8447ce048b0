# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows of the schema for tests, plain and conversational, and short ways to prepare and read them."""

from typing import Any

from conftest import make_tokenizer
from datasets import Dataset, IterableDataset

from trl_ext.data.scored_rows import to_scored_rows
from trl_ext.data.tokenization import prepare_dataset


EOS = "<|endoftext|>"
USER = [{"role": "user", "content": "question"}]


def assistant(text: str | None) -> list[dict[str, Any]]:
    """A completion of one message."""
    return [{"role": "assistant", "content": text}]


PLAIN = {"prompt": "the film was", "completions": [" good", " so dull"], "scores": [1.0, 0.0]}
CHAT = {"prompt": USER, "completions": [assistant("good film"), assistant("bad")], "scores": [1.0, 0.0]}


def stream(rows: list[dict[str, Any]]) -> IterableDataset:
    """The rows as a streamed dataset, which keeps types that an Arrow table refuses."""
    return IterableDataset.from_generator(lambda: iter(rows))


def prepare(
    rows: list[dict[str, Any]], tokenizer: Any = None, max_length: int = 0, make: Any = Dataset.from_list
) -> tuple[list[dict[str, Any]], int]:
    """The rows after [`to_scored_rows`] and [`prepare_dataset`], and the number of dropped rows."""
    dataset = to_scored_rows(make(rows), "train")
    dataset, dropped = prepare_dataset(dataset, tokenizer or make_tokenizer(), name="train", max_length=max_length)
    return list(dataset), dropped


def completion_tokens(tokenizer: Any, row: dict[str, Any]) -> list[list[str]]:
    """The tokens of each completion of a tokenized row."""
    return [tokenizer.convert_ids_to_tokens(ids) for ids in row["completion_ids"]]


def completion_texts(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    """The text of each completion of a tokenized row, with its special tokens."""
    return [tokenizer.decode(ids) for ids in row["completion_ids"]]
