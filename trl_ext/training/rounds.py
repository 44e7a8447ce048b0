# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The rollout schedule: when training generates completions, and which completions each micro-batch gets.

A round is the set of completions that one snapshot of the model generates. Checkpoints store the current round: each
process what it has sampled, once for all checkpoints of a round by epochs.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset

from trl_ext.atomic_files import write_same

from .rollouts import Rollout, load_rollouts, save_rollouts


logger = logging.getLogger(__name__)

Batch = dict[str, Any]


def _numbered(batches: list[Batch]) -> list[Batch]:
    """
    Number the rows of a round: rows of a stream that several workers read may share a number.

    The number in the dataset, which messages use, moves to `data_row`.
    """
    numbers = count()
    numbered = []
    for batch in batches:
        rows = [{**row, "row_index": next(numbers), "data_row": row["row_index"]} for row in batch["rows"]]
        columns = {name: torch.tensor([row[name] for row in rows]) for name in ("row_index", "data_row")}
        numbered.append({**batch, "rows": rows, **columns})
    return numbered


def resample_stream(args: Any, dataset: Any) -> None:
    """Set `resample_steps` to 1 for a streamed dataset, unless it is set: a stream has no epochs to generate for."""
    if isinstance(dataset, IterableDataset) and not args.resample_steps:
        args.resample_steps = 1
        logger.info("The train dataset is streamed: completions are generated for each step (`resample_steps` is 1).")


class RolloutSchedule:
    """
    Adds the completions of the current round to micro-batches, and starts a new round when one is due.

    Args:
        sample (`Callable`): Generates completions for tokenized rows with the current model, and returns their
            rollouts by row number.
        accelerator ([`~accelerate.Accelerator`]): Exchanges the rollouts of an epoch between processes.
        every_steps (`int`, *optional*, defaults to `0`): A round covers the prompts of this many optimizer steps,
            within an epoch. `0`: rounds by epochs.
        every_epochs (`int`, *optional*, defaults to `0`): A round covers the entire dataset, and begins every this
            many epochs. `0`: a single round, before the first epoch.
        keep (`bool`, *optional*, defaults to `False`): Whether the completions of earlier rounds by epochs are kept,
            so that each round adds to them.
    """

    def __init__(
        self,
        sample: Callable[[list[dict[str, Any]]], dict[int, Rollout]],
        accelerator: Accelerator,
        *,
        every_steps: int = 0,
        every_epochs: int = 0,
        keep: bool = False,
    ) -> None:
        self.sample, self.accelerator = sample, accelerator
        self.every_steps, self.every_epochs, self.keep = every_steps, every_epochs, keep
        self._rollouts: dict[int, Rollout] = {}
        self._pending: deque[Batch] = deque()
        self._pending_to_restore = 0
        self._epoch = -1
        self._own: set[int] = set()  # rows of a round by epochs that this process has sampled
        self._stored: Path | None = None  # where they were written last

    def batches(self, loader: Iterator[Batch], num_batches: int, epoch: int, dataset: Dataset) -> list[Batch]:
        """
        The micro-batches of one optimizer step, with `completion_ids`, `scores`, `rewards` and `marks`.

        Args:
            loader (`Iterator`): The remaining micro-batches of the epoch.
            num_batches (`int`): Number of micro-batches in a step.
            epoch (`int`): The current epoch, from 0.
            dataset ([`~datasets.Dataset`]): The training rows, for rounds by epochs.
        """
        if self.every_steps:
            self._refill(loader, num_batches)
            taken = [self._pending.popleft() for _ in range(min(num_batches, len(self._pending)))]
        else:
            self._sample_epoch(epoch, dataset)
            taken = [batch for _, batch in zip(range(num_batches), loader, strict=False)]
        return [self._complete(batch) for batch in taken]

    def round_of(self, step: int, steps_per_epoch: int) -> int:
        """
        Number, from 0, of the round whose completions a step trains on.

        Args:
            step (`int`): Number of the optimizer step, from 0.
            steps_per_epoch (`int`): Number of optimizer steps in an epoch.
        """
        epoch, within = divmod(step, steps_per_epoch)
        if self.every_steps:
            return epoch * -(-steps_per_epoch // self.every_steps) + within // self.every_steps
        return epoch // self.every_epochs if self.every_epochs else 0

    def _refill(self, loader: Iterator[Batch], num_batches: int) -> None:
        if self._pending:
            return
        restored, self._pending_to_restore = self._pending_to_restore, 0
        wanted = restored or self.every_steps * num_batches
        batches = [batch for _, batch in zip(range(wanted), loader, strict=False)]
        self._pending.extend(_numbered(batches))
        if batches and not restored:
            self._rollouts = self.sample([row for batch in self._pending for row in batch["rows"]])

    def _sample_epoch(self, epoch: int, dataset: Dataset) -> None:
        due = self._epoch < 0 or (self.every_epochs > 0 and epoch - self._epoch >= self.every_epochs)
        if not due:
            return
        self._epoch, self._stored = epoch, None
        # Equally many rows per process, so that all call a sharded model equally often. A row may occur twice.
        processes = self.accelerator.num_processes
        mine = range(self.accelerator.process_index, -(-len(dataset) // processes) * processes, processes)
        sampled = self.sample([dataset[i % len(dataset)] for i in mine])
        self._own = set(sampled)
        # In the next epoch, the rows are distributed across the processes in another way.
        parts = gather_object([sampled]) if self.accelerator.num_processes > 1 else [sampled]
        new = {row: rollout for part in parts for row, rollout in part.items()}
        old = self._rollouts if self.keep else {}
        self._rollouts = {row: old[row] + rollout if row in old else rollout for row, rollout in new.items()}

    def _complete(self, batch: Batch) -> Batch:
        rollouts = [self._rollouts[row] for row in batch["row_index"].tolist()]
        return {
            **batch,
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "scores": [rollout.scores for rollout in rollouts],
            "rewards": [rollout.rewards for rollout in rollouts],
            "marks": [rollout.marks for rollout in rollouts],
        }

    def save(self, folder: Path) -> None:
        """
        Store the completions that are not yet used, in a file of this process.

        Those of a round by epochs are the same in all of its checkpoints: the first one's file gets a second name.
        """
        file = self._file(folder, self.accelerator.process_index)
        if self.every_steps:
            left = [row for batch in self._pending for row in batch["row_index"].tolist()]
            kept = {n: self._rollouts[row] for n, row in enumerate(left)}
            save_rollouts(file, kept, pending=len(self._pending))
            return
        if self._stored is None or not write_same(file, self._stored):
            kept = {row: rollout for row, rollout in self._rollouts.items() if row in self._own}
            save_rollouts(file, kept, epoch=self._epoch, processes=self.accelerator.num_processes)
        self._stored = file

    def restore(self, folder: Path | None) -> None:
        """
        Load the completions in a checkpoint. Without a checkpoint, or without its files, start without any.

        A round by epochs may be read by another number of processes than have written it.
        """
        self._pending.clear()
        self._rollouts, self._epoch, self._pending_to_restore = {}, -1, 0
        self._own, self._stored = set(), None
        if folder is None:
            return
        missing = self._restore_steps(folder) if self.every_steps else self._restore_epochs(folder)
        if missing:
            logger.warning("%s does not exist: completions are generated again.", missing)

    def _restore_steps(self, folder: Path) -> Path | None:
        """Load what this process has left; the file that is missing."""
        file = self._file(folder, self.accelerator.process_index)
        if not file.is_file():
            return file
        self._rollouts, state = load_rollouts(file)
        self._pending_to_restore = state["pending"]
        return None

    def _restore_epochs(self, folder: Path) -> Path | None:
        """Load what all processes have sampled; a file that is missing."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        numbers = [int(path.stem.rpartition("_")[2]) for path in folder.glob("rollouts_*.json")]
        # Each is read by one process, as it may be on the disk of that one only.
        own = [(n, *load_rollouts(self._file(folder, n))) for n in numbers if n % processes == index]
        parts = gather_object(own) if processes > 1 else own
        if not parts:
            return self._file(folder, index)
        found, state = {number: rollouts for number, rollouts, _ in parts}, parts[0][2]
        for number in range(state.get("processes", 1)):
            if number not in found:
                return self._file(folder, number)
        self._rollouts = {row: rollout for rollouts in found.values() for row, rollout in rollouts.items()}
        self._epoch, self._own = state["epoch"], {row for _, rollouts, _ in own for row in rollouts}
        return None

    def _file(self, folder: Path, process: int) -> Path:
        return folder / f"rollouts_{process}.json"
