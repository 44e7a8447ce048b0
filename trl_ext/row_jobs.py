# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Work on each row of a data set by several threads, written as it is done, so that nothing is done twice."""

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from .sample_file import SampleFile, rows_fingerprint
from .whole import replacing


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
    file = SampleFile(output_file, settings | {"contents of the rows": rows_fingerprint(rows)}, overwrite=overwrite)
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


def _write(file: SampleFile, job: Future[dict[str, Any]], index: int, total: int) -> None:
    try:
        row = job.result()
    except Exception as error:
        error.add_note(f"This happened at row {index} of {total}.")
        raise
    file.append([row | {ROW_INDEX: index}])


def _save_the_rest(file: SampleFile, jobs: dict[Future[dict[str, Any]], int]) -> None:
    """Rows that were done after the failure that ended the run."""
    written = {row[ROW_INDEX] for row in _written(file)}
    for job, index in jobs.items():
        if not job.cancelled() and index not in written and job.exception() is None:
            file.append([job.result() | {ROW_INDEX: index}])


def _written(file: SampleFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.rows_path.read_text(encoding="utf-8").split("\n") if line]


def _sort(file: SampleFile) -> None:
    """The same lines in the order of the rows; should it be cut short, the next run sorts again."""
    lines = [line for line in file.rows_path.read_bytes().split(b"\n") if line]
    lines.sort(key=lambda line: json.loads(line)[ROW_INDEX])
    with replacing(file.rows_path) as part:
        part.write_bytes(b"".join(line + b"\n" for line in lines))
