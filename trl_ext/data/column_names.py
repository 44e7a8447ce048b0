# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The setting `columns`: which column of a dataset holds what the schema calls by another name."""

from functools import partial
from typing import Any

from datasets import Dataset

from trl_ext.validation import as_mapping

from .row_cache import this_version
from .schema import AnyDataset, DataError, column_names


def parse_columns(value: Any) -> dict[str, str]:
    """
    The setting as a dictionary from names of the schema to columns of the dataset.

    Args:
        value (`dict[str, str]` or `str`, *optional*): A dictionary, or on the command line JSON or `name=column` pairs
            with commas between them.

    Raises:
        `ValueError`: It is neither.
    """
    found = value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            found = as_mapping("columns", text)
        else:
            pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
            if not all(sign for _, sign, _ in pairs):
                raise ValueError(f"`columns` must look like prompt=question,chosen=better, got {value!r}.")
            found = {name.strip(): column.strip() for name, _, column in pairs}
    found = found or {}
    if not isinstance(found, dict) or not all(isinstance(x, str) and x for pair in found.items() for x in pair):
        raise ValueError(
            f"`columns` must be a mapping from names of the schema to columns, as in {{'prompt': 'question'}}, got "
            f"{value!r}."
        )
    if len(set(found.values())) < len(found):
        raise ValueError(f"`columns` uses a column twice: {found!r}.")
    return found


def rename_columns(dataset: AnyDataset, name: str, columns: dict[str, str]) -> AnyDataset:
    """
    The dataset with its columns under the names of the schema.

    Raises:
        `DataError`: It lacks one of the columns.
    """
    have = column_names(dataset)
    missing = [column for column in columns.values() if column not in have]
    if missing:
        raise DataError(
            f"The {name} dataset lacks the column {' and '.join(map(repr, missing))} of `columns`; it has "
            f"{', '.join(map(repr, have))}."
        )
    replaced = [target for target in columns if target in have and target not in columns.values()]
    dataset = dataset.remove_columns(replaced) if replaced else dataset
    renamed = {column: target for target, column in columns.items() if target != column}
    if not renamed:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.rename_columns(renamed)
    # `rename_columns` of a stream cannot exchange two columns.
    return dataset.map(this_version(partial(_renamed, names=renamed)), remove_columns=list(renamed))


def _renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {target: row[column] for column, target in names.items()}
