# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Evaluates k candidate tokens for one prefix in a single forward pass over a shared KV cache.

        prefix         candidates
    p1 p2 p3 p4     a    b    c         each sees p1..p4 and itself, and has position 4
     0  1  2  3     4    4    4         keep(1): the prefix is p1 p2 p3 p4 b, and b is not computed again

Dimensions: N prefixes (rows), P tokens of a prompt, S columns of a prefix, T new tokens, k candidates per prefix,
D hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from trl_ext.models.modes import evaluating
from trl_ext.models.properties import has_virtual_tokens

from .tree_backends import RecomputeBackend, SharedCacheBackend, shared_cache_support


class Tree:
    """
    The KV cache of N prefixes, after which k candidate tokens per prefix are evaluated in one forward pass.

    Exact: hidden states are those of separate uncached forward passes, up to rounding. Whether the attention of a
    model supports this is read from its config and verified once per model on a few tokens. For other models the
    candidates are computed as rows of their own, without a cache (see `form` and `reason`). After an error within a
    forward pass, Ctrl-C included, the tree has no prefixes.

    Args:
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A model without language model head (as `AutoModel` loads it), whose output has a `last_hidden_state`. It
            is run in evaluation mode and without gradients.
        forward_kwargs (`dict`, *optional*):
            Further arguments of its forward.

    Attributes:
        form (`str`):
            `"shared"` or, without a cache, `"recompute"`.
        reason (`str`):
            Why the candidates cannot share a cache; empty if they do.
        ids_NS (`torch.Tensor` of shape `(N, S)`):
            The prefixes.
        mask_NS (`torch.Tensor` of shape `(N, S)`):
            True where they are not padding.
        branches_Nk (`torch.Tensor` of shape `(N, k)` or `None`):
            The candidates that [`keep`] would choose from.
        calls (`int`), tokens (`int`):
            Forward passes of the backbone so far, and their tokens, padding included.

    Raises:
        `ValueError`: The backbone's adapter adds tokens to the input.
    """

    def __init__(self, backbone: torch.nn.Module, *, forward_kwargs: Mapping[str, Any] | None = None) -> None:
        kwargs = forward_kwargs or {}
        if has_virtual_tokens(backbone):
            raise ValueError(
                "The adapter adds virtual tokens to the start of every row, so that columns and tokens do not match. "
                "Use LoRA or another adapter of weights."
            )
        self.backbone = backbone
        kinds, reason = shared_cache_support(backbone, kwargs)
        self.reason = reason or ""
        self.form = "recompute" if self.reason else "shared"
        self._backend = (
            RecomputeBackend(backbone, kwargs) if self.reason else SharedCacheBackend(backbone, kinds, kwargs)
        )
        self.calls = self.tokens = 0
        self.clear()

    def clear(self) -> None:
        """Forgets the prefixes and frees their memory."""
        self._backend.clear()
        self.branches_Nk: torch.Tensor | None = None
        self._branched_more = False
        self.ids_NS = self.mask_NS = torch.zeros(0, 0)

    @property
    def length(self) -> int:
        """Columns of the prefixes, padding included."""
        return self.ids_NS.shape[1]

    def start(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor | None = None) -> torch.Tensor:
        """
        Computes prompts, and forgets the previous prefixes.

        Args:
            ids_NP (`torch.Tensor` of shape `(N, P)`): Token ids, padded on the left.
            mask_NP (`torch.Tensor` of shape `(N, P)`, *optional*): 1 for tokens, 0 for padding, which may also be
                between tokens: hidden states are those of the row without it.

        Returns:
            `torch.Tensor` of shape `(N, P, D)`: Hidden states; undefined at padding.

        Raises:
            `ValueError`: A row has no tokens, or padding on the right.
        """
        mask = torch.ones_like(ids_NP, dtype=torch.bool) if mask_NP is None else mask_NP.to(ids_NP.device).bool()
        if mask.shape != ids_NP.shape:
            raise ValueError(f"The mask has shape {tuple(mask.shape)}, the ids have {tuple(ids_NP.shape)}.")
        for wrong_N, what in (
            (~mask.any(1), "has no tokens: there is nothing to continue."),
            (~mask[:, -1:].all(1), "has padding on the right: pad prompts on the left."),
        ):
            if wrong_N.any():
                raise ValueError(f"Row {int(wrong_N.nonzero()[0])} {what}")
        self.clear()
        self.ids_NS, self.mask_NS = ids_NP[:, :0], mask[:, :0]
        return self._forward(ids_NP, mask, None)

    def branch(self, candidates_Nk: torch.Tensor, after_NT: torch.Tensor | None = None) -> torch.Tensor:
        """
        Evaluates candidate tokens in one forward pass. The prefixes do not change.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): The candidates of each prefix.
            after_NT (`torch.Tensor` of shape `(N, T)`, *optional*): Tokens that the prefixes are extended by first, in
                the same forward pass.

        Returns:
            `torch.Tensor` of shape `(N, k, D)`: The hidden state of each candidate.
        """
        self._check(candidates_Nk, "candidates")
        after = self.ids_NS[:, :0] if after_NT is None else self._check(after_NT, "tokens")
        hidden = self._forward(after, torch.ones_like(after, dtype=torch.bool), candidates_Nk)
        self.branches_Nk, self._branched_more = candidates_Nk, False
        return hidden[:, after.shape[1] :]

    def branch_more(self, rows_R: torch.Tensor, candidates_Rk: torch.Tensor) -> torch.Tensor:
        """
        Evaluates further candidates of some of the prefixes, after [`branch`].

        Args:
            rows_R (`torch.Tensor` of shape `(R,)`): The prefixes, each at most once.
            candidates_Rk (`torch.Tensor` of shape `(R, k)`): Their further candidates. For [`keep`] they are the
                columns after those of `branch`.

        Returns:
            `torch.Tensor` of shape `(R, k, D)`: The hidden state of each.

        Raises:
            `ValueError`: [`branch`] was not called since the prefixes last changed, or this was called already.
        """
        if self.branches_Nk is None or self._branched_more:
            raise ValueError("Call `branch` first, and `branch_more` at most once after it.")
        hidden = self._forward_some(rows_R, candidates_Rk)
        further = self.branches_Nk.new_zeros(len(self.branches_Nk), candidates_Rk.shape[1])
        self.branches_Nk = torch.cat([self.branches_Nk, further.index_copy(0, rows_R, candidates_Rk)], 1)
        self._branched_more = True
        return hidden

    def branch_some(self, rows_R: torch.Tensor, candidates_Rk: torch.Tensor) -> torch.Tensor:
        """
        Evaluates candidates of some of the prefixes only. [`keep`] cannot choose from them.

        Args:
            rows_R (`torch.Tensor` of shape `(R,)`): The prefixes, each at most once.
            candidates_Rk (`torch.Tensor` of shape `(R, k)`): Their candidates.

        Returns:
            `torch.Tensor` of shape `(R, k, D)`: The hidden state of each.
        """
        self.branches_Nk = None
        return self._forward_some(rows_R, candidates_Rk)

    def keep(self, choice_N: torch.Tensor) -> None:
        """
        Extends each prefix by one of its candidates, which is not computed again.

        Args:
            choice_N (`torch.Tensor` of shape `(N,)`): Which one: a column of the last `candidates_Nk`.

        Raises:
            `ValueError`: [`branch`] was not called since the prefixes last changed.
        """
        if self.branches_Nk is None:
            raise ValueError("There are no candidates to keep: call `branch` first, and `keep` once after it.")
        chosen = self.branches_Nk.gather(1, choice_N[:, None])
        with self._empty_after_an_error():
            self._backend.keep(choice_N)
            self._extend(chosen, torch.ones_like(chosen, dtype=torch.bool))

    def append(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """
        Extends each prefix by tokens.

        Args:
            ids_NT (`torch.Tensor` of shape `(N, T)`): At least one token per row.

        Returns:
            `torch.Tensor` of shape `(N, T, D)`: Their hidden states.
        """
        self._check(ids_NT, "tokens")
        return self._forward(ids_NT, torch.ones_like(ids_NT, dtype=torch.bool), None)

    def reorder(self, rows: torch.Tensor) -> None:
        """
        Replaces the prefixes by these rows of them, with the candidates of [`branch`].

        Args:
            rows (`torch.Tensor`): Indices of rows: beams, repeats, or the rest of a batch.
        """
        with self._empty_after_an_error():
            self.ids_NS, self.mask_NS = self.ids_NS[rows], self.mask_NS[rows]
            kept = self.branches_Nk is not None and not self._branched_more
            self.branches_Nk = self.branches_Nk[rows] if kept and self.branches_Nk is not None else None
            self._backend.select(rows)

    def crop(self, length: int) -> None:
        """
        Keeps the first `length` columns.

        Raises:
            `ValueError`: There are fewer, or a row would be left without tokens.
        """
        if not 0 < length <= self.length or not bool(self.mask_NS[:, length - 1].all()):
            raise ValueError(f"Cannot keep {length} of {self.length} columns: they must end in a token of every row.")
        if length < self.length:
            self.ids_NS, self.mask_NS, self.branches_Nk = self.ids_NS[:, :length], self.mask_NS[:, :length], None
            self._backend.crop(length)

    def _check(self, ids: torch.Tensor, what: str) -> torch.Tensor:
        if not self.length:
            raise ValueError("The tree has no prefix yet: call `start` first.")
        if ids.ndim != 2 or len(ids) != len(self.ids_NS) or not ids.shape[1]:
            raise ValueError(
                f"The {what} have shape {tuple(ids.shape)}. They need one row for each of the {len(self.ids_NS)} "
                "prefixes, and at least one column."
            )
        return ids

    def _forward_some(self, rows_R: torch.Tensor, candidates_Rk: torch.Tensor) -> torch.Tensor:
        if candidates_Rk.ndim != 2 or len(candidates_Rk) != len(rows_R) or not candidates_Rk.shape[1]:
            raise ValueError(f"The candidates have shape {tuple(candidates_Rk.shape)} for {len(rows_R)} rows.")
        self.calls += 1
        self.tokens += candidates_Rk.numel()
        with torch.no_grad(), evaluating(self.backbone), self._empty_after_an_error():
            return self._backend.forward_some(self.ids_NS, self.mask_NS, rows_R, candidates_Rk)

    @contextmanager
    def _empty_after_an_error(self) -> Iterator[None]:
        """
        Inside this context the cache may change in part only, by Ctrl-C or for lack of memory: some layers then have
        tokens that others lack. The tree is cleared, so that the next text is read from the start.
        """
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def _extend(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self.ids_NS, self.mask_NS = torch.cat([self.ids_NS, ids], 1), torch.cat([self.mask_NS, mask], 1)
        self.branches_Nk = None

    @torch.no_grad()
    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
        new = ids.shape[1]
        if new:
            self._extend(ids, mask)
        self.calls += 1
        self.tokens += ids.numel() + (0 if candidates is None else candidates.numel())
        with evaluating(self.backbone), self._empty_after_an_error():
            return self._backend.forward(self.ids_NS, self.mask_NS, new, candidates)
