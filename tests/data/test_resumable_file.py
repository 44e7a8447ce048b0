# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are written batch by batch and resumed."""

from trl_ext.data.resumable_file import ResumableFile


def test_missing_batches(tmp_path):
    """Batches of 3 of 8 rows begin at rows 0, 3 and 6. A batch counts even if it made no row."""
    path, rows = str(tmp_path / "rows.jsonl"), [{"prompt": "a"}]
    file = ResumableFile(path, {})
    for written, missing in enumerate([[0, 3, 6], [3, 6], [6], []]):
        resumed = ResumableFile(path, {})
        assert list(file.missing_batches(8, 3)) == list(resumed.missing_batches(8, 3)) == missing
        file.append(rows if written == 0 else [])
    assert file.missing_batches(8, 3).start == 8
