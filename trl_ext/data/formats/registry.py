# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""All formats, in the order in which they are tried."""

from typing import Any

from ..schema import DataError
from . import answer_lists, message_trees, pairs, prompts, single_answers
from .dataset_format import DatasetFormat


FORMATS: list[DatasetFormat] = [
    *prompts.AS_THEY_ARE,
    *message_trees.FORMATS,
    *pairs.FORMATS,
    *answer_lists.FORMATS,
    *single_answers.FORMATS,
    *prompts.FORMATS,
]
FORMAT_NAMES = ["auto", *(each.name for each in FORMATS)]


def find_format(row: dict[str, Any], name: str = "auto") -> DatasetFormat | None:
    """
    The format called `name`, or with `"auto"` the first that recognises a row; `None` if none does.

    Raises:
        `DataError`: There is no format of this name, or the row lacks columns of it.
    """
    if name == "auto":
        return next((each for each in FORMATS if each.recognises(row)), None)
    found = next((each for each in FORMATS if each.name == name), None)
    if found is None:
        raise DataError(f"`dataset_format` must be one of {', '.join(FORMAT_NAMES)}, got {name!r}.")
    missing = [names for names in found.columns if not any(each in row for each in names.split("|"))]
    if missing:
        wanted = " and ".join(missing).replace("|", " or ")
        raise DataError(
            f"`dataset_format` {name!r} needs the column {wanted}; the dataset has {', '.join(map(repr, row))}. Name "
            "the columns with `columns`."
        )
    return found
