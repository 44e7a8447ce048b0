# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Decoding with a proxy, token by token: a frozen model proposes candidates, the proxy accepts one, in one forward pass.

        hidden state -> logits -> candidates, in order     a      b      c
                                                        reject accept  (not examined)
        one forward pass over all candidates              |      |
        hidden states at the candidates ------------------+------+-> the next token is b. Its hidden state, from which
                                                                     the next candidates come, is already computed.

Dimensions: P prompts, N sequences, T tokens of a prompt, V vocabulary, k candidates, D hidden size, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_ext.decoding.scheduled_rows import ScheduledRows
from trl_ext.decoding.token_tree import Tree
from trl_ext.generation.token_guidance import SavedGuidance
from trl_ext.models.backbone_and_head import BackboneAndHead

from ..decision_process import DecisionProcess
from ..losses import decision_logps, induced_logps, marginal_logps, repeated_logps
from .candidates import Proposals, accept, choose, decided, followed, penalized_logits, propose
from .per_row_rng import PerRowRNG


# Rows times candidates in one forward pass above which it takes noticeably longer than one over a single token per row
# (measured on a GPU with the shapes of an 8B model). On a CPU every token counts.
WIDE_FORWARD = {"cpu": 16}
WIDE_FORWARD_ELSEWHERE = 100
FIRST_CANDIDATES = 4  # in the first forward pass, if all of them would be a wide one
# How much lower than the last candidate's a token's logit may be to count as a tie. Rounding differs more between
# batches in deeper models: this is a thousand units in the last place of a float32 number near 10, eight of a bfloat16
# number, 13 of a float16 number. With 0.1 in bfloat16 (less than two units), 9 of 256 answers of a model of 30 layers
# had no probability when they were read again.
TIE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.5}
TIE_TOLERANCE_ELSEWHERE = 0.1
ACCEPTED = "accepted"  # name of the value of a candidate for observers: the probability that the proxy accepts it
_CERTAIN = 40.0  # logit of a greedy decision; sigmoid(-40) is 4e-18


@dataclass
class Step:
    """
    One position of N sequences.

    Args:
        tokens (`torch.Tensor` of shape `(N,)`): The next tokens.
        examined, rejected (`torch.Tensor` of shape `(N,)`): Number of candidates examined and rejected.
        forced (`torch.Tensor` of shape `(N,)`): True where all candidates were rejected.
        asked (`torch.Tensor` of shape `(N,)`): True where the proxy was asked, and with a schedule sure of a decision.
        kl (`torch.Tensor` of shape `(N,)` or `None`): log q - log pi_0 of the token, if it was measured.
        records (`dict`): `features`, `accepted`, `logps`, `row` and `kl` of the decisions, row by row; see
            [`decision_records`].
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
    Unfinished sequences that a proxy continues, with a growing KV cache.

    Args:
        llm ([`BackboneAndHead`]): The language model.
        accept_logits (`Callable`): From features (..., F) to logits (...) of accepting.
        process ([`DecisionProcess`]): The decision process.
        ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts and their mask, padded on the left.
        repeats (`int`, *optional*, defaults to `1`): Sequences per prompt, which is read once.
        rng ([`PerRowRNG`], *optional*): Random numbers. Without it decisions are greedy, and the order must be
            descending.
        greedy (`bool`, *optional*, defaults to `False`): Accept where p is at least a half, instead of with
            probability p.
        record (`bool`, *optional*, defaults to `False`): Whether to record the decisions.
        first_candidates (`int`, *optional*, defaults to `0`): Candidates in the first forward pass. The others follow
            for rows that reject all of these. `0` chooses by the number of rows.
        scheduled ([`~trl_ext.decoding.scheduled_rows.ScheduledRows`], *optional*): Decides which tokens the proxy is
            asked about. The others are samples of the language model among all candidates; with greedy decisions in
            descending order they are the likeliest. By default it is asked about all.

    Attributes:
        saved ([`~trl_ext.generation.token_guidance.SavedGuidance`], *optional*): Where each step writes the
            probabilities of candidates and of their acceptance. All candidates are then in the first forward pass.
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
        scheduled: ScheduledRows | None = None,
    ) -> None:
        process.check_examination(first_candidates, is_scheduled=scheduled is not None)
        self.llm, self.accept_logits, self.process = llm, accept_logits, process
        self.scheduled = scheduled
        self.saved: SavedGuidance | None = None
        self.rng, self.greedy, self.record, self.first_candidates = rng, greedy, record, first_candidates
        self.tree = Tree(llm.backbone)
        self.hidden_ND = self.tree.start(ids_PT, mask_PT)[:, -1]
        if repeats > 1:
            self._select(torch.arange(len(ids_PT), device=ids_PT.device).repeat_interleave(repeats))
        if scheduled is not None:
            scheduled.start(*(x.repeat_interleave(repeats, 0) for x in (ids_PT, mask_PT)))

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with these rows only."""
        self._select(rows)
        if self.rng is not None:
            self.rng.keep(rows)
        if self.scheduled is not None:
            self.scheduled.select(rows)

    def _select(self, rows: torch.Tensor) -> None:
        self.tree.reorder(rows)
        self.hidden_ND = self.hidden_ND[rows]

    def propose(self, uniform_Nk: torch.Tensor | None) -> tuple[Proposals, torch.Tensor | None]:
        """
        The candidates of the next position, without columns that are padding in all rows; and True for rows that the
        schedule does not guide there, `None` if it guides all.
        """
        process, logits = self.process, self.llm.logits(self.hidden_ND)
        plain_N = self._plain(logits)
        # Greedy decisions in descending order are deterministic, and so is what comes between them.
        order = None if self.greedy and process.order == "descending" else uniform_Nk
        proposals = propose(logits, process, order, self.tree.ids_NS, plain_N, self.tree.mask_NS)
        if process.top_p < 1 or process.min_p:
            most = int(proposals.valid.sum(1).max())
            parts = (proposals.tokens, proposals.weights, proposals.base_logps, proposals.columns)
            proposals = Proposals(*(None if part is None else part[:, :most] for part in parts))
        return proposals, plain_N

    def _plain(self, logits_NV: torch.Tensor) -> torch.Tensor | None:
        scheduled = self.scheduled
        if scheduled is None:
            return None
        if scheduled.schedule.skips(scheduled.position):
            return torch.ones(len(logits_NV), dtype=torch.bool, device=logits_NV.device)
        plain_N = ~scheduled.guided(logits_NV)
        return plain_N if bool(plain_N.any()) else None

    @torch.no_grad()
    def step(self, measure: bool = False) -> Step:
        """
        Decide on the next token of each row, and append it.

        Args:
            measure (`bool`, *optional*, defaults to `False`): Whether to compute `kl`, which needs a forward pass over
                all candidates.
        """
        process = self.process
        order, uniform = self.rng.uniform() if self.rng is not None else (None, None)
        found, plain = self.propose(order)
        if plain is not None and bool(plain.all()):
            return self._plain_step(found, measure)
        uniform = None if self.greedy else uniform
        columns = found.tokens.shape[1]
        asked, valid = found.asked(process.forced), found.proposed
        if plain is not None:
            asked = asked & ~plain[:, None]
        whole = measure or self.saved is not None or process.feature == "context" or process.propose_rejected
        first = columns if whole else self._first(*found.tokens.shape)
        features = self._features(found.tokens[:, :first])
        of_candidates = self._logits(features)
        logits = found.of_proposals(of_candidates)
        accepted = accept(logits, uniform)
        more, late = torch.zeros(0, dtype=torch.long), None
        if first < columns:
            all_rejected = (asked[:, :first] & ~accepted).sum(1) == first
            more = (all_rejected & valid[:, first]).nonzero().squeeze(1)
            accepted, logits = (torch.nn.functional.pad(x, (0, columns - first)) for x in (accepted, logits))
        if len(more):
            late = self.tree.branch_more(more, found.tokens[more, first:])
            logits[more, first:] = self._logits(late)
            accepted[more, first:] = accept(logits[more, first:], None if uniform is None else uniform[more, first:])
        choice, examined, forced = choose(accepted, asked, valid, process.forced)
        choice = found.column(choice if plain is None else choice.masked_fill(plain, 0))
        tokens = found.tokens.gather(1, choice[:, None]).squeeze(1)
        kl = token_kl(process, found, of_candidates, choice, plain) if measure else None
        self._save(found, of_candidates, plain)
        records = {}
        if self.record:
            examined_features = found.of_proposals(features)
            records = decision_records(examined_features, logits, accepted, examined, kl, late, more)
        self._append(tokens, choice, features, late, more, first)
        rejected = (examined & ~accepted).sum(1)
        by_proxy = asked.any(1)
        if self.scheduled is not None:
            by_proxy = by_proxy & decided(examined, logits)
            self.scheduled.append(tokens)
        return Step(tokens, examined.sum(1), rejected, forced, by_proxy, kl, records)

    def _plain_step(self, found: Proposals, measure: bool) -> Step:
        """A position at which the proxy is asked in no row: each takes its first candidate."""
        tokens, none_N = found.tokens[:, 0], torch.zeros_like(found.tokens[:, 0])
        self._save(found, torch.zeros_like(found.weights), torch.ones_like(none_N, dtype=torch.bool))
        kl = found.weights[:, 0].log() - found.base_logps[:, 0] if measure else None
        self.hidden_ND = self.tree.append(tokens[:, None])[:, -1]
        assert self.scheduled is not None
        self.scheduled.append(tokens)
        return Step(tokens, none_N, none_N, none_N.bool(), none_N.bool(), kl, {})

    def _save(self, found: Proposals, logits_Nk: torch.Tensor, plain_N: torch.Tensor | None) -> None:
        """Write down the probabilities of all candidates before and after the proxy, and those of accepting them."""
        if self.saved is None:
            return
        if self.greedy:
            logits_Nk = torch.where(logits_Nk >= 0, _CERTAIN, -_CERTAIN)
        model_NV = self.llm.logits(self.hidden_ND)
        self.saved.begin(model_NV, (ACCEPTED,), torch.ones(len(model_NV), 1, device=model_NV.device))
        asked_Nk = found.valid if plain_N is None else found.valid & ~plain_N[:, None]
        self.saved.keep(found.tokens, asked_Nk, logits_Nk.sigmoid()[..., None])
        q_Nk = candidate_logps(self.process, found, logits_Nk, plain_N)
        only_NV = torch.full_like(model_NV, -torch.inf)
        self.saved.end(only_NV.scatter(1, found.tokens, q_Nk.to(only_NV.dtype)))

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """The proxy's logits of accepting, as far as the schedule follows them."""
        logits = self.accept_logits(features)
        return logits if self.scheduled is None else followed(logits, self.scheduled.schedule.confidence)

    @torch.no_grad()
    def follow(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """
        Append given tokens, and compute their log-probabilities.

        Args:
            tokens_N (`torch.Tensor` of shape `(N,)`): The next token of each row.

        Returns:
            `torch.Tensor` of shape `(N,)`: log q, over all orders; -inf for a token that is neither a candidate nor
                tied with the least likely one.
        """
        # log q is summed over all orders, so that any order will do.
        middle = torch.full((len(tokens_N), self.process.top_k), 0.5, device=tokens_N.device)
        found, plain = self.propose(middle[:, : self.llm.vocabulary])
        found = self._with_ties(found, tokens_N)
        same = (found.tokens == tokens_N[:, None]) & found.valid
        known, choice = same.any(1), same.int().argmax(1)
        if self.scheduled is not None:
            self.scheduled.append(tokens_N)
        if plain is not None and bool(plain.all()):
            self.hidden_ND = self.tree.append(tokens_N[:, None])[:, -1]
            log_q = found.weights.gather(1, choice[:, None]).squeeze(1).log()
            return log_q.masked_fill(~known, -torch.inf)
        features = self._features(found.tokens)
        log_q = chosen_logps(self.process, found, self._logits(features), choice, plain).masked_fill(
            ~known, -torch.inf
        )
        # The cache has no entry for a token that is not a candidate: if there is one, all rows read their token.
        if self.process.feature == "candidate" and bool(known.all()):
            self.tree.keep(choice)
            self.hidden_ND = features[torch.arange(len(choice), device=choice.device), choice]
        else:
            self.hidden_ND = self.tree.append(tokens_N[:, None])[:, -1]
        return log_q

    def _with_ties(self, found: Proposals, tokens_N: torch.Tensor) -> Proposals:
        """
        The candidates, with the given token in place of the least likely one where the two are tied (`TIE_TOLERANCE`).

        Which of two equally likely tokens is the last candidate depends on rounding, which differs between batches: a
        token that was taken in one batch could be impossible in another. A token that `top_p` and `min_p` exclude
        because their bounds are rounded remains impossible, unless it is tied with the last candidate.
        """
        outside = ~((found.tokens == tokens_N[:, None]) & found.valid).any(1, keepdim=True)
        if not bool(outside.any()):
            return found
        logits = self.llm.logits(self.hidden_ND)
        scores = penalized_logits(
            logits, self.process, self.tree.ids_NS, self.tree.mask_NS
        )  # by which candidates are selected
        last = found.weights.masked_fill(~found.valid, torch.inf).argmin(1, keepdim=True)
        gap = scores.gather(1, found.tokens.gather(1, last)) - scores.gather(1, tokens_N[:, None])
        tied = outside & (gap < TIE_TOLERANCE.get(self.hidden_ND.dtype, TIE_TOLERANCE_ELSEWHERE))
        logps = logits.log_softmax(-1).gather(1, tokens_N[:, None])
        tokens = found.tokens.scatter(1, last, torch.where(tied, tokens_N[:, None], found.tokens.gather(1, last)))
        base_logps = found.base_logps.scatter(1, last, torch.where(tied, logps, found.base_logps.gather(1, last)))
        return Proposals(tokens, found.weights, base_logps, found.columns)

    def _first(self, rows: int, columns: int) -> int:
        """Number of candidates in the first forward pass."""
        if self.first_candidates:
            return min(self.first_candidates, columns)
        wide = rows * columns > WIDE_FORWARD.get(self.llm.device.type, WIDE_FORWARD_ELSEWHERE)
        return min(FIRST_CANDIDATES, columns) if wide else columns

    def _features(self, tokens_Nk: torch.Tensor) -> torch.Tensor:
        """The proxy's features of candidates, shape (N, k, F)."""
        if self.process.feature == "candidate":
            return self.tree.branch(tokens_Nk)
        return context_features(self.llm.embedding, self.hidden_ND, tokens_Nk)

    def _append(
        self,
        tokens_N: torch.Tensor,
        choice_N: torch.Tensor,
        features: torch.Tensor,
        late: torch.Tensor | None,
        more: torch.Tensor,
        first: int,
    ) -> None:
        """Append the tokens: by keeping the cache entries of candidates that the model has read, else by reading."""
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


def context_features(
    embed: Callable[[torch.Tensor], torch.Tensor], hidden_ND: torch.Tensor, tokens_Nk: torch.Tensor
) -> torch.Tensor:
    """
    The feature `"context"`: the hidden state before the candidates and their embeddings, shape (N, k, 2 D).

    Args:
        embed (`Callable`): The language model's embeddings (..., D) of tokens (...).
        hidden_ND (`torch.Tensor` of shape `(N, D)`): The last hidden states, from which the candidates were predicted.
        tokens_Nk (`torch.Tensor` of shape `(N, k)`): The candidates.
    """
    before = hidden_ND[:, None].expand(-1, tokens_Nk.shape[1], -1)
    return torch.cat([before, embed(tokens_Nk).to(before.dtype)], -1)


def chosen_logps(
    process: DecisionProcess,
    found: Proposals,
    logits_Nk: torch.Tensor,
    choice_N: torch.Tensor,
    plain_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    log q of candidates, over all orders in which candidates may be examined.

    Args:
        process ([`DecisionProcess`]): The decision process.
        found ([`Proposals`]): The candidates.
        logits_Nk (`torch.Tensor` of shape `(N, k)`): Logits of accepting.
        choice_N (`torch.Tensor` of shape `(N,)`): Column of one candidate per row.
        plain_N (`torch.Tensor` of shape `(N,)`, *optional*): True for rows in which the proxy is not asked: q is the
            language model's probability among the candidates.

    Returns:
        `torch.Tensor` of shape `(N,)`.
    """
    return candidate_logps(process, found, logits_Nk, plain_N).gather(1, choice_N[:, None]).squeeze(1)


def candidate_logps(
    process: DecisionProcess, found: Proposals, logits_Nk: torch.Tensor, plain_N: torch.Tensor | None = None
) -> torch.Tensor:
    """log q of all candidates, shape (N, k), -inf at padding. Arguments as for [`chosen_logps`]."""
    last = process.forced == "last"
    if process.order == "descending":
        log_q = induced_logps(logits_Nk, found.valid, last)
    elif process.propose_rejected:
        log_q = repeated_logps(logits_Nk, found.weights, found.proposed.sum(1))
    else:
        log_q = marginal_logps(logits_Nk, found.weights, last)
    return log_q if plain_N is None else torch.where(plain_N[:, None], found.weights.log(), log_q)


def token_kl(
    process: DecisionProcess,
    found: Proposals,
    logits_Nk: torch.Tensor,
    choice_N: torch.Tensor,
    plain_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """log q - log pi_0 of candidates, shape (N,). Arguments as for [`chosen_logps`]."""
    base_N = found.base_logps.gather(1, choice_N[:, None]).squeeze(1)
    return chosen_logps(process, found, logits_Nk, choice_N, plain_N) - base_N


def decision_records(
    features: torch.Tensor,
    logits: torch.Tensor,
    accepted: torch.Tensor,
    examined: torch.Tensor,
    kl: torch.Tensor | None,
    late: torch.Tensor | None = None,
    more: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """
    The decisions of one position, one entry per examined candidate, sorted by row and order of examination.

    Here K of the k candidates were in the first forward pass, and the others, for M rows, in a second one.

    Args:
        features (`torch.Tensor` of shape `(N, K, F)`): Features of the candidates in the first forward pass.
        logits (`torch.Tensor` of shape `(N, k)`): Logits of accepting.
        accepted, examined (`torch.Tensor` of shape `(N, k)`): True for accepted and for examined candidates.
        kl (`torch.Tensor` of shape `(N,)` or `None`): log q - log pi_0 of the token, if it was measured.
        late (`torch.Tensor` of shape `(M, k - K, F)`, *optional*): Features of the others.
        more (`torch.Tensor` of shape `(M,)`, *optional*): Their rows.
    """
    rows, columns = examined.nonzero(as_tuple=True)
    first = features.shape[1]
    kept = features[rows, columns.clamp(max=first - 1)].to(torch.bfloat16)
    if late is not None and more is not None:
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
