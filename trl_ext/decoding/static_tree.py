# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Candidate tokens on a static KV cache: the operations of [`~trl_ext.decoding.token_tree.Tree`] that a CUDA graph can
replay.

        columns    0  1  2  3 | 4  5  6 | 7 ...
                   p1 p2 p3 p4  a  b  c            length = 4, on the device
        keep(1)    p1 p2 p3 p4  b                  length = 5: b's entry has moved to column 4

Prompts are computed on an ordinary cache and copied. From then on every forward pass writes at columns that are a
tensor on the device and attends to all of the cache under a mask, so that shapes and addresses never change.

Dimensions: N rows, P tokens of a prompt, S columns of the cache, k candidates per row, D hidden size, L layers,
H heads, C channels.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from trl_ext.models.architecture import SLIDING, score_cap
from trl_ext.models.modes import evaluating
from trl_ext.models.properties import base_of, has_quantized_weights
from trl_ext.models.sharding import is_sharded
from trl_ext.upstream import attention_implementation, attention_switched, sdpa_mask

from .cuda_graph import Replay, cached_loops
from .tree_backends import SharedCacheBackend, branching_reason, probe_mask, shared_cache_support


STATIC = "trl_ext_static"  # name of its attention in transformers
# Arguments of attention that change its result and are not supported: sinks, biases by distance.
_UNSUPPORTED = ("s_aux", "position_bias")
COLUMN_MULTIPLE = 64  # caches have a multiple of so many columns, so that a loop serves prompts of other lengths


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
    Attention of a few queries to all of a static KV cache, for [`~transformers.AttentionInterface`].

    The query heads of a group become rows of one matrix product with the keys that they share. SDPA with a mask would
    copy the cache once for each of them.

    Args:
        module (`torch.nn.Module`): The layer.
        query (`torch.Tensor` of shape (N, heads, q, C)), key, value (`torch.Tensor` of shape (N, H, S, C)): States.
        attention_mask (`torch.Tensor` of shape (N, 1, q, S)): Added to the scores.
        scaling (`float`, *optional*): Factor of the scores.
        softcap (`float`, *optional*): Cap on the scores.

    Raises:
        `ValueError`: The layer passes an argument that is not supported.
    """
    for name in _UNSUPPORTED:
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
    KV cache of constant shape: keys and values of all layers in one tensor per shape.

    Args:
        stores (`list[torch.Tensor]` of shape (L, N, H, S, C)): Keys or values of layers of one shape.
        slots (`list[list[tuple[int, int]]]`): For each part of a store, its layer and side (0: keys, 1: values).
    """

    is_compileable = False

    def __init__(self, stores: list[torch.Tensor], slots: list[list[tuple[int, int]]]) -> None:
        self.stores = stores
        places = {slot: store[i] for store, row in zip(stores, slots, strict=True) for i, slot in enumerate(row)}
        self.layers = [(places[i, 0], places[i, 1]) for i in range(len(places) // 2)]
        self.columns: torch.Tensor | None = None  # where the next forward pass writes

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values of a layer, and returns all of its keys and values. Layers call it."""
        keys, values = self.layers[layer_idx]
        keys.index_copy_(2, self.columns, key_states.to(keys.dtype))  # type: ignore[arg-type]
        values.index_copy_(2, self.columns, value_states.to(values.dtype))  # type: ignore[arg-type]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Always 0. Nothing depends on it, because positions and masks are passed."""
        return 0

    def move(self, source_N: torch.Tensor, target_1: torch.Tensor) -> None:
        """Copies the entry at column `source_N` of each row to column `target_1`."""
        for store in self.stores:
            shape = (store.shape[0], -1, store.shape[2], 1, store.shape[4])
            store.index_copy_(3, target_1, store.gather(3, source_N[None, :, None, None, None].expand(shape)))


class StaticTree:
    """
    N prefixes on a static KV cache, after which candidate tokens are evaluated.

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): As for
            [`~trl_ext.decoding.token_tree.Tree`].
        rows (`int`): N.
        columns (`int`): S: prompts, new tokens, and the candidates after the last one.

    Attributes:
        length_1 (`torch.Tensor` of shape `(1,)`): Columns of the prefixes, where the next forward pass writes.

    Raises:
        `ValueError`: [`static_unsupported_reason`] returns a reason. Call it first.
    """

    def __init__(self, backbone: torch.nn.Module, rows: int, columns: int) -> None:
        kinds, reason = shared_cache_support(backbone, {})
        if reason is not None:
            raise ValueError(f"The candidates of a prefix cannot share a cache in this model: {reason}.")
        base = base_of(backbone)
        self.backbone, self.rows, self.columns, self.kinds = backbone, rows, columns, kinds
        self.config: Any = base.config.get_text_config()
        self.device = base.get_input_embeddings().weight.device
        self.prompts = SharedCacheBackend(backbone, kinds, {})  # computes prompts
        self.cache: StaticKVCache | None = None
        self.length_1 = torch.zeros(1, dtype=torch.long, device=self.device)
        self.pads_N = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.column_S = torch.arange(columns, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache; 0 before the first prompts."""
        return sum(store.nbytes for store in self.cache.stores) if self.cache is not None else 0

    @torch.no_grad()
    def start(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> torch.Tensor:
        """
        Computes prompts, equal ones once, and forgets the previous prefixes. Cannot be part of a graph.

        Args:
            ids_NP, mask_NP (`torch.Tensor` of shape `(N, P)`): Prompts, padded on the left.

        Returns:
            `torch.Tensor` of shape `(N, D)`: Hidden states of the last tokens.
        """
        columns = ids_NP.shape[1]
        both, index = torch.unique(torch.cat([mask_NP.long(), ids_NP], 1), dim=0, return_inverse=True)
        mask, ids = both.chunk(2, 1)
        with evaluating(self.backbone):
            hidden = self.prompts.forward(ids, mask.bool(), columns, None)
        if self.cache is None:
            self.cache = self._allocate()
        for store, read in zip(self.cache.stores, self.prompts.stores, strict=True):
            store[:, :, :, :columns] = read[:, index, :, :columns]
            # Masked entries still take part in a product, so NaN left by a previous text would spread.
            store[:, :, :, columns:].zero_()
        self.prompts.clear()
        self.length_1.fill_(columns)
        self.pads_N.copy_(columns - mask_NP.long().sum(1))
        return hidden[index, -1]

    def cut(self, columns: int) -> None:
        """Keeps the first `columns` columns."""
        self.length_1.fill_(columns)

    def _allocate(self) -> StaticKVCache:
        return StaticKVCache(*static_stores(self.prompts, self.rows, self.columns))

    def append(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """Extends each prefix by tokens (N, T), and returns the hidden state of the last (N, D)."""
        return self._forward(ids_NT, ids_NT.shape[1])[:, -1]

    def branch(self, candidates_Nk: torch.Tensor, after_NT: torch.Tensor | None = None) -> torch.Tensor:
        """
        Evaluates candidate tokens, after extending each prefix by tokens if some are passed.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): The candidates.
            after_NT (`torch.Tensor` of shape `(N, T)`, *optional*): The tokens before them.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`: The hidden state of each candidate.
        """
        if after_NT is None:
            return self._forward(candidates_Nk, 0)
        after = after_NT.shape[1]
        return self._forward(torch.cat([after_NT, candidates_Nk], 1), after)[:, after:]

    def keep(self, choice_N: torch.Tensor) -> None:
        """Extends each prefix by one of the candidates of the last forward pass."""
        assert self.cache is not None
        self.cache.move(self.length_1 + choice_N, self.length_1)
        self.length_1.add_(1)

    @torch.no_grad()
    def _forward(self, ids_Nq: torch.Tensor, after: int) -> torch.Tensor:
        q = ids_Nq.shape[1]
        assert self.cache is not None
        self.cache.columns = self.length_1 + self.column_S[:q]
        # All candidates have the position after the prefix.
        offset_q = self.column_S[:q].clamp(max=after)
        masks = {kind: self._mask(q, after, kind) for kind in self.kinds}
        with attention_switched(self.config, STATIC), evaluating(self.backbone):
            hidden = self.backbone(
                input_ids=ids_Nq,
                position_ids=(self.length_1 - self.pads_N)[:, None] + offset_q,
                attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
                use_cache=True,
                **{self.prompts.cache_name: self.cache},
            ).last_hidden_state
        if after:
            self.length_1.add_(after)
        return hidden

    def _mask(self, q: int, after: int, kind: str) -> torch.Tensor:
        """Mask (N, 1, q, S) added to the scores of the q new columns: 0 where a column is seen."""
        column, mine_q = self.column_S, (self.length_1 + self.column_S[:q])[:, None]
        place_q = (self.length_1 + self.column_S[:q].clamp(max=after))[:, None]
        sees = (column < self.length_1 + after) & (column <= mine_q)
        if kind == SLIDING:
            sees = sees & (column > place_q - self.config.sliding_window)
        sees = (sees & (column >= self.pads_N[:, None, None])) | (column == mine_q)
        dtype = base_of(self.backbone).dtype
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def static_stores(
    read: SharedCacheBackend, rows: int, columns: int
) -> tuple[list[torch.Tensor], list[list[tuple[int, int]]]]:
    """
    Memory for a KV cache of constant shape, as [`StaticKVCache`] takes it. It is not initialised.

    Args:
        read ([`~trl_ext.decoding.tree_backends.SharedCacheBackend`]): A cache that holds at least one token.
        rows (`int`), columns (`int`): N and S.

    Raises:
        `ValueError`: The model has layers that share keys and values with others.
    """
    layers = [id(layer) for layer in read.cache.layers]
    slots = [[(layers.index(id(layer)), side) for layer, side in row] for row in read.slots]
    if sum(map(len, slots)) != 2 * len(layers):
        raise ValueError("The model has layers that keep no keys and values of their own.")
    shapes = [(store.shape[0], rows, store.shape[2], columns, store.shape[4]) for store in read.stores]
    return [store.new_empty(shape) for store, shape in zip(read.stores, shapes, strict=True)], slots


def static_columns(length: int) -> int:
    """Columns of a static KV cache for this many tokens, the last candidates included."""
    return -(-length // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def static_unsupported_reason(backbone: torch.nn.Module) -> str:
    """
    Why a model cannot decode on a static KV cache; empty if it can.

    Read from its config and, once per model, verified by comparing hidden states with uncached forward passes.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
    """
    base = base_of(backbone)
    with cached_loops(base).lock:  # the verification and every loop change the model's settings for a while
        reason = static_config_reason(backbone, base)
        if reason is None:
            _, reason = shared_cache_support(backbone, {})
        if reason is None:
            reason = branching_reason(backbone, STATIC, lambda ids: _static_probe_walk(backbone, ids))
    return reason or ""


def static_config_reason(backbone: torch.nn.Module, base: Any) -> str | None:
    """Why a model cannot use a static KV cache, as far as its config and weights say; `None` if they do not."""
    if is_sharded(backbone):
        return "it is sharded over several devices"
    if len({parameter.device for parameter in base.parameters()}) > 1:
        return "it is on several devices"
    if has_quantized_weights(base):
        return "its weights are quantized"
    config = base.config.get_text_config()
    if score_cap(config) and attention_implementation(config) != "eager":
        return "its attention leaves out the cap on scores; load it with `attn_implementation='eager'`"
    return None


def _static_probe_walk(backbone: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """
    The steps of [`~trl_ext.decoding.tree_backends.probe_walk`] on a static KV cache.

    At the end a step is recorded, because some forward passes wait for the device, which a CUDA graph cannot.
    """
    mask, candidates, choice = probe_mask(ids), ids[:, 5:8], torch.tensor([0, 2], device=ids.device)
    tree = StaticTree(backbone, 2, 20)
    states = [tree.start(ids[:, :7], mask[:, :7])[:, None], tree.branch(candidates)]
    tree.keep(choice)
    states.append(tree.branch(candidates, after_NT=ids[:, 8:9]))
    states += [tree.append(ids[:, i : i + 1])[:, None] for i in (9, 10, 11)]
    Replay(lambda: tree.branch(candidates, after_NT=ids[:, 12:13]), [tree.length_1], ids.device)()
    return torch.cat(states, 1)
