# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The alternative that `vas_decode` measures against: every candidate is a row of its own with a copy of the cache.

N sequences, S columns of them so far, k candidates for the next token, c of them at a time.
"""

import copy
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor

from trl_ext.models.properties import cache_name


class NaiveValues(LogitsProcessor):
    """
    Guidance by values of candidates as repeated rows, for sequences without padding.

    A token costs 1 + k / c forwards: one that reads the token chosen last, one for each chunk of candidates. Kinder
    than it need be: the prefix is read once, and where a chunk is one candidate its entry is cut off again instead of
    the cache being copied for it.

    Args:
        value_model ([`~trl_ext.methods.vas.value_model.model.ValueModel`]): A value model with one head.
        beta (`float`): Weight of the values.
        top_k (`int`): k.
        chunk (`int`): c.

    Attributes:
        value_calls (`int`), value_tokens (`int`): Forwards of the value model so far, and tokens fed in them.
    """

    def __init__(self, value_model: Any, beta: float, top_k: int, chunk: int) -> None:
        self.model, self.beta, self.top_k, self.chunk = value_model, beta, top_k, chunk
        self.cache = DynamicCache()
        self.value_calls = self.value_tokens = 0

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._read(input_ids[:, self.cache.get_seq_length() :], self.cache)
        candidates_Nk = scores.topk(self.top_k).indices
        values_Nk = torch.cat([self._values(chunk_Nc) for chunk_Nc in candidates_Nk.split(self.chunk, 1)], 1)
        centred_Nk = values_Nk - values_Nk.mean(1, keepdim=True)
        return scores.scatter_add(1, candidates_Nk, self.beta * centred_Nk.to(scores))

    def _values(self, chunk_Nc: torch.Tensor) -> torch.Tensor:
        n, c = chunk_Nc.shape
        rows = self.cache if c == 1 else self._tiled(c)
        hidden = self._read(chunk_Nc.reshape(n * c, 1), rows)[:, -1]
        if c == 1:
            self.cache.crop(-1)  # the last column
        return self.model.value_of(hidden)[..., 0].view(n, c)

    def _tiled(self, c: int) -> DynamicCache:
        """A cache in which each row comes c times."""
        tiled = DynamicCache()
        for layer in self.cache.layers:
            tiled.layers.append(copy.copy(layer))
            tiled.layers[-1].keys = layer.keys.repeat_interleave(c, 0)
            tiled.layers[-1].values = layer.values.repeat_interleave(c, 0)
        return tiled

    def _read(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        self.value_calls += 1
        self.value_tokens += ids.numel()
        backbone = self.model.backbone
        return backbone(input_ids=ids, use_cache=True, **{cache_name(backbone): cache}).last_hidden_state
