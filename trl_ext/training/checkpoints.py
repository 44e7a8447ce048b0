# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the checkpoints from which a run can be resumed."""

import json
from pathlib import Path


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
    """Create `folder` for a checkpoint; one that an earlier run left there is incomplete from now on."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / _STATE).unlink(missing_ok=True)


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
