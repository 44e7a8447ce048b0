# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guides some rows of an engine's batch: the values of the candidates of all of them are computed in one forward pass.

Everything here is computed from the texts, weights and logits alone, without random numbers and in the order of rows,
so that all ranks of a tensor-parallel engine compute the same.

Dimensions: N rows that are guided, V vocabulary, k candidate tokens, D hidden size, H heads of all value models.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

import torch

from trl_ext.guides.base_guide import BaseGuide, SlotScorer
from trl_ext.guides.logits_processor import GuidedLogitsProcessor

from .processor import EngineSize, GuidedRow, Texts
from .slots import SlotPool


logger = logging.getLogger("vllm.trl_ext")  # vLLM shows what its own loggers say
GIB = 1 << 30


class GuidedBatch:
    """
    Value models beside an engine, and the KV cache with the texts of its guided requests.

    Args:
        guides (`dict[str, BaseGuide]`): The value models by name; `""` for one without a name.
        top_k (`int`): k.
        size ([`EngineSize`]): Size of the engine.
        cache_bytes (`int`): Memory for the KV caches, which are allocated here.

    Attributes:
        heads (`tuple[str, ...]`): Names of the H heads.
        reads_hidden (`bool`): Whether it needs the language model's hidden states.
        slots (`int`): Texts that the KV caches hold.

    Raises:
        `ValueError`: A value model does not fit the language model or the engine, or the memory is too small.
    """

    def __init__(self, guides: Mapping[str, BaseGuide], top_k: int, size: EngineSize, cache_bytes: int) -> None:
        if top_k > size.vocabulary:
            raise ValueError(f"`top_k` is {top_k}, but the model has only {size.vocabulary} tokens.")
        self.processor = GuidedLogitsProcessor(dict(guides), {}, top_k)
        self.heads = self.processor.heads
        for guide in self.processor.guides:
            _check_context(guide, size)
        columns = size.tokens + top_k
        of_slot = sum(guide.slot_bytes(columns) for guide in self.processor.guides)
        self.slots = min(size.texts, cache_bytes // of_slot) if of_slot else size.texts
        if not self.slots:
            raise ValueError(
                f"`value_cache_gib` is {cache_bytes / GIB:.3g}, but one text of {size.tokens} tokens takes "
                f"{of_slot / GIB:.3g} GiB in the value models' cache: raise it, or lower `--max-model-len`."
            )
        self._scorers = {guide: guide.slot_scorer(self.slots, columns) for guide in self.processor.guides}
        self.reads_hidden = any(scorer.hidden_size for scorer in self._scorers.values())
        for guide, scorer in self._scorers.items():
            if scorer.hidden_size not in (0, size.hidden):
                raise ValueError(
                    f"The {guide.who} reads hidden states of size {scorer.hidden_size}, and those of the served model "
                    f"have {size.hidden}: it was trained on another model. Serve that one, or another value model."
                )
        # Whose text is in which slot of a tree, which may not have read what another guide has.
        self._owners: dict[SlotScorer, dict[int, Hashable]] = {scorer: {} for scorer in self._scorers.values()}
        self._pool, self._warned = SlotPool(self.slots), False
        _report(of_slot, self.slots, size)

    @property
    def nbytes(self) -> int:
        """Bytes of the KV caches."""
        return sum(tree.nbytes for scorer in self._scorers.values() for tree in scorer.trees)

    @property
    def tokens(self) -> int:
        """Tokens that the value models have read so far, padding included."""
        return sum(tree.tokens for scorer in self._scorers.values() for tree in scorer.trees)

    def release(self, request: Hashable) -> None:
        """A request has ended: its slot is free, and what is in it may still be the beginning of another text."""
        self._pool.release(request)

    @torch.no_grad()
    def apply(
        self, logits_NV: torch.Tensor, rows: Sequence[GuidedRow], texts: Texts, hidden_ND: torch.Tensor | None
    ) -> None:
        """
        Add weighted and centred values to the logits of the likeliest tokens, in place.

        Args:
            logits_NV (`torch.Tensor` of shape `(rows of the batch, V)`): The language model's logits.
            rows (`Sequence[GuidedRow]`): Rows to guide, with a weight for each head.
            texts ([`Texts`]): Their texts.
            hidden_ND (`torch.Tensor` of shape `(rows of the batch, D)`): The hidden states that the logits were
                computed from, if `reads_hidden`.
        """
        if self._pool.count < len(rows) and not self._warned:
            self._warned = True
            logger.warning(
                "%d requests are guided at once, and the value models' cache holds %d texts: others are read again "
                "at every token, which is slow. Raise `value_cache_gib`, or lower `--max-num-seqs` or "
                "`--max-model-len`.",
                len(rows),
                self._pool.count,
            )
        for wave in self._pool.waves([row.request for row in rows]):
            self._apply(logits_NV, [rows[i] for i in wave], texts, hidden_ND)

    def _apply(
        self, logits_NV: torch.Tensor, rows: Sequence[GuidedRow], texts: Texts, hidden_ND: torch.Tensor | None
    ) -> None:
        complete = [row.place for row in rows] == list(range(len(logits_NV)))
        index_N = torch.tensor([row.place for row in rows], device=logits_NV.device)
        if hidden_ND is not None and not complete:
            hidden_ND = hidden_ND[index_N]
        slots = self._pool.assign([row.request for row in rows]) if self.nbytes else []
        score = partial(self._score, rows=rows, slots=slots, texts=texts, hidden_ND=hidden_ND)
        weights_NH = torch.tensor([row.settings for row in rows], device=logits_NV.device)
        weighted = [
            i for i, heads in enumerate(self.processor.columns) if any(any(row.settings[heads]) for row in rows)
        ]
        scores_NV = logits_NV if complete else logits_NV[index_N]
        _, candidates_Nk, _, added_Nk = self.processor.candidate_scores(scores_NV, weights_NH, weighted, score)
        if complete:
            logits_NV.scatter_add_(1, candidates_Nk, added_Nk.to(logits_NV.dtype))
        else:
            places = (index_N[:, None], candidates_Nk)
            logits_NV.index_put_(places, added_Nk.to(logits_NV.dtype), accumulate=True)

    def _score(
        self,
        guide: BaseGuide,
        candidates_Nk: torch.Tensor,
        logits_Nk: torch.Tensor,
        *,
        rows: Sequence[GuidedRow],
        slots: Sequence[int],
        texts: Texts,
        hidden_ND: torch.Tensor | None,
    ) -> torch.Tensor:
        """Values of a guide, (N, k, H), after it has read what it does not have yet of the texts."""
        scorer, last = self._scorers[guide], guide.vocabulary - 1
        # Ids above are of rows of an embedding that was rounded up, which no tokenizer returns: their scores are not
        # used, and in a text they read as the last token.
        candidates_Nk = candidates_Nk.clamp(max=last)
        if not scorer.trees:
            return scorer.score(candidates_Nk, slots, candidates_Nk[:, 0], hidden_ND)
        owners = self._owners[scorer]
        known = [owners.get(slot) == row.request for row, slot in zip(rows, slots, strict=True)]
        for tree in scorer.trees:
            behind = []
            for row, slot, own in zip(rows, slots, known, strict=True):
                if own and tree.lengths[slot] >= row.length - 1:
                    tree.cut(slot, row.length - 1)
                else:
                    behind.append((slot, [min(token, last) for token in texts.complete(row)[: row.length - 1]]))
            if behind:
                tree.read([slot for slot, _ in behind], [text for _, text in behind])
        owners.update(zip(slots, (row.request for row in rows), strict=True))
        return scorer.score(candidates_Nk, slots, texts.last(rows).clamp(max=last), hidden_ND)


def _check_context(guide: BaseGuide, size: EngineSize) -> None:
    """Raise `ValueError` if a value model has no position for the engine's longest text."""
    if 0 < guide.context_length < size.tokens:
        found = (
            f"The {guide.who} has a context of {guide.context_length} tokens, and texts of the engine may have "
            f"{size.tokens}"
        )
        if guide.learned_positions:
            raise ValueError(
                f"{found}: it has no position for the last ones. Set `--max-model-len {guide.context_length}`, or use "
                "a value model of a longer context."
            )
        logger.warning("%s: values beyond its context mean little.", found)


def _report(of_slot: int, slots: int, size: EngineSize) -> None:
    if not of_slot:
        logger.info("The value models read the hidden states of the language model and need no cache.")
        return
    few = "" if slots == size.texts else f", of at most {size.texts} in a batch: `value_cache_gib` limits it"
    logger.info(
        "The value models' cache takes %.3g GiB: %d texts of up to %d tokens%s.",
        of_slot * slots / GIB,
        slots,
        size.tokens,
        few,
    )
