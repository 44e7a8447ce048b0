# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Random numbers with one generator per sequence, so that a sample does not depend on the batch it is in.

Dimensions: N sequences, C columns.
"""

import torch


class PerRowRNG:
    """
    Uniform random numbers for N sequences, each from a generator of its own.

    Args:
        seeds (`list[int]`): One seed per sequence.
        columns (`int`): C, numbers that a position needs of each kind. There are two kinds: for the order in which
            candidates are examined, and for the proxy's decisions.
        device (`torch.device`): Device that the numbers are returned on. The generators run on the CPU, so that a
            seed gives the same numbers on every device.
    """

    block = 32  # positions that are generated at a time

    def __init__(self, seeds: list[int], columns: int, device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.columns, self.device = columns, device
        self._numbers: torch.Tensor | None = None
        self._next = 0

    def uniform(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers in [0, 1) for the next position: two tensors of shape (N, C), for the order and the decisions."""
        if self._numbers is None or self._next == self.block:
            self._numbers = self._generate(1)
            self._next = 0
        numbers = self._numbers[:, self._next]
        self._next += 1
        return numbers[:, 0], numbers[:, 1]

    def table(self, positions: int) -> torch.Tensor:
        """
        Numbers for many positions at once, the same that as many calls of [`uniform`] return.

        Args:
            positions (`int`): Positions that are needed.

        Returns:
            `torch.Tensor` of shape `(N, T, 2, C)`, with T at least `positions`.
        """
        return self._generate(-(-positions // self.block))

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these sequences only, in this order."""
        self.generators = [self.generators[i] for i in rows.tolist()]
        self._numbers = None if self._numbers is None else self._numbers[rows]

    def _generate(self, blocks: int) -> torch.Tensor:
        shape = (self.block, 2, self.columns)
        rows = []
        for generator in self.generators:
            rows.append(torch.cat([torch.rand(shape, generator=generator) for _ in range(blocks)]))
        return torch.stack(rows).to(self.device)
