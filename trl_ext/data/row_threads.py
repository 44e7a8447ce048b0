# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Processes rows and writes each result to a resumable file as soon as it is complete: in several threads
([`run_rows`]), or in batches ([`run_batches`]).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from trl_ext.progress import progress

from .resumable_file import ROW_INDEX, ResumableFile, rows_fingerprint


class NotBegun(Exception):
    """Work that was left out, as some other has failed."""


def run_rows(
    rows: Sequence[dict[str, Any]],
    work: Callable[[int, dict[str, Any]], dict[str, Any]],
    output_file: str,
    settings: dict[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    stop: Callable[[], Any] | None = None,
    again: Callable[[dict[str, Any]], bool] | None = None,
    name: str = "sampling",
    unit: str = "rows",
) -> int:
    """
    Process rows in several threads and write each result as soon as it is complete.

    After an error or Ctrl-C, rows that are being processed are completed and written. The same call then resumes with
    the missing rows. The complete file is the same in any case, with its rows in the order of `rows`.

    Args:
        rows (`Sequence[dict]`): The input rows.
        work (`Callable`): `(index, row) -> output row`. Called from several threads.
        output_file (`str`): File to write, `.jsonl` or `.parquet`. It gets a column `row_index`.
        settings (`dict[str, Any]`): Everything that the output depends on besides the rows. See [`ResumableFile`].
        workers (`int`): Number of threads.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to delete an existing file and start over.
        stop (`Callable`, *optional*): Called after Ctrl-C. It should make the running calls of `work` fail soon.
        again (`Callable`, *optional*): Whether an output row of an earlier call is removed and processed again. For
            `.jsonl` only.
        name (`str`, *optional*, defaults to `"sampling"`), unit (`str`, *optional*, defaults to `"rows"`): What the
            progress shows.

    Returns:
        `int`: Number of rows that this call processed.

    Raises:
        `ValueError`: The file was written by another run.
        `Exception`: The first error of `work`, with notes that name the row and the number of written rows.
    """
    file, missing = _opened(rows, output_file, settings, overwrite, again)
    if file.complete:
        return 0
    failed = threading.Event()
    with (
        progress(name, len(rows), unit, done=len(rows) - len(missing)) as phase,
        ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        jobs = {pool.submit(until_a_failure(work, failed), index, rows[index]): index for index in missing}
        with _noting(file, len(rows)):
            try:
                for job in as_completed(jobs):
                    if isinstance(job.exception(), NotBegun):
                        continue  # the error itself follows
                    _write(file, job, jobs[job], len(rows))
                    phase.advance()
            except BaseException as error:
                if stop is not None and not isinstance(error, Exception):
                    stop()
                pool.shutdown(wait=True, cancel_futures=True)
                with contextlib.suppress(OSError):  # a failing disk may be the cause of `error`
                    _save_the_rest(file, jobs)
                raise
    file.finish(sort_by=ROW_INDEX)
    return len(missing)


def until_a_failure(work: Callable[..., Any], failed: threading.Event) -> Callable[..., Any]:
    """
    A function for several threads that does nothing more once it has failed in one of them.

    The main thread would cancel the rest too late: it may wait for the processor while the other threads go on.

    Args:
        work (`Callable`): The function.
        failed (`threading.Event`): Set when it has failed.

    Raises:
        [`NotBegun`]: When called: it has failed before.
    """

    def begin(*args: Any, **kwargs: Any) -> Any:
        if failed.is_set():
            raise NotBegun
        try:
            return work(*args, **kwargs)
        except BaseException:
            failed.set()
            raise

    return begin


def run_batches(
    rows: Sequence[dict[str, Any]],
    work: Callable[[list[int]], Sequence[dict[str, Any]]],
    output_file: str,
    settings: dict[str, Any],
    *,
    batch_size: int,
    overwrite: bool = False,
    again: Callable[[dict[str, Any]], bool] | None = None,
    name: str = "sampling",
    unit: str = "rows",
) -> int:
    """
    Process rows in batches, in this thread, and write the results of each. An interrupted call loses one batch.

    Args:
        work (`Callable`): `(indices of rows) -> their output rows`, in the same order.
        batch_size (`int`): Rows in a batch.
        rows, output_file, settings, overwrite, again, name, unit: As for [`run_rows`].

    Returns:
        `int`: Number of rows that this call processed.

    Raises:
        `ValueError`: The file was written by another run.
    """
    file, missing = _opened(rows, output_file, settings, overwrite, again)
    if file.complete:
        return 0
    with progress(name, len(rows), unit, done=len(rows) - len(missing)) as phase, _noting(file, len(rows)):
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            found = zip(batch, work(batch), strict=True)
            file.append([row | {ROW_INDEX: index} for index, row in found])
            phase.advance(len(batch))
    file.finish(sort_by=ROW_INDEX)
    return len(missing)


def _opened(
    rows: Sequence[dict[str, Any]],
    output_file: str,
    settings: dict[str, Any],
    overwrite: bool,
    again: Callable[[dict[str, Any]], bool] | None,
) -> tuple[ResumableFile, list[int]]:
    """The output file, and the indices of the rows that it lacks."""
    file = ResumableFile(output_file, settings | {"contents of the rows": rows_fingerprint(rows)}, overwrite=overwrite)
    if again is not None:
        file.discard(again)
    if file.complete:
        return file, []
    done = {row[ROW_INDEX] for row in file.written()}
    return file, [index for index in range(len(rows)) if index not in done]


@contextmanager
def _noting(file: ResumableFile, total: int) -> Iterator[None]:
    """Inside this context, an error gets a note with what is written."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{file.rows} of {total} rows are in '{file.rows_path}'; the same call resumes there.")
        raise


def _write(file: ResumableFile, job: Future[dict[str, Any]], index: int, total: int) -> None:
    """Write the result of a job. If it failed, its error gets a note that names the row."""
    try:
        row = job.result()
    except Exception as error:
        error.add_note(f"The error occurred in row {index} of {total}.")
        raise
    file.append([row | {ROW_INDEX: index}])


def _save_the_rest(file: ResumableFile, jobs: dict[Future[dict[str, Any]], int]) -> None:
    """Write the rows that were completed after the error that ended the run."""
    written = {row[ROW_INDEX] for row in file.written()}
    for job, index in jobs.items():
        if not job.cancelled() and index not in written and job.exception() is None:
            file.append([job.result() | {ROW_INDEX: index}])
