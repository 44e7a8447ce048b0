# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Completions of many prompts with a proxy: batch by batch, each until all of its sequences have ended.

Dimensions: P prompts, K completions per prompt, N = P x K sequences, T tokens of a prompt.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import StopStringCriteria

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.decoding.guide_schedule import GuideSchedule, read_schedule
from trl_ext.decoding.scheduled_rows import ScheduledRows
from trl_ext.devices import supports_cuda_graphs
from trl_ext.generation.observer import Observer, Step
from trl_ext.generation.token_guidance import SavedGuidance
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.modes import without_gradients
from trl_ext.models.properties import base_of
from trl_ext.progress import progress

from ..data import Decisions
from ..decision_process import FEATURES, DecisionProcess
from .per_row_rng import PerRowRNG
from .static_walk import StaticWalk, static_walk, static_walk_reason
from .walk import Walk


logger = logging.getLogger(__name__)

COUNTS = ("examined", "rejected", "forced", "asked")


@dataclass
class ProxyCompletions:
    """
    N completions, and counts of the decisions that led to them.

    Args:
        ids (`list[list[int]]`): Token ids of each completion, including the end of sequence.
        ended (`list[bool]`): Whether it ended, by an end of sequence or a stop string.
        examined, rejected (`torch.Tensor` of shape `(N,)`): Number of candidates that the proxy was asked about, and
            that it rejected.
        forced, asked (`torch.Tensor` of shape `(N,)`): Number of positions at which all candidates were rejected, and
            at which the proxy was asked (with a schedule, and was sure of a decision).
        kl (`torch.Tensor` of shape `(N,)`): Estimate of log q - log pi_0 of the completion, NaN if it was not
            measured.
        decisions ([`Decisions`], *optional*): The decisions, if they were recorded.
    """

    ids: list[list[int]]
    ended: list[bool]
    examined: torch.Tensor
    rejected: torch.Tensor
    forced: torch.Tensor
    asked: torch.Tensor
    kl: torch.Tensor
    decisions: Decisions | None = None

    @classmethod
    def join(cls, parts: "list[ProxyCompletions]") -> "ProxyCompletions":
        """Concatenate the completions of several batches."""
        decisions = [part.decisions for part in parts if part.decisions is not None]
        return cls(
            [ids for part in parts for ids in part.ids],
            [ended for part in parts for ended in part.ended],
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in (*COUNTS, "kl")},
            decisions=Decisions.join(decisions, [len(part.ids) for part in parts]) if decisions else None,
        )

    def in_order(self, order: Sequence[int]) -> "ProxyCompletions":
        """The same completions, with completion i at index `order[i]`."""
        index = torch.tensor(order, dtype=torch.long)
        back = torch.empty_like(index)
        back[index] = torch.arange(len(order))
        rows = back.tolist()
        decisions = self.decisions
        if decisions is not None:
            response = index.to(decisions.response.device)[decisions.response]
            decisions = replace(decisions, response=response)[response.sort(stable=True).indices]
        numbers = {name: getattr(self, name)[back] for name in (*COUNTS, "kl")}
        return ProxyCompletions(
            [self.ids[i] for i in rows], [self.ended[i] for i in rows], **numbers, decisions=decisions
        )


@without_gradients
def complete(
    llm: BackboneAndHead,
    proxy: Any,
    process: DecisionProcess,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    max_length: int = 0,
    eos: Sequence[int] = (),
    pad: int = 0,
    batch_size: int = 64,
    greedy: bool = False,
    record: bool = False,
    measure_every: int = 0,
    first_candidates: int = 0,
    stop: StopStringCriteria | None = None,
    observer: Observer | None = None,
    store: torch.device | str | None = None,
    cuda_graphs: str = "auto",
    schedule: GuideSchedule | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ProxyCompletions:
    """
    Generate K completions of each prompt.

    Args:
        llm ([`BackboneAndHead`]): The language model.
        proxy ([`ProxyModel`]): The proxy. It is moved to the language model's device.
        process ([`DecisionProcess`]): The decision process.
        prompts (`list[list[int]]`): Token ids of P prompts.
        seeds (`list[int]`): P x K seeds, one per completion; the K of a prompt are contiguous.
        max_new_tokens (`int`): Maximum length of a completion.
        max_length (`int`, *optional*, defaults to `0`): Maximum length of prompt plus completion (`0`: no limit). A
            completion has at least one token.
        eos (`list[int]`): Tokens that end a completion.
        pad (`int`): Token id of padding.
        batch_size (`int`): Maximum number of sequences at once.
        greedy (`bool`): Whether to accept where that is at least as likely as not, instead of sampling decisions.
        record (`bool`): Whether to record the decisions.
        measure_every (`int`): Measure the KL at one in so many positions (`0`: nowhere).
        first_candidates (`int`): See [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`].
        stop ([`~transformers.StopStringCriteria`], *optional*): Stop strings.
        observer ([`~trl_ext.generation.observer.Observer`], *optional*): Sees the tokens of each position and may end
            completions. Its `seeds` are not read, and it gets no log-probabilities. With `top_candidates` it gets the
            probabilities of candidates, where they can be computed exactly.
        store (`torch.device`, *optional*): Device that recorded decisions are moved to. By default the language
            model's.
        cuda_graphs (`str`): CUDA-graph decoding: `"auto"` on a GPU, `"always"` or `"never"`. The completions are the
            same.
        schedule ([`~trl_ext.decoding.guide_schedule.GuideSchedule`], *optional*): Which tokens the proxy is asked
            about; by default all.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): For a schedule of words or sentences.

    Raises:
        `ValueError`: A prompt is empty, the schedule needs a tokenizer, or `cuda_graphs` is `"always"` and cannot be
            used.
        `RuntimeError`: Out of memory; the message names settings that reduce it.
    """
    if next(proxy.parameters()).device != llm.device:
        proxy.to(llm.device)
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"Prompt {i} has no tokens: there is nothing to continue.")
        llm.check_tokens([prompt], f"Prompt {i}")
    k = len(seeds) // len(prompts)
    limits = [max_new_tokens] * len(prompts)
    if max_length:
        limits = [min(max_new_tokens, max(max_length - len(prompt), 1)) for prompt in prompts]
    # Prompts of similar length together need little padding. The longest come first: they decide about memory.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    step = max(1, batch_size // k)
    parts, places = [], []
    with progress("sampling", len(prompts), hidden=observer is not None) as phase:
        for start, done in product(range(0, len(order), step), range(0, k, batch_size)):
            chosen, numbers = order[start : start + step], range(done, min(done + batch_size, k))
            rows = [(i, i * k + j) for i in chosen for j in numbers]  # prompt, completion
            places += [place for _, place in rows]
            batch = _Batch(llm, [prompts[i] for i in chosen], pad, [limits[i] for i, _ in rows], set(eos))
            walk = partial(
                _walk, llm, proxy, process, batch, [seeds[place] for _, place in rows],
                greedy=greedy, record=record, first_candidates=first_candidates,
                scheduled=scheduled_rows(schedule, tokenizer),
            )  # fmt: skip
            top = None if observer is None or not process.exact else observer.top_candidates
            saved = None if top is None else SavedGuidance(top)
            see = None if observer is None else partial(_see, observer, [place for _, place in rows], saved)
            run = partial(batch.run, measure_every=measure_every, stop=stop, see=see, store=store)
            try:
                if _is_static(cuda_graphs, llm, process, len(rows), first_candidates, stop, saved is not None):
                    parts.append(_run_static(walk, run, llm, cuda_graphs))
                else:
                    parts.append(run(_watched(walk(static=False), saved)))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                raise RuntimeError(
                    f"Out of memory while generating {len(rows)} completions at once ({error}). What helps: a "
                    "smaller `generation_batch_size`, fewer candidates per forward pass (`first_candidates`, "
                    "`top_k`), `feature='context'`, a smaller `max_completion_length`, a 4-bit model "
                    "(`load_in_4bit`)."
                ) from error
            phase.advance(len(rows) / k)
    return ProxyCompletions.join(parts).in_order(places)


def proxy_schedule(every: int | str, when: dict[str, Any] | str | None, *, prefix: str = "guide") -> GuideSchedule:
    """
    The schedule of two settings, as [`~trl_ext.decoding.guide_schedule.read_schedule`] reads them.

    Raises:
        `ValueError`: A value is not valid, or a condition is about the values of a value model.
    """
    reason = "a proxy has no values that could differ. Use `confidence`, the probability of its decision."
    return read_schedule(every, when, prefix=prefix, refused={"margin": reason})


def scheduled_rows(schedule: GuideSchedule | None, tokenizer: PreTrainedTokenizerBase | None) -> ScheduledRows | None:
    """What applies a schedule to the rows of a batch; `None` where every token is guided."""
    return None if schedule is None or schedule.always else ScheduledRows(schedule, tokenizer=tokenizer)


def _watched(walk: Walk | StaticWalk, saved: SavedGuidance | None) -> Walk | StaticWalk:
    """The walk, which writes down what an observer asks for."""
    if saved is not None:
        assert isinstance(walk, Walk)
        walk.saved = saved
    return walk


def _is_static(
    wanted: str, llm: BackboneAndHead, process: DecisionProcess, rows: int, first: int, stop: Any, watched: bool
) -> bool:
    """Whether to use CUDA-graph decoding."""
    if wanted == "never" or (wanted == "auto" and (first or not supports_cuda_graphs(llm.device))):
        return False
    if stop is not None:
        reason = "stop strings depend on the text so far"
    else:
        reason = "an observer sees the candidates" if watched else static_walk_reason(llm, process, rows)
    if reason and wanted == "always":
        raise ValueError(f"`cuda_graphs` is 'always', but CUDA-graph decoding cannot be used: {reason}.")
    return not reason


def _walk(
    llm: BackboneAndHead,
    proxy: Any,
    process: DecisionProcess,
    batch: "_Batch",
    seeds: list[int],
    *,
    static: bool,
    greedy: bool,
    record: bool,
    first_candidates: int,
    scheduled: ScheduledRows | None,
) -> Walk | StaticWalk:
    """The walk of a batch, after reading the prompts. Random numbers do not depend on which of the two it is."""
    n, repeats = len(batch.limits), len(batch.limits) // len(batch.ids_PT)
    rng = PerRowRNG(seeds, min(process.top_k, llm.vocabulary), llm.device)
    if not static:
        return Walk(
            llm, proxy.accept_logits, process, batch.ids_PT, batch.mask_PT,
            repeats=repeats, rng=rng, greedy=greedy, record=record, first_candidates=first_candidates,
            scheduled=scheduled,
        )  # fmt: skip
    longest = batch.width + max(batch.limits)
    walk = static_walk(llm, proxy, process, n, longest, greedy=greedy, ends=sorted(batch.eos), scheduled=scheduled)
    walk.start(batch.ids_PT, batch.mask_PT, repeats, rng, batch.limits, record)
    return walk


def _run_static(
    walk: Any, run: Callable[[Any], ProxyCompletions], llm: BackboneAndHead, wanted: str
) -> ProxyCompletions:
    """Run with a static KV cache; if there is no memory for it, start again with one that grows."""
    loops = cached_loops(base_of(llm.model))
    try:
        with loops.lock:
            return run(walk(static=True))
    except RuntimeError as error:
        loops.clear()
        if wanted == "always" or not _out_of_memory(error):
            raise
        logger.warning("There is not enough memory for a static KV cache: decoding without CUDA graphs.")
    return run(walk(static=False))


def _see(
    observer: Observer,
    places: Sequence[int],
    saved: SavedGuidance | None,
    alive: torch.Tensor,
    tokens: torch.Tensor,
    over: torch.Tensor,
) -> torch.Tensor:
    """Show the observer the tokens of the rows `alive`, whose completions are at `places`; which of them it ends."""
    rows = [places[row] for row in alive.tolist()]
    guidance = None if saved is None else saved.of(tokens)
    stopped = observer.see(Step(rows, tokens.tolist(), over.tolist(), guidance=guidance))
    return torch.tensor([row in stopped for row in rows], device=over.device)


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


class _Batch:
    """Prompts whose completions are generated together."""

    def __init__(
        self, llm: BackboneAndHead, prompts: list[Sequence[int]], pad: int, limits: list[int], eos: set[int]
    ) -> None:
        self.ids_PT, self.mask_PT = left_padded(prompts, pad, llm.device)
        self.width, self.limits, self.eos, self.llm = self.ids_PT.shape[1], limits, eos, llm

    def run(
        self, walk: Walk | StaticWalk, measure_every: int, stop: Any, see: Any, store: torch.device | str | None
    ) -> ProxyCompletions:
        """Continue the sequences of a walk to their ends."""
        n, device = len(self.limits), self.llm.device
        if isinstance(walk, StaticWalk) and not (walk.record or measure_every or see):
            ids, ended, (examined, rejected, forced, asked) = walk.run()
            return ProxyCompletions(ids, ended, examined, rejected, forced, asked, torch.full((n,), torch.nan))
        store = device if store is None else store
        alive = torch.arange(n, device=device)
        limits = torch.tensor(self.limits, device=device)
        ends = torch.tensor(sorted(self.eos), device=device, dtype=torch.long)
        counts = torch.zeros(4, n, dtype=torch.long, device=device)
        kl = torch.full((n,), 0.0 if measure_every else torch.nan, device=device)
        written, records, over_N = [], [], torch.zeros(n, dtype=torch.bool, device=device)
        for t in range(max(self.limits)):
            # The middle position of each stretch: the estimate must not depend on the batch.
            measured = bool(measure_every) and t % measure_every == measure_every // 2
            step = walk.step(measure=measured)
            written.append((alive, step.tokens))
            counts[:, alive] += torch.stack([step.examined, step.rejected, step.forced.long(), step.asked.long()])
            if step.kl is not None:
                kl[alive] += step.kl.to(kl.dtype) * measure_every
            if step.records:
                row = alive[step.records.pop("row")]
                part: dict[str, Any] = {**step.records, "response": row}
                records.append({name: x.to(store) for name, x in part.items()})
            over = torch.isin(step.tokens, ends)
            if stop is not None:
                over = over | stop(walk.tree.ids_NS[:, self.width :], None).to(over.device)  # type: ignore[arg-type,union-attr]
            over_N[alive] = over
            going = ~over & (limits[alive] > t + 1)
            if see is not None:
                going &= ~see(alive, step.tokens, over)
            if not bool(going.all()):
                alive = alive[going]
                if not len(alive):
                    break
                walk.keep(going.nonzero().squeeze(1))
        ids = [[] for _ in range(n)]
        for rows, tokens in written:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                ids[row].append(token)
        decisions = None
        if walk.record:
            decisions = Decisions.collect(records, FEATURES[walk.process.feature] * self.llm.width).to(store)
        examined, rejected, forced, asked = counts.cpu()
        return ProxyCompletions(ids, over_N.tolist(), examined, rejected, forced, asked, kl.cpu(), decisions)
