# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The order of rows in which every optimizer step comes several times in a row."""

from collections.abc import Callable, Iterator, Sized

import torch
from torch.utils.data import Sampler
from transformers import Trainer


class RepeatedSteps(Sampler[int]):
    """
    Shuffled rows in which the rows of each optimizer step follow themselves.

    The last step of an epoch is filled up with rows from the epoch's beginning: a step that is cut short would mix
    with its repetition. The order depends on nothing but seed and epoch, so that a resumed run meets the same steps.

    Args:
        num_rows (`int`): Rows of the data set.
        step_size (`int`): Rows of an optimizer step, over micro-batches and processes.
        repeats (`int`): How often each step comes.
        seed (`int`): Seed of the order.
        epoch (`Callable`): The number of the current epoch.
        shuffle (`bool`, *optional*, defaults to `True`): Whether rows come in random order.
    """

    def __init__(
        self, num_rows: int, step_size: int, repeats: int, seed: int, epoch: Callable[[], int], shuffle: bool = True
    ) -> None:
        self.num_rows, self.step_size, self.repeats = num_rows, step_size, repeats
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle

    @classmethod
    def of(cls, trainer: Trainer, dataset: Sized, repeats: int) -> "RepeatedSteps":
        """Those of a trainer's optimizer steps, in the order that its settings ask for."""
        args = trainer.args
        step_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(
            len(dataset),
            step_size,
            repeats,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(trainer.state.epoch or 0),
            shuffle=args.train_sampling_strategy != "sequential",
        )

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(self.num_rows, generator=generator) if self.shuffle else torch.arange(self.num_rows)
        for start in range(0, self.num_rows, self.step_size):
            step = [int(order[i % self.num_rows]) for i in range(start, start + self.step_size)]
            for _ in range(self.repeats):
                yield from step

    def __len__(self) -> int:
        return -(-self.num_rows // self.step_size) * self.step_size * self.repeats
