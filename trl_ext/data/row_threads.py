# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Processes rows in several threads, and writes each result to a resumable file as soon as it is complete."""

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from trl_ext.progress import progress

from .resumable_file import ROW_INDEX, ResumableFile, rows_fingerprint


def run_rows(
    rows: Sequence[dict[str, Any]],
    work: Callable[[int, dict[str, Any]], dict[str, Any]],
    output_file: str,
    settings: dict[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    stop: Callable[[], Any] | None = None,
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

    Returns:
        `int`: Number of rows that this call processed.

    Raises:
        `ValueError`: The file was written by another run.
        `Exception`: The first error of `work`, with notes that name the row and the number of written rows.
    """
    file = ResumableFile(output_file, settings | {"contents of the rows": rows_fingerprint(rows)}, overwrite=overwrite)
    if file.complete:
        return 0
    done = {row[ROW_INDEX] for row in _written(file)}
    missing = [index for index in range(len(rows)) if index not in done]
    with (
        progress("sampling", len(rows), "rows", done=len(done)) as phase,
        ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        jobs = {pool.submit(work, index, rows[index]): index for index in missing}
        try:
            for job in as_completed(jobs):
                _write(file, job, jobs[job], len(rows))
                phase.advance()
        except BaseException as error:
            if stop is not None and not isinstance(error, Exception):
                stop()
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(OSError):  # a failing disk may be the cause of `error`
                _save_the_rest(file, jobs)
            error.add_note(f"{file.rows} of {len(rows)} rows are in '{file.rows_path}'; the same call resumes there.")
            raise
    file.finish(sort_by=ROW_INDEX)
    return len(missing)


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
    written = {row[ROW_INDEX] for row in _written(file)}
    for job, index in jobs.items():
        if not job.cancelled() and index not in written and job.exception() is None:
            file.append([job.result() | {ROW_INDEX: index}])


def _written(file: ResumableFile) -> list[dict[str, Any]]:
    """The rows in the file."""
    return [json.loads(line) for line in file.rows_path.read_text(encoding="utf-8").split("\n") if line]
