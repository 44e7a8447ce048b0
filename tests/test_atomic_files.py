# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced at once or not at all, and what their errors say."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trl_ext.atomic_files import make_folder, remedy, replacing, write_tensors, write_text, writing


FULL = Path("/dev/full")  # every write to it fails, as on a full disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestReplacing:
    def test_the_new_file_is_there_at_the_end_only(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "file.txt"
        with replacing(path) as part:
            assert part == path.with_name("file.txt.part") and not path.exists()
            part.write_text("new")
        assert path.read_text() == "new" and names(path.parent) == ["file.txt"]

    def test_it_is_on_the_disk_before_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        fsync, replace, close = os.fsync, os.replace, os.close
        monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), fsync(d)))
        monkeypatch.setattr(os, "close", lambda d: (calls.append("close"), close(d)))
        monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
        with replacing(tmp_path / "file") as part:
            part.write_text("")
        assert calls == ["fsync", "close", "replace"]

    def test_what_a_killed_process_left_is_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "file.part").write_text("a much longer text than the new one")
        write_text(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new" and names(tmp_path) == ["file"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
    def test_an_error_leaves_the_old_file(self, error: type[BaseException], tmp_path: Path) -> None:
        path = tmp_path / "file.txt"
        path.write_text("old")
        with pytest.raises(error), replacing(path) as part:
            part.write_text("half")
            raise error
        assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]

    def test_the_error_is_the_first_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not one that removing the temporary file meets."""

        def fails(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "cannot remove")

        monkeypatch.setattr(Path, "unlink", fails)
        with pytest.raises(OSError, match="first"), replacing(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "first")

    def test_a_descriptor_is_closed_if_the_disk_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        closed, close = [], os.close
        monkeypatch.setattr(os, "close", lambda d: (closed.append(d), close(d)))

        def fails(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError), replacing(tmp_path / "file") as part:
            part.write_text("")
        assert len(closed) == 1 and not names(tmp_path)


class TestErrors:
    @pytest.mark.parametrize(
        ("number", "what"),
        [
            (errno.ENOSPC, "free some space"),
            (errno.EDQUOT, "free some space"),
            (errno.EACCES, "make its folder writable"),
            (errno.EPERM, "make its folder writable"),
            (errno.EROFS, "choose a folder that can be written to"),
            (errno.EIO, "check the disk"),
            (None, "check the disk"),
        ],
    )
    def test_what_to_do(self, number: int | None, what: str, tmp_path: Path) -> None:
        error = OSError("without a number") if number is None else OSError(number, "reason")
        assert remedy(error) == what
        with pytest.raises(OSError) as caught, writing(tmp_path / "file"):
            raise error
        assert caught.value.__notes__ == [f"{tmp_path / 'file'} was not written: {what}, then run the same again."]

    def test_other_errors_are_about_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError) as caught, replacing(tmp_path / "file"):
            raise ValueError
        assert not hasattr(caught.value, "__notes__")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError) as caught, replacing(tmp_path / "file" / "below"):
            pass
        (note,) = caught.value.__notes__
        assert note.startswith(f"{tmp_path / 'file' / 'below'} was not written: ")

    @pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
    def test_a_full_disk(self, tmp_path: Path) -> None:
        (tmp_path / "file.part").symlink_to(FULL)
        with pytest.raises(OSError, match="No space left") as caught:
            write_text(tmp_path / "file", "new")
        assert "free some space" in caught.value.__notes__[0] and not names(tmp_path)


class TestFolders:
    def test_it_is_made_with_those_above(self, tmp_path: Path) -> None:
        for _ in range(2):
            make_folder(tmp_path / "one" / "two", "output_dir")
        assert (tmp_path / "one" / "two").is_dir()

    def test_one_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        message = r"^`output_dir` '.*file' cannot be created \(File exists\): set another one\.$"
        with pytest.raises(OSError, match=message):
            make_folder(tmp_path / "file", "output_dir")

    def test_one_that_cannot_be_written_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Root may write everywhere, so the answer is the test's."""
        asked = []
        monkeypatch.setattr(os, "access", lambda *arguments: asked.append(arguments))
        with pytest.raises(OSError) as caught:
            make_folder(tmp_path, "output_dir")
        assert str(caught.value) == f"`output_dir` '{tmp_path}' cannot be written to: set another one."
        assert asked == [(tmp_path, os.W_OK)]


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "ü")
    assert (tmp_path / "file").read_bytes() == "ü".encode()


def test_tensors_of_any_layout(tmp_path: Path) -> None:
    tensor = torch.arange(6).view(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"x": tensor.T, "y": tensor})
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["x"], tensor.T) and torch.equal(found["y"], tensor)
