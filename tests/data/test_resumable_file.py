# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Files that are written batch by batch and resumed."""

import json
import os
from contextlib import nullcontext

import pytest

from trl_ext.data import resumable_file
from trl_ext.data.resumable_file import ResumableFile, rows_fingerprint, weights_fingerprint
from trl_ext.data.row_threads import run_batches
from trl_ext.data.schema import DataError


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


# ------------------------------------------------------------------------------------------------- the file's contract

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
TEXT = '{"prompt": "a", "n": 1}\n{"prompt": "b", "n": 2}\n'


def state_of(path):
    return json.loads(path.with_name(f"{path.name}.state.json").read_text())


class TestNewFile:
    @pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.jsonl.gz"])
    def test_other_suffixes(self, name, tmp_path):
        with pytest.raises(ValueError, match=r"^output_file must end in \.jsonl or \.parquet, got '.*rows"):
            ResumableFile(str(tmp_path / name), {})
        assert not list(tmp_path.iterdir())

    def test_a_directory(self, tmp_path):
        (tmp_path / "rows.jsonl").mkdir()
        with pytest.raises(ValueError, match=r"^output_file '.*rows\.jsonl' is a directory\.$"):
            ResumableFile(str(tmp_path / "rows.jsonl"), {})

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_what_is_there_before_any_row(self, suffix, tmp_path):
        path = tmp_path / "new" / "folders" / f"rows.{suffix}"
        file = ResumableFile(str(path), {"seed": 1})
        assert (file.batches, file.rows, file.bytes, file.sorted_bytes) == (0, 0, 0, 0)
        assert file.complete is False and file.totals == {} and file.written() == []
        assert file.path == path and file.rows_path.read_bytes() == b""
        assert file.rows_path.name == ("rows.jsonl" if suffix == "jsonl" else "rows.parquet.rows.jsonl")
        state = state_of(path)
        assert file.state_path.read_text() == json.dumps(state, indent=2), "people read it"
        assert state.pop("settings") == {"seed": 1}
        assert state == {"complete": False, "batches": 0, "rows": 0, "bytes": 0, "sorted_bytes": 0, "totals": {}}

    def test_an_error_names_the_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OSError) as caught:
            ResumableFile(str(tmp_path / "file" / "rows.jsonl"), {})
        assert caught.value.__notes__[-1].startswith(f"{tmp_path / 'file' / 'rows.jsonl'} was not written: ")

    def test_the_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert ResumableFile("~/rows.jsonl", {}).path == tmp_path / "rows.jsonl"

    def test_settings_are_those_that_json_keeps(self, tmp_path):
        """A tuple is a list when it is read again, and must not look like another setting."""
        path = str(tmp_path / "rows.jsonl")
        ResumableFile(path, {"names": ("a", "b")}).append(ROWS)
        assert ResumableFile(path, {"names": ("a", "b")}).rows == 2


class TestAppending:
    def test_rows_and_totals(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        file = ResumableFile(str(path), {})
        file.append(ROWS, {"tokens": 3})
        file.append([], {"tokens": 4, "left_out": 1})
        assert (file.batches, file.rows, file.bytes) == (2, 2, len(TEXT))
        assert file.totals == {"tokens": 7, "left_out": 1}
        file.append([])
        assert file.totals == {"tokens": 7, "left_out": 1} and file.batches == 3
        assert path.read_text() == TEXT and file.written() == ROWS
        state = state_of(path)
        assert (state["batches"], state["rows"], state["bytes"]) == (3, 2, len(TEXT))

    def test_text_is_utf8_and_half_a_pair_a_question_mark(self, tmp_path):
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        file.append([{"text": "ü \ud83d"}])
        assert file.rows_path.read_bytes() == '{"text": "ü ?"}\n'.encode()
        file.append([{"text": "line\u2028separator"}])  # which ends no line of JSON
        assert [row["text"] for row in file.written()] == ["ü ?", "line\u2028separator"]

    @pytest.mark.parametrize(("value", "reason"), [(float("nan"), "JSON compliant"), ({1, 2}, "set is not JSON")])
    def test_values_that_are_no_json(self, value, reason, tmp_path):
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        file.append(ROWS)
        message = (
            rf"^Output row 3, column 'bad': cannot be written as JSON \(.*{reason}.*\)\. Remove the column from the"
        )
        message += r" dataset, or turn it into text\.$"
        with pytest.raises(DataError, match=message):
            file.append([ROWS[0], {"good": 1, "bad": value}])
        assert file.rows_path.read_text() == TEXT and file.rows == 2

    def test_names_that_are_no_json(self, tmp_path):
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        with pytest.raises(TypeError, match="keys must be"):
            file.append([{("a", "b"): 1}])

    @pytest.mark.parametrize("arguments", [(OSError, 28, "No space left on device"), (KeyboardInterrupt,)])
    def test_an_error_leaves_the_file_as_it_was(self, arguments, tmp_path, monkeypatch):
        error = arguments[0](*arguments[1:])
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        file.append(ROWS[:1], {"tokens": 1})

        def fails(descriptor):
            raise error

        with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
            patch.setattr(os, "fsync", fails)
            patch.setattr(ResumableFile, "_cut", lambda file: os.truncate(file.rows_path, file.bytes))
            file.append(ROWS, {"tokens": 9})
        if isinstance(error, OSError):
            note = f"{file.rows_path} was not written: free some space, then run the same again."
            assert caught.value.__notes__ == [note]
        assert (file.batches, file.rows, file.totals) == (1, 1, {"tokens": 1})
        file.append(ROWS[1:], {"tokens": 2})
        assert file.rows_path.read_text() == TEXT and file.totals == {"tokens": 3}


class TestResuming:
    def make(self, path, **settings):
        file = ResumableFile(str(path), settings)
        file.append(ROWS[:1], {"tokens": 5})
        return file

    def test_what_follows_the_last_batch_is_removed(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        self.make(path)
        with path.open("a") as half:
            half.write('{"prompt": "b", "n"')
        file = ResumableFile(str(path), {})
        assert (file.batches, file.rows, file.totals) == (1, 1, {"tokens": 5})
        file.append(ROWS[1:])
        assert path.read_text() == TEXT

    def test_other_settings(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        self.make(path, seed=1, model="a", old=2)
        message = (
            r"rows\.jsonl' was started with other settings: seed was 1 and is 2; old was 2 and is None; new was None "
            r"and is 3\. To resume, set them as they were\. Or choose another output_file"
        )
        with pytest.raises(ValueError, match=message):
            ResumableFile(str(path), {"seed": 2, "model": "a", "new": 3})

    def test_settings_may_change_before_the_first_row(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        ResumableFile(str(path), {"seed": 1})
        path.write_text("rubbish")
        ResumableFile(str(path), {"seed": 2})
        assert path.read_bytes() == b"" and state_of(path)["settings"] == {"seed": 2}

    def test_a_file_of_another_origin(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text(TEXT)
        with pytest.raises(ValueError) as caught:
            ResumableFile(str(path), {})
        assert str(caught.value) == (
            f"output_file '{path}' exists and was not left by an interrupted run: choose another name, or start over "
            "with overwrite_output."
        )
        assert path.read_text() == TEXT
        assert ResumableFile(str(path), {}, overwrite=True).rows == 0
        assert path.read_text() == ""

    def test_overwriting_removes_everything_of_the_earlier_run(self, tmp_path):
        path = tmp_path / "rows.parquet"
        file = self.make(path)
        file.finish()
        assert path.exists()
        again = ResumableFile(str(path), {"other": 1}, overwrite=True)
        assert (again.rows, again.complete) == (0, False) and not path.exists()

    def test_a_state_without_rows_is_no_earlier_run(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        self.make(path)
        path.unlink()
        assert ResumableFile(str(path), {"other": 1}).rows == 0

    def test_rows_that_were_removed(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        self.make(path)
        path.write_text(TEXT[:5])
        with pytest.raises(ValueError, match=r"has 5 bytes, but 24 were written: the file was changed\. Start over"):
            ResumableFile(str(path), {})

    def test_the_temporary_rows_of_a_parquet_file_were_removed(self, tmp_path):
        path = tmp_path / "rows.parquet"
        file = self.make(path)
        file.rows_path.unlink()
        path.write_text("something")
        with pytest.raises(ValueError, match="has 0 bytes, but 24 were written"):
            ResumableFile(str(path), {})

    @pytest.mark.parametrize("text", ["{", '{"complete": false}'])
    def test_a_damaged_state(self, text, tmp_path):
        path = tmp_path / "rows.jsonl"
        self.make(path)
        path.with_name("rows.jsonl.state.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"rows\.jsonl\.state\.json' is damaged; start over with overwrite_output"
        ):
            ResumableFile(str(path), {})

    def test_a_state_of_an_earlier_version(self, tmp_path):
        """It had no `sorted_bytes`."""
        path = tmp_path / "rows.jsonl"
        self.make(path)
        state = state_of(path)
        del state["sorted_bytes"]
        path.with_name("rows.jsonl.state.json").write_text(json.dumps(state))
        file = ResumableFile(str(path), {})
        assert (file.rows, file.sorted_bytes) == (1, 0)


class TestFinishing:
    def unsorted(self, path):
        file = ResumableFile(str(path), {})
        file.append([{"row_index": 2, "x": "c"}, {"row_index": 0, "x": "a"}])
        file.append([{"row_index": 2, "x": "d"}, {"row_index": 1, "x": "b"}])
        return file

    @pytest.mark.parametrize("drop", [False, True])
    def test_rows_are_sorted_and_those_of_a_number_keep_their_order(self, drop, tmp_path):
        file = self.unsorted(tmp_path / "rows.jsonl")
        file.finish(sort_by="row_index", drop=drop)
        rows = [{"row_index": n, "x": x} for n, x in [(0, "a"), (1, "b"), (2, "c"), (2, "d")]]
        assert file.written() == ([{"x": row["x"]} for row in rows] if drop else rows)
        assert file.complete and file.bytes == file.sorted_bytes == file.rows_path.stat().st_size
        state = state_of(file.path)
        assert state["complete"] and state["sorted_bytes"] == file.bytes
        again = ResumableFile(str(file.path), {})
        assert again.complete and again.rows == 4
        before = file.rows_path.read_bytes()
        again.finish(sort_by="row_index", drop=drop)
        assert file.rows_path.read_bytes() == before

    def test_without_sorting(self, tmp_path):
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        file.append(ROWS[::-1])
        file.finish()
        assert file.complete and file.written() == ROWS[::-1] and state_of(file.path)["complete"]

    def test_parquet(self, tmp_path):
        import pandas as pd

        file = self.unsorted(tmp_path / "rows.parquet")
        file.finish(sort_by="row_index", drop=True)
        frame = pd.read_parquet(file.path)
        assert list(frame.columns) == ["x"] and frame["x"].tolist() == ["a", "b", "c", "d"]
        assert {path.name for path in tmp_path.iterdir()} == {"rows.parquet", "rows.parquet.state.json"}
        assert ResumableFile(str(file.path), {}).complete

    def test_what_is_shown_while_a_file_is_converted(self, tmp_path, monkeypatch):
        shown = []
        monkeypatch.setattr(resumable_file, "library_progress", lambda text: shown.append(text) or nullcontext())
        self.unsorted(tmp_path / "rows.parquet").finish()
        assert shown == ["writing rows.parquet"]

    def test_the_temporary_rows_may_stay(self, tmp_path, monkeypatch):
        """The output is complete without removing them."""
        file = self.unsorted(tmp_path / "rows.parquet")

        def fails(*_, **__):
            raise OSError

        with monkeypatch.context() as patch:
            patch.setattr(type(file.path), "unlink", fails)
            file.finish()
        assert file.path.exists() and ResumableFile(str(file.path), {}).complete

    @pytest.mark.parametrize("drop", [False, True])
    @pytest.mark.parametrize("broken", ["_save_state", "_to_parquet"])
    def test_interrupted_after_the_sorting(self, broken, drop, tmp_path, monkeypatch):
        """The next run finds a sorted file, from which the column is gone if it was dropped, or sorts again."""
        import pandas as pd

        file = self.unsorted(tmp_path / "rows.parquet")

        def fails(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(*(resumable_file, broken) if broken == "_to_parquet" else (ResumableFile, broken), fails)
            file.finish(sort_by="row_index", drop=drop)
        again = ResumableFile(str(file.path), {})
        assert not again.complete and again.rows == 4
        again.finish(sort_by="row_index", drop=drop)
        frame = pd.read_parquet(file.path)
        assert frame["x"].tolist() == ["a", "b", "c", "d"] and ("row_index" in frame) != drop

    def test_discarding(self, tmp_path):
        file = ResumableFile(str(tmp_path / "rows.jsonl"), {})
        file.append(ROWS)
        file.finish()
        file.discard(lambda row: row["n"] == 3)
        assert file.complete
        file.discard(lambda row: row["n"] == 1)
        assert file.written() == ROWS[1:]
        again = ResumableFile(str(file.path), {})
        assert (again.rows, again.bytes, again.sorted_bytes, again.complete) == (1, len(TEXT) // 2, 0, False)
        assert again.batches == 1


class TestFingerprints:
    def test_of_rows(self):
        one = rows_fingerprint(ROWS)
        assert one.startswith("2 rows, sha256 ") and len(one) == len("2 rows, sha256 ") + 16
        assert rows_fingerprint(iter(ROWS)) == one
        assert rows_fingerprint(ROWS[::-1]) != one != rows_fingerprint([ROWS[0], {"prompt": "b", "n": 3}])
        assert rows_fingerprint([{"half": "\ud83d", "kind": complex(1, 2)}]).startswith("1 rows")

    def test_of_weights(self, tmp_path):
        assert weights_fingerprint(str(tmp_path)) is None and weights_fingerprint("some/model") is None
        (tmp_path / "config.json").write_text("{}")
        assert weights_fingerprint(str(tmp_path)) is None
        weights = tmp_path / "model.safetensors"
        seen = set()
        for data in (b"one", b"two", b"xne", bytes(1 << 16) + b"one", bytes(1 << 17) + b"one"):
            weights.write_bytes(data)
            seen.add(weights_fingerprint(str(tmp_path)))
            assert weights_fingerprint(str(tmp_path)) in seen
        (tmp_path / "model.bin").write_bytes(b"one")
        seen.add(weights_fingerprint(str(tmp_path)))
        weights.rename(tmp_path / "other.safetensors")
        seen.add(weights_fingerprint(str(tmp_path)))
        assert len(seen) == 7 and all(len(found) == 16 for found in seen)
        # Only the ends of large files are read.
        weights.write_bytes(b"a" + bytes(1 << 16))
        end = weights_fingerprint(str(tmp_path))
        weights.write_bytes(b"b" + bytes(1 << 16))
        assert weights_fingerprint(str(tmp_path)) == end
