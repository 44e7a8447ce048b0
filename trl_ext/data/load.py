# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads a dataset from the Hub, a directory or a file."""

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

import datasets
import fsspec
import pyarrow
import pyarrow.json
from datasets import DatasetDict, IterableDatasetDict

from trl_ext.progress import library_progress

from .schema import AnyDataset, DataError


FILE_TYPES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")  # behind .jsonl, .json, .csv and .tsv
# Bytes of JSON that a stream reads at once; the first of these become Python objects, several times as large.
STREAM_CHUNK = 2 << 20
# Bytes in which the types of the columns are found. Types that come later are errors in a stream.
TYPED_BYTES = 256 << 20
FILE_TYPES_TEXT = ".jsonl, .json, .parquet, .csv or .tsv (also .gz, .zst, .xz, .bz2)"


# The overloads tell a type checker that with `split` the result is one dataset, which a trainer accepts.
@overload
def load_dataset(name: str, config: str | None = None, *, split: str, streaming: bool = False) -> AnyDataset: ...


@overload
def load_dataset(
    name: str, config: str | None = None, split: str | None = None, streaming: bool = False
) -> AnyDataset | DatasetDict | IterableDatasetDict: ...


def load_dataset(
    name: str, config: str | None = None, split: str | None = None, streaming: bool = False
) -> AnyDataset | DatasetDict | IterableDatasetDict:
    """
    Load a dataset from the Hub, a local directory, or a local .jsonl, .json, .parquet, .csv or .tsv file, which may be
    compressed (`.jsonl.gz`).

    Args:
        name (`str`): Hub id, directory or file.
        config (`str`, *optional*): Configuration of a dataset on the Hub.
        split (`str`, *optional*): Split to return; all splits by default. A file has the split `train`.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows only when they are used.

    Raises:
        `DataError`: The file or directory does not exist, cannot be read in the format of its suffix, or has no such
            split.
    """
    with library_progress(f"loading {short_name(name)}"):
        splits = _load(name, config, streaming)
    if split is None:
        return splits
    if split not in splits:
        raise DataError(f"{name!r} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    return splits[split]


def _load(name: str, config: str | None, streaming: bool) -> DatasetDict | IterableDatasetDict:
    """All splits of a dataset."""
    path = Path(name).expanduser()
    if file_type(path) and not path.is_dir():
        if not path.is_file():
            raise DataError(f"There is no file {name!r}.")
        if path.stat().st_size == 0:
            raise DataError(f"{name!r} is empty.")
        return _read_file(path, streaming)
    if path.is_file():
        raise DataError(f"{name!r} is a file of a type that is not read: use {FILE_TYPES_TEXT}.")
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if path.is_dir() and (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return DatasetDict(train=datasets.load_from_disk(str(path)))
    if name.startswith((".", "/", "~")) and not path.exists():
        raise DataError(f"There is no file or directory {name!r}.")
    try:
        return datasets.load_dataset(str(path) if path.exists() else name, name=config, streaming=streaming)
    except datasets.exceptions.DatasetGenerationError as error:
        remedy = ""
        if path.is_dir():
            remedy = ". Its files must be data of one form: name one of them, or a folder that has nothing else."
        reason = " ".join(_reason(path, error).split())
        raise DataError(f"{name!r} cannot be read: {reason[:200]}{'...' * (len(reason) > 200)}{remedy}") from error


def file_type(path: Path) -> str:
    """The suffix that says how a file is read, without that of its compression; empty if it is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes = [suffix for suffix in suffixes[:-1] if suffix != ".parquet"]
    return suffixes[-1] if suffixes and suffixes[-1] in FILE_TYPES else ""


def short_name(name: str) -> str:
    """A dataset's name for messages: the Hub id, or the last part of a path."""
    return repr(Path(name).name if Path(name).expanduser().exists() else name)


def _read_file(path: Path, streaming: bool) -> DatasetDict | IterableDatasetDict:
    suffix = file_type(path)
    kind = FILE_TYPES[suffix]
    kwargs: dict[str, Any] = {}
    if path.suffix == ".zst" and find_spec("zstandard") is None:
        raise DataError(f"{str(path)!r} cannot be read without the package `zstandard`: pip install zstandard.")
    if suffix == ".tsv":
        kwargs["delimiter"] = "\t"
    if kind == "json":
        # `datasets` infers the types from the first chunk and silently turns other types in later chunks into text.
        kwargs["chunksize"] = STREAM_CHUNK if streaming else min(max(path.stat().st_size, 10 << 20), TYPED_BYTES)
        kwargs["features"] = _later_types(path) if streaming else None
    try:
        found = datasets.load_dataset(kind, data_files=str(path), streaming=streaming, **kwargs)
        if kind == "json" and isinstance(found, DatasetDict):  # its reader takes bytes that are no text
            for part in found.values():
                part.data.validate(full=True)
        return found
    except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {_reason(path, error)}") from error


def _later_types(path: Path) -> datasets.Features | None:
    """
    Types of the columns of JSON lines where a later chunk has others than the first, such as 0.5 after whole numbers.

    Read chunk by chunk, so that memory does not grow with the file. `None` if the first chunk has all types, or
    `datasets` has to find them.
    """
    schemas: list[pyarrow.Schema] = []
    left = TYPED_BYTES
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:
            while left > 0 and (chunk := file.read(STREAM_CHUNK)):
                chunk += file.readline()
                left -= len(chunk)
                whole = pyarrow.json.ReadOptions(block_size=max(len(chunk), 1 << 16))
                schema = pyarrow.json.read_json(io.BytesIO(chunk), read_options=whole).schema
                if schema not in schemas:
                    schemas.append(schema)
        if len(schemas) < 2:
            return None
        return datasets.Features.from_arrow_schema(pyarrow.unify_schemas(schemas, promote_options="permissive"))
    except (pyarrow.ArrowException, OSError, EOFError, ValueError):
        return None


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do where that is known."""
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeDecodeError) or "Invalid UTF8" in str(cause):
        return "it is not in UTF-8. Save it in that encoding (a spreadsheet calls it CSV UTF-8)."
    return (_broken_line(path) if path.suffix == ".jsonl" and path.is_file() else None) or str(cause)


def _broken_line(path: Path) -> str | None:
    """Number of the first line that is not valid JSON, and the error; `None` if there is no such line."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line if line.strip() else "null")
            except json.JSONDecodeError as error:
                return f"line {number} is not valid JSON ({error.msg.removesuffix(' at')}, column {error.colno})."
    return None
