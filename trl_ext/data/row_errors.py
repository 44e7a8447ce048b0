# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Errors that name the dataset, the row and the column, whatever raised them; long texts in messages about rows."""

from collections.abc import Iterator
from contextlib import contextmanager

from .schema import DataError


@contextmanager
def located(place: str, remedy: str = "") -> Iterator[None]:
    """
    Turn every error of the block into a [`DataError`] that begins with a place.

    Templates, tokenizers and parsers raise errors of any type, which say nothing about the row that they failed on.

    Args:
        place (`str`): Such as "Row 3 of the train dataset" or "column 'prompt'". Blocks may be nested.
        remedy (`str`, *optional*): What to do, for errors that are no [`DataError`] and do not say so themselves.
    """
    try:
        yield
    except DataError as error:
        text = str(error)
        if text.startswith("Row "):
            raise
        separator = ", " if text.startswith(("column ", "columns ")) else ": "
        raise DataError(f"{place}{separator}{text}") from error.__cause__
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).strip() or 'no message'}".rstrip(".")
        raise DataError(f"{place}: {problem}. {remedy or 'Correct or remove the row.'}") from error


def shortened(text: str) -> str:
    """A text for a message: all of it, or the beginning and the end of one of more than 160 letters."""
    return text if len(text) <= 160 else f"{text[:80]} ... {text[-80:]}"
