# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Files of rows that are written a batch at a time, so that an interrupted run can be resumed and loses only one batch.
Batches need not come in the order of the input: a column with the number of the input row sorts the complete file.

Rows are written to a .jsonl file: the output itself, or for .parquet a temporary file beside it that is converted at
the end. A state file beside it holds the settings that the rows were made with, and the number of bytes of complete
batches. When the run is resumed, whatever follows these bytes is removed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trl_ext.atomic_files import replacing, write_text, writing
from trl_ext.progress import library_progress

from .schema import DataError


ROW_INDEX = "row_index"  # column with the number of the input row, in files whose rows come in another order
# Attributes of a file that its state file holds
_STATE = ("complete", "batches", "rows", "bytes", "sorted_bytes", "totals")


class ResumableFile:
    """
    The output of a run that may be interrupted and resumed.

    Args:
        path (`str`): File to write, `.jsonl` or `.parquet`.
        settings (`dict[str, Any]`): Everything that the rows depend on, serializable as JSON. Only a run with equal
            settings can be resumed.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to delete an existing file and start over.

    Attributes:
        batches (`int`): Number of batches that are written.
        rows (`int`): Number of rows that are written.
        totals (`dict[str, float]`): Sums over the written batches, for a summary.
        complete (`bool`): Whether all rows are written.

    Raises:
        `ValueError`: The suffix is another, the settings differ from those of the rows in the file, or the file was
            not left by an interrupted run.
        `OSError`: The file cannot be written.
    """

    def __init__(self, path: str, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"output_file must end in .jsonl or .parquet, got {path!r}.")
        if self.path.is_dir():
            raise ValueError(f"output_file {path!r} is a directory.")
        self.rows_path = self.path if self.path.suffix == ".jsonl" else Path(f"{self.path}.rows.jsonl")
        self.state_path = Path(f"{self.path}.state.json")
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.batches, self.rows, self.bytes, self.sorted_bytes, self.complete = 0, 0, 0, 0, False
        self.totals: dict[str, float] = {}
        with writing(self.rows_path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for old in (self.state_path, self.rows_path, self.path):
                    old.unlink(missing_ok=True)
            if self._is_there():
                self._resume()
            else:
                self._save_state()  # first: a state file alone is no earlier run
                self.rows_path.write_bytes(b"")

    def _is_there(self) -> bool:
        """Whether there is an earlier run to resume. A state file without a file of rows does not count."""
        has_state, has_rows = self.state_path.exists(), self.rows_path.exists() or self.path.exists()
        if has_rows and not has_state:
            raise ValueError(
                f"output_file '{self.path}' exists and was not left by an interrupted run: choose another name, or "
                "start over with overwrite_output."
            )
        return has_state and has_rows

    def _resume(self) -> None:
        settings = self._load_state()
        if not self.batches:  # it failed before any row was written: the settings may change
            self.rows_path.write_bytes(b"")
            self._save_state()
            return
        if differences := _differences(settings, self.settings):
            raise ValueError(
                f"'{self.path}' was started with other settings: {'; '.join(differences)}. To resume, set them as "
                "they were. Or choose another output_file, or start over with overwrite_output."
            )
        if self.complete and self.path.exists():
            return
        size = self.rows_path.stat().st_size if self.rows_path.exists() else 0
        if self.sorted_bytes and size == self.sorted_bytes:  # interrupted in `finish`
            self.bytes = size
        elif size < self.bytes:
            raise ValueError(
                f"'{self.rows_path}' has {size} bytes, but {self.bytes} were written: the file was changed. Start "
                "over with overwrite_output."
            )
        self._cut()

    def _load_state(self) -> dict[str, Any]:
        """Set the attributes from the state file, and return the settings in it."""
        try:
            state = {"sorted_bytes": 0} | json.loads(self.state_path.read_text(encoding="utf-8"))
            for name in _STATE:
                setattr(self, name, state[name])
            return dict(state["settings"])
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"'{self.state_path}' is damaged; start over with overwrite_output.") from error

    def _cut(self) -> None:
        """Remove everything after the last complete batch."""
        with self.rows_path.open("r+b") as file:
            file.truncate(self.bytes)
            os.fsync(file.fileno())

    def discard(self, drop: Callable[[dict[str, Any]], bool]) -> None:
        """
        Remove rows, so that the run is no longer complete and can make them again. For `.jsonl` only.

        Args:
            drop (`Callable`): Whether to remove a row.

        Raises:
            `ValueError`: The file is .parquet.
        """
        if self.path != self.rows_path:
            raise ValueError(f"rows of '{self.path}' cannot be removed: only those of a .jsonl file can.")
        rows = self.written()
        kept = [row for row in rows if not drop(row)]
        if len(kept) == len(rows):
            return
        data = b"".join(_line(row, i) for i, row in enumerate(kept))
        # If it is interrupted between the two files, the next run finds fewer bytes than it expects, and says so.
        write_text(self.rows_path, data.decode())
        self.rows, self.bytes, self.sorted_bytes, self.complete = len(kept), len(data), 0, False
        self._save_state()

    def written(self) -> list[dict[str, Any]]:
        """The rows that are written to a `.jsonl` file, or to the temporary file of another."""
        return [json.loads(line) for line in self.rows_path.read_text(encoding="utf-8").split("\n") if line]

    def missing_batches(self, num_rows: int, batch_size: int) -> range:
        """
        Where the batches begin that are not written yet, if they come in the order of the input rows.

        Args:
            num_rows (`int`): Number of input rows of the whole run.
            batch_size (`int`): Input rows per batch, of which [`append`] writes the output.

        Returns:
            `range`: Index of the first input row of each missing batch.
        """
        return range(min(self.batches * batch_size, num_rows), num_rows, batch_size)

    def append(self, rows: Sequence[dict[str, Any]], totals: dict[str, float] | None = None) -> None:
        """
        Write a batch of rows and flush it to the disk.

        Args:
            rows (`list[dict]`): The rows; may be empty.
            totals (`dict[str, float]`, *optional*): Numbers to add to the attribute `totals`.

        Raises:
            [`~trl_ext.data.schema.DataError`]: A column has values that cannot be written as JSON.
            `OSError`: The batch cannot be written, for instance because the disk is full. The file is then unchanged.
        """
        data = b"".join(_line(row, self.rows + i) for i, row in enumerate(rows))
        try:
            with writing(self.rows_path), self.rows_path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.batches, self.rows, self.bytes = self.batches + 1, self.rows + len(rows), self.bytes + len(data)
            self.totals = {
                k: self.totals.get(k, 0) + (totals or {}).get(k, 0) for k in {*self.totals, *(totals or {})}
            }
            self._save_state()
        except BaseException:  # Ctrl-C too: an incomplete line would make the file unreadable
            self._load_state()
            self._cut()
            raise

    def finish(self, *, sort_by: str = "", drop: bool = False) -> None:
        """
        Mark the file as complete after the last batch, and convert it if the output is .parquet.

        Args:
            sort_by (`str`, *optional*, defaults to `""`): Column with the number of the input row, to sort the rows
                by. Rows of the same number keep their order.
            drop (`bool`, *optional*, defaults to `False`): Whether to remove that column.
        """
        if self.complete:
            return
        if sort_by and not (drop and self.bytes == self.sorted_bytes):
            self._sort(sort_by, drop)
        if self.path != self.rows_path:
            with library_progress(f"writing {self.path.name}"), replacing(self.path) as part:
                _to_parquet(self.rows_path, part)
        self.complete = True
        self._save_state()
        if self.path != self.rows_path:
            with suppress(OSError):  # the output is complete without
                self.rows_path.unlink()

    def _sort(self, column: str, drop: bool) -> None:
        """Sort the rows by a column. If this is interrupted, the next run sorts again, or finds the sorted file."""
        places, start = [], 0
        with replacing(self.rows_path) as part:
            with self.rows_path.open("rb") as source, part.open("wb") as target:
                for line in source:
                    places.append((json.loads(line)[column], start))
                    start += len(line)
                for _, start in sorted(places):
                    source.seek(start)
                    line = source.readline()
                    if drop:
                        row = json.loads(line)
                        del row[column]
                        line = _line(row, 0)
                    target.write(line)
                self.sorted_bytes = target.tell()
            self._save_state()
        self.bytes = self.sorted_bytes

    def _save_state(self) -> None:
        state = {name: getattr(self, name) for name in (*_STATE, "settings")}
        write_text(self.state_path, json.dumps(state, indent=2))


# ------------------------------------------------------------------------------------------------------ fingerprints


def rows_fingerprint(dataset: Iterable[dict[str, Any]]) -> str:
    """Number of rows and a hash of their contents, to recognize the same dataset."""
    digest = hashlib.sha256()
    count = 0
    for row in dataset:
        count += 1
        digest.update(json.dumps(row, default=repr).encode())  # JSON escapes what is not ASCII
    return f"{count} rows, sha256 {digest.hexdigest()[:16]}"


def weights_fingerprint(name: str) -> str | None:
    """
    Hash of the names, sizes and last bytes of the weight files in a directory, to recognize the same weights.

    Returns:
        `str`: `None` if there are no weight files, as for a Hub id.
    """
    files = sorted(path for path in Path(name).glob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 16)))
            digest.update(f"{path.name} {size}".encode() + file.read())
    return digest.hexdigest()[:16]


def file_fingerprint(name: str) -> str | None:
    """Hash of the contents of a file, to recognize the same one; `None` if there is no such file."""
    try:
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
    except (OSError, ValueError):  # it is a Hub id, or text that is no path
        return None


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A description of each setting that has changed."""
    names = [*then, *(name for name in now if name not in then)]
    return [f"{n} was {then.get(n)!r} and is {now.get(n)!r}" for n in names if then.get(n) != now.get(n)]


def _line(row: dict[str, Any], index: int) -> bytes:
    """A row as a line of JSON."""
    try:
        # A prompt may contain half a surrogate pair, which UTF-8 cannot encode: write "?" instead of failing.
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace") + b"\n"
    except (TypeError, ValueError):
        for column, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"Output row {index}, column {column!r}: cannot be written as JSON ({error}). Remove the column "
                    "from the dataset, or turn it into text."
                ) from error
        raise


def _to_parquet(source: Path, target: Path) -> None:
    """Convert a .jsonl file to .parquet. All rows are read at once, because together they determine the types."""
    import datasets

    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    datasets.Dataset.from_list(rows).to_parquet(str(target))
