# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The decisions of a round, each with the features it was made on, so that training does not need the language model.

Dimensions: M decisions, F features per decision, N completions, T decisions of the completion with the most.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from trl_ext.atomic_files import write_tensors


@dataclass
class Decisions:
    """
    Decisions to accept or reject a candidate, sorted by completion and then by time.

    Args:
        features (`torch.Tensor` of shape `(M, F)`): Input of the proxy, bfloat16: 8 KB for 4,096 dimensions.
        accepted (`torch.Tensor` of shape `(M,)`): True for accepted candidates.
        logps (`torch.Tensor` of shape `(M,)`): Log-probability of the decision when it was made.
        response (`torch.Tensor` of shape `(M,)`): Index of the completion.
        kl (`torch.Tensor` of shape `(M,)`): log q - log pi_0 of the token at the last decision of a position, else 0.
        advantages, values, returns (`torch.Tensor` of shape `(M,)`): Set after the completions have been scored.
    """

    features: torch.Tensor
    accepted: torch.Tensor
    logps: torch.Tensor
    response: torch.Tensor
    kl: torch.Tensor
    advantages: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor

    @classmethod
    def collect(cls, parts: list[dict[str, torch.Tensor]], width: int) -> "Decisions":
        """
        Collect decisions that were recorded position by position, and sort them by completion.

        Args:
            parts (`list[dict]`): For each position `features`, `accepted`, `logps`, `response` and `kl`, sorted by
                completion and order of examination.
            width (`int`): F, in case there are no decisions.
        """
        dtypes = {"accepted": torch.bool, "response": torch.long, "features": torch.bfloat16}
        names = ("features", "accepted", "logps", "response", "kl")
        empty = {n: torch.zeros((0, width) if n == "features" else 0, dtype=dtypes.get(n)) for n in names}
        joined = {n: torch.cat([part[n] for part in parts]) if parts else empty[n] for n in names}
        order = joined["response"].sort(stable=True).indices
        zeros = torch.zeros_like(joined["logps"])
        return cls(**{n: x[order] for n, x in joined.items()}, advantages=zeros, values=zeros, returns=zeros)

    @classmethod
    def join(cls, parts: "list[Decisions]", counts: list[int]) -> "Decisions":
        """Concatenate the decisions of several batches with `counts` completions each."""
        starts = [sum(counts[:i]) for i in range(len(counts))]
        shifted = [replace(part, response=part.response + start) for part, start in zip(parts, starts, strict=True)]
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in shifted]) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.accepted)

    def __getitem__(self, index: torch.Tensor) -> "Decisions":
        """The decisions with these indices."""
        index = index.to(self.accepted.device)
        return Decisions(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "Decisions":
        """Move to a device."""
        return Decisions(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def by_response(self, values_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Arrange one number per decision in rows of completions, padded on the right. Completions without decisions are
        omitted.

        Args:
            values_M (`torch.Tensor` of shape `(M,)`): The numbers.

        Returns:
            The table of shape (N, T), and its mask, True at decisions: `table[mask]` equals `values_M`.
        """
        _, lengths = self.response.unique_consecutive(return_counts=True)
        columns = torch.arange(int(lengths.max()) if len(lengths) else 0, device=values_M.device)
        mask = columns < lengths[:, None]
        return values_M.new_zeros(mask.shape).masked_scatter(mask, values_M), mask

    def last(self) -> torch.Tensor:
        """True at the last decision of each completion, shape (M,)."""
        following = torch.cat([self.response[1:], self.response.new_full((min(1, len(self)),), -1)])
        return self.response != following

    def with_total_kl(self, kl_N: torch.Tensor) -> "Decisions":
        """
        A copy whose KL sums to that of the complete completions.

        Positions without a decision have a KL too, and earlier decisions led to them: it is added at the completion's
        last decision.

        Args:
            kl_N (`torch.Tensor` of shape `(N,)`): KL of each completion.
        """
        kl_N = kl_N.to(self.kl)
        rest_N = kl_N - torch.zeros_like(kl_N).index_add(0, self.response, self.kl)
        return replace(self, kl=torch.where(self.last(), self.kl + rest_N[self.response], self.kl))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, atomically."""
        write_tensors(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Decisions":
        """Read a file written by [`save`]."""
        return cls(**load_file(path))


def minibatch(count: int, number: int, of: int, seed: int) -> torch.Tensor:
    """
    Indices of the decisions in one minibatch.

    Args:
        count (`int`): M, number of decisions.
        number (`int`): Index of the minibatch.
        of (`int`): Number of minibatches, which partition one shuffle of all decisions.
        seed (`int`): Seed of the shuffle.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split(of)[number]
