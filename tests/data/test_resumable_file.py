# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are written batch by batch and resumed."""

import json

import pytest

from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.row_threads import run_batches


def test_missing_batches(tmp_path):
    """Batches of 3 of 8 rows begin at rows 0, 3 and 6. A batch counts even if it made no row."""
    path, rows = str(tmp_path / "rows.jsonl"), [{"prompt": "a"}]
    file = ResumableFile(path, {})
    for written, missing in enumerate([[0, 3, 6], [3, 6], [6], []]):
        resumed = ResumableFile(path, {})
        assert list(file.missing_batches(8, 3)) == list(resumed.missing_batches(8, 3)) == missing
        file.append(rows if written == 0 else [])
    assert file.missing_batches(8, 3).start == 8


def test_discarded_rows_are_made_again(tmp_path):
    """A complete file loses two of its rows; the next run makes these and only these, and the file is sorted again."""
    path, made = str(tmp_path / "out.jsonl"), []
    rows = [{"number": number} for number in range(5)]

    def work(indices):
        made.append(indices)
        return [{"number": index, "time": len(made)} for index in indices]

    def run(**more):
        return run_batches(rows, work, path, {"setting": 1}, batch_size=2, **more)

    assert run() == 5 and made == [[0, 1], [2, 3], [4]]
    assert run() == 0
    assert run(again=lambda row: False) == 0
    assert run(again=lambda row: row["number"] in (1, 4)) == 2
    assert made[3:] == [[1, 4]]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row_index"], row["number"], row["time"]) for row in written] == [
        *((0, 0, 1), (1, 1, 4), (2, 2, 2), (3, 3, 2), (4, 4, 4))
    ]


def test_rows_of_a_parquet_file_cannot_be_discarded(tmp_path):
    file = ResumableFile(str(tmp_path / "out.parquet"), {})
    with pytest.raises(ValueError, match=r"only those of a \.jsonl file"):
        file.discard(lambda row: True)
