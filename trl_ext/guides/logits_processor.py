# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guided decoding: adds the scores of the likeliest next tokens to a frozen language model's logits.

Dimensions: N sequences, P tokens of a prompt, k candidate tokens, H heads of all guides, V vocabulary, D hidden size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from trl_ext.decoding.guide import Guide, GuideContext
from trl_ext.decoding.guide_schedule import GuideSchedule, margin, read_schedule
from trl_ext.decoding.scheduled_rows import ScheduledRows
from trl_ext.generation.token_guidance import SavedGuidance
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.validation import check_value

from .base_guide import BaseGuide, StaticScorer, as_guide
from .guide_prompts import GuidePrompts
from .prompt_mask import PromptMask
from .weights import full_names, head_weights


Weights = float | Mapping[str, float] | Sequence[float | Mapping[str, float]]
AnyGuide = Guide | Callable[[GuideContext, torch.Tensor], Any]

# From a guide, its positions among all heads and candidates (N, k) to the scores of these, (N, k, heads of the guide).
Scores = Callable[[BaseGuide, torch.Tensor, torch.Tensor], torch.Tensor]

# Candidates of a token, above which a guide that reads each of them is refused: it would take seconds a token.
MOST_READ = 4096

# Candidates of rows that are not guided, above which the guides read the others alone, in a forward pass of their own
# after that over the new tokens. On a CPU every token counts.
WIDE_FORWARD = {"cpu": 16}
WIDE_FORWARD_ELSEWHERE = 100


def guide_schedule(every: int | str, when: Mapping[str, Any] | str | None) -> GuideSchedule:
    """
    The schedule of the settings `guide_every` and `guide_when`.

    Raises:
        `ValueError`: A value is not valid, or a condition is about the decisions of a proxy.
    """
    reason = (
        "guides of this kind score candidates and decide nothing, so there is no probability of a decision. Use "
        "`margin`, by how much their scores differ."
    )
    return read_schedule(every, when, refused={"confidence": reason})


class GuidedLogitsProcessor(LogitsProcessor):
    r"""
    Adds weighted scores to the logits of the likeliest tokens.

    Let the candidates K be the `top_k` likeliest tokens, and s_a the score of the text with the token a appended. The
    logit of each a in K is raised by w (s_a - mean of s over K); other tokens keep theirs, or get probability 0 with
    `candidates_only`. With several guides or heads the sum over them is added, for the same candidates. Where no token
    keeps its logit, the mean has no effect, and the distribution is softmax(logit_a + w s_a) over K. Pass it to
    `generate(..., logits_processor=[...])` of any causal language model; temperature, top-p and the like are applied
    after it.

    Guides keep a KV cache where they can. One processor may be used for several calls of `generate`, one after
    another: its guides detect new prompts.

    Args:
        guides ([`~trl_ext.decoding.guide.Guide`], function, or `dict` of those):
            What scores the candidates: an object with a method `score(context, candidates)`, or such a function. In a
            dictionary, the head of a guide with one head has the guide's name; the heads of others are called
            `"name/head"`, or `"head"` where only one head has this name.
        weights (`float`, `dict[str, float]` or a sequence of those, *optional*, defaults to `1.0`):
            Weight of a head's scores. A number if there is one head, else a weight for each head (0 for omitted ones).
            A sequence has one entry per sequence of the batch, or one per prompt. Negative weights guide away from
            high scores. May be assigned between calls.
        top_k (`int`, *optional*, defaults to `20`):
            Number of candidates. `0` means the complete vocabulary.
        candidates_only (`bool`, *optional*, defaults to `False`):
            Whether only candidates can be chosen, as in FUDGE, ARGS and RAD. Other tokens have probability 0.
        min_p (`float`, *optional*, defaults to `0.0`):
            Candidates have at least this probability under the language model, relative to the likeliest token, as in
            contrastive decoding. `0` means no limit.
        pad_token_id (`int`, *optional*):
            Token id of the padding on the left. By default the `tokenizer`'s, or that of a guide's config.
        attention_mask (`torch.Tensor` of shape `(N, P)`, *optional*):
            Attention mask of the first prompts, which may have padding between tokens. Without it, or for other
            prompts, padding is the run of `pad_token_id` that rows begin with. If that token is also the start or the
            end of a text, a run that all rows begin with is text. In a batch of conversations, assign the mask of
            each turn.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The language model's tokenizer, which guides that read text need, and guidance of words and sentences.
        guide_every (`int` or `str`, *optional*, defaults to `1`):
            Guides every n-th new token only, the first one included; or the tokens that begin a `"word"` or a
            `"sentence"`. See [`~trl_ext.decoding.guide_schedule.GuideSchedule`]. The other tokens keep their logits,
            and where no row is guided, the guides read nothing: they read the tokens between at once later.
        guide_when (`dict`, *optional*):
            Further conditions, all of which have to be met: `entropy` of the language model, `margin` of the scores,
            and `random` with its `seed`.
        end_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion, for guides that read text: by default the `tokenizer`'s end of sequence. With
            conditions, rows that have ended are not guided, and do not count.
        guide_prompts (`Sequence[Sequence[int]]`, *optional*):
            For each prompt of the batch the token ids that guides with `own_prompts` read in place of it. Needs
            `attention_mask`, and serves one batch.

    Attributes:
        guides (`list[BaseGuide]`): The guides.
        columns (`list[slice]`): Positions of the heads of each guide among all heads.
        heads (`tuple[str, ...]`): Names that `weights` may have.
        schedule ([`~trl_ext.decoding.guide_schedule.GuideSchedule`]): Which tokens are guided.
        saved ([`~trl_ext.generation.token_guidance.SavedGuidance`], *optional*): Where each step writes the values of
            the candidates and the logits before and after guidance. An
            [`~trl_ext.generation.observer.Observer`] with `top_candidates` sets it.

    Raises:
        `ValueError`: There is no guide, `guide_every` or `guide_when` is not valid or needs a `tokenizer`, `top_k` or
            `min_p` is out of range, or `weights` are not finite or name a head that does not exist. When called:
            `top_k` is larger than the vocabulary, `weights` or `guide_prompts` do not fit the batch, scores have
            another shape than the candidates, or what a guide raises.
        `TypeError`: A guide has no method `score`.
    """

    weights_field: ClassVar[str] = "weights"  # in messages
    supports_continuous_batching: ClassVar[bool] = False  # it would be given the last tokens alone

    def __init__(
        self,
        guides: AnyGuide | Mapping[str, AnyGuide],
        weights: Weights = 1.0,
        top_k: int = 20,
        *,
        candidates_only: bool = False,
        min_p: float = 0.0,
        pad_token_id: int | None = None,
        attention_mask: torch.Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guide_every: int | str = 1,
        guide_when: Mapping[str, Any] | None = None,
        end_token_ids: Sequence[int] = (),
        guide_prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.schedule = guide_schedule(guide_every, guide_when)
        self.scheduled = None if self.schedule.always else self._rows(tokenizer, end_token_ids)
        self._goes_on = False
        self.saved: SavedGuidance | None = None
        self.top_k = check_value("top_k", top_k, int)
        if self.top_k < 0:
            raise ValueError(f"`top_k` must be at least 1, or 0 for the complete vocabulary; got {top_k}.")
        self.min_p = check_value("min_p", min_p, float)
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"`min_p` must be between 0 (no limit) and 1, got {min_p}.")
        self.candidates_only, self.tokenizer = candidates_only, tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        by_name = dict(guides) if isinstance(guides, Mapping) else {"": guides}
        if not by_name:
            raise ValueError("`guides` is an empty dictionary: without a guide there is nothing to add.")
        self.guides: list[BaseGuide] = []
        self.columns: list[slice] = []
        self.heads: tuple[str, ...] = ()
        for name, given in by_name.items():
            guide = as_guide(given, name)
            names = full_names(name, list(guide.heads))
            self.guides.append(guide)
            self.columns.append(slice(len(self.heads), len(self.heads) + len(names)))
            self.heads += tuple(names)
        self.weights = weights
        config = next((guide.config for guide in self.guides if guide.config is not None), None)
        self._mask = _prompt_mask(attention_mask, pad_token_id, tokenizer, config)
        self._prompts = self._own_prompts(guide_prompts)

    @property
    def weights(self) -> Any:
        """The weights as they were given. To change them, assign new ones."""
        return self._given_weights

    @weights.setter
    def weights(self, value: Any) -> None:
        self._weights = head_weights(value, self.heads, self.weights_field)
        self._given_weights = value

    @property
    def weights_by_head(self) -> dict[str, float]:
        """The weight of each head in the first row."""
        return dict(zip(self.heads, self._weights.rows[0], strict=True))

    @property
    def about(self) -> dict[str, str]:
        """What to know about heads to choose their weights, by name."""
        found: dict[str, str] = {}
        for guide, columns in zip(self.guides, self.columns, strict=True):
            names = zip(self.heads[columns], guide.heads, strict=True)
            found |= {full: guide.about[head] for full, head in names if head in guide.about}
        return found

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The attention mask of the first prompts."""
        return self._mask.given

    @attention_mask.setter
    def attention_mask(self, value: torch.Tensor | None) -> None:
        self._mask = PromptMask(value, self._mask.pad_token_id, also_text=self._mask.also_text)
        self.reset()

    @property
    def guide_calls(self) -> int:
        """Forward passes of the guides' models so far."""
        return sum(guide.calls for guide in self.guides)

    @property
    def guide_tokens(self) -> int:
        """Tokens in the forward passes of the guides' models so far, padding included."""
        return sum(guide.tokens for guide in self.guides)

    def reset(self) -> None:
        """Free the memory of the guides' KV caches."""
        self._goes_on = False
        if self.scheduled is not None:
            self.scheduled.forget()
        for guide in self.guides:
            guide.reset()

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        n, vocabulary = scores.shape
        self.check_top_k(vocabulary)
        weights_NH = self.row_weights(n, scores.device)
        saved = self.saved
        if not self._weights.any() and not self.candidates_only and saved is None:
            return scores
        self._mask.check(input_ids)
        used = [i for i, columns in enumerate(self.columns) if saved is not None or self._weights.any(columns)]
        if saved is not None:
            saved.begin(scores, self.heads, weights_NH.expand(n, -1))
        if self.scheduled is not None:
            found = self._scheduled_call(self.scheduled, input_ids, scores, weights_NH, used)
        else:
            scores_of = self._scores(self._context(input_ids, vocabulary))
            found = self.guided_logits(scores, weights_NH, used, scores_of)[0]
        if saved is not None:
            saved.end(found)
        return found

    def _context(self, ids_NS: torch.Tensor, vocabulary: int, goes_on: bool = False) -> GuideContext:
        return GuideContext(
            ids_NS, lambda: self._mask(ids_NS), vocabulary, tokenizer=self.tokenizer, goes_on=goes_on,
            end_token_ids=self.end_token_ids,
        )  # fmt: skip

    def _scores(self, context: GuideContext, rows_R: torch.Tensor | None = None) -> Scores:
        def of_guide(guide: BaseGuide, candidates_Nk: torch.Tensor, logits_Nk: torch.Tensor) -> torch.Tensor:
            seen = replace(context, logits_Nk=logits_Nk) if rows_R is None else context.some(rows_R, logits_Nk)
            if guide.own_prompts and self._prompts is not None:
                seen = self._prompts.context(seen)
            return guide.score(seen, candidates_Nk)

        return of_guide

    def _own_prompts(self, prompts: Sequence[Sequence[int]] | None) -> GuidePrompts | None:
        """Prompts that guides read in place of the language model's; raise `ValueError` if they need some."""
        own = [guide for guide in self.guides if guide.own_prompts]
        if own and prompts is None:
            raise ValueError(
                f"The {own[0].who} reads a prompt of its own in place of the language model's: pass the token ids for "
                "each prompt (`value_prompts` for value models; a column `value_prompt` in datasets)."
            )
        if prompts is None:
            return None
        if not own:
            raise ValueError("No guide reads a prompt of its own: `guide_prompts` would have no effect.")
        given = self._mask.given
        if given is None or len(given) != len(prompts):
            raise ValueError("`guide_prompts` needs the `attention_mask` of the prompts, with a row for each of them.")
        return GuidePrompts(prompts, given.shape[1], self._mask.pad_token_id or 0)

    def _rows(self, tokenizer: PreTrainedTokenizerBase | None, ends: Sequence[int]) -> ScheduledRows:
        return ScheduledRows(self.schedule, tokenizer=tokenizer, ends=ends)

    def _scheduled_call(
        self,
        scheduled: ScheduledRows,
        ids_NS: torch.Tensor,
        scores_NV: torch.Tensor,
        weights_NH: torch.Tensor,
        guides: Sequence[int],
    ) -> Any:
        """Guided logits of the rows that the schedule guides; the guides are not asked where that is none."""
        n, vocabulary = scores_NV.shape
        if not scheduled.follow(ids_NS, self._mask):
            self._goes_on = False
        guided_N = None if scheduled.schedule.skips(scheduled.position) else scheduled.guided(scores_NV)
        count = 0 if guided_N is None else int(guided_N.sum())
        if guided_N is None or not count:
            scheduled.count(None)
            return scores_NV
        context = self._context(ids_NS, vocabulary, self._goes_on)
        self._goes_on = True  # now the guides have read these sequences
        k = self.top_k or vocabulary
        if (n - count) * k <= WIDE_FORWARD.get(scores_NV.device.type, WIDE_FORWARD_ELSEWHERE):
            found_NV, guided_N = self.guided_logits(scores_NV, weights_NH, guides, self._scores(context), guided_N)
            scheduled.count(guided_N)
            return found_NV
        rows_R = guided_N.nonzero().squeeze(1)
        of_guide, all_R = self._scores(context, rows_R), torch.ones_like(rows_R, dtype=torch.bool)
        found_RV, guided_R = self.guided_logits(scores_NV[rows_R], weights_NH[rows_R], guides, of_guide, all_R, rows_R)
        scheduled.count(guided_N.index_copy(0, rows_R, guided_R))
        return scores_NV.index_copy(0, rows_R, found_RV)

    def guided_logits(
        self,
        scores_NV: torch.Tensor,
        weights_NH: torch.Tensor,
        guides: Sequence[int],
        of_guide: Scores,
        guided_N: torch.Tensor | None = None,
        rows_N: torch.Tensor | None = None,
    ) -> tuple[Any, Any]:
        """
        The logits plus the weighted and centred scores of the candidates.

        Args:
            scores_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            weights_NH (`torch.Tensor` of shape `(N, H)`): Weight of each head.
            guides (`Sequence[int]`): Indices of the guides to use.
            of_guide (`Callable`): From a guide, candidates (N, k) and their logits (N, k) to their scores, (N, k) or
                (N, k, heads of the guide).
            guided_N (`torch.Tensor` of shape `(N,)`, *optional*): True for rows that are guided; by default all.
            rows_N (`torch.Tensor` of shape `(N,)`, *optional*): The rows of the batch that these are, for `saved`; by
                default all of it.

        Returns:
            The logits, `torch.Tensor` of shape `(N, V)`, and `guided_N` without rows whose scores differ too little.
        """
        top_Nk, candidates_Nk, possible_Nk, added_Nk = self.candidate_scores(
            scores_NV, weights_NH, guides, of_guide, guided_N, rows_N
        )
        if guided_N is not None:
            if self.schedule.margin:
                guided_N = guided_N & (margin(added_Nk, possible_Nk) > self.schedule.margin)
            added_Nk = added_Nk.masked_fill(~guided_N[:, None], 0.0)
        added_Nk = added_Nk.to(scores_NV.dtype)
        if not self.candidates_only:
            return scores_NV.scatter_add(1, candidates_Nk, added_Nk), guided_N
        chosen_Nk = (top_Nk + added_Nk).masked_fill(~possible_Nk, -torch.inf)
        only_NV = torch.full_like(scores_NV, -torch.inf).scatter(1, candidates_Nk, chosen_Nk)
        return only_NV if guided_N is None else torch.where(guided_N[:, None], only_NV, scores_NV), guided_N

    def candidate_scores(
        self,
        scores_NV: torch.Tensor,
        weights_NH: torch.Tensor,
        guides: Sequence[int],
        of_guide: Scores,
        guided_N: torch.Tensor | None = None,
        rows_N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The candidates, and what guidance adds to their logits.

        Args:
            scores_NV, weights_NH, guides, of_guide, guided_N, rows_N: As for [`guided_logits`].

        Returns:
            Logits of the candidates, the candidates, whether each is possible, and what is added, all of shape (N, k).
        """
        n, vocabulary = scores_NV.shape
        if 0 < self.top_k < vocabulary:
            top_Nk, candidates_Nk = scores_NV.topk(self.top_k)
        else:  # all tokens, which need no sorting
            top_Nk, candidates_Nk = scores_NV, torch.arange(vocabulary, device=scores_NV.device).expand(n, -1)
        possible_Nk = top_Nk > -torch.inf  # another processor may have left fewer than k
        if self.min_p:
            possible_Nk = possible_Nk & (top_Nk >= top_Nk.amax(1, keepdim=True) + math.log(self.min_p))
        added_Nk = torch.zeros_like(top_Nk, dtype=torch.float32)
        values: list[torch.Tensor] = []
        for i in guides:
            guide, columns = self.guides[i], self.columns[i]
            known_Nk = possible_Nk
            if 0 < guide.vocabulary < vocabulary:
                known_Nk = possible_Nk & (candidates_Nk < guide.vocabulary)
            scores_NkH = _with_heads(of_guide(guide, candidates_Nk, top_Nk), candidates_Nk, guide).to(scores_NV.device)
            centred_NkH = _centred(scores_NkH, known_Nk)
            if self.saved is not None:
                values.append(scores_NkH.float().masked_fill(~known_Nk[..., None], torch.nan))
            added_Nk += (centred_NkH * weights_NH[:, None, columns]).sum(-1)
        if self.saved is not None:
            scored_Nk = possible_Nk if guided_N is None else possible_Nk & guided_N[:, None]
            self.saved.keep(candidates_Nk, scored_Nk, torch.cat(values, -1), rows_N)
        return top_Nk, candidates_Nk, possible_Nk, added_Nk

    def row_weights(self, n: int, device: torch.device) -> torch.Tensor:
        """Weight of each head in each of N rows, (N, H)."""
        return self._weights.tensor(n, device)

    def check_top_k(self, vocabulary: int) -> None:
        """Raise a `ValueError` if the candidates of a vocabulary of this size are too few or too many."""
        if self.top_k > vocabulary:
            raise ValueError(f"`top_k` is {self.top_k}, but the vocabulary has only {vocabulary} tokens.")
        slow = [guide.who for guide in self.guides if guide.reads_candidates]
        if slow and (self.top_k or vocabulary) > MOST_READ:
            raise ValueError(
                f"The {slow[0]} would read {self.top_k or vocabulary} candidates at each token, one by one: set a "
                f"`top_k` of at most {MOST_READ} (`guide_top_k` in files and flags), or use a guide that scores all "
                "tokens in one forward pass, such as a value model of the form 'action' or a language model."
            )

    # -------------------------------------------------- CUDA-graph decoding: see `trl_ext/decoding/static_generate.py`

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why CUDA-graph decoding cannot guide this language model; `""` if it can."""
        self.check_top_k(llm.vocabulary)
        if self.saved is not None:
            return "an observer sees the candidates of each token"
        if self._prompts is not None:
            return "a guide reads a prompt of its own"
        methods = [(getattr(type(self), name), getattr(GuidedLogitsProcessor, name)) for name in _GUIDANCE]
        if any(own is not ours for own, ours in methods):
            return f"{type(self).__name__} may change the logits in another way"
        return next(filter(None, (guide.static_unsupported_reason(llm) for guide in self.guides)), "")

    def static_length_reason(self, longest: int) -> str:
        """Why CUDA-graph decoding cannot guide texts of up to so many columns; `""` if it can."""
        short = [guide for guide in self.guides if 0 < guide.context_length < longest]
        return f"texts may exceed the context of a {short[0].who}" if short else ""

    def static_key(self) -> Any:
        """Key of the recorded graph: everything that it depends on, except prompts and weights."""
        parts = [(columns.start, guide.static_key()) for guide, columns in zip(self.guides, self.columns, strict=True)]
        rows = self.scheduled
        scheduled = () if rows is None else (self.schedule, id(rows.tokenizer), tuple(rows.ends))
        return type(self), self.top_k, self.candidates_only, self.min_p, *scheduled, *parts

    def static_columns(self) -> int:
        """Columns of the static KV cache that the candidates of one step need."""
        return max(guide.static_columns(self.top_k or guide.vocabulary) for guide in self.guides)

    def static_guide(self, rows: int, columns: int) -> "StaticScores":
        """The guide for CUDA-graph decoding of `rows` sequences with a static KV cache of `columns` columns."""
        return StaticScores(self, rows, columns)


_GUIDANCE = ("__call__", "guided_logits")


class StaticScores:
    """
    Scores for CUDA-graph decoding; a [`~trl_ext.decoding.static_generate.StaticGuide`] with static KV caches.

    Args:
        processor ([`GuidedLogitsProcessor`]): Processor with the guides and `top_k`.
        rows (`int`), columns (`int`): Size of the static KV caches.
    """

    def __init__(self, processor: GuidedLogitsProcessor, rows: int, columns: int) -> None:
        self.processor = processor
        self._scorers: dict[BaseGuide, StaticScorer] = {
            guide: guide.static_scorer(rows, columns) for guide in processor.guides
        }
        self.trees = [tree for scorer in self._scorers.values() for tree in scorer.trees]
        device = next(iter(self._scorers.values())).device
        self.weights_NH = torch.zeros(rows, len(processor.heads), device=device)
        self.state = [self.weights_NH, *(tree.length_1 for tree in self.trees)]
        self.scheduled: ScheduledRows | None = None
        if processor.scheduled is not None:
            given = processor.scheduled
            self.scheduled = ScheduledRows(given.schedule, tokenizer=given.tokenizer, ends=given.ends)
            self.scheduled.start(torch.zeros(rows, 1, dtype=torch.long, device=device))
            self.state += self.scheduled.state

    def start(self, processor: GuidedLogitsProcessor, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Read the prompts, and copy the weights of this call."""
        for tree in self.trees:
            tree.start(ids_NP.to(tree.device), mask_NP.to(tree.device))
        weights = processor.row_weights(len(ids_NP), self.weights_NH.device)
        self.weights_NH.copy_(weights.expand_as(self.weights_NH))

    def __call__(self, scores_NV: torch.Tensor, after_NT: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """
        Guided logits of the next step.

        Args:
            scores_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits.
            after_NT (`torch.Tensor` of shape `(N, T)`): Last tokens of each sequence, since the previous call.
            hidden_ND (`torch.Tensor` of shape `(N, D)`): The language model's hidden states at the last one.

        Returns:
            `torch.Tensor` of shape `(N, V)`.
        """

        def of_guide(guide: BaseGuide, candidates_Nk: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return self._scorers[guide].score(candidates_Nk, after_NT, hidden_ND)

        guides, scheduled = range(len(self.processor.guides)), self.scheduled
        guided_N = None if scheduled is None else scheduled.guided(scores_NV)
        found_NV, guided_N = self.processor.guided_logits(scores_NV, self.weights_NH, guides, of_guide, guided_N)
        if scheduled is not None:
            scheduled.count(guided_N)
        return found_NV


def _with_heads(scores: torch.Tensor, candidates_Nk: torch.Tensor, guide: BaseGuide) -> torch.Tensor:
    """Scores of shape (N, k, H)."""
    heads = len(guide.heads)
    if scores.shape == candidates_Nk.shape and heads == 1:
        return scores[..., None]
    if scores.shape != (*candidates_Nk.shape, heads):
        raise ValueError(
            f"The {guide.who} returned scores of shape {tuple(scores.shape)} for candidates of shape "
            f"{tuple(candidates_Nk.shape)}: return one score for each candidate{' and head' if heads > 1 else ''}."
        )
    return scores


def _centred(scores_NkH: torch.Tensor, possible_Nk: torch.Tensor) -> torch.Tensor:
    """Scores minus their mean over the possible candidates; 0 for the others."""
    possible = possible_Nk[..., None]
    mean = scores_NkH.masked_fill(~possible, 0.0).sum(1, keepdim=True) / possible.sum(1, keepdim=True).clamp(min=1)
    return (scores_NkH - mean).masked_fill(~possible, 0.0)


def _prompt_mask(
    attention_mask: torch.Tensor | None,
    pad_token_id: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: Any,
) -> PromptMask:
    """How padding is recognised: the first pad token that is given or known, and whether texts may begin with it."""
    known: Any = tokenizer or (config and config.get_text_config())
    if known is None:
        return PromptMask(attention_mask, pad_token_id, also_text=False)
    eos, bos = getattr(known, "eos_token_id", None), getattr(known, "bos_token_id", None)
    eos = eos if isinstance(eos, list) else [eos]
    candidates = [pad_token_id, *(getattr(each, "pad_token_id", None) for each in ([] if tokenizer else [config]))]
    candidates.append(getattr(known, "pad_token_id", None))
    if attention_mask is None:
        # Many configs have no pad token. `generate` then pads with the end of sequence, and so do most tokenizers.
        candidates += eos[:1]
    pad = next((token for token in candidates if token is not None), None)
    return PromptMask(attention_mask, pad, also_text=pad in [bos, *eos])
