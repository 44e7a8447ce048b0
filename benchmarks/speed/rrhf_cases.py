# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What `rrhf_step` compares, and on which models and batches.

Letters: B prompts, N = K * B completions.
"""

import random
from dataclasses import dataclass, field

import torch

from ..harness.models import SHAPES


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (DPO, NAIVE, TRL_ROWS, OUR_ROWS, DENSE, CASCADE) = (
    "TRL's DPO",
    "naive",
    "rows, TRL's head",
    "rows, our head",
    "shared, dense mask",
    "shared, cascade",
)


@dataclass(frozen=True)
class Case:
    """
    A model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        device (`str`): `"cpu"` or `"cuda"`.
        completions (`int`): K.
        prompts (`int`): B.
        prompt_length, completion_length (`tuple[int, int]`): Shortest and longest, in tokens; lengths are uniform.
        qlora (`bool`): nf4 with a LoRA adapter of rank 16 and gradient checkpointing, instead of full fine-tuning.
        optimizer (`bool`): Include the step of AdamW (the memory anchor).
        targets (`dict[str, float]`): What the fastest form of shared rows is to reach: times faster than `"naive"` and
            `"rows"` (with TRL's head), times less `"memory"` above the weights than these, GiB `"reserved"` at most.
    """

    model: str
    device: str
    completions: int
    prompts: int
    prompt_length: tuple[int, int]
    completion_length: tuple[int, int]
    qlora: bool = False
    optimizer: bool = False
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        lengths = "-".join(
            f"{letter}{low if low == high else f'{low}to{high}'}"
            for letter, (low, high) in (("p", self.prompt_length), ("r", self.completion_length))
        )
        tags = ("-qlora" if self.qlora else "") + ("-optimizer" if self.optimizer else "")
        return f"{self.device}/{self.model}{tags}/k{self.completions}-{lengths}-b{self.prompts}"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of those that stay unquantised."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float32."""
        return self.dtype == torch.float32 and not self.qlora


RAGGED = (64, 192)  # 128 tokens +- 50 %


def _cpu_cases(model: str, prompts: int) -> list[Case]:
    return [
        Case(model, "cpu", 6, prompts, (128, 128), RAGGED),
        Case(model, "cpu", 6, 2, (512, 512), RAGGED),
        # The IMDB task: openings of 16 words, and 48 tokens, few of which end sooner.
        Case(model, "cpu", 4, 8, (16, 28), (48, 48)),
        # Sharing takes a third off the positions: from here on it has to pay.
        Case(model, "cpu", 4, 8, (40, 40), (48, 48)),
    ]


CASES = [
    *_cpu_cases("imdb-2m", 4),
    *_cpu_cases("imdb-7m", 2),
    Case("llama-1b", "cuda", 6, 8, (128, 128), RAGGED, targets={"naive": 2.0, "rows": 1.75, "memory": 3.0}),
    Case("llama-1b", "cuda", 6, 4, (512, 512), RAGGED, targets={"naive": 3.2, "rows": 2.6, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 8, (128, 128), RAGGED, qlora=True, targets={"rows": 1.85, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 4, (512, 512), RAGGED, qlora=True, targets={"rows": 2.8, "memory": 3.0}),
    # The memory anchor: whether a step on one prompt fits a card of 12 GB.
    Case("llama-8b", "cuda", 6, 1, (256, 256), RAGGED, qlora=True, optimizer=True, targets={"reserved": 7.5}),
]


@dataclass(frozen=True)
class Batch:
    """B prompts, K completions of each, and their N scores: random, as the time of a step does not depend on them."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    scores: list[float]


def make_batch(case: Case, seed: int) -> Batch:
    rng = random.Random(seed)
    vocabulary = SHAPES[case.model].vocab_size

    def tokens(length: tuple[int, int]) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(*length))]

    return Batch(
        [tokens(case.prompt_length) for _ in range(case.prompts)],
        [[tokens(case.completion_length) for _ in range(case.completions)] for _ in range(case.prompts)],
        [rng.gauss(0, 1) for _ in range(case.prompts * case.completions)],
    )
