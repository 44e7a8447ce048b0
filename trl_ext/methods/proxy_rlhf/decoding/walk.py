# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The decision process: a frozen model proposes tokens, a proxy accepts or rejects them: one forward a token.

        hidden state -> logits -> candidates, in order     a      b      c
                                                        reject accept  (not examined)
        one forward of all siblings                       |      |
        hidden states of the candidates ------------------+------+-> the next token is b, and its hidden state, from
                                                                     which the next candidates come, is there already

N rows, V vocabulary, k candidates, D hidden size, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_ext.decoding.token_tree import Tree
from trl_ext.models.backbone_and_head import BackboneAndHead

from ..decision_process import DecisionProcess
from ..losses import decision_logps, induced_logps, marginal_logps
from .candidates import Proposals, choose, penalized_logits, propose
from .per_row_rng import PerRowRNG


# Rows times candidates in one forward above which it takes noticeably longer than one of a token each (measured on a
# GPU with 8B shapes); on a CPU every token counts.
WIDE_FORWARD = {"cpu": 16}
WIDE_FORWARD_ELSEWHERE = 100
FIRST_CANDIDATES = 4  # that go ahead then
# How far behind the last candidate, in logits, a token may be and count as its equal. Batches round apart by more in
# deeper models: this is a thousand units in the last place of a float32 of 10, not two of a bfloat16, 13 of a float16.
EQUAL = {torch.float32: 1e-3, torch.float64: 1e-6}
EQUAL_ELSEWHERE = 0.1


@dataclass
class Step:
    """
    What happened at one position of N rows.

    Args:
        tokens, examined, rejected (`torch.Tensor` of shape `(N,)`): The token; candidates examined and rejected.
        forced (`torch.Tensor` of shape `(N,)`): True where none was accepted.
        asked (`torch.Tensor` of shape `(N,)`): True where there was something to decide.
        kl (`torch.Tensor` of shape `(N,)` or `None`): log q - log pi_0 of the token, where it was computed.
        records (`dict`): `features`, `accepted`, `logps`, `row` and `kl` of the decisions, row by row.
    """

    tokens: torch.Tensor
    examined: torch.Tensor
    rejected: torch.Tensor
    forced: torch.Tensor
    asked: torch.Tensor
    kl: torch.Tensor | None
    records: dict[str, torch.Tensor]


class Walk:
    """
    Texts under way.

    Args:
        llm ([`BackboneAndHead`]): The language model.
        accept_logits (`Callable`): From features (..., F) to logits (...) of accepting.
        process ([`DecisionProcess`]): The decision process.
        ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts, padded on the left.
        repeats (`int`, *optional*, defaults to `1`): Texts a prompt, which is read once.
        rng ([`PerRowRNG`], *optional*): Chance; without it decisions are greedy, and the order must be descending.
        greedy (`bool`, *optional*, defaults to `False`): Accept where p is at least a half, rather than with
            probability p.
        record (`bool`, *optional*, defaults to `False`): Whether decisions are kept.
        first_candidates (`int`, *optional*, defaults to `0`): Candidates in the first forward, the rest going through
            the model for rows only that reject all of these. `0` chooses by the number of rows.
    """

    def __init__(
        self,
        llm: BackboneAndHead,
        accept_logits: Callable[[torch.Tensor], torch.Tensor],
        process: DecisionProcess,
        ids_PT: torch.Tensor,
        mask_PT: torch.Tensor,
        *,
        repeats: int = 1,
        rng: PerRowRNG | None = None,
        greedy: bool = False,
        record: bool = False,
        first_candidates: int = 0,
    ) -> None:
        self.llm, self.accept_logits, self.process = llm, accept_logits, process
        self.rng, self.greedy, self.record, self.first_candidates = rng, greedy, record, first_candidates
        self.tree = Tree(llm.backbone)
        self.hidden_ND = self.tree.start(ids_PT, mask_PT)[:, -1]
        if repeats > 1:
            self._select(torch.arange(len(ids_PT), device=ids_PT.device).repeat_interleave(repeats))

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self._select(rows)
        if self.rng is not None:
            self.rng.keep(rows)

    def _select(self, rows: torch.Tensor) -> None:
        self.tree.reorder(rows)
        self.hidden_ND = self.hidden_ND[rows]

    def propose(self, uniform_Nk: torch.Tensor | None) -> Proposals:
        """The candidates of the next position."""
        process = self.process
        proposals = propose(self.llm.logits(self.hidden_ND), process, uniform_Nk, self.tree.ids_NS)
        if process.top_p < 1 or process.min_p:
            most = int(proposals.valid.sum(1).max())
            parts = (proposals.tokens, proposals.weights, proposals.base_logps)
            proposals = Proposals(*(part[:, :most] for part in parts))
        return proposals

    @torch.no_grad()
    def step(self, measure: bool = False) -> Step:
        """
        Decide on the next token of each row, and read it.

        Args:
            measure (`bool`, *optional*, defaults to `False`): Whether to compute `kl`, for which all candidates go
                through the model.
        """
        process = self.process
        order, chance = self.rng.uniform() if self.rng is not None else (None, None)
        found = self.propose(order)
        chance = None if self.greedy else chance
        columns = found.tokens.shape[1]
        asked, valid = found.asked(process.forced), found.valid
        first = columns if measure or process.feature == "context" else self._first(*found.tokens.shape)
        features = self._features(found.tokens[:, :first])
        logits = self.accept_logits(features)
        accepted = accept(logits, chance)
        more, late = torch.zeros(0, dtype=torch.long), None
        if first < columns:
            more = ((asked[:, :first] & ~accepted).sum(1) == first).logical_and(valid[:, first]).nonzero().squeeze(1)
            accepted, logits = (torch.nn.functional.pad(x, (0, columns - first)) for x in (accepted, logits))
        if len(more):
            late = self.tree.branch_more(more, found.tokens[more, first:])
            logits[more, first:] = self.accept_logits(late)
            accepted[more, first:] = accept(logits[more, first:], None if chance is None else chance[more, first:])
        choice, examined, forced = choose(accepted, asked, valid, process.forced)
        tokens = found.tokens.gather(1, choice[:, None]).squeeze(1)
        kl = self._kl(found, logits, choice) if measure else None
        records = self.records(features, late, more, logits, accepted, examined, kl) if self.record else {}
        self._read(tokens, choice, features, late, more, first)
        rejected = (examined & ~accepted).sum(1)
        return Step(tokens, examined.sum(1), rejected, forced, asked.any(1), kl, records)

    @torch.no_grad()
    def follow(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """
        Read given tokens, and say how probable they were.

        Args:
            tokens_N (`torch.Tensor` of shape `(N,)`): The next token of each row.

        Returns:
            `torch.Tensor` of shape `(N,)`: log q, over all orders; -inf where the token is no candidate, nor as likely
                as the least likely one.
        """
        # Any order will do: log q is that over all of them.
        middle = torch.full((len(tokens_N), self.process.top_k), 0.5, device=tokens_N.device)
        found = self._with_equals(self.propose(middle[:, : self.llm.vocabulary]), tokens_N)
        same = (found.tokens == tokens_N[:, None]) & found.valid
        known, choice = same.any(1), same.int().argmax(1)
        features = self._features(found.tokens)
        log_q = chosen_logps(self.process, found, self.accept_logits(features), choice).masked_fill(~known, -torch.inf)
        # A row whose token is no sibling has no entry to keep: where there is one, all are read in the usual way.
        if self.process.feature == "candidate" and bool(known.all()):
            self.tree.keep(choice)
            self.hidden_ND = features[torch.arange(len(choice), device=choice.device), choice]
        else:
            self.hidden_ND = self.tree.append(tokens_N[:, None])[:, -1]
        return log_q

    def _with_equals(self, found: Proposals, tokens_N: torch.Tensor) -> Proposals:
        """
        The candidates, of which the least likely is the given token where the two are equals (`EQUAL`).

        Which of two equally likely tokens is the last candidate is up to rounding, that is, to what a text is batched
        with: a token that was taken in one batch would be impossible in another. What `top_p` and `min_p` leave out by
        the rounding of their bounds stays impossible, unless it ties with the last one that is left.
        """
        outside = ~((found.tokens == tokens_N[:, None]) & found.valid).any(1, keepdim=True)
        if not bool(outside.any()):
            return found
        logits = self.llm.logits(self.hidden_ND)
        scores = penalized_logits(logits, self.process, self.tree.ids_NS)  # which decide what is a candidate
        last = found.weights.masked_fill(~found.valid, torch.inf).argmin(1, keepdim=True)
        behind = scores.gather(1, found.tokens.gather(1, last)) - scores.gather(1, tokens_N[:, None])
        taken = outside & (behind < EQUAL.get(self.hidden_ND.dtype, EQUAL_ELSEWHERE))
        logps = logits.log_softmax(-1).gather(1, tokens_N[:, None])
        tokens, base_logps = (
            whole.scatter(1, last, torch.where(taken, one, whole.gather(1, last)))
            for whole, one in ((found.tokens, tokens_N[:, None]), (found.base_logps, logps))
        )
        return Proposals(tokens, found.weights, base_logps)

    def _kl(self, found: Proposals, logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        base = found.base_logps.gather(1, choice[:, None]).squeeze(1)
        return chosen_logps(self.process, found, logits, choice) - base

    def _first(self, rows: int, columns: int) -> int:
        """Candidates in the first forward."""
        if self.first_candidates:
            return min(self.first_candidates, columns)
        wide = rows * columns > WIDE_FORWARD.get(self.llm.device.type, WIDE_FORWARD_ELSEWHERE)
        return min(FIRST_CANDIDATES, columns) if wide else columns

    def _features(self, tokens_Nk: torch.Tensor) -> torch.Tensor:
        """What the proxy sees of candidates, (N, k, F)."""
        if self.process.feature == "candidate":
            return self.tree.branch(tokens_Nk)
        embedded = self.llm.embedding(tokens_Nk)
        before = self.hidden_ND[:, None].expand(-1, tokens_Nk.shape[1], -1)
        return torch.cat([before, embedded.to(before.dtype)], -1)

    def _read(
        self,
        tokens_N: torch.Tensor,
        choice_N: torch.Tensor,
        features: torch.Tensor,
        late: torch.Tensor | None,
        more: torch.Tensor,
        first: int,
    ) -> None:
        """The token becomes part of the text; among siblings that went through the model, nothing is left to do."""
        if self.process.feature == "context":
            self.hidden_ND = self.tree.append(tokens_N[:, None])[:, -1]
            return
        self.tree.keep(choice_N)
        rows = torch.arange(len(tokens_N), device=tokens_N.device)
        self.hidden_ND = features[rows, choice_N.clamp(max=first - 1)]
        if late is not None:
            beyond = choice_N[more] >= first
            columns = (choice_N[more] - first).clamp(min=0)
            taken = late[torch.arange(len(more), device=more.device), columns]
            self.hidden_ND[more] = torch.where(beyond[:, None], taken, self.hidden_ND[more])

    @staticmethod
    def records(
        features: torch.Tensor,
        late: torch.Tensor | None,
        more: torch.Tensor,
        logits: torch.Tensor,
        accepted: torch.Tensor,
        examined: torch.Tensor,
        kl: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """
        A token's decisions, one entry an examined candidate, row by row in the order of examination.

        N rows, k candidates, D hidden size; the first F candidates were computed at once, the others for some rows.

        Args:
            features (`torch.Tensor` of shape `(N, F, D)`): What the proxy decided on.
            late (`torch.Tensor` of shape `(M, k - F, D)` or `None`), more (`torch.Tensor` of shape `(M,)`): The
                features of the others, and the rows that they are of.
            logits (`torch.Tensor` of shape `(N, k)`), accepted, examined (`torch.Tensor` of shape `(N, k)`): The
                proxy's logits, and which candidates were accepted and looked at.
            kl (`torch.Tensor` of shape `(N,)` or `None`): The token's log q - log pi_0, as far as it is known.
        """
        rows, columns = examined.nonzero(as_tuple=True)
        first = features.shape[1]
        kept = features[rows, columns.clamp(max=first - 1)].to(torch.bfloat16)
        if late is not None:
            place = torch.full((len(features),), -1, device=rows.device)
            place[more] = torch.arange(len(more), device=rows.device)
            beyond = columns >= first
            kept[beyond] = late[place[rows[beyond]], columns[beyond] - first].to(torch.bfloat16)
        accepted = accepted[rows, columns]
        ends = torch.cat([rows[1:] != rows[:-1], rows.new_ones(min(1, len(rows)), dtype=torch.bool)])
        paid = torch.zeros_like(logits[rows, columns])
        if kl is not None:
            paid[ends] = kl[rows[ends]].to(paid.dtype)
        logps = decision_logps(logits[rows, columns], accepted)
        return {"features": kept, "accepted": accepted, "logps": logps, "row": rows, "kl": paid}


def chosen_logps(
    process: DecisionProcess, found: Proposals, logits_Nk: torch.Tensor, choice_N: torch.Tensor
) -> torch.Tensor:
    """log q of the candidates in these columns, (N,), over all orders that they may come in."""
    last = process.forced == "last"
    if process.order == "descending":
        return induced_logps(logits_Nk, found.valid, last).gather(1, choice_N[:, None]).squeeze(1)
    return marginal_logps(logits_Nk, found.weights, choice_N, last)


def accept(logits: torch.Tensor, chance: torch.Tensor | None) -> torch.Tensor:
    """Which candidates are accepted: by chance, or where that is at least as likely as not."""
    if chance is None:
        return logits >= 0
    return chance[..., : logits.shape[-1]] < logits.sigmoid()
