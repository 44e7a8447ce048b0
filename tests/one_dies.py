# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Run by test_one_process_dies.py, once for each process: trains for long, and writes a file when it has begun."""

import sys
from pathlib import Path
from typing import Any

from tiny_trainers import make_trainer
from transformers import TrainerCallback


class Begun(TrainerCallback):
    """Leaves a file after the third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            (Path(args.output_dir) / f"begun-{args.process_index}").touch()


def main(method: str, folder: str) -> None:
    trainer = make_trainer(method, Path(folder), max_steps=100_000, use_cpu=True)
    assert trainer.accelerator.num_processes == 2
    trainer.add_callback(Begun())
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
