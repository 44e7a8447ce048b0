# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which checkpoint a run can go on from."""

import json
from pathlib import Path


# Written last, by the main process: where it is whole, all else is.
_STATE = "trainer_state.json"


def is_whole(folder: str | Path) -> bool:
    """Whether the checkpoint in `folder` was written to its end."""
    try:
        json.loads((Path(folder) / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def has_optimizer(folder: str | Path) -> bool:
    """Whether the checkpoint in `folder` holds the optimizer, in any form; with `save_only_model` it does not."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return any("optimizer" in name or name.startswith("global_step") for name in names)


def begin(folder: str | Path) -> None:
    """From here on `folder` is no whole checkpoint, whatever an earlier run has left there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / _STATE).unlink(missing_ok=True)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint in `output_dir` that a run can go on from, or `None`.

    transformers takes the highest number. A run that was stopped while it saved (disk full, killed) leaves a folder of
    that number from which nothing can be loaded.
    """
    numbers = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit()
    }
    newest_first = (numbers[n] for n in sorted(numbers, reverse=True))
    return next((str(folder) for folder in newest_first if is_whole(folder) and has_optimizer(folder)), None)


def check_resumable(folder: str | Path) -> None:
    """
    Raise a `ValueError` that names the newest checkpoint beside `folder` that a run can go on from, if that is none.
    """
    if not Path(folder).is_dir():
        what = "does not exist"
    elif not is_whole(folder):
        what = "was not written to its end"
    elif not has_optimizer(folder):
        what = "was saved with `save_only_model`, without the optimizer: a resumed run would be another one"
    else:
        return
    newest = last_checkpoint(Path(folder).parent)
    hint = f"The newest whole one beside it is {newest}." if newest else "There is no whole one beside it."
    raise ValueError(f"The checkpoint {str(folder)!r} {what}, so nothing can be resumed from it. {hint}")
