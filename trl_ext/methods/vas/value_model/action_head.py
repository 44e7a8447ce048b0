# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What each token of a vocabulary would be worth in a state that has not seen it.

Letters: D hidden size, H heads, V vocabulary, k tokens that could come next, r rank.
"""

import torch
from torch import nn


class ActionHead(nn.Module):
    """
    What depends on the token a in its value Q(s, a): <u_a, W h>, with W of shape (r, D) for each head, u (V, r).

    W starts at zero, so that all of it does, and u with rows of length 1, so that W learns at the pace of a head whose
    input is the hidden state itself. Their directions are random until [`start_from`] gives them those of embeddings.

    Args:
        hidden_size (`int`), vocabulary (`int`), rank (`int`), heads (`int`): D, V, r and H.
    """

    def __init__(self, hidden_size: int, vocabulary: int, rank: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, heads * rank, bias=False, dtype=torch.float32)
        self.actions = nn.Embedding(vocabulary, rank, dtype=torch.float32)

    def reset(self) -> None:
        """Draw u, and let W be zero."""
        nn.init.zeros_(self.query.weight)
        nn.init.normal_(self.actions.weight, std=self.actions.embedding_dim**-0.5)

    @torch.no_grad()
    def start_from(self, embeddings_VD: torch.Tensor) -> None:
        """
        Let u be random projections of token embeddings, in units of their deviations: tokens that a language model has
        found alike are then worth much the same, which samples alone would have to say of each token in each state.
        """
        actions_Vr = self.actions.weight
        mean_D, chunks = embeddings_VD.mean(0, dtype=torch.float32), embeddings_VD.split(1 << 14)
        square_D = torch.stack([(chunk.float() - mean_D).square().sum(0) for chunk in chunks]).sum(0)
        std_D = (square_D / len(embeddings_VD)).sqrt().clamp(min=1e-6)
        onto_Dr = torch.randn(len(mean_D), actions_Vr.shape[1]).to(mean_D)
        if onto_Dr.shape[1] <= onto_Dr.shape[0]:
            onto_Dr = torch.linalg.qr(onto_Dr)[0]
        onto_Dr = onto_Dr / std_D[:, None]
        found_Vr = torch.cat([(chunk.float() - mean_D) @ onto_Dr for chunk in chunks])
        actions_Vr.copy_(nn.functional.normalize(found_Vr, dim=1))

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """(..., k, H), of hidden states (..., D) and token ids (..., k)."""
        query = self.query(hidden).unflatten(-1, (-1, self.actions.embedding_dim))  # (..., H, r)
        if ids.shape[-1] * 4 < self.actions.num_embeddings:
            return self.actions(ids) @ query.transpose(-1, -2)
        every = query @ self.actions.weight.T  # (..., H, V): less than the embeddings of so many tokens
        return every.gather(-1, ids[..., None, :].expand(*every.shape[:-1], -1)).transpose(-1, -2)
