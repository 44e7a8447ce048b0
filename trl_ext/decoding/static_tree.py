# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A tree in a room of fixed size: what [`~trl_ext.decoding.token_tree.Tree`] computes, with nothing that a CUDA graph
cannot replay.

        columns    0  1  2  3 | 4  5  6 | 7 ...
                   p1 p2 p3 p4  a  b  c            length = 4, on the device
        keep(1)    p1 p2 p3 p4  b                  length = 5: b's entry has moved to column 4

Prompts are read in the model's usual way and copied in. From then on every forward writes at columns that the device
knows and attends to the whole room under a mask, so that its shapes and addresses never change.

N rows, P tokens of a prompt, S columns of the room, k siblings a row, D hidden size, L layers, H heads, C channels.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from trl_ext.models.load import base_of
from trl_ext.models.modes import evaluating
from trl_ext.upstream import attention_switched, sdpa_mask

from .tree_backends import SLIDING, SharedCacheBackend
from .tree_support import shared_support


STATIC = "trl_ext_static"  # the name of its attention, as transformers knows it
# What layers may hand to attention that changes its result: sinks, biases by distance.
_NOT_HERE = ("s_aux", "position_bias")


def static_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention of a few queries to a whole room; an attention function for [`~transformers.AttentionInterface`].

    The query heads of a group go into the rows of one matrix product with the keys that they share. SDPA, given a
    mask, would copy the room once for each of them.

    Args:
        module (`torch.nn.Module`): The layer.
        query (`torch.Tensor` of shape (N, heads, q, C)), key, value (`torch.Tensor` of shape (N, H, S, C)): States.
        attention_mask (`torch.Tensor` of shape (N, 1, q, S)): Added to the scores.
        scaling, softcap (`float`, *optional*): Of the scores.

    Raises:
        `ValueError`: The layer asks for what is not computed here.
    """
    for name in _NOT_HERE:
        if kwargs.get(name) is not None:
            raise ValueError(f"its attention has `{name}`")
    n, heads, q, channels = query.shape
    groups = heads // key.shape[1]
    scale = channels**-0.5 if scaling is None else scaling
    folded = (query * scale).reshape(n, key.shape[1], groups * q, channels)
    scores = torch.matmul(folded, key.transpose(2, 3)).unflatten(2, (groups, q))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype).flatten(2, 3)
    return torch.matmul(weights, value).reshape(n, heads, q, -1).transpose(1, 2), None


AttentionInterface.register(STATIC, static_attention_forward)
AttentionMaskInterface.register(STATIC, sdpa_mask)


class StaticKVCache:
    """
    Keys and values of all layers in one tensor for each shape; to the layers, it is their cache.

    Args:
        stores (`list[torch.Tensor]` of shape (L, N, H, S, C)): Keys or values of layers that are alike.
        slots (`list[list[tuple[int, int]]]`): For each store, which layer and side (0: keys, 1: values) its parts are.
    """

    is_compileable = False

    def __init__(self, stores: list[torch.Tensor], slots: list[list[tuple[int, int]]]) -> None:
        self.stores = stores
        places = {slot: store[i] for store, row in zip(stores, slots, strict=True) for i, slot in enumerate(row)}
        self.layers = [(places[i, 0], places[i, 1]) for i in range(len(places) // 2)]
        self.columns: torch.Tensor | None = None  # where the next forward writes

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer calls: its new keys and values in, all of its keys and values out."""
        keys, values = self.layers[layer_idx]
        keys.index_copy_(2, self.columns, key_states.to(keys.dtype))  # type: ignore[arg-type]
        values.index_copy_(2, self.columns, value_states.to(values.dtype))  # type: ignore[arg-type]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing depends on it: positions and masks are given."""
        return 0

    def move(self, source_N: torch.Tensor, target_1: torch.Tensor) -> None:
        """Copy the entry at column `source_N` of each row to column `target_1`."""
        for store in self.stores:
            shape = (store.shape[0], -1, store.shape[2], 1, store.shape[4])
            store.index_copy_(3, target_1, store.gather(3, source_N[None, :, None, None, None].expand(shape)))


class StaticTree:
    """
    Prefixes in a room of fixed size, on which sibling tokens are tried.

    Raises `ValueError` where [`~trl_ext.decoding.static_support.static_unsupported_reason`] gives a reason: ask it
    first.

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): As for
            [`~trl_ext.decoding.token_tree.Tree`].
        rows (`int`): N.
        columns (`int`): S: prompts, new tokens, and the siblings of the last one.

    Attributes:
        length_1 (`torch.Tensor` of shape `(1,)`): Columns of the prefixes. What the next forward does depends on it.
    """

    def __init__(self, backbone: torch.nn.Module, rows: int, columns: int) -> None:
        kinds, reason = shared_support(backbone, {})
        if reason:
            raise ValueError(f"The model cannot share a cache between siblings: {reason}.")
        base = base_of(backbone)
        self.backbone, self.rows, self.columns, self.kinds = backbone, rows, columns, kinds
        self.config: Any = base.config.get_text_config()
        self.device = base.get_input_embeddings().weight.device
        self.form = SharedCacheBackend(backbone, kinds, {})  # reads prompts
        self.cache: StaticKVCache | None = None
        self.length_1 = torch.zeros(1, dtype=torch.long, device=self.device)
        self.pads_N = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.column_S = torch.arange(columns, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the room; 0 before the first prompts."""
        return sum(store.nbytes for store in self.cache.stores) if self.cache is not None else 0

    @torch.no_grad()
    def start(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> torch.Tensor:
        """
        Read prompts, equal ones once; what was there before is forgotten. Not for a graph.

        Args:
            ids_NP, mask_NP (`torch.Tensor` of shape `(N, P)`): Prompts, padded on the left.

        Returns:
            `torch.Tensor` of shape `(N, D)`: Hidden states of the last tokens.
        """
        columns = ids_NP.shape[1]
        both, index = torch.unique(torch.cat([mask_NP.long(), ids_NP], 1), dim=0, return_inverse=True)
        mask, ids = both.chunk(2, 1)
        with evaluating(self.backbone):
            hidden = self.form.forward(ids, mask.bool(), columns, None)
        if self.cache is None:
            self.cache = self._room()
        for store, read in zip(self.cache.stores, self.form.stores, strict=True):
            store[:, :, :, :columns] = read[:, index, :, :columns]
            # What is masked still takes part in a product: NaN that a text left here would be in all that follow.
            store[:, :, :, columns:].zero_()
        self.form.clear()
        self.length_1.fill_(columns)
        self.pads_N.copy_(columns - mask_NP.long().sum(1))
        return hidden[index, -1]

    def cut(self, columns: int) -> None:
        """Forget what is behind this many columns."""
        self.length_1.fill_(columns)

    def _room(self) -> StaticKVCache:
        layers = [id(layer) for layer in self.form.cache.layers]
        slots = [[(layers.index(id(layer)), side) for layer, side in row] for row in self.form.slots]
        if sum(map(len, slots)) != 2 * len(layers):
            raise ValueError("The model has layers that keep no keys and values of their own.")
        stores = []
        for store in self.form.stores:
            shape = (store.shape[0], self.rows, store.shape[2], self.columns, store.shape[4])
            stores.append(store.new_empty(shape))
        return StaticKVCache(stores, slots)

    def append(self, ids_N1: torch.Tensor) -> torch.Tensor:
        """Extend each prefix by a token (N, 1); its hidden state (N, D)."""
        return self._forward(ids_N1, 1)[:, 0]

    def branch(self, candidates_Nk: torch.Tensor, after_N1: torch.Tensor | None = None) -> torch.Tensor:
        """
        Try sibling tokens, after extending each prefix by a token if one is given.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): The siblings.
            after_N1 (`torch.Tensor` of shape `(N, 1)`, *optional*): The token before them.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`: The hidden state of each sibling.
        """
        if after_N1 is None:
            return self._forward(candidates_Nk, 0)
        return self._forward(torch.cat([after_N1, candidates_Nk], 1), 1)[:, 1:]

    def keep(self, choice_N: torch.Tensor) -> None:
        """Extend each prefix by one of the siblings that the last forward tried."""
        assert self.cache is not None
        self.cache.move(self.length_1 + choice_N, self.length_1)
        self.length_1.add_(1)

    @torch.no_grad()
    def _forward(self, ids_Nq: torch.Tensor, after: int) -> torch.Tensor:
        q = ids_Nq.shape[1]
        assert self.cache is not None
        self.cache.columns = self.length_1 + self.column_S[:q]
        # Siblings stand side by side: all of them are one position behind the prefix.
        offset_q = self.column_S[:q].clamp(max=after)
        masks = {kind: self._mask(q, after, kind) for kind in self.kinds}
        with static_attention(self.config), evaluating(self.backbone):
            hidden = self.backbone(
                input_ids=ids_Nq,
                position_ids=(self.length_1 - self.pads_N)[:, None] + offset_q,
                attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
                use_cache=True,
                **{self.form.cache_name: self.cache},
            ).last_hidden_state
        if after:
            self.length_1.add_(after)
        return hidden

    def _mask(self, q: int, after: int, kind: str) -> torch.Tensor:
        """What is added to the scores of the q new columns, (N, 1, q, S): 0 where one sees another."""
        column, mine_q = self.column_S, (self.length_1 + self.column_S[:q])[:, None]
        place_q = (self.length_1 + self.column_S[:q].clamp(max=after))[:, None]
        sees = (column < self.length_1 + after) & (column <= mine_q)
        if kind == SLIDING:
            sees = sees & (column > place_q - self.config.sliding_window)
        sees = (sees & (column >= self.pads_N[:, None, None])) | (column == mine_q)
        dtype = base_of(self.backbone).dtype
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def static_attention(config: Any) -> AbstractContextManager[None]:
    """The attention of this file, in a model whose layers read `config`."""
    return attention_switched(config, STATIC)
