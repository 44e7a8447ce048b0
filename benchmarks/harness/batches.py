# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Batches of random scored completions, for suites that time training steps.

Letters: B prompts, K completions of each, N = K * B.
"""

import random
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from .models import SHAPES, tiny_length, tiny_models


RAGGED = (64, 192)  # 128 tokens +- 50 %


@dataclass(frozen=True)
class BatchCase:
    """
    A model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        device (`str`): `"cpu"` or `"cuda"`.
        completions (`int`): K.
        prompts (`int`): B.
        prompt_length, completion_length (`tuple[int, int]`): Shortest and longest, in tokens; lengths are uniform.
    """

    model: str
    device: str
    completions: int
    prompts: int
    prompt_length: tuple[int, int]
    completion_length: tuple[int, int]

    @property
    def tags(self) -> str:
        """What else its name states about the model."""
        return ""

    @property
    def name(self) -> str:
        lengths = "-".join(
            f"{letter}{low if low == high else f'{low}to{high}'}"
            for letter, (low, high) in (("p", self.prompt_length), ("r", self.completion_length))
        )
        return f"{self.device}/{self.model}{self.tags}/k{self.completions}-{lengths}-b{self.prompts}"

    @property
    def sizes(self) -> str:
        """The batch, as tables show it."""
        prompt, completion = (
            f"{low}" if low == high else f"{low} to {high}"
            for low, high in (self.prompt_length, self.completion_length)
        )
        return f"{self.prompts} × (prompt {prompt}, {self.completions} × {completion})"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of those that stay unquantised."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def tiny(self) -> Self:
        """The same case at tiny sizes, for a rehearsal on a CPU."""
        prompt, completion = (
            (tiny_length(low), tiny_length(high)) for low, high in (self.prompt_length, self.completion_length)
        )
        sizes: dict[str, Any] = {"prompts": min(2, self.prompts), "prompt_length": prompt}
        return replace(self, device="cpu", completion_length=completion, **sizes, **tiny_models(self))


@dataclass(frozen=True)
class Batch:
    """B prompts, K completions of each, and their N scores: random, as the time of a step does not depend on them."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    scores: list[float]


def make_batch(case: BatchCase, seed: int) -> Batch:
    rng = random.Random(seed)
    vocabulary = SHAPES[case.model].vocab_size

    def tokens(length: tuple[int, int]) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(*length))]

    return Batch(
        [tokens(case.prompt_length) for _ in range(case.prompts)],
        [[tokens(case.completion_length) for _ in range(case.completions)] for _ in range(case.prompts)],
        [rng.gauss(0, 1) for _ in range(case.prompts * case.completions)],
    )
