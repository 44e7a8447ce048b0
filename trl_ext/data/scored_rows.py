# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
From a dataset in any known form to the row schema: the one way in, for all trainers and commands.

Columns are renamed (`columns`), messages get a `role` and a `content`, and the form is recognised by the columns and
the first row, or named (`dataset_format`). See `formats` for the forms, and `docs/dataset_formats.md` for a table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from trl_ext.progress import library_progress

from .column_names import parse_columns, rename_columns
from .formats.dataset_format import DatasetFormat, has_prompt, has_system
from .formats.registry import find_format
from .messages import needs_roles, with_roles
from .row_cache import this_version
from .row_errors import located
from .schema import AnyDataset, DataError, column_names, first_row, where


logger = logging.get_logger(__name__)

_SCHEMA = ("prompt", "completions", "scores", "ended", "sources", "rewards")  # columns of converted rows
# How the command line passes `reward_funcs`, for errors.
REWARD_FLAGS = "(`--reward_model_name_or_path`, `--reward_funcs`)"
_ROWS_TO_TELL = 20  # rows of a table that are looked at to recognise its form
_FORMS = (
    "Rows have either `prompt`, `completions`, `scores`, or `prompt`, `chosen`, `rejected`, or (with `reward_funcs`) "
    "only `prompt`. If a column has another name, say so: `columns: {prompt: question}` (on the command line "
    "`--columns prompt=question`); `dataset_format` names a form that is not recognised."
)


def to_scored_rows(
    dataset: AnyDataset,
    name: str,
    *,
    columns: dict[str, str] | str | None = None,
    dataset_format: str = "auto",
    keep_columns: bool = False,
    limit: int = 0,
    num_proc: int | None = None,
) -> AnyDataset:
    """
    Convert a dataset to the row schema.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows in any of the forms of `formats`. Rows of the schema, and rows with only `prompt`, are taken as they
            are. Converted rows may lack `scores` where the dataset has none.
        name (`str`):
            Name of the dataset in messages.
        columns (`dict[str, str]`, *optional*):
            The dataset's columns for names of the schema, as in `{"prompt": "question"}`.
        dataset_format (`str`, *optional*, defaults to `"auto"`):
            Name of the form, or `"auto"` to recognise it.
        keep_columns (`bool`, *optional*, defaults to `False`):
            Whether columns whose content is now in `completions` and `scores` stay.
        limit (`int`, *optional*, defaults to `0`):
            Number of rows to take from the start, before those without a usable answer are left out. `0` takes all.
        num_proc (`int`, *optional*):
            Number of processes that convert.

    Raises:
        `DataError`: The dataset is empty, has images, or its form is not known; or a row cannot be converted.
    """
    dataset, found = recognise(dataset, name, columns=columns, dataset_format=dataset_format, num_proc=num_proc)
    if found.group is None:
        dataset = _first_rows(dataset, limit)
    if found.convert is None and found.group is None:
        return dataset
    converted = _converted(dataset, name, found, keep_columns, num_proc)
    _announce(found, name, dataset, converted)
    return _first_rows(converted, limit)


def recognise(
    dataset: AnyDataset,
    name: str,
    *,
    columns: dict[str, str] | str | None = None,
    dataset_format: str = "auto",
    num_proc: int | None = None,
) -> tuple[AnyDataset, DatasetFormat]:
    """
    The dataset with renamed columns and with messages that have roles, and the form of its rows.

    The arguments and errors are those of [`to_scored_rows`].
    """
    if not column_names(dataset):
        raise DataError(f"The {name} dataset has no rows.")
    dataset = rename_columns(dataset, name, parse_columns(columns))
    _refuse_images(column_names(dataset), name)
    row = _telling_row(dataset, name)
    others = [column for column, value in row.items() if needs_roles(value)]
    if others:
        convert = this_version(partial(_with_roles, columns=others, name=name))
        kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}
        with library_progress(f"converting the {name} dataset"):
            dataset = dataset.map(convert, with_indices=True, **kwargs)
        row = _telling_row(dataset, name)
    try:
        found = find_format(row, dataset_format)
    except DataError as error:
        raise DataError(f"The {name} dataset: {error}") from None
    if found is None:
        raise _unknown_form(row, name)
    return dataset, found


def form_of(
    dataset: AnyDataset, name: str, *, columns: dict[str, str] | str | None = None, dataset_format: str = "auto"
) -> str:
    """Name of the form that [`to_scored_rows`] reads a dataset in. The arguments are the same."""
    row = _telling_row(rename_columns(dataset, name, parse_columns(columns)), name)
    row |= _with_roles(row, 0, [column for column, value in row.items() if needs_roles(value)], name)
    found = find_format(row, dataset_format)
    return found.name if found is not None else ""


def _telling_row(dataset: AnyDataset, name: str) -> dict[str, Any]:
    """The row, of the first few, with the fewest empty values: an empty list does not say what it could hold."""
    if not isinstance(dataset, Dataset):
        return first_row(dataset, name)
    rows = list(dataset.select(range(min(_ROWS_TO_TELL, len(dataset)))))
    return min(rows, key=lambda row: sum(value in (None, "", []) for value in row.values()))


def _first_rows(dataset: AnyDataset, limit: int) -> AnyDataset:
    if not limit or not isinstance(dataset, Dataset) or len(dataset) <= limit:
        return dataset
    return dataset.select(range(limit))


def _with_roles(row: dict[str, Any], index: int, columns: Sequence[str], name: str) -> dict[str, Any]:
    changed = {}
    for column in columns:
        with located(where(index, name, column)):
            changed[column] = with_roles(row[column])
    return changed


def _refuse_images(columns: Sequence[str], name: str) -> None:
    for column in ("image", "images"):
        if column in columns:
            raise DataError(
                f"The {name} dataset has a column {column!r}, but the methods here train on text: the model would "
                "learn to describe what it does not see. Remove the column if the rows make sense without it."
            )


def _unknown_form(row: dict[str, Any], name: str) -> DataError:
    columns = list(row)
    if len(columns) == 1 and (delimiter := next((mark for mark in ";\t|" if mark in columns[0]), "")):
        return DataError(
            f"The {name} dataset has one column, {columns[0]!r}: it is a table that is separated by {delimiter!r}. "
            "Save it with commas, or with tabs as .tsv."
        )
    nested = [column for column, value in row.items() if isinstance(value, list) and value and _is_row(value[0])]
    if nested and len(nested) == sum(value not in (None, []) for value in row.values()):
        return DataError(
            f"The {name} dataset has the rows in lists called {', '.join(map(repr, nested))}: write the rows of one "
            "list alone, each on a line of a .jsonl file."
        )
    if "completions" in columns:
        wanted = ["prompt", "completions", "scores"]
    elif "chosen" in columns or "rejected" in columns:
        wanted = ["chosen", "rejected"]
    else:
        wanted = ["prompt"]
    missing = [column for column in wanted if column not in columns]
    what = f"lacks the column {' and '.join(map(repr, missing))}" if missing else "has no form that is known"
    return DataError(f"The {name} dataset {what}; it has {', '.join(map(repr, columns))}. {_FORMS}")


def _is_row(value: Any) -> bool:
    """Whether a value is a row with columns of its own, not a message or an answer."""
    return isinstance(value, dict) and find_format(value) is not None


def _converted(
    dataset: AnyDataset, name: str, found: DatasetFormat, keep_columns: bool, num_proc: int | None
) -> AnyDataset:
    convert = this_version(partial(_convert_rows, format_name=found.name, name=name, keep_columns=keep_columns))
    columns = column_names(dataset)
    if not isinstance(dataset, Dataset):
        if found.group is not None:
            raise DataError(
                f"The {name} dataset has the form `{found.name}`, in which one row of the schema is made of several "
                "rows: a stream would have to be read to its end. Load it without streaming, or write the schema to a "
                "file with `trl-ext convert` and stream that."
            )
        # One by one, so that a stream is not read ahead and resumes at the right row.
        return dataset.map(convert, batched=True, batch_size=1, with_indices=True, remove_columns=columns)
    kwargs: dict[str, Any] = {"desc": f"Converting {name} dataset", "num_proc": num_proc}
    if found.group is not None:
        kwargs |= {"batch_size": None, "num_proc": None}
    with library_progress(f"converting the {name} dataset"):
        converted = dataset.map(convert, batched=True, with_indices=True, remove_columns=columns, **kwargs)
    if not len(converted):
        raise DataError(
            f"The {name} dataset is read as `{found.name}` ({found.found_in}), but none of its {len(dataset)} rows "
            "has a prompt and an answer that can be used. If it has another form, name it with `dataset_format`."
        )
    return converted


def _convert_rows(
    batch: dict[str, list[Any]], indices: list[int], *, format_name: str, name: str, keep_columns: bool
) -> dict[str, list[Any]]:
    """Rows of a form as rows of the schema, in the layout of `datasets`: a list for each column."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found = find_format(rows[0], format_name)
    assert found is not None
    removed = () if keep_columns else found.consumes
    made: list[dict[str, Any]] = []
    if found.group is not None:
        with located(f"The {name} dataset"):
            made = found.group(rows)
        return _as_columns([{k: v for k, v in row.items() if k not in removed or k in _SCHEMA} for row in made])
    convert: Callable[[dict[str, Any]], list[dict[str, Any]]] = found.convert  # type: ignore[assignment]
    for index, row in zip(indices, rows, strict=True):
        others = {column: value for column, value in row.items() if column not in removed}
        with located(where(index, name)):
            made += [others | new for new in convert(row)]
    return _as_columns(made)


def _as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row) or ["prompt"]
    return {name: [row.get(name) for row in rows] for name in names}


def _announce(found: DatasetFormat, name: str, dataset: AnyDataset, converted: AnyDataset) -> None:
    """Say in one line what was recognised; nothing about TRL's own forms, which need no guess."""
    row = first_row(dataset, name)
    usual = found.name == "preference" and not has_system(row) and ("prompt" in row or not has_prompt(row))
    counts = ""
    if isinstance(dataset, Dataset) and len(converted) != len(dataset):
        counts = f"; its {len(dataset)} rows become {len(converted)}"
    if usual and not counts:
        return
    if found.labels and (bad := sum(max(scores) == 0 for scores in converted["scores"])):
        counts += (
            f". {bad} of them have only answers with the label 0, which a loss that imitates the best answer imitates"
        )
    logger.warning(
        f"The {name} dataset is read as `{found.name}` ({found.found_in}); its columns are "
        f"{', '.join(map(repr, row))}{counts}. `dataset_format` and `columns` change that."
    )


def require_scores(dataset: AnyDataset, name: str, columns: Sequence[str], *, rewarded: bool) -> AnyDataset:
    """
    The dataset for training: with scores if it has completions.

    Completions without scores are left out if reward functions score others.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Result of [`to_scored_rows`].
        name (`str`): Name of the dataset in messages.
        columns (`Sequence[str]`): Columns that it had before, for the message.
        rewarded (`bool`): Whether there are reward functions, for which training generates completions.

    Raises:
        `DataError`: There are completions without scores, and no reward functions.
    """
    have = column_names(dataset)
    if "completions" not in have or "scores" in have:
        return dataset
    if rewarded:
        logger.warning(
            f"The completions of the {name} dataset have no scores: only its prompts are used, and completions are "
            "generated for them."
        )
        return dataset.remove_columns([column for column in ("completions", "ended", "sources") if column in have])
    raise DataError(
        f"The {name} dataset lacks the column 'scores'; it has {', '.join(map(repr, columns))}. Completions without "
        "scores teach no order: score them with `trl-ext sample --dataset_completions`, name the column that has the "
        "scores (`columns: {scores: ratings}`), or pass `reward_funcs` "
        f"{REWARD_FLAGS} to generate and score others."
    )


def lacks_completions(columns: Sequence[str], name: str) -> DataError:
    """The error for a dataset with only prompts, where neither completions nor a way to score new ones is given."""
    shown = [column for column in columns if column not in ("prompt_ids", "row_index")]
    return DataError(
        f"The {name} dataset has prompts but no completions; its columns are {', '.join(map(repr, shown))}. Add the "
        "columns `completions` and `scores` (`trl-ext sample` makes them), name those that hold them (`columns: "
        "{completions: answers, scores: ratings}`, or a form with `dataset_format`), or pass `reward_funcs` "
        f"{REWARD_FLAGS} to generate completions and score them."
    )
