# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What suites that time decoding share: the batch, prompts of random tokens, and columns of their tables."""

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Self

import torch

from .models import SHAPES, tiny_length, tiny_models
from .tables import Column, median_seconds


@dataclass(frozen=True, kw_only=True)
class DecodingCase:
    """
    A batch of prompts.

    Args:
        device (`str`): `"cpu"` or `"cuda"`.
        dtype (`str`): Of the weights.
        batch (`int`): N.
        prompt (`int`): P; all prompts are as long.
        new (`int`): Tokens that are generated for each.
    """

    device: str
    dtype: str
    batch: int
    prompt: int
    new: int

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in [`~benchmarks.harness.models.SHAPES`]."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return f"{self.device}/{'+'.join(self.models)}/{self.dtype}-{self.sizes}"

    @property
    def sizes(self) -> str:
        return f"b{self.batch}-p{self.prompt}-n{self.new}"

    @property
    def label(self) -> str:
        """The case, as tables show it."""
        models = " + ".join(self.models)
        return f"{models}, {self.dtype}: {self.batch} × (prompt {self.prompt}, {self.new} new)"

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float32."""
        return self.dtype == "float32"

    def tiny(self) -> Self:
        """The same case at tiny sizes, for a rehearsal on a CPU."""
        sizes: dict[str, Any] = {"batch": min(2, self.batch), "prompt": tiny_length(self.prompt)}
        return replace(self, device="cpu", new=tiny_length(2 * self.new), **sizes, **tiny_models(self))

    def prompts(self, batches: int, generator: torch.Generator) -> list[torch.Tensor]:
        """Batches of random tokens, each of shape (N, P)."""
        high, shape = SHAPES[self.models[0]].vocab_size, (self.batch, self.prompt)
        return [torch.randint(3, high, shape, generator=generator).to(self.device) for _ in range(batches)]


def speed_column(variant: str) -> Column:
    """Tokens per second of a variant, all rows together."""

    def value(case: DecodingCase, measured: dict[str, Any]) -> str:
        if variant not in measured["variants"]:  # a result from before there was this variant
            return "-"
        return f"{case.batch * case.new / median_seconds(measured, variant):.0f}"

    return Column(variant, value)


LABEL = attrgetter("label")
SPEEDS = "Tokens a second, all rows together"  # heading of a table of them
