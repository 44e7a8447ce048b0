# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Keeps the KV cache of a model that guides in step with `generate`, which passes a logits processor only the ids so far.

Dimensions: N sequences, P tokens of a prompt, S columns of the sequences so far, k candidate tokens, D hidden size.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trl_ext.decoding.token_tree import Tree
from trl_ext.models.modes import without_gradients
from trl_ext.upstream import adapter_layers, adapter_states, parameter_tables, weight_versions


class Follower:
    """
    Hidden states of candidate tokens, for whatever sequences a logits processor is called with.

    It compares the sequences with those of the previous call, and reuses the KV cache where it can. If the new token
    was a candidate, its cache entry is kept; another token is read in the same forward pass as the next candidates.
    Rows that a beam search reordered or dropped are reordered or dropped in the cache, and if sequences became
    shorter, the cache is cropped. All other sequences are read again from the start, equal ones once; so are all
    sequences if the weights have changed, by training or by another choice of adapters.

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): As for
            [`~trl_ext.decoding.token_tree.Tree`].
        forward_kwargs (`dict`, *optional*): As for [`~trl_ext.decoding.token_tree.Tree`].
    """

    def __init__(self, backbone: torch.nn.Module, *, forward_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tree = Tree(backbone, forward_kwargs=forward_kwargs)
        self._weights = _Weights(backbone)

    @property
    def calls(self) -> int:
        """Forward passes of the backbone so far."""
        return self.tree.calls

    @property
    def tokens(self) -> int:
        """Tokens in these forward passes, padding included."""
        return self.tree.tokens

    def reset(self) -> None:
        """Drop the sequences and free the memory of their KV cache."""
        self.tree.clear()

    @without_gradients
    def branch(
        self,
        ids_NS: torch.Tensor,
        candidates_Nk: torch.Tensor,
        mask_of: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """
        Hidden states of candidate tokens, each appended to its sequence.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): The sequences so far, padded on the left.
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): The candidate tokens.
            mask_of (`Callable`, *optional*): From `ids_NS` to its attention mask, called when sequences are read from
                the start. Without it there is no padding.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`.

        Raises:
            `ValueError`: A sequence has no tokens.
        """
        if not self._resume(ids_NS):
            self._start(ids_NS, None if mask_of is None else mask_of(ids_NS))
        tree = self.tree
        if ids_NS.shape[1] == tree.length:
            return tree.branch(candidates_Nk)
        return tree.branch(candidates_Nk, after_NT=ids_NS[:, tree.length :])

    @without_gradients
    def read(
        self, ids_NS: torch.Tensor, mask_of: Callable[[torch.Tensor], torch.Tensor | None] | None = None
    ) -> torch.Tensor:
        """
        Hidden states at the last token of the sequences. Of sequences that continue earlier ones, only new tokens are
        read.

        Args:
            ids_NS, mask_of: As for [`branch`].

        Returns:
            `torch.Tensor` of shape `(N, D)`.

        Raises:
            `ValueError`: A sequence has no tokens.
        """
        tree, known = self.tree, self._resume(ids_NS)
        if known and ids_NS.shape[1] == tree.length:  # the same sequences again: the states were not kept
            known = tree.length > 1 and bool(tree.mask_NS[:, -2].all())
            if known:
                tree.crop(tree.length - 1)
        if known:
            return tree.append(ids_NS[:, tree.length :])[:, -1]
        return self._start(ids_NS, None if mask_of is None else mask_of(ids_NS))[:, -1]

    def _resume(self, ids: torch.Tensor) -> bool:
        """Change the tree to hold a prefix of `ids`, all of them if the last was a candidate; whether that worked."""
        tree = self.tree
        if not tree.length or ids.device != tree.ids_NS.device:
            return False
        one_more = len(ids) == len(tree.ids_NS) and ids.shape[1] == tree.length + 1
        if self._weights.updated() if one_more else self._weights.changed():
            return False
        known = tree.ids_NS
        if ids.shape[1] < tree.length:
            known = known[:, : ids.shape[1]]
            back = len(ids) == len(known) and torch.equal(ids, known)
            if back and ids.shape[1] and bool(tree.mask_NS[:, ids.shape[1] - 1].all()):
                tree.crop(ids.shape[1])
                return True
            return False
        head = ids[:, : tree.length]
        same, hits = self._compare(ids, head)
        if not same:
            matches = (head[:, None] == known).all(-1)
            if not bool(matches.any(1).all()):
                return False
            tree.reorder(matches.int().argmax(1))
            hits = self._compare(ids, head)[1]
        if hits:
            assert tree.branches_Nk is not None
            tree.keep((tree.branches_Nk == ids[:, -1:]).int().argmax(1))
        return True

    def _compare(self, ids: torch.Tensor, head: torch.Tensor) -> tuple[bool, bool]:
        """Whether the rows are those of the tree, and each continues with one of its candidates. Synchronises once."""
        known, branches = self.tree.ids_NS, self.tree.branches_Nk
        if len(ids) != len(known):
            return False, False
        same = (head == known).all()
        if branches is None or ids.shape[1] != self.tree.length + 1:
            return bool(same), False
        same, hits = torch.stack([same, (branches == ids[:, -1:]).any(1).all()]).tolist()
        return same, hits

    def _start(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        mask = torch.ones_like(ids) if mask is None else mask.to(ids)
        self._weights = _Weights(self.tree.backbone)
        if len(ids) == 1:
            return self.tree.start(ids, mask)
        rows, index = torch.unique(torch.cat([mask, ids], 1), dim=0, return_inverse=True)
        if len(rows) == len(ids):
            return self.tree.start(ids, mask)
        mask, ids = rows.chunk(2, 1)  # several completions per prompt: read each prompt once
        hidden = self.tree.start(ids, mask)
        self.tree.reorder(index)
        return hidden[index]


class _Weights:
    """
    Detects a change of a model's weights since this object was made.

    Args:
        model (`torch.nn.Module`): The model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._tables, self._layers = parameter_tables(model), adapter_layers(model)
        self._weights = self._now()
        self._counted = [weight for weight in self._weights if not weight.is_inference()]
        self._versions, self._state = weight_versions(self._counted), self._read()

    def updated(self) -> bool:
        """Whether a weight was updated in place, as by an optimizer. Fast enough to be asked before each token."""
        return weight_versions(self._counted) != self._versions

    def changed(self) -> bool:
        """Whether weights or active adapters are others, in whatever way they were changed."""
        now = self._now()
        same = len(now) == len(self._weights) and all(map(operator.is_, now, self._weights))
        return not same or self.updated() or self._read() != self._state

    def _now(self) -> list[torch.Tensor]:
        return [weight for table in self._tables for weight in table.values() if weight is not None]

    def _read(self) -> Any:
        merged = [list(getattr(layer, "merged_adapters", ())) for layer in self._layers]
        places = [(weight.data_ptr(), weight.dtype) for weight in self._weights]
        return places, adapter_states(self._layers), merged, _samples(self._weights)


def _samples(weights: list[torch.Tensor]) -> list[float]:
    """One number of each weight, as `weight.data` may be updated without a trace."""
    plain = [w for w in weights if w.numel() and not w.is_meta and not hasattr(w, "device_mesh")]
    with torch.no_grad():
        numbers = [w.reshape(-1)[w.numel() // 2].float().to(plain[0].device) for w in plain]
        return torch.stack(numbers).tolist() if numbers else []
