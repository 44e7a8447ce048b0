# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows in several threads: none begins after one has failed, however late the main thread hears of it."""

import json
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from trl_ext.data import row_threads
from trl_ext.data.row_threads import run_rows


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_row_begins_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """The main thread waits until all jobs are over before it looks at the first: it comes too late to cancel any."""
    begun: list[int] = []
    lock = threading.Lock()

    def work(index: int, row: dict[str, Any]) -> dict[str, Any]:
        with lock:
            begun.append(index)
        if index >= 3:
            raise ValueError(f"row {index} is bad")
        return row | {"done": True}

    def late(jobs: Any) -> list[Any]:
        done = futures.wait(jobs).done  # those that were not begun come first
        return sorted(done, key=lambda job: not isinstance(job.exception(), row_threads.NotBegun))

    monkeypatch.setattr(row_threads, "as_completed", late)
    rows = [{"number": i} for i in range(50)]
    output = str(tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match=r"row \d is bad"):
        run_rows(rows, work, output, {}, workers=workers)
    assert len(begun) <= 3 + workers
    kept = [json.loads(line)["number"] for line in Path(output).read_text().splitlines()]
    # A thread that was held up between taking row 2 and beginning it finds that row 3 has failed meanwhile.
    assert set(kept) <= {0, 1, 2} and len(kept) > 3 - workers
    begun.clear()
    rest = run_rows(rows, lambda index, row: begun.append(index) or row, output, {}, workers=workers)  # type: ignore[func-returns-value]
    assert rest == 50 - len(kept) and sorted([*kept, *begun]) == list(range(50))
    assert [json.loads(line)["number"] for line in Path(output).read_text().splitlines()] == list(range(50))
