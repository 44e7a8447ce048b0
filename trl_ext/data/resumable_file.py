# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
A data set written a few rows at a time, so that an interruption costs those at most.

Rows go to a .jsonl file: the output itself, or for .parquet a file beside it that becomes the output at the end. A
state file beside it says with which settings the rows were made and how many bytes of the file are whole; what follows
them (a torn line, rows that were not yet counted) is cut off when the run goes on.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from trl_ext.atomic_files import replacing, write_text

from .schema import DataError


_STATE = ("complete", "batches", "rows", "bytes", "totals")


class ResumableFile:
    """
    The output of a run that may be interrupted and resumed.

    Args:
        path (`str`): File to write, `.jsonl` or `.parquet`.
        settings (`dict[str, Any]`): What the rows depend on, as JSON has it. A run with others must not go on here.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to start anew over whatever is there.

    Attributes:
        batches (`int`): Batches that are written.
        rows (`int`): Rows that are written.
        totals (`dict[str, float]`): Sums over what is written, for a summary.
        complete (`bool`): Whether all is written.

    Raises:
        `ValueError`: The suffix is another, the settings differ from those of the rows that are there, or the file is
            not what an interrupted run has left.
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
        self.batches, self.rows, self.bytes, self.complete = 0, 0, 0, False
        self.totals: dict[str, float] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for old in (self.state_path, self.rows_path, self.path):
                old.unlink(missing_ok=True)
        if self._is_there():
            self._resume()
        else:
            self.rows_path.write_bytes(b"")
            self._save_state()

    def _is_there(self) -> bool:
        """Whether an earlier run is to be resumed. A state without its rows (deleted by hand) is none."""
        started, begun = self.state_path.exists(), self.rows_path.exists() or self.path.exists()
        if begun and not started:
            raise ValueError(
                f"output_file '{self.path}' exists and was not left by an interrupted run: choose another name, or "
                "start over with overwrite_output."
            )
        return started and begun

    def _resume(self) -> None:
        settings = self._load_state()
        if not self.batches:  # it failed before anything was written, perhaps for the settings that are now others
            self.rows_path.write_bytes(b"")
            self._save_state()
            return
        if differences := _differences(settings, self.settings):
            raise ValueError(
                f"'{self.path}' was begun with other settings: {'; '.join(differences)}. Set them as they were to go "
                "on, choose another output_file, or start over with overwrite_output."
            )
        if self.complete and self.path.exists():
            return
        size = self.rows_path.stat().st_size if self.rows_path.exists() else 0
        if size < self.bytes:
            raise ValueError(
                f"'{self.rows_path}' has {size} bytes where {self.bytes} were written: it was changed. Start over "
                "with overwrite_output."
            )
        self._cut()

    def _load_state(self) -> dict[str, Any]:
        """Take over what is known to be on the disk, and return the settings it was made with."""
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            for name in _STATE:
                setattr(self, name, state[name])
            return dict(state["settings"])
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"'{self.state_path}' is damaged; start over with overwrite_output.") from error

    def _cut(self) -> None:
        """Remove what follows the last whole batch."""
        with self.rows_path.open("r+b") as file:
            file.truncate(self.bytes)
            os.fsync(file.fileno())

    def append(self, rows: Sequence[dict[str, Any]], totals: dict[str, float] | None = None) -> None:
        """
        Write a batch of rows (perhaps of none), to stay.

        Args:
            rows (`list[dict]`): The rows.
            totals (`dict[str, float]`, *optional*): What to add to the sums.

        Raises:
            [`~trl_ext.data.schema.DataError`]: A column has values that JSON does not know.
            `OSError`: The disk is full, or something like it. The file is then as it was before the call.
        """
        data = b"".join(_line(row, self.rows + i) for i, row in enumerate(rows))
        try:
            with self.rows_path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.batches, self.rows, self.bytes = self.batches + 1, self.rows + len(rows), self.bytes + len(data)
            self.totals = {
                k: self.totals.get(k, 0) + (totals or {}).get(k, 0) for k in {*self.totals, *(totals or {})}
            }
            self._save_state()
        except BaseException:  # Ctrl-C included: half a line would make the file unreadable
            self._load_state()
            self._cut()
            raise

    def finish(self) -> None:
        """All rows are written: make the output of them."""
        if self.complete:
            return
        if self.path != self.rows_path:
            with replacing(self.path) as part:
                _to_parquet(self.rows_path, part)
        self.complete = True
        self._save_state()
        if self.path != self.rows_path:
            self.rows_path.unlink()

    def _save_state(self) -> None:
        state = {name: getattr(self, name) for name in (*_STATE, "settings")}
        write_text(self.state_path, json.dumps(state, indent=2))


def rows_fingerprint(dataset: Iterable[dict[str, Any]]) -> str:
    """What tells these rows from others: how many they are, and a hash of all of them."""
    digest = hashlib.sha256()
    count = 0
    for row in dataset:
        count += 1
        digest.update(json.dumps(row, default=repr).encode("utf-8", errors="replace"))
    return f"{count} rows, sha256 {digest.hexdigest()[:16]}"


def weights_fingerprint(name: str) -> str | None:
    """What tells a model's weights from others in the same directory, without reading all of them."""
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


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [*then, *(name for name in now if name not in then)]
    return [f"{n} was {then.get(n)!r} and is {now.get(n)!r}" for n in names if then.get(n) != now.get(n)]


def _line(row: dict[str, Any], index: int) -> bytes:
    try:
        # Half a surrogate pair, which UTF-8 cannot have, may come from an odd prompt: better a "?" than a lost run
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace") + b"\n"
    except (TypeError, ValueError):
        for column, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"Output row {index}, column {column!r}: cannot be written as JSON ({error}). Remove the column "
                    "from the data set, or turn it into text."
                ) from error
        raise


def _to_parquet(source: Path, target: Path) -> None:
    """All rows at once, as the types of the columns follow from all of them."""
    import datasets

    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    datasets.Dataset.from_list(rows).to_parquet(str(target))


ROW_INDEX = "row_index"  # column of the output: number of the row it was made from


def run_rows(
    rows: Sequence[dict[str, Any]],
    work: Callable[[int, dict[str, Any]], dict[str, Any]],
    output_file: str,
    settings: dict[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    progress: Callable[[int], Any] | None = None,
    stop: Callable[[], Any] | None = None,
) -> int:
    """
    Make a row of a file from each row, in whichever order they are done.

    A row that is done is on the disk before the next one counts. When one fails, or at Ctrl-C, those under way are
    waited for and written too; the same call then goes on with the rest, and ends with the same file: its rows are in
    the order of `rows`.

    Args:
        rows (`Sequence[dict]`): What to work on.
        work (`Callable`): `(index, row) -> output row`; called from several threads.
        output_file (`str`): File to write, `.jsonl` or `.parquet`. It gets a column `row_index`.
        settings (`dict[str, Any]`): What the output depends on besides the rows. A run with others does not go on.
        workers (`int`): Threads.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to start anew.
        progress (`Callable`, *optional*): Called with the number of rows just done, those of an earlier run first.
        stop (`Callable`, *optional*): Called at Ctrl-C, to make the work under way give up.

    Returns:
        `int`: Rows that were made by this call.

    Raises:
        `ValueError`: The file is that of another run.
        `Exception`: What `work` raised first, with a note that names the row and says how many are written.
    """
    file = ResumableFile(output_file, settings | {"contents of the rows": rows_fingerprint(rows)}, overwrite=overwrite)
    if file.complete:
        return 0
    done = {row[ROW_INDEX] for row in _written(file)}
    missing = [index for index in range(len(rows)) if index not in done]
    if progress is not None:
        progress(len(done))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = {pool.submit(work, index, rows[index]): index for index in missing}
        try:
            for job in as_completed(jobs):
                _write(file, job, jobs[job], len(rows))
                if progress is not None:
                    progress(1)
        except BaseException as error:
            if stop is not None and not isinstance(error, Exception):
                stop()
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(OSError):  # the disk itself may be what failed
                _save_the_rest(file, jobs)
            error.add_note(f"{file.rows} of {len(rows)} rows are in '{file.rows_path}'; the same call goes on there.")
            raise
    _sort(file)
    file.finish()
    return len(missing)


def _write(file: ResumableFile, job: Future[dict[str, Any]], index: int, total: int) -> None:
    try:
        row = job.result()
    except Exception as error:
        error.add_note(f"This happened at row {index} of {total}.")
        raise
    file.append([row | {ROW_INDEX: index}])


def _save_the_rest(file: ResumableFile, jobs: dict[Future[dict[str, Any]], int]) -> None:
    """Rows that were done after the failure that ended the run."""
    written = {row[ROW_INDEX] for row in _written(file)}
    for job, index in jobs.items():
        if not job.cancelled() and index not in written and job.exception() is None:
            file.append([job.result() | {ROW_INDEX: index}])


def _written(file: ResumableFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.rows_path.read_text(encoding="utf-8").split("\n") if line]


def _sort(file: ResumableFile) -> None:
    """The same lines in the order of the rows; should it be cut short, the next run sorts again."""
    lines = [line for line in file.rows_path.read_bytes().split(b"\n") if line]
    lines.sort(key=lambda line: json.loads(line)[ROW_INDEX])
    with replacing(file.rows_path) as part:
        part.write_bytes(b"".join(line + b"\n" for line in lines))
