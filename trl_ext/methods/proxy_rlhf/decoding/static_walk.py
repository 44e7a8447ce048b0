# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
CUDA-graph decoding with a proxy: each step, decisions included, replays one CUDA graph over a static KV cache.

Dimensions: P prompts, N sequences, T tokens of a prompt, k candidates, D hidden size, S columns of the static KV
cache.
"""

from typing import Any

import torch

from trl_ext.decoding.cuda_graph import CHECK_EVERY, Replay, cached_loops, graph_key, weights_key
from trl_ext.decoding.guide_schedule import UNITS
from trl_ext.decoding.scheduled_rows import ScheduledRows
from trl_ext.decoding.static_tree import StaticTree, static_columns, static_unsupported_reason
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.properties import base_of

from ..decision_process import DecisionProcess
from .candidates import Proposals, accept, choose, decided, followed, propose
from .per_row_rng import PerRowRNG
from .walk import Step, context_features, decision_records, token_kl


# Largest product of tokens in one forward pass and model weights for which computing candidates that are not examined
# takes less time than synchronising with the device to find out: 512 tokens through 8 billion weights.
LARGEST_FORWARD = 512 * 8e9


def static_walk_reason(llm: BackboneAndHead, process: DecisionProcess, rows: int) -> str:
    """
    Why CUDA-graph decoding cannot or should not be used; `""` if it can.

    Args:
        llm ([`~trl_ext.models.backbone_and_head.BackboneAndHead`]): The language model.
        process ([`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`]): The decision process.
        rows (`int`): N.
    """
    if process.propose_rejected:
        return "a rejected candidate may be proposed again (`propose_rejected`)"
    if process.repetition_penalty != 1:
        return "a repetition penalty depends on the text so far"
    weights = sum(p.numel() for p in llm.backbone.parameters())
    if process.feature == "candidate" and rows * process.top_k * weights > LARGEST_FORWARD:
        return f"{rows} rows of {process.top_k} candidates are too many for one forward pass of a model of this size"
    return static_unsupported_reason(llm.backbone)


class StaticWalk:
    """
    Unfinished sequences like [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`], with a static KV cache.

    Rows that have ended are computed further, and their results ignored.

    Args:
        llm, proxy, process: As for `Walk`; `proxy` has `accept_logits`.
        rows (`int`), columns (`int`): N and S.
        greedy (`bool`): Accept where p is at least a half.
        ends (`list[int]`): Tokens that end a sequence.
        scheduled ([`~trl_ext.decoding.scheduled_rows.ScheduledRows`], *optional*): As for `Walk`. Tokens that no row
            is guided at, whatever the text, are computed in a graph of their own, without candidates. The decisions
            about the others are masks in the graph of all: they save no time there.
    """

    def __init__(
        self,
        llm: BackboneAndHead,
        proxy: Any,
        process: DecisionProcess,
        rows: int,
        columns: int,
        *,
        greedy: bool,
        ends: list[int],
        scheduled: ScheduledRows | None = None,
    ) -> None:
        self.scheduled = scheduled
        self.llm, self.proxy, self.process, self.greedy = llm, proxy, process, greedy
        device = llm.device
        self.tree = StaticTree(llm.backbone, rows, columns)
        k = min(process.top_k, llm.vocabulary)
        self.hidden_ND = torch.zeros(rows, llm.width, dtype=base_of(llm.model).dtype, device=device)
        positions = -(-columns // PerRowRNG.block) * PerRowRNG.block
        self.uniform_NS2k = torch.zeros(rows, positions, 2, k, device=device)
        self.written_NS = torch.zeros(rows, columns, dtype=torch.long, device=device)
        # For each row, the numbers of examined, rejected, forced, asked, and tokens
        self.counts_5N = torch.zeros(5, rows, dtype=torch.long, device=device)
        self.limits_N = torch.zeros(rows, dtype=torch.long, device=device)
        self.over_N = torch.zeros(rows, dtype=torch.bool, device=device)  # ended, or at its limit
        self.ended_N = torch.zeros(rows, dtype=torch.bool, device=device)
        self.count_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.row_N = torch.arange(rows, device=device)
        state = [self.tree.length_1, self.hidden_ND, self.written_NS, self.counts_5N, self.over_N, self.ended_N]
        if scheduled is not None:
            scheduled.start(torch.zeros(rows, 1, dtype=torch.long, device=device))
            if scheduled.schedule.every in UNITS:
                scheduled.units(llm.vocabulary, device)
            state += scheduled.state
        self.next = Replay(self._next, [*state, self.count_1], device)
        self.next_plain = Replay(self._next_plain, [*state, self.count_1], device)
        self.record = False
        self.alive = self.row_N

    @property
    def nbytes(self) -> int:
        """Bytes of the static KV cache."""
        return self.tree.nbytes

    def start(
        self,
        ids_PT: torch.Tensor,
        mask_PT: torch.Tensor,
        repeats: int,
        rng: PerRowRNG,
        limits: list[int],
        record: bool,
    ) -> None:
        """
        Read the prompts.

        Args:
            ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts and their mask, padded on the left.
            repeats (`int`): Sequences per prompt.
            rng ([`PerRowRNG`]): Random numbers, generated for all positions at once.
            limits (`list[int]`): Maximum number of new tokens of each sequence.
            record (`bool`): Whether to record the decisions.
        """
        ids, mask = (x.repeat_interleave(repeats, 0) for x in (ids_PT, mask_PT))
        self.hidden_ND.copy_(self.tree.start(ids, mask))
        table = rng.table(max(limits))
        self.uniform_NS2k[:, : table.shape[1]] = table
        self.limits_N.copy_(torch.tensor(limits))
        for tensor in (self.counts_5N, self.over_N, self.ended_N, self.count_1):
            tensor.zero_()
        self.record, self.alive = record, self.row_N
        if self.scheduled is not None:
            self.scheduled.start(ids, mask)

    # ------------------------------------------------------------------------------------------------- the graph

    def _next(self) -> None:
        process = self.process
        order, uniform = self.uniform_NS2k.index_select(1, self.count_1)[:, 0].unbind(1)
        found, plain = self._propose(order)
        if process.feature == "candidate":
            features = self.tree.branch(found.tokens)
        else:
            features = context_features(self.llm.embedding, self.hidden_ND, found.tokens)
        logits = self.proxy.accept_logits(features)
        asked = found.asked(process.forced)
        if self.scheduled is not None and plain is not None:
            logits, asked = followed(logits, self.scheduled.schedule.confidence), asked & ~plain[:, None]
        accepted = accept(logits, None if self.greedy else uniform)
        choice, examined, forced = choose(accepted, asked, found.valid, process.forced)
        by_proxy = asked.any(1)
        if plain is not None:
            choice, by_proxy = choice.masked_fill(plain, 0), by_proxy & decided(examined, logits)
        tokens = found.tokens.gather(1, choice[:, None])
        if process.feature == "candidate":
            self.tree.keep(choice)
            self.hidden_ND.copy_(features[self.row_N, choice])
        else:
            self.hidden_ND.copy_(self.tree.append(tokens))
        rejected = (examined & ~accepted).sum(1)
        self._write(tokens, torch.stack([examined.sum(1), rejected, forced.long(), by_proxy.long()]))
        tokens = tokens.squeeze(1)
        # In a graph these tensors stay where they are, and the next replay overwrites them.
        self.last = (found, features, logits, accepted, examined, choice, tokens, rejected, forced, by_proxy, plain)

    def _next_plain(self) -> None:
        """A position at which the proxy is asked in no row."""
        order, _ = self.uniform_NS2k.index_select(1, self.count_1)[:, 0].unbind(1)
        found, _ = self._propose(order, torch.ones_like(self.over_N))
        tokens = found.tokens[:, :1]
        self.hidden_ND.copy_(self.tree.append(tokens))
        self._write(tokens, torch.zeros_like(self.counts_5N[:4]))

    def _propose(
        self, uniform_Nk: torch.Tensor, plain_N: torch.Tensor | None = None
    ) -> tuple[Proposals, torch.Tensor | None]:
        logits = self.llm.logits(self.hidden_ND)
        if self.scheduled is not None and plain_N is None:
            plain_N = ~self.scheduled.guided(logits)
        deterministic = self.greedy and self.process.order == "descending"
        return propose(logits, self.process, None if deterministic else uniform_Nk, plain_N=plain_N), plain_N

    def _write(self, tokens_N1: torch.Tensor, counts_4N: torch.Tensor) -> None:
        """Write the next token of each row, and count what led to it."""
        self.written_NS.index_copy_(1, self.count_1, tokens_N1)
        tokens = tokens_N1.squeeze(1)
        going = ~self.over_N
        self.counts_5N.add_(torch.nn.functional.pad(counts_4N, (0, 0, 0, 1), value=1) * going)
        self.count_1.add_(1)
        if len(self.ends):
            self.ended_N.logical_or_(torch.isin(tokens, self.ends) & going)
        self.over_N.copy_(self.over_N | self.ended_N | (self.limits_N <= self.count_1))
        if self.scheduled is not None:
            self.scheduled.append(tokens)

    def _advance(self) -> bool:
        """Continue each row by a token; returns whether the proxy may have been asked."""
        scheduled = self.scheduled
        if scheduled is None:
            self.next()
            return True
        position = scheduled.position
        plain = scheduled.schedule.skips(position)
        (self.next_plain if plain else self.next)()
        scheduled.position = position + 1  # a replayed graph does not run `append`
        return not plain

    # ----------------------------------------------------------------------------------- to the end, or step by step

    @torch.no_grad()
    def run(self) -> tuple[list[list[int]], list[bool], torch.Tensor]:
        """
        Continue all sequences to their ends.

        Returns:
            The new tokens of each sequence, whether it ended, and the counts of examined, rejected, forced and asked,
            of shape (4, N).
        """
        for t in range(1, int(self.limits_N.max()) + 1):
            self._advance()
            if len(self.ends) and t % CHECK_EVERY == 0 and bool(self.over_N.all()):
                break
        written, counts = self.written_NS[:, :t].cpu(), self.counts_5N.clone().cpu()
        ids = [row[:length] for row, length in zip(written.tolist(), counts[4].tolist(), strict=True)]
        return ids, self.ended_N.tolist(), counts[:4]

    @torch.no_grad()
    def step(self, measure: bool = False) -> Step:
        """As [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk.step`]."""
        rows = self.alive
        if not self._advance():
            tokens = self.written_NS.index_select(1, self.count_1 - 1)[rows, 0]
            none = torch.zeros_like(tokens)
            return Step(tokens, none, none, none.bool(), none.bool(), None, {})
        found, features, logits, accepted, examined, choice, tokens, rejected, forced, asked, plain = self.last
        kl = None
        if measure:
            candidates = Proposals(found.tokens[rows], found.weights[rows], found.base_logps[rows])
            kl = token_kl(self.process, candidates, logits[rows], choice[rows], None if plain is None else plain[rows])
        records = {}
        if self.record:
            records = decision_records(features[rows], logits[rows], accepted[rows], examined[rows], kl)
        counts = (examined[rows].sum(1), rejected[rows])
        return Step(tokens[rows], *counts, forced[rows], asked[rows], kl, records)

    def keep(self, rows: torch.Tensor) -> None:
        """Return results of these rows only."""
        self.alive = self.alive[rows]


def static_walk(
    llm: BackboneAndHead,
    proxy: Any,
    process: DecisionProcess,
    rows: int,
    longest: int,
    *,
    greedy: bool,
    ends: list[int],
    scheduled: ScheduledRows | None = None,
) -> StaticWalk:
    """
    A [`StaticWalk`] for sequences of up to `longest` tokens: a cached one if it fits.

    Args:
        llm, proxy, process, rows, greedy, ends, scheduled: As for [`StaticWalk`].
        longest (`int`): Maximum number of tokens of a sequence, prompt included.
    """
    columns = static_columns(longest + process.top_k + 1)
    key: tuple[Any, ...] = ("walk", id(proxy), weights_key(proxy), process, rows, columns, greedy, tuple(ends))
    if scheduled is not None:
        key = (*key, scheduled.schedule, id(scheduled.tokenizer))
    return cached_loops(base_of(llm.model)).get(
        (*key, *graph_key(llm.model)),
        lambda: StaticWalk(llm, proxy, process, rows, columns, greedy=greedy, ends=ends, scheduled=scheduled),
    )
