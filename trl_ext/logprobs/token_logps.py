# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The log-probabilities of the tokens of a batch, whatever rows they were computed in.

Dimensions: N completions in all, L tokens per row, T tokens of all rows of several batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch

from .balancing_loss import Routing


@dataclass
class TokenLogps:
    """
    Per-token log-probabilities of the completions of a batch, in the layout of its rows.

    Args:
        logps (`torch.Tensor` of shape (rows, L)): log P of the token each position predicts, in nats; 0 elsewhere.
        entropy (`torch.Tensor` of shape (rows, L)): Entropy of each of these predictions, in nats; 0 elsewhere.
        is_top1 (`torch.Tensor` of shape (rows, L)): 1 where the token was the most likely one.
        completion_index (`torch.Tensor` of shape (rows, L)): Completion that the token belongs to, -1 elsewhere.
        num_completions (`int`): N.
        form (`str`): `"separate"`, `"dense"` or `"cascade"` (see [`~trl_ext.logprobs.shared_prefix.Layout`]).
        num_positions (`int`): Positions that went through the model, padding included.
        routing ([`~trl_ext.logprobs.balancing_loss.Routing`] or `None`): From which the load balancing loss of the
            batch is computed, if it was asked for.
        parts ([`~trl_ext.logprobs.parts.Parts`] or `None`): The parts that the batch was read in, if a gradient is
            needed and the batch was too large for one forward pass.
    """

    logps: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor
    completion_index: torch.Tensor
    num_completions: int
    form: str
    num_positions: int
    routing: Routing | None = None
    parts: Any = None

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """Those of several batches as one, in one row of T positions, with completions numbered across the batches."""
        index, first = [], 0
        for batch in batches:
            index.append(torch.where(batch.completion_index >= 0, batch.completion_index + first, -1).flatten())
            first += batch.num_completions
        logps, entropy, is_top1 = (
            torch.cat([getattr(batch, name).flatten() for batch in batches])[None]
            for name in ("logps", "entropy", "is_top1")
        )
        routings = [batch.routing for batch in batches if batch.routing is not None]
        return cls(
            logps,
            entropy,
            is_top1,
            torch.cat(index)[None],
            first,
            batches[0].form,
            sum(batch.num_positions for batch in batches),
            Routing.joined(routings) if routings else None,
        )

    @cached_property
    def aux_loss(self) -> torch.Tensor | None:
        """The load balancing loss of the batch, if it was asked for."""
        return None if self.routing is None else self.routing.loss()

    def sums(self) -> torch.Tensor:
        """log P of each completion given its prompt, of shape (N,)."""
        return self._sum(self.logps)

    def lengths(self) -> torch.Tensor:
        """Tokens of each completion, of shape (N,)."""
        return self._sum(torch.ones_like(self.logps))

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        # One slot more than there are completions takes what belongs to none of them.
        index = self.completion_index.flatten() % (self.num_completions + 1)
        total = values.new_zeros(self.num_completions + 1)
        return total.index_add(0, index, values.flatten())[:-1]
