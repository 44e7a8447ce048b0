# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Sampler that repeats the rows of every optimizer step several times."""

from collections.abc import Callable, Iterator, Sized

import torch
from torch.utils.data import Sampler
from transformers import Trainer


class RepeatedSteps(Sampler[int]):
    """
    Shuffles rows, and repeats those of each optimizer step.

    The last step of an epoch is filled up with rows from the beginning of the epoch; otherwise it would share a step
    with its repetition. The order depends only on seed and epoch, so that a resumed run has the same steps.

    Args:
        num_rows (`int`): Number of rows of the dataset.
        step_size (`int`): Number of rows in an optimizer step, over micro-batches and processes.
        repeats (`int`): How many times each step occurs.
        seed (`int`): Seed of the order.
        epoch (`Callable`): Returns the number of the current epoch.
        shuffle (`bool`, *optional*, defaults to `True`): Whether the rows are in random order.
    """

    def __init__(
        self, num_rows: int, step_size: int, repeats: int, seed: int, epoch: Callable[[], int], shuffle: bool = True
    ) -> None:
        self.num_rows, self.step_size, self.repeats = num_rows, step_size, repeats
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle

    @classmethod
    def of(cls, trainer: Trainer, dataset: Sized, repeats: int) -> "RepeatedSteps":
        """The sampler for the optimizer steps of a trainer, in the order that its config asks for."""
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
