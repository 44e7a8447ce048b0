# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Two backends that evaluate candidate tokens after a prefix: on a KV cache that the candidates of a prefix share, or by
uncached forward passes where a model cannot do that.

Whether it can is read from its config, and verified once per model on a few tokens.

Dimensions: N prefixes, S columns of a prefix (left-padded), F of them new in this forward pass, k candidates per
prefix, D hidden size.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from transformers import DynamicCache

from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.models.architecture import FULL, SLIDING, layer_kinds
from trl_ext.models.probe import Tolerance, probe, probe_tokens
from trl_ext.models.properties import accepts_argument, base_of, cache_name
from trl_ext.upstream import attention_implementation

from .kv_cache import PreallocatedCacheLayer


logger = logging.getLogger(__name__)

# Positions in one uncached forward pass: an eighth of a gigabyte of hidden states of width 1024.
RECOMPUTE_POSITIONS = 32_768

# Attention implementations that take a mask of 4 dimensions.
_MASKED_ATTENTION = ("sdpa", "eager", CASCADE)

# In half precision, candidates that see each other are 0.5 of the effect of another prompt apart, rounding 0.03.
_TOLERANCE = Tolerance(of_effect=0.25)

# Models whose slow backend was logged.
_LOGGED: "WeakSet[torch.nn.Module]" = WeakSet()


class SharedCacheBackend:
    """
    Evaluates candidates as the last k columns of one forward pass over the cached prefix.

    A mask of 4 dimensions lets each candidate see the prefix and itself. The entries of the candidates stay behind the
    end of the cache until the next forward pass, so that the entry of the chosen one is moved, not computed again.

    All keys and values of one shape are views of one tensor: moving, reordering and growing take one operation each,
    whatever the number of layers.

    Args:
        backbone (`torch.nn.Module`): The model.
        kinds (`set[str]`): Kinds of its layers, `"full_attention"` and `"sliding_attention"`.
        forward_kwargs (`dict`): Further arguments of its forward.
    """

    def __init__(self, backbone: torch.nn.Module, kinds: set[str], forward_kwargs: Mapping[str, Any]) -> None:
        self.backbone = backbone
        self.kinds = kinds
        self.config = base_of(backbone).config.get_text_config()
        self.eager = attention_implementation(self.config) == "eager"
        self.forward_kwargs = forward_kwargs
        self.cache_name = cache_name(backbone)
        self.clear()

    def clear(self) -> None:
        """Forgets the prefix."""
        self.cache = DynamicCache()
        self.cache.layer_class_to_replicate = PreallocatedCacheLayer
        self.stores: list[torch.Tensor] = []
        self.slots: list[list[tuple[Any, int]]] = []
        self.length = self.num_candidates = 0
        self.further: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def forward(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, new: int, candidates_Nk: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Hidden states of the last `new` columns and of the candidates, of shape (N, F + k, D).

        Args:
            ids_NS, mask_NS (`torch.Tensor` of shape (N, S)): The prefixes, including the new columns.
            new (`int`): How many of the last columns are not in the cache yet.
            candidates_Nk (`torch.Tensor` of shape (N, k), *optional*): The candidates.
        """
        columns = ids_NS.shape[1]
        k = 0 if candidates_Nk is None else candidates_Nk.shape[1]
        ids = ids_NS if candidates_Nk is None else candidates_Nk
        positions = mask_NS.sum(1, keepdim=True).expand(-1, k)
        if new:
            fresh = (mask_NS.cumsum(1)[:, columns - new :] - 1).clamp(min=0)
            positions = torch.cat([fresh, positions], 1)
            ids = ids_NS[:, columns - new :].masked_fill(~mask_NS[:, columns - new :], 0)  # padding may be any token
            if candidates_Nk is not None:
                ids = torch.cat([ids, candidates_Nk], 1)
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
        self.num_candidates, self.further = k, None
        self._cut(columns)
        return hidden

    def forward_some(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, rows_R: torch.Tensor, candidates_Rk: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states (R, k, D) of further candidates of some rows, on a copy of their part of the cache."""
        complete, first, k, end = self.stores, self.num_candidates, candidates_Rk.shape[1], self.length
        self._replace([store[:, :, :, : end + k].index_select(1, rows_R.to(store.device)) for store in complete])
        try:
            hidden = self.forward(ids_NS[rows_R], mask_NS[rows_R], 0, candidates_Rk)
            more = [store[:, :, :, end : end + k].clone() for store in self.stores]
        finally:
            self._replace(complete)
        self.num_candidates, self.further = first, (rows_R, more)
        return hidden

    def keep(self, choice_N: torch.Tensor) -> None:
        """Moves the entry of the chosen candidate to the end of the cache."""
        n, end = torch.arange(len(choice_N), device=choice_N.device), self.length
        for i, store in enumerate(self.stores):
            rows, chosen = n.to(store.device), choice_N.to(store.device)
            here = chosen.clamp(max=self.num_candidates - 1) + end
            store[:, :, :, end] = store[:, rows, :, here].transpose(0, 1)  # indexing puts rows first
            if self.further is not None:
                some, more = self.further[0].to(store.device), self.further[1][i]
                later = (chosen[some] >= self.num_candidates).nonzero().squeeze(1)
                columns = chosen[some[later]] - self.num_candidates
                store[:, some[later], :, end] = more[:, later, :, columns].transpose(0, 1)
        self._cut(end + 1)

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows of the cache, with their candidates."""
        self._replace([store.index_select(1, rows.to(store.device)) for store in self.stores])

    def crop(self, length: int) -> None:
        """Keeps the first `length` columns."""
        self._cut(length)

    # ------------------------------------------------------------------------------------------------------- storage

    def _pool(self) -> None:
        """After the first forward pass: one tensor (tensors, N, heads, columns, channels) for all of one shape."""
        alike: dict[Any, list[tuple[PreallocatedCacheLayer, int]]] = defaultdict(list)
        for layer in self.cache.layers:
            for side, buffer in enumerate(layer.buffers or ()):  # a layer that reads the keys of another has none
                alike[buffer.shape, buffer.dtype, buffer.device].append((layer, side))
        self.slots = list(alike.values())
        self._replace([torch.stack([layer.buffers[side] for layer, side in slots]) for slots in self.slots])

    def _reserve(self, columns: int) -> None:
        """Allocates `columns` and a quarter more, so that a long completion is copied a few times only."""
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
            return mask_NS.long()  # the model builds its own mask, or none
        masks = {kind: self._mask(mask_NS, new, k, kind) for kind in self.kinds}
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _mask(self, mask_NS: torch.Tensor, new: int, k: int, kind: str) -> torch.Tensor:
        """True where a query (dim 2: new columns, candidates) sees a key (dim 3: columns, candidates)."""
        n, columns = mask_NS.shape
        device = mask_NS.device
        key = torch.arange(columns, device=device)
        # Every candidate has the position after the prefix.
        query = torch.arange(columns - new, columns + 1, device=device)[: new + 1 if k else new, None]
        sees = mask_NS[:, None, :]
        if new:
            sees = sees & (key <= query)
        if kind == SLIDING:  # so many tokens: padding between them does not count
            place = mask_NS.long().cumsum(1)
            last = place[:, -1:] + 1 if k else place[:, :0]
            ends = torch.cat([place[:, columns - new :], last], 1)[:, :, None]
            sees = sees & (place[:, None, :] > ends - self.config.sliding_window)
        if new:
            sees = sees | (key == query)  # padding sees itself: softmax over nothing is NaN
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
    Evaluates each candidate as a row of its own, without a cache: slow, and correct for any causal model.

    Rows are padded on the right, which a causal model does not see, so that nothing depends on how it counts positions
    or handles padding.

    Args:
        backbone (`torch.nn.Module`): The model.
        forward_kwargs (`dict`): Further arguments of its forward.
        padding (`int`, *optional*, defaults to `0`): Further columns of padding, which change nothing but rounding.
    """

    def __init__(self, backbone: torch.nn.Module, forward_kwargs: Mapping[str, Any], padding: int = 0) -> None:
        self.backbone, self.padding = backbone, padding
        self.forward_kwargs = dict(forward_kwargs)
        if accepts_argument(backbone, "use_cache"):
            self.forward_kwargs["use_cache"] = False

    def clear(self) -> None:
        """Has no effect: there is no cache."""

    def forward_some(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, rows_R: torch.Tensor, candidates_Rk: torch.Tensor
    ) -> torch.Tensor:
        """As [`SharedCacheBackend.forward_some`]."""
        return self.forward(ids_NS[rows_R], mask_NS[rows_R], 0, candidates_Rk)

    def keep(self, choice_N: torch.Tensor) -> None:
        """Has no effect: there is no cache."""

    def select(self, rows: torch.Tensor) -> None:
        """Has no effect: there is no cache."""

    def crop(self, length: int) -> None:
        """Has no effect: there is no cache."""

    def forward(
        self, ids_NS: torch.Tensor, mask_NS: torch.Tensor, new: int, candidates_Nk: torch.Tensor | None
    ) -> torch.Tensor:
        """As [`SharedCacheBackend.forward`]."""
        n, columns = ids_NS.shape
        sizes = mask_NS.sum(1, keepdim=True)
        rows = ids_NS.gather(1, mask_NS.long().sort(dim=1, descending=True, stable=True).indices)  # tokens first
        fresh = (mask_NS.long().cumsum(1)[:, columns - new :] - 1).clamp(min=0)  # where the new columns are in them
        if candidates_Nk is None:
            return self._hidden(rows, sizes, fresh)
        k = candidates_Nk.shape[1]
        rows = torch.nn.functional.pad(rows, (0, 1)).repeat_interleave(k, 0)
        rows = rows.scatter(1, sizes.repeat_interleave(k, 0), candidates_Nk.reshape(-1, 1))
        wanted = torch.cat([fresh, sizes], 1).repeat_interleave(k, 0)
        hidden = self._hidden(rows, sizes.repeat_interleave(k, 0) + 1, wanted).unflatten(0, (n, k))
        return torch.cat([hidden[:, 0, :new], hidden[:, :, new]], 1)

    def _hidden(self, rows: torch.Tensor, sizes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Hidden states at the `wanted` positions (rows, W) of right-padded rows of these lengths."""
        found = []
        rows = torch.nn.functional.pad(rows, (0, self.padding))
        real = torch.arange(rows.shape[1], device=rows.device) < sizes
        step = max(1, RECOMPUTE_POSITIONS // rows.shape[1])
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


# ----------------------------------------------------------------------------------------------------- support


def shared_cache_support(backbone: torch.nn.Module, forward_kwargs: Mapping[str, Any]) -> tuple[set[str], str | None]:
    """
    Whether the candidates of a prefix can share its cache in this model. If they cannot, logs it once per model.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
        forward_kwargs (`dict`): Further arguments of its forward.

    Returns:
        `tuple[set[str], str | None]`: The kinds of its layers, and why candidates cannot share a cache.
    """
    base: Any = base_of(backbone)
    kinds, reason = _read_config(base)
    if reason is None:
        reason = branching_reason(
            backbone,
            "shared cache",
            lambda ids: probe_walk(SharedCacheBackend(backbone, kinds, forward_kwargs), ids),
            forward_kwargs,
        )
    if reason is not None and base not in _LOGGED:
        _LOGGED.add(base)
        logger.warning(
            "Candidate tokens of %s are computed without a KV cache, which is slow: %s.", type(base).__name__, reason
        )
    return kinds, reason


def _read_config(base: Any) -> tuple[set[str], str | None]:
    """Kinds of the layers, and why candidates cannot share their cache."""
    config = base.config.get_text_config()
    kinds = layer_kinds(config)
    if not kinds <= {FULL, SLIDING}:
        return kinds, f"it has layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))}"
    if base.config.is_encoder_decoder:
        return kinds, "it is an encoder-decoder"
    if attention_implementation(config) not in _MASKED_ATTENTION:
        return kinds, (
            f"{attention_implementation(config)} takes no custom attention mask; load the model with "
            "`attn_implementation='sdpa'` instead"
        )
    for name in (cache_name(base), "position_ids"):
        if not accepts_argument(base, name):
            return kinds, f"its forward takes no `{name}`"
    return kinds, None


def branching_reason(
    backbone: torch.nn.Module,
    key: str,
    walk: Callable[[torch.Tensor], torch.Tensor],
    forward_kwargs: Mapping[str, Any] | None = None,
) -> str | None:
    """
    Compares the steps of [`probe_walk`] with uncached forward passes, once per model.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
        key (`str`): Name of the fast path.
        walk (`Callable`): From token ids (2, 14) to the hidden states of the steps.
        forward_kwargs (`dict`, *optional*): Further arguments of its forward.

    Returns:
        `str` or `None`: Why it cannot be used.
    """
    base: Any = base_of(backbone)
    config = base.config.get_text_config()
    device = base.get_input_embeddings().weight.device
    ids = torch.tensor([probe_tokens(config.vocab_size, 14)] * 2, device=device)
    altered = ids.clone()
    altered[:, 4] = (ids[:, 4] + 5) % config.vocab_size

    def with_short_window(steps: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """A few tokens cannot test a sliding window of thousands, so it is shortened."""
        window = getattr(config, "sliding_window", None)
        if not window:
            return steps(ids)
        config.sliding_window = 4
        try:
            return steps(ids)
        finally:
            config.sliding_window = window

    def uncached(ids: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return probe_walk(RecomputeBackend(backbone, forward_kwargs or {}, padding), ids)

    return probe(
        backbone,
        (key, attention_implementation(config)),
        lambda: with_short_window(walk, ids),
        lambda: with_short_window(uncached, ids),
        _TOLERANCE,
        altered=lambda: with_short_window(uncached, altered),
        relaid=lambda: with_short_window(partial(uncached, padding=16), ids),
    )


def probe_mask(ids: torch.Tensor) -> torch.Tensor:
    """Mask of the rows that branching is tried on: the second has two columns of padding."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    return mask


def probe_walk(backend: SharedCacheBackend | RecomputeBackend, ids: torch.Tensor) -> torch.Tensor:
    """
    Hidden states of the steps by which branching is verified.

    A prompt of 7 columns, 3 candidates of which one is kept, a token with the same candidates after it, and 3 tokens.

    Args:
        backend ([`SharedCacheBackend`] or [`RecomputeBackend`]): The backend to verify.
        ids (`torch.Tensor` of shape `(2, 14)`): The tokens.

    Returns:
        `torch.Tensor` of shape `(2, 10, D)`: Of the end of the prompt, the candidates twice, and the last tokens.
    """
    mask, candidates, choice = probe_mask(ids), ids[:, 5:8], torch.tensor([0, 2], device=ids.device)
    states = [
        backend.forward(ids[:, :7], mask[:, :7], 7, None)[:, -1:],
        backend.forward(ids[:, :7], mask[:, :7], 0, candidates),
    ]
    backend.keep(choice)
    ids = torch.cat([ids[:, :7], candidates.gather(1, choice[:, None]), ids[:, 8:]], 1)
    states.append(backend.forward(ids[:, :9], mask[:, :9], 1, candidates)[:, 1:])
    states.append(backend.forward(ids[:, :12], mask[:, :12], 3, None))
    return torch.cat(states, 1)
