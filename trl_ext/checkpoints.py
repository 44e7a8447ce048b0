# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which checkpoint a run can go on from."""

from pathlib import Path


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint in `output_dir` that is whole, or `None`.

    transformers takes the highest number. A run that was stopped while it saved (disk full, killed) leaves a folder of
    that number from which nothing can be loaded; the trainer's state is written last, so its file tells them apart.
    """
    numbers = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit() and (folder / "trainer_state.json").is_file()
    }
    return str(numbers[max(numbers)]) if numbers else None
