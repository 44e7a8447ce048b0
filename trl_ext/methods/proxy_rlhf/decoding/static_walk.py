# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The decision process in a room of fixed size: a token, its decisions included, is one replay of a CUDA graph.

N rows, k candidates, D hidden size, S columns of the room, T positions.
"""

from typing import Any

import torch

from trl_ext.decoding.cuda_graph import Replay, cached_loops
from trl_ext.decoding.static_loop import CHECK_EVERY, COLUMN_MULTIPLE, graph_key, weights_key
from trl_ext.decoding.static_support import static_unsupported_reason
from trl_ext.decoding.static_tree import StaticTree
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.load import base_of

from ..decision_process import DecisionProcess
from .candidates import Proposals, choose, propose
from .per_row_rng import PerRowRNG
from .walk import Step, Walk, accept, chosen_logps


# Tokens in one forward, times the model's weights, up to which the arithmetic of candidates that nobody examines costs
# less than asking the device whether there are any: 512 tokens through 8 billion weights.
WIDEST = 512 * 8e9


def static_walk_reason(llm: BackboneAndHead, process: DecisionProcess, rows: int) -> str:
    """
    Why the process cannot run in a loop of fixed shapes, or should not; empty if it can.

    Args:
        llm ([`~trl_ext.models.backbone_and_head.BackboneAndHead`]): The language model.
        process ([`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`]): The decision process.
        rows (`int`): N.
    """
    if process.repetition_penalty != 1:
        return "a repetition penalty looks at the text so far"
    weights = sum(p.numel() for p in llm.backbone.parameters())
    if process.feature == "candidate" and rows * process.top_k * weights > WIDEST:
        return f"{rows} rows of {process.top_k} candidates are too many for one forward of a model of this size"
    return static_unsupported_reason(llm.backbone)


class StaticWalk:
    """
    Texts under way, as [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`]; rows that have ended go on unheeded.

    Args:
        llm, proxy, process: As for `Walk`; `proxy` has `accept_logits`.
        rows (`int`), columns (`int`): N and S.
        greedy (`bool`): Accept where p is at least a half.
        ends (`list[int]`): Tokens that end a text.
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
    ) -> None:
        self.llm, self.proxy, self.process, self.greedy = llm, proxy, process, greedy
        device = llm.device
        self.tree = StaticTree(llm.backbone, rows, columns)
        k = min(process.top_k, llm.vocabulary)
        self.hidden_ND = torch.zeros(rows, llm.width, dtype=base_of(llm.model).dtype, device=device)
        self.uniform_NT2k = torch.zeros(rows, -(-columns // PerRowRNG.block) * PerRowRNG.block, 2, k, device=device)
        self.written_NS = torch.zeros(rows, columns, dtype=torch.long, device=device)
        # Of each row: examined, rejected, forced, asked; then tokens.
        self.counts_5N = torch.zeros(5, rows, dtype=torch.long, device=device)
        self.limits_N = torch.zeros(rows, dtype=torch.long, device=device)
        self.over_N = torch.zeros(rows, dtype=torch.bool, device=device)  # ended, or at its limit
        self.ended_N = torch.zeros(rows, dtype=torch.bool, device=device)
        self.count_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.row_N = torch.arange(rows, device=device)
        state = [self.tree.length_1, self.hidden_ND, self.written_NS, self.counts_5N, self.over_N, self.ended_N]
        self.next = Replay(self._next, [*state, self.count_1], device)
        self.record = False
        self.alive = self.row_N

    @property
    def nbytes(self) -> int:
        """Bytes of the room."""
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
        Read prompts, `repeats` texts each.

        Args:
            ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts, padded on the left.
            repeats (`int`): Texts a prompt.
            rng ([`~trl_ext.methods.proxy_rlhf.decoding.per_row_rng.PerRowRNG`]): Random numbers.
            limits (`list[int]`): The most tokens of each text.
            record (`bool`): Whether decisions are kept.
        """
        ids, mask = (x.repeat_interleave(repeats, 0) for x in (ids_PT, mask_PT))
        self.hidden_ND.copy_(self.tree.start(ids, mask))
        table = rng.table(max(limits))
        self.uniform_NT2k[:, : table.shape[1]] = table
        self.limits_N.copy_(torch.tensor(limits))
        for tensor in (self.counts_5N, self.over_N, self.ended_N, self.count_1):
            tensor.zero_()
        self.record, self.alive = record, self.row_N

    # ------------------------------------------------------------------------------------------------- the graph

    def _next(self) -> None:
        process = self.process
        order, chance = self.uniform_NT2k.index_select(1, self.count_1)[:, 0].unbind(1)
        found = propose(self.llm.logits(self.hidden_ND), process, order)
        chance = None if self.greedy else chance
        if process.feature == "candidate":
            features = self.tree.branch(found.tokens)
        else:
            before = self.hidden_ND[:, None].expand(-1, found.tokens.shape[1], -1)
            features = torch.cat([before, self.llm.embedding(found.tokens).to(before.dtype)], -1)
        logits = self.proxy.accept_logits(features)
        accepted, asked = accept(logits, chance), found.asked(process.forced)
        choice, examined, forced = choose(accepted, asked, found.valid, process.forced)
        tokens = found.tokens.gather(1, choice[:, None])
        if process.feature == "candidate":
            self.tree.keep(choice)
            self.hidden_ND.copy_(features[self.row_N, choice])
        else:
            self.hidden_ND.copy_(self.tree.append(tokens))
        self.written_NS.index_copy_(1, self.count_1, tokens)
        tokens = tokens.squeeze(1)
        going = ~self.over_N
        rejected = (examined & ~accepted).sum(1)
        facts = (examined.sum(1), rejected, forced.long(), asked.any(1).long(), torch.ones_like(rejected))
        self.counts_5N.add_(torch.stack(facts) * going)
        self.count_1.add_(1)
        if len(self.ends):
            self.ended_N.logical_or_(torch.isin(tokens, self.ends) & going)
        self.over_N.copy_(self.over_N | self.ended_N | (self.limits_N <= self.count_1))
        # In a graph these tensors stay where they are, and the next replay overwrites them.
        self.last = (found, features, logits, accepted, examined, choice, tokens, rejected, forced, asked.any(1))

    # ----------------------------------------------------------------------------------- to the end, or step by step

    @torch.no_grad()
    def run(self) -> tuple[list[list[int]], list[bool], torch.Tensor]:
        """Tokens of each text, whether it ended, and the counts (4, N) of examined, rejected, forced, asked."""
        for t in range(1, int(self.limits_N.max()) + 1):
            self.next()
            if len(self.ends) and t % CHECK_EVERY == 0 and bool(self.over_N.all()):
                break
        written, counts = self.written_NS[:, :t].cpu(), self.counts_5N.clone().cpu()
        ids = [row[:length] for row, length in zip(written.tolist(), counts[4].tolist(), strict=True)]
        return ids, self.ended_N.tolist(), counts[:4]

    @torch.no_grad()
    def step(self, measure: bool = False) -> Step:
        """As [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk.step`]."""
        self.next()
        found, features, logits, accepted, examined, choice, tokens, rejected, forced, asked = self.last
        rows = self.alive
        kl = None
        if measure:
            some = Proposals(found.tokens[rows], found.weights[rows], found.base_logps[rows])
            base = some.base_logps.gather(1, choice[rows, None]).squeeze(1)
            kl = chosen_logps(self.process, some, logits[rows], choice[rows]) - base
        records = {}
        if self.record:
            none = torch.zeros(0, dtype=torch.long, device=rows.device)
            records = Walk.records(features[rows], None, none, logits[rows], accepted[rows], examined[rows], kl)
        counts = (examined[rows].sum(1), rejected[rows])
        return Step(tokens[rows], *counts, forced[rows], asked[rows], kl, records)

    def keep(self, rows: torch.Tensor) -> None:
        """Heed these of the rows only."""
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
) -> StaticWalk:
    """
    A walk in a room for texts of `longest` tokens, prompts included: the one that was used last, if it fits.

    Args:
        llm, proxy, process, rows, greedy, ends: As for [`StaticWalk`].
        longest (`int`): Tokens.
    """
    columns = -(-(longest + process.top_k + 1) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    key = ("walk", id(proxy), weights_key(proxy), process, rows, columns, greedy, tuple(ends))
    return cached_loops(base_of(llm.model)).get(
        (*key, *graph_key(llm.model)),
        lambda: StaticWalk(llm, proxy, process, rows, columns, greedy=greedy, ends=ends),
    )
