# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the checkpoints from which a run can be resumed, and says after an error which one that is."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trl_ext.atomic_files import remedy


# The main process writes this file last: if it is complete, so is the checkpoint.
_STATE = "trainer_state.json"


def is_complete(folder: str | Path) -> bool:
    """Whether all files of the checkpoint in `folder` were written."""
    try:
        json.loads((Path(folder) / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def has_optimizer(folder: str | Path) -> bool:
    """Whether the checkpoint in `folder` has an optimizer state, which `save_only_model` leaves out."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return any("optimizer" in name or name.startswith("global_step") for name in names)


def begin(folder: str | Path) -> None:
    """
    Create `folder` for a checkpoint, and remove what an earlier run left there.

    A run that is resumed would take files that this one does not write for its own: the completions of further
    processes, the state of an optimizer that is not saved, an adapter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STATE).unlink(missing_ok=True)  # first: without it, what is left of the others is no checkpoint
    for path in list(folder.iterdir()):
        with suppress(FileNotFoundError):  # another node that shares the disk has removed it
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The latest checkpoint in `output_dir` from which a run can be resumed, or `None`.

    transformers takes the one with the highest number. A run that was stopped while it saved (disk full, killed)
    leaves a folder with that number from which nothing can be loaded.
    """
    numbers = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit()
    }
    newest_first = (numbers[n] for n in sorted(numbers, reverse=True))
    return next((str(folder) for folder in newest_first if is_complete(folder) and has_optimizer(folder)), None)


def resume_note(output_dir: str | Path) -> str:
    """How a run that an error has ended goes on."""
    newest = last_checkpoint(output_dir)
    if newest is None:
        return f"There is no complete checkpoint in {output_dir}: start the run again."
    return f"The run can be resumed from {newest}."


@contextmanager
def saving(what: str, folder: str | Path, output_dir: str | Path) -> Iterator[None]:
    """
    Inside this context, `what` is written to `folder`: an error gets a note with what to do.

    Args:
        what (`str`): What is saved, for the note.
        folder (`str` or `Path`): Where it is saved.
        output_dir (`str` or `Path`): The folder of the run, with its checkpoints.
    """
    try:
        yield
    except Exception as error:  # libraries raise others than OSError for files that they cannot write
        what_to_do = remedy(error) if isinstance(error, OSError) else "is the disk full?"
        incomplete = f"{what} {folder} is incomplete ({what_to_do}). "
        # A checkpoint may be complete: what failed is its upload, or the removal of an older one.
        error.add_note(("" if is_complete(folder) else incomplete) + resume_note(output_dir))
        raise


@contextmanager
def training_in(output_dir: str | Path) -> Iterator[None]:
    """Inside this context a run trains: an error about a file gets a note with how the run goes on."""
    try:
        yield
    except OSError as error:
        note = resume_note(output_dir)
        if not any(note in earlier for earlier in getattr(error, "__notes__", [])):
            error.add_note(note)
        raise


def check_resumable(folder: str | Path) -> None:
    """
    Raise a `ValueError` if a run cannot be resumed from `folder`. It names the latest usable checkpoint beside it.
    """
    if not Path(folder).is_dir():
        what = "does not exist"
    elif not is_complete(folder):
        what = "is incomplete"
    elif not has_optimizer(folder):
        what = "was saved with `save_only_model`, without the state of the optimizer"
    else:
        return
    newest = last_checkpoint(Path(folder).parent)
    hint = f"The latest usable one beside it is {newest}." if newest else "There is no usable one beside it."
    raise ValueError(f"The checkpoint {str(folder)!r} {what}, so no run can be resumed from it. {hint}")
