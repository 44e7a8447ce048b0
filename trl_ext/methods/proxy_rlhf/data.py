# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What is kept of a round: one row a decision, with the features it was made on. The language model is not needed again.

M decisions, F features, N responses.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from trl_ext.atomic_files import write_tensors


@dataclass
class Decisions:
    """
    Decisions to accept or reject, response by response and in the order in which they were made.

    Args:
        features (`torch.Tensor` of shape `(M, F)`): What the proxy saw, bfloat16: 8 KB for 4,096 dimensions.
        accepted (`torch.Tensor` of shape `(M,)`): True where it accepted.
        logps (`torch.Tensor` of shape `(M,)`): Log-probability of the decision when it was made.
        response (`torch.Tensor` of shape `(M,)`): Number of the response.
        kl (`torch.Tensor` of shape `(M,)`): At the last decision of a position, log q - log pi_0 of the token; else 0.
        advantages, values, returns (`torch.Tensor` of shape `(M,)`): Set when the responses have been scored.
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
        Bring what was recorded position by position into the order of responses.

        Args:
            parts (`list[dict]`): For each position `features`, `accepted`, `logps`, `response` and `kl`, sorted by
                response and order of examination.
            width (`int`): F, for the case that nothing was decided.
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
        """The decisions of several batches, whose `counts` responses are numbered through."""
        starts = [sum(counts[:i]) for i in range(len(counts))]
        moved = [replace(p, response=p.response + s) for p, s in zip(parts, starts, strict=True)]
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in moved]) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.accepted)

    def __getitem__(self, index: torch.Tensor) -> "Decisions":
        """Some of the decisions."""
        index = index.to(self.accepted.device)
        return Decisions(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "Decisions":
        """The same on another device."""
        return Decisions(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def by_response(self, values_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One number a decision as a table of responses (those with decisions, in order), padded on the right.

        Returns:
            The numbers, and a mask that is True where there is one: `table[mask]` is `values_M` again.
        """
        _, lengths = self.response.unique_consecutive(return_counts=True)
        columns = torch.arange(int(lengths.max()) if len(lengths) else 0, device=values_M.device)
        mask = columns < lengths[:, None]
        return values_M.new_zeros(mask.shape).masked_scatter(mask, values_M), mask

    def last(self) -> torch.Tensor:
        """True at the last decision of each response."""
        following = torch.cat([self.response[1:], self.response.new_full((min(1, len(self)),), -1)])
        return self.response != following

    def with_total_kl(self, kl_N: torch.Tensor) -> "Decisions":
        """
        The same, with the KL of each whole response (N,) paid: that of positions where there was nothing to decide,
        which earlier decisions led to, at its last decision.
        """
        kl_N = kl_N.to(self.kl)
        rest_N = kl_N - torch.zeros_like(kl_N).index_add(0, self.response, self.kl)
        return replace(self, kl=torch.where(self.last(), self.kl + rest_N[self.response], self.kl))

    def save(self, path: Path) -> None:
        """Write them to a safetensors file, whole or not at all."""
        write_tensors(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Decisions":
        """Read what [`save`] wrote."""
        return cls(**load_file(path))


def minibatch(count: int, number: int, of: int, seed: int) -> torch.Tensor:
    """Numbers of the decisions in minibatch `number` of `of`: a part of one shuffle of all `count` of them."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split(of)[number]
