# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Two ways to compute sibling tokens of a prefix: on a shared cache, and by reading everything again.

N prefixes, S columns of a prefix (left-padded), F of them new in this forward, k siblings a prefix, D hidden size.
"""

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache

from trl_ext.models.load import base_of, cache_name
from trl_ext.upstream import attention_implementation

from .kv_cache import PreallocatedCacheLayer


FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers whose mask is ours to give

# Positions in one forward that reads everything again: an eighth of a gigabyte of hidden states of width 1024.
REPLAY_POSITIONS = 32_768


class SharedCacheBackend:
    """
    Siblings as the last k columns of one forward over the cached prefix.

    A mask of 4 dimensions lets each sibling see the prefix and itself. What the forward writes for the siblings stays
    behind the end of the cache until the next forward, so that the chosen one's entry is moved, not computed again.

    All keys and values of one shape are views of one tensor: moving, reordering and growing take one operation each,
    whatever the number of layers.

    Args:
        backbone (`torch.nn.Module`): The model.
        kinds (`set[str]`): Kinds of its layers, `"full_attention"` and `"sliding_attention"`.
        forward_kwargs (`dict`): Further arguments of its forward.
    """

    name = "shared"

    def __init__(self, backbone: torch.nn.Module, kinds: set[str], forward_kwargs: Mapping[str, Any]) -> None:
        self.backbone = backbone
        self.kinds = kinds
        self.config = base_of(backbone).config.get_text_config()
        self.eager = attention_implementation(self.config) == "eager"
        self.forward_kwargs = forward_kwargs
        self.cache_name = cache_name(backbone)
        self.clear()

    def clear(self) -> None:
        """Forget the prefix."""
        self.cache = DynamicCache()
        self.cache.layer_class_to_replicate = PreallocatedCacheLayer
        self.stores: list[torch.Tensor] = []
        self.slots: list[list[tuple[Any, int]]] = []
        self.length = self.siblings = 0
        self.further: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def forward(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, new: int, candidates_Nk: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Hidden states of the last `new` columns and of the siblings, of shape (N, F + k, D).

        Args:
            ids_NS, mask_NS (`torch.Tensor` of shape (N, S)): The prefixes, the new columns among them.
            new (`int`): How many of the last columns are not in the cache yet.
            candidates_Nk (`torch.Tensor` of shape (N, k), *optional*): The siblings.
        """
        columns = ids_NS.shape[1]
        k = 0 if candidates_Nk is None else candidates_Nk.shape[1]
        ids = ids_NS[:, columns - new :] if candidates_Nk is None else candidates_Nk
        positions = mask_NS.sum(1, keepdim=True).expand(-1, k)
        if new:
            fresh = (mask_NS.cumsum(1)[:, columns - new :] - 1).clamp(min=0)
            positions = torch.cat([fresh, positions], 1)
            if candidates_Nk is not None:
                ids = torch.cat([ids_NS[:, columns - new :], candidates_Nk], 1)
        self._reserve(columns + k)
        hidden = self.backbone(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._masks(mask_NS, new, k),
            use_cache=True,
            **{self.cache_name: self.cache},
            **self.forward_kwargs,
        ).last_hidden_state
        if not self.stores:
            self._pool()
        self.siblings, self.further = k, None
        self._cut(columns)
        return hidden

    def forward_some(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, rows_R: torch.Tensor, candidates_Rk: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states of further siblings of some rows, on a copy of their part of the cache; (R, k, D)."""
        whole, first, k, end = self.stores, self.siblings, candidates_Rk.shape[1], self.length
        self._replace([store[:, :, :, : end + k].index_select(1, rows_R.to(store.device)) for store in whole])
        try:
            hidden = self.forward(ids_NS[rows_R], mask_NS[rows_R], 0, candidates_Rk)
            more = [store[:, :, :, end : end + k].clone() for store in self.stores]
        finally:
            self._replace(whole)
        self.siblings, self.further = first, (rows_R, more)
        return hidden

    def keep(self, choice_N: torch.Tensor) -> None:
        """Move the chosen sibling's entry to the end of the cache."""
        n, end = torch.arange(len(choice_N), device=choice_N.device), self.length
        for i, store in enumerate(self.stores):
            rows, chosen = n.to(store.device), choice_N.to(store.device)
            here = chosen.clamp(max=self.siblings - 1) + end
            store[:, :, :, end] = store[:, rows, :, here].transpose(0, 1)  # indexing puts rows first
            if self.further is not None:
                some, more = self.further[0].to(store.device), self.further[1][i]
                later = (chosen[some] >= self.siblings).nonzero().squeeze(1)
                columns = chosen[some[later]] - self.siblings
                store[:, some[later], :, end] = more[:, later, :, columns].transpose(0, 1)
        self._cut(end + 1)

    def select(self, rows: torch.Tensor) -> None:
        """Take these rows of the cache, siblings included."""
        self._replace([store.index_select(1, rows.to(store.device)) for store in self.stores])

    def crop(self, length: int) -> None:
        """Keep the first `length` columns."""
        self._cut(length)

    # ------------------------------------------------------------------------------------------------------- storage

    def _pool(self) -> None:
        """After the first forward: one tensor (tensors, N, heads, columns, channels) for all of one shape."""
        alike: dict[Any, list[tuple[PreallocatedCacheLayer, int]]] = defaultdict(list)
        for layer in self.cache.layers:
            for side, buffer in enumerate(layer.buffers or ()):  # a layer that reads another one's keys has none
                alike[buffer.shape, buffer.dtype, buffer.device].append((layer, side))
        self.slots = list(alike.values())
        self._replace([torch.stack([layer.buffers[side] for layer, side in slots]) for slots in self.slots])

    def _reserve(self, columns: int) -> None:
        """Make room; a quarter more than there is, so that a long answer is copied a few times only."""
        if not self.stores or self.stores[0].shape[3] >= columns:
            return
        larger = []
        for store in self.stores:
            shape = (*store.shape[:3], columns + max(PreallocatedCacheLayer.spare, columns // 4), store.shape[4])
            larger.append(store.new_empty(shape))
            larger[-1][:, :, :, : self.length] = store[:, :, :, : self.length]
        self._replace(larger)

    def _replace(self, stores: list[torch.Tensor]) -> None:
        self.stores = stores
        for store, slots in zip(stores, self.slots, strict=True):
            for i, (layer, side) in enumerate(slots):
                pair = layer.buffers
                layer.buffers = (store[i], pair[1]) if side == 0 else (pair[0], store[i])
        self._cut(self.length)

    def _cut(self, length: int) -> None:
        self.length = length
        for layer in self.cache.layers:
            if layer.buffers is not None:
                layer.keys, layer.values = (buffer[:, :, :length] for buffer in layer.buffers)

    # --------------------------------------------------------------------------------------------------------- masks

    def _masks(self, mask_NS: torch.Tensor, new: int, k: int) -> Any:
        if not k and self.kinds == {FULL}:
            return mask_NS.long()  # the model's own way, which may need no mask at all
        masks = {kind: self._mask(mask_NS, new, k, kind) for kind in self.kinds}
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _mask(self, mask_NS: torch.Tensor, new: int, k: int, kind: str) -> torch.Tensor:
        """True where a query (dim 2: new columns, then siblings) sees a key (dim 3: columns, then siblings)."""
        n, columns = mask_NS.shape
        device = mask_NS.device
        key = torch.arange(columns, device=device)
        # A sibling stands one column behind the prefix, whichever one of them it is.
        query = torch.arange(columns - new, columns + 1, device=device)[: new + 1 if k else new, None]
        sees = mask_NS[:, None, :]
        if new:
            sees = sees & (key <= query)
        if kind == SLIDING:
            sees = sees & (key > query - self.config.sliding_window)
        if new:
            sees = sees | (key == query)  # padding sees itself: a row of nothing is NaN
        if k:
            prefix, among = sees[:, -1:].expand(n, k, columns), torch.eye(k, dtype=torch.bool, device=device)
            if new:
                prefix = torch.cat([sees[:, :new], prefix], 1)
                among = torch.nn.functional.pad(among, (0, 0, new, 0))
            sees = torch.cat([prefix, among.expand(n, -1, -1)], 2)
        if not self.eager:
            return sees[:, None]
        dtype = base_of(self.backbone).dtype
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


class RecomputeBackend:
    """
    Siblings as rows of their own, read from their first token each time: slow, and right for any causal model.

    Rows are padded on the right, where a causal model does not look, so that nothing depends on how it counts
    positions or treats padding.
    """

    name = "replay"

    def __init__(self, backbone: torch.nn.Module, forward_kwargs: Mapping[str, Any]) -> None:
        self.backbone = backbone
        self.forward_kwargs = dict(forward_kwargs)
        if "use_cache" in inspect.signature(type(base_of(backbone)).forward).parameters:
            self.forward_kwargs["use_cache"] = False

    def clear(self) -> None:
        """There is nothing to forget."""

    def forward_some(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, rows_R: torch.Tensor, candidates_Rk: torch.Tensor
    ) -> torch.Tensor:
        """As [`SharedCacheBackend.forward_some`]."""
        return self.forward(ids_NS[rows_R], mask_NS[rows_R], 0, candidates_Rk)

    def keep(self, choice_N: torch.Tensor) -> None:
        """There is nothing to keep."""

    def select(self, rows: torch.Tensor) -> None:
        """There is nothing to reorder."""

    def crop(self, length: int) -> None:
        """There is nothing to cut."""

    def forward(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, new: int, candidates_Nk: torch.Tensor | None
    ) -> torch.Tensor:
        """As [`SharedCacheBackend.forward`]."""
        n, columns = ids_NS.shape
        sizes = mask_NS.sum(1, keepdim=True)
        column = torch.arange(columns, device=ids_NS.device)
        rows = ids_NS.gather(1, (column + columns - sizes).clamp(max=columns - 1))
        fresh = (column[columns - new :] - columns + sizes).clamp(min=0)  # where the new columns are in these rows
        if candidates_Nk is None:
            return self._hidden(rows, sizes, fresh)
        k = candidates_Nk.shape[1]
        rows = torch.nn.functional.pad(rows, (0, 1)).repeat_interleave(k, 0)
        rows = rows.scatter(1, sizes.repeat_interleave(k, 0), candidates_Nk.reshape(-1, 1))
        wanted = torch.cat([fresh, sizes], 1).repeat_interleave(k, 0)
        hidden = self._hidden(rows, sizes.repeat_interleave(k, 0) + 1, wanted).unflatten(0, (n, k))
        return torch.cat([hidden[:, 0, :new], hidden[:, :, new]], 1)

    def _hidden(self, rows: torch.Tensor, sizes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Hidden states at the `wanted` positions (rows, W) of right-padded rows of these sizes."""
        found = []
        real = torch.arange(rows.shape[1], device=rows.device) < sizes
        step = max(1, REPLAY_POSITIONS // rows.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            hidden = self.backbone(
                input_ids=rows[part].masked_fill(~real[part], 0),
                attention_mask=real[part].long(),
                **self.forward_kwargs,
            ).last_hidden_state
            index = wanted[part, :, None].to(hidden.device)
            found.append(hidden.gather(1, index.expand(-1, -1, hidden.shape[2])))
        return torch.cat(found)
