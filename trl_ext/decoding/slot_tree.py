# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Candidate tokens after texts that come and go: each text has a slot of a KV cache that is allocated once.

        slot 0   p1 p2 p3 p4 | a  b  c          length 4
        slot 1   p1 p2 | d  e  f                length 2: its text is another request's
        slot 2   p1 p2 p3 x1 x2                 not asked in this step

One forward pass reads the next token of any number of slots, whatever their lengths, and the candidates after it.
[`~trl_ext.decoding.static_tree.StaticTree`] has one length for all rows, so that a CUDA graph can record it.

Dimensions: N slots of a step, q new columns, S columns of the cache, k candidates per slot, D hidden size, H heads,
C channels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trl_ext.models.architecture import SLIDING
from trl_ext.models.modes import evaluating
from trl_ext.models.properties import base_of
from trl_ext.upstream import attention_switched

from .static_tree import STATIC, StaticKVCache, static_config_reason, static_stores
from .tree_backends import SharedCacheBackend, branching_reason, probe_mask, shared_cache_support


# Tokens of one text, and of all texts, in one forward pass over prompts. Scores of 16 heads at 1,024 columns and 2,048
# keys take 128 MiB in float32; below some hundred tokens, a GPU waits for its next kernel.
CHUNK = 256
POSITIONS = 1024


class SlotKVCache(StaticKVCache):
    """A [`StaticKVCache`] in which a forward pass reads and writes some slots, each at columns of its own."""

    def aim(self, slots: Sequence[int], columns_Nq: torch.Tensor, width: int) -> None:
        """
        Choose what the next forward pass reads and writes.

        Args:
            slots (`Sequence[int]`): The slots of its rows, in ascending order.
            columns_Nq (`torch.Tensor` of shape `(N, q)`): Columns that it writes.
            width (`int`): Number of columns that it sees.
        """
        self.columns, self.width = columns_Nq, width
        self.slots_N = torch.tensor(slots, device=columns_Nq.device)
        first, last = slots[0], slots[-1]
        # Neighbouring slots are read where they are, others are copied together.
        self.together = slice(first, last + 1) if last - first + 1 == len(slots) else None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values of a layer, and returns all that its rows see. Layers call it."""
        found = []
        for store, states in zip(self.layers[layer_idx], (key_states, value_states), strict=True):
            store[self.slots_N[:, None], :, self.columns] = states.to(store.dtype).transpose(1, 2)
            seen = store[:, :, : self.width]
            found.append(seen[self.slots_N] if self.together is None else seen[self.together])
        return found[0], found[1]


class SlotTree:
    """
    Texts in slots of a KV cache, after which candidate tokens are evaluated.

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): As for
            [`~trl_ext.decoding.token_tree.Tree`].
        slots (`int`): Number of slots.
        columns (`int`): S: the longest text with its candidates.

    Attributes:
        lengths (`list[int]`): Tokens of the text in each slot.
        calls (`int`), tokens (`int`): Forward passes of the backbone so far, and tokens in them, padding included.

    Raises:
        `ValueError`: [`slot_unsupported_reason`] returns a reason. Call it first.
    """

    def __init__(self, backbone: torch.nn.Module, slots: int, columns: int) -> None:
        read, self.kinds = _one_token(backbone)
        base = base_of(backbone)
        self.backbone, self.slots, self.columns = backbone, slots, columns
        self.config: Any = base.config.get_text_config()
        self.dtype, self.device = base.dtype, base.get_input_embeddings().weight.device
        self.cache_name = read.cache_name
        with torch.inference_mode(False):  # can be written to in any mode
            self.cache = SlotKVCache(*static_stores(read, slots, columns))
            self.ids_SC = torch.zeros(slots, columns, dtype=torch.int32, device=self.device)
        for store in self.cache.stores:
            store.zero_()
        self.lengths = [0] * slots
        self.calls = self.tokens = 0
        self.column_S = torch.arange(columns, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(store.nbytes for store in self.cache.stores)

    @torch.no_grad()
    def read(self, slots: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """
        Puts texts into slots. What a slot has of the beginning of its text, or another slot has, is not read again.

        Args:
            slots (`Sequence[int]`): Different slots.
            texts (`Sequence[Sequence[int]]`): The text of each.
        """
        first: dict[tuple[int, ...], int] = {}
        rest, repeated = [], []
        for slot, text in zip(slots, texts, strict=True):
            if first.setdefault(tuple(text), slot) != slot:
                repeated.append((slot, text))
                continue
            self._reuse(slot, text)
            rest.append((slot, list(text[self.lengths[slot] :])))
        for part in _groups(rest):
            self._append(part)
        for slot, text in repeated:
            self._reuse(slot, text)

    @torch.no_grad()
    def step(
        self, slots: Sequence[int], next_N: torch.Tensor, candidates_Nk: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Extends texts by a token each, and evaluates candidates after it.

        Args:
            slots (`Sequence[int]`): N different slots.
            next_N (`torch.Tensor` of shape `(N,)`): The tokens.
            candidates_Nk (`torch.Tensor` of shape `(N, k)`, *optional*): The candidates.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`: The hidden state of each candidate; without candidates `(N, 1, D)`,
            of the tokens.
        """
        ids_Nq = next_N[:, None] if candidates_Nk is None else torch.cat([next_N[:, None], candidates_Nk], 1)
        hidden = self._forward(slots, ids_Nq, 1, [1] * len(slots))
        return hidden if candidates_Nk is None else hidden[:, 1:]

    def cut(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens of a text, which has at least as many."""
        assert length <= self.lengths[slot]
        self.lengths[slot] = length

    def _reuse(self, slot: int, text: Sequence[int]) -> None:
        """Brings into a slot what any slot has of the beginning of a text."""
        asked = torch.tensor(text, dtype=torch.int32, device=self.device)
        same = (self.ids_SC[:, : len(text)] == asked).int().cumprod(1).sum(1).tolist()
        common = [min(pair) for pair in zip(same, self.lengths, strict=True)]
        best = common.index(max(common))
        length = common[best]
        if length > common[slot]:
            for store in self.cache.stores:
                store[:, slot, :, :length] = store[:, best, :, :length]
            self.ids_SC[slot, :length] = asked[:length]
        for store in self.cache.stores:
            # Masked entries still take part in a product, so NaN left by a previous text would spread.
            store[:, slot, :, length:].zero_()
        self.lengths[slot] = length

    def _append(self, rest: Sequence[tuple[int, list[int]]]) -> None:
        """Extends texts by several tokens each, padded on the right: entries of padding are overwritten later."""
        for start in range(0, max(len(ids) for _, ids in rest), CHUNK):
            parts = [(slot, ids[start : start + CHUNK]) for slot, ids in rest if len(ids) > start]
            counts = [len(ids) for _, ids in parts]
            q = max(counts)
            ids_Nq = torch.tensor([ids + [0] * (q - len(ids)) for _, ids in parts], device=self.device)
            self._forward([slot for slot, _ in parts], ids_Nq, q, counts)

    def _forward(self, slots: Sequence[int], ids_Nq: torch.Tensor, after: int, counts: Sequence[int]) -> torch.Tensor:
        """Hidden states (N, q, D). The first `after` columns extend the texts, by as many tokens as `counts` says."""
        q, n = ids_Nq.shape[1], len(slots)
        order = sorted(range(n), key=slots.__getitem__)
        sort_N = None if order == list(range(n)) else torch.tensor(order, device=self.device)
        slots_N = [slots[i] for i in order]
        lengths_N = torch.tensor([self.lengths[slot] for slot in slots_N], device=self.device)
        width = min(max(self.lengths[slot] for slot in slots_N) + q, self.columns)
        columns_Nq = (lengths_N[:, None] + self.column_S[:q]).clamp(max=self.columns - 1)  # padding may be beyond
        ids_Nq = ids_Nq if sort_N is None else ids_Nq[sort_N]
        self.cache.aim(slots_N, columns_Nq, width)
        masks = {kind: self._mask(lengths_N, columns_Nq, after, width, kind) for kind in self.kinds}
        with attention_switched(self.config, STATIC), evaluating(self.backbone):
            hidden = self.backbone(
                input_ids=ids_Nq,
                position_ids=lengths_N[:, None] + self.column_S[:q].clamp(max=after),
                attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
                use_cache=True,
                **{self.cache_name: self.cache},
            ).last_hidden_state
        self.ids_SC[self.cache.slots_N[:, None], columns_Nq[:, :after]] = ids_Nq[:, :after].int()
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
        self.calls += 1
        self.tokens += ids_Nq.numel()
        return hidden if sort_N is None else hidden[sort_N.argsort()]

    def _mask(
        self, lengths_N: torch.Tensor, columns_Nq: torch.Tensor, after: int, width: int, kind: str
    ) -> torch.Tensor:
        """Mask (N, 1, q, width) added to the scores: 0 where a column is seen."""
        column, mine = self.column_S[:width], columns_Nq[:, :, None]
        before = lengths_N[:, None, None]
        sees = (column < before + after) & (column <= mine)
        if kind == SLIDING:
            place = before + self.column_S[: mine.shape[1], None].clamp(max=after)
            sees = sees & (column > place - self.config.sliding_window)
        sees = sees | (column == mine)
        return torch.zeros_like(sees, dtype=self.dtype).masked_fill_(~sees, torch.finfo(self.dtype).min)[:, None]


def slot_bytes(backbone: torch.nn.Module, columns: int) -> int:
    """
    Bytes of one slot of a [`SlotTree`].

    Args:
        backbone (`torch.nn.Module`): The model.
        columns (`int`): S.

    Raises:
        `ValueError`: [`slot_unsupported_reason`] returns a reason.
    """
    read, _ = _one_token(backbone)
    entries = sum(store.shape[0] * store.shape[2] * store.shape[4] * store.element_size() for store in read.stores)
    return entries * columns


def slot_unsupported_reason(backbone: torch.nn.Module) -> str:
    """
    Why texts of a model cannot be in slots; empty if they can.

    Read from its config and, once per model, verified by comparing hidden states with uncached forward passes.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
    """
    reason = static_config_reason(backbone, base_of(backbone))
    if reason is None:
        _, reason = shared_cache_support(backbone, {})
    if reason is None:
        reason = branching_reason(backbone, "slots", lambda ids: _slot_probe_walk(backbone, ids))
    return reason or ""


@torch.no_grad()
def _one_token(backbone: torch.nn.Module) -> tuple[SharedCacheBackend, set[str]]:
    """A cache that holds a token, which shows the shapes of its layers, and the kinds of these."""
    kinds, reason = shared_cache_support(backbone, {})
    if reason is not None:
        raise ValueError(f"The texts of this model cannot be in slots of a cache: {reason}.")
    read = SharedCacheBackend(backbone, kinds, {})
    device = base_of(backbone).get_input_embeddings().weight.device
    with evaluating(backbone):
        read.forward(torch.zeros(1, 1, dtype=torch.long, device=device), torch.ones(1, 1, device=device) > 0, 1, None)
    return read, kinds


def _groups(rest: Sequence[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Texts of similar length, few enough for one forward pass over a chunk of each."""
    part: list[tuple[int, list[int]]] = []
    for slot, ids in sorted(rest, key=lambda pair: -len(pair[1])):
        if not ids:
            continue
        if part and (len(part) + 1) * min(CHUNK, len(part[0][1])) > POSITIONS:
            yield part
            part = []
        part.append((slot, ids))
    if part:
        yield part


def _slot_probe_walk(backbone: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The steps of [`~trl_ext.decoding.tree_backends.probe_walk`] in slots, without the padding of the second row."""
    mask, candidates = probe_mask(ids)[:, :7], ids[:, 5:8]
    tree = SlotTree(backbone, 3, 20)
    slots = [2, 0]
    rows = [row[kept].tolist() for row, kept in zip(ids[:, :7], mask, strict=True)]
    tree.read(slots, [row[:-1] for row in rows])
    states = [tree.step(slots, ids[:, 6])]
    for slot, row in zip(slots, rows, strict=True):
        tree.cut(slot, len(row) - 1)
    states.append(tree.step(slots, ids[:, 6], candidates))
    chosen = candidates.gather(1, torch.tensor([[0], [2]], device=ids.device))[:, 0]
    tree.step(slots, chosen)
    states.append(tree.step(slots, ids[:, 8], candidates))
    states += [tree.step(slots, ids[:, i]) for i in (9, 10, 11)]
    return torch.cat(states, 1)
