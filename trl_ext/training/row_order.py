# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The order of training rows where transformers' samplers do not have it: rows of one length, steps that repeat."""

from collections.abc import Callable, Iterator, Sequence, Sized

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments


_GROUPED_STEPS = 50  # steps whose rows are sorted together, as in transformers' sampler


class RowOrder(Sampler[int]):
    """
    Shuffles rows, and can put rows of similar length into a step, and repeat the rows of each optimizer step.

    The last step of an epoch that repeats steps is filled up with rows from the beginning of the epoch; otherwise it
    would share a step with its repetition. The order depends only on seed and epoch, so that a resumed run has the
    same steps.

    Args:
        num_rows (`int`): Number of rows of the dataset.
        step_size (`int`): Number of rows in an optimizer step, over micro-batches and processes.
        repeats (`int`): How many times each step occurs.
        seed (`int`): Seed of the order.
        epoch (`Callable`): Returns the number of the current epoch.
        shuffle (`bool`, *optional*, defaults to `True`): Whether the rows are in random order.
        lengths (`Sequence[int]`, *optional*): Lengths of the rows, to put similar ones into a step.
    """

    def __init__(
        self,
        num_rows: int,
        step_size: int,
        repeats: int,
        seed: int,
        epoch: Callable[[], int],
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.num_rows, self.step_size, self.repeats = num_rows, step_size, repeats
        self.seed, self.epoch, self.shuffle, self.lengths = seed, epoch, shuffle, lengths

    @classmethod
    def of(cls, trainer: Trainer, dataset: Sized, repeats: int) -> "RowOrder":
        """The sampler for the optimizer steps of a trainer, in the order that its config asks for."""
        args = trainer.args
        grouped = args.train_sampling_strategy == "group_by_length"
        return cls(
            len(dataset),
            trainer.get_total_train_batch_size(args),  # which `auto_find_batch_size` changes
            repeats,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(trainer.state.epoch or 0),
            shuffle=args.train_sampling_strategy != "sequential",
            lengths=row_lengths(dataset, args.length_column_name) if grouped else None,
        )

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for start in range(0, self.num_rows, self.step_size):
            stop = start + self.step_size if self.repeats > 1 else min(start + self.step_size, self.num_rows)
            step = [order[i % self.num_rows] for i in range(start, stop)]
            for _ in range(self.repeats):
                yield from step

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        if self.lengths is None:
            return order
        lengths, size = self.lengths, self.step_size * _GROUPED_STEPS
        groups = [order[i : i + size] for i in range(0, self.num_rows, size)]
        return [row for group in groups for row in sorted(group, key=lambda i: -lengths[i])]

    def __len__(self) -> int:
        if self.repeats == 1:
            return self.num_rows
        return -(-self.num_rows // self.step_size) * self.step_size * self.repeats


def steps_in_epoch(args: TrainingArguments, num_rows: int, repeats: int = 1) -> int:
    """
    Number of optimizer steps in an epoch, before there is a trainer.

    Args:
        args ([`~transformers.TrainingArguments`]): The trainer's config.
        num_rows (`int`): Number of rows of the dataset.
        repeats (`int`, *optional*, defaults to `1`): How many times each step occurs.
    """
    batch = args.train_batch_size * args.world_size
    if repeats > 1:  # the last step is filled up
        return -(-num_rows // (batch * args.gradient_accumulation_steps)) * repeats
    batches = num_rows // batch if args.dataloader_drop_last else -(-num_rows // batch)
    return max(1, -(-batches // args.gradient_accumulation_steps))


def row_lengths(dataset: Dataset, column: str) -> list[int]:
    """Tokens of each row of a tokenized dataset, over all of its completions; or what its length column has."""
    if column in dataset.column_names:
        return [int(length) for length in dataset[column]]
    lengths = [len(ids) for ids in dataset["prompt_ids"]]
    if "completion_ids" in dataset.column_names:
        groups = dataset["completion_ids"]
        lengths = [length + sum(map(len, group)) for length, group in zip(lengths, groups, strict=True)]
    return lengths
