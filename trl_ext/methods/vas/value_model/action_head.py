# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Head that predicts the value of every next token from one hidden state (Q-values).

Dimensions: D hidden size, H heads, V vocabulary, k candidate tokens, r rank.
"""

import torch
from torch import nn


class ActionHead(nn.Module):
    """
    The term of Q(s, a) that depends on the token a: <u_a, W h>, with W of shape (r, D) for each head and u (V, r).

    W starts at zero, and so does the term. The rows of u have length 1, so that W learns as fast as a linear head on
    the hidden state. Their directions are random until [`start_from`] sets them from token embeddings.

    Args:
        hidden_size (`int`): D.
        vocabulary (`int`): V.
        rank (`int`): r.
        heads (`int`): H.
    """

    def __init__(self, hidden_size: int, vocabulary: int, rank: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, heads * rank, bias=False, dtype=torch.float32)
        self.actions = nn.Embedding(vocabulary, rank, dtype=torch.float32)

    def reset(self) -> None:
        """Initialise u randomly and W with zeros."""
        nn.init.zeros_(self.query.weight)
        nn.init.normal_(self.actions.weight, std=self.actions.embedding_dim**-0.5)

    @torch.no_grad()
    def start_from(self, embeddings_VD: torch.Tensor) -> None:
        """
        Set u to random projections of standardised token embeddings.

        Tokens with similar embeddings then start with similar values, instead of learning them one by one.

        Args:
            embeddings_VD (`torch.Tensor` of shape `(V, D)`): Token embeddings of a language model.
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
        """
        The term for candidate tokens.

        Args:
            hidden (`torch.Tensor` of shape `(..., D)`): Hidden states.
            ids (`torch.Tensor` of shape `(..., k)`): Candidate tokens of each state.

        Returns:
            `torch.Tensor` of shape `(..., k, H)`.
        """
        query = self.query(hidden).unflatten(-1, (-1, self.actions.embedding_dim))  # (..., H, r)
        if ids.shape[-1] * 4 < self.actions.num_embeddings:
            return self.actions(ids) @ query.transpose(-1, -2)
        every = query @ self.actions.weight.T  # (..., H, V) needs less memory than gathered rows of u
        return every.gather(-1, ids[..., None, :].expand(*every.shape[:-1], -1)).transpose(-1, -2)
