# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
ProxyCompletions: a frozen model proposes and a proxy decides, token by token, until every text of a batch has ended.

P prompts, N = P x K texts, T tokens.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers.generation import StopStringCriteria

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.load import base_of

from ..data import Decisions
from ..decision_process import FEATURES, DecisionProcess
from .per_row_rng import PerRowRNG
from .static_walk import StaticWalk, static_walk, static_walk_reason
from .walk import Walk


logger = logging.getLogger(__name__)


@dataclass
class ProxyCompletions:
    """
    What became of N texts.

    Args:
        ids (`list[list[int]]`): Token ids of each answer, with the end of sequence if it came.
        ended (`list[bool]`): Whether it ended, by that or a stop string.
        examined, rejected, forced, asked (`torch.Tensor` of shape `(N,)`): Candidates that the proxy was asked about
            and that it rejected; positions at which all were, and at which there was something to decide.
        kl (`torch.Tensor` of shape `(N,)`): Estimate of log q - log pi_0 of the answer, NaN where it was not measured.
        decisions ([`Decisions`], *optional*): If they were recorded.
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
        """The answers of several batches."""
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("examined", "rejected", "forced", "asked", "kl")
        }
        kept = [part.decisions for part in parts if part.decisions is not None]
        return cls(
            [ids for part in parts for ids in part.ids],
            [ended for part in parts for ended in part.ended],
            **tensors,
            decisions=Decisions.join(kept, [len(part.ids) for part in parts]) if kept else None,
        )

    def in_order(self, order: Sequence[int]) -> "ProxyCompletions":
        """The same texts with text i at place `order[i]`."""
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        rows = back.tolist()
        decisions = self.decisions
        if decisions is not None:
            place = torch.tensor(order, device=decisions.response.device)[decisions.response]
            decisions = replace(decisions, response=place)[place.sort(stable=True).indices]
        counts = {name: getattr(self, name)[back] for name in ("examined", "rejected", "forced", "asked", "kl")}
        return ProxyCompletions(
            [self.ids[i] for i in rows], [self.ended[i] for i in rows], **counts, decisions=decisions
        )


@torch.no_grad()
def complete(
    llm: BackboneAndHead,
    proxy: Any,
    process: DecisionProcess,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    context_left: Sequence[int] | None = None,
    eos: Sequence[int] = (),
    pad: int = 0,
    batch_size: int = 64,
    greedy: bool = False,
    record: bool = False,
    measure_every: int = 0,
    first_candidates: int = 0,
    stop: StopStringCriteria | None = None,
    show: Callable[[list[int]], Any] | None = None,
    store: torch.device | str | None = None,
    cuda_graphs: str = "auto",
) -> ProxyCompletions:
    """
    Answer prompts.

    Args:
        llm ([`BackboneAndHead`]), proxy ([`ProxyModel`]), process ([`DecisionProcess`]): The model,
            the proxy and the process.
        prompts (`list[list[int]]`): Token ids.
        seeds (`list[int]`): Chance: one a text, P x K of them, the K of a prompt next to one another.
        max_new_tokens (`int`): Longest answer.
        context_left (`list[int]`, *optional*): For each prompt a smaller limit than that.
        eos (`list[int]`): Tokens that end an answer.
        pad (`int`): Token in padding.
        batch_size (`int`): Texts at once.
        greedy (`bool`): Whether the likelier decision is taken, not drawn.
        record (`bool`): Whether decisions are kept.
        measure_every (`int`): Measure the KL at every so many positions (`0`: nowhere).
        first_candidates (`int`): See [`~trl_ext.methods.proxy_rlhf.decoding.walk.Walk`].
        stop ([`~transformers.StopStringCriteria`], *optional*): Further ends.
        show (`Callable`, *optional*): Called with the tokens (N,) of each position; for a single text.
        store (`torch.device`, *optional*): Where decisions are kept; by default where they were made.
        cuda_graphs (`str`): Whether a token is one replay of a CUDA graph: `"auto"` on a GPU, `"always"`,
            `"never"`. The answers are the same.

    Raises:
        `ValueError`: `cuda_graphs` is `"always"` where it cannot be.
        `RuntimeError`: Out of memory; the message says which settings help.
    """
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"Prompt {i} has no tokens: there is nothing to continue.")
        llm.check_tokens([prompt], f"Prompt {i}")
    k = len(seeds) // len(prompts)
    limits = [min(max_new_tokens, max(room, 1)) for room in context_left or [max_new_tokens] * len(prompts)]
    # Equal lengths together waste little on padding, and memory runs out at once or never.
    order = sorted((i for i in range(len(prompts))), key=lambda i: -len(prompts[i]))
    step = max(1, batch_size // k)
    parts, places = [], []
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        for done in range(0, k, batch_size):
            some = range(done, min(done + batch_size, k))
            places += [i * k + j for i in chosen for j in some]
            batch = _Batch(llm, [prompts[i] for i in chosen], pad, [limits[i] for i in chosen for _ in some], set(eos))
            walk = partial(
                _walk, llm, proxy, process, batch, [seeds[i * k + j] for i in chosen for j in some],
                greedy=greedy, record=record, first_candidates=first_candidates,
            )  # fmt: skip
            run = partial(batch.run, measure_every=measure_every, stop=stop, show=show, store=store)
            try:
                if _is_static(cuda_graphs, llm, process, len(batch.limits), first_candidates, stop):
                    parts.append(_run_static(walk, run, llm, cuda_graphs))
                else:
                    parts.append(run(walk(static=False)))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                raise RuntimeError(
                    f"Out of memory while answering {len(batch.limits)} prompts at once ({error}). What helps: a "
                    "smaller `generation_batch_size`, fewer candidates in a forward (`first_candidates`, `top_k`), "
                    "`feature='context'`, a smaller `max_completion_length`, a 4-bit model (`load_in_4bit`)."
                ) from error
    return ProxyCompletions.join(parts).in_order(places)


def _is_static(wanted: str, llm: BackboneAndHead, process: DecisionProcess, rows: int, first: int, stop: Any) -> bool:
    if wanted == "never" or (wanted == "auto" and (llm.device.type != "cuda" or first)):
        return False
    reason = "stop strings look at the text so far" if stop is not None else static_walk_reason(llm, process, rows)
    if reason and wanted == "always":
        raise ValueError(f"`cuda_graphs` is 'always', but the loop of fixed shapes cannot be used: {reason}.")
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
) -> Walk | StaticWalk:
    """The walk of a batch, its prompts read; chance is the same whichever walk it is."""
    n, repeats = len(batch.limits), len(batch.limits) // len(batch.ids_PT)
    rng = PerRowRNG(seeds, _columns(llm, process), llm.device)
    if not static:
        return Walk(
            llm, proxy.accept_logits, process, batch.ids_PT, batch.mask_PT,
            repeats=repeats, rng=rng, greedy=greedy, record=record, first_candidates=first_candidates,
        )  # fmt: skip
    longest = batch.width + max(batch.limits)
    walk = static_walk(llm, proxy, process, n, longest, greedy=greedy, ends=sorted(batch.eos))
    walk.start(batch.ids_PT, batch.mask_PT, repeats, rng, batch.limits, record)
    return walk


def _run_static(
    walk: Any, run: Callable[[Any], ProxyCompletions], llm: BackboneAndHead, wanted: str
) -> ProxyCompletions:
    """In a room for whole texts; where there is no memory for that, from the start with a cache that grows."""
    loops = cached_loops(base_of(llm.model))
    try:
        with loops.lock:
            return run(walk(static=True))
    except RuntimeError as error:
        loops.clear()
        if wanted == "always" or not _out_of_memory(error):
            raise
        logger.warning("There is no memory for a cache of full length from the start; the ordinary loop is used.")
    return run(walk(static=False))


def _columns(llm: BackboneAndHead, process: DecisionProcess) -> int:
    return min(process.top_k, llm.vocabulary)


def _out_of_memory(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


class _Batch:
    """Prompts that are answered together."""

    def __init__(
        self, llm: BackboneAndHead, prompts: list[Sequence[int]], pad: int, limits: list[int], eos: set[int]
    ) -> None:
        self.ids_PT, self.mask_PT = left_padded(prompts, pad, llm.device)
        self.width, self.limits, self.eos, self.llm = self.ids_PT.shape[1], limits, eos, llm

    def run(
        self, walk: Walk | StaticWalk, measure_every: int, stop: Any, show: Any, store: torch.device | str | None
    ) -> ProxyCompletions:
        n, device = len(self.limits), self.llm.device
        if isinstance(walk, StaticWalk) and not (walk.record or measure_every or show):
            ids, ended, (examined, rejected, forced, asked) = walk.run()
            return ProxyCompletions(ids, ended, examined, rejected, forced, asked, torch.full((n,), torch.nan))
        store = device if store is None else store
        alive = torch.arange(n, device=device)
        limits = torch.tensor(self.limits, device=device)
        ends = torch.tensor(sorted(self.eos), device=device, dtype=torch.long)
        counts = torch.zeros(4, n, dtype=torch.long, device=device)
        kl = torch.full((n,), 0.0 if measure_every else torch.nan, device=device)
        drawn, records, over_N = [], [], torch.zeros(n, dtype=torch.bool, device=device)
        for t in range(max(self.limits)):
            # Another residue in every batch would tie the figure to the batch: the middle of each stretch.
            measured = bool(measure_every) and t % measure_every == measure_every // 2
            step = walk.step(measure=measured)
            drawn.append((alive, step.tokens))
            counts[:, alive] += torch.stack([step.examined, step.rejected, step.forced.long(), step.asked.long()])
            if step.kl is not None:
                kl[alive] += step.kl.to(kl.dtype) * measure_every
            if step.records:
                row = alive[step.records.pop("row")]
                part: dict[str, Any] = {**step.records, "response": row}
                records.append({name: x.to(store) for name, x in part.items()})
            if show is not None:
                show(step.tokens.tolist())
            over = torch.isin(step.tokens, ends)
            if stop is not None:
                over = over | stop(walk.tree.ids_NS[:, self.width :], None).to(over.device)  # type: ignore[arg-type,union-attr]
            over_N[alive] = over
            going = ~over & (limits[alive] > t + 1)
            if not bool(going.all()):
                alive = alive[going]
                if not len(alive):
                    break
                walk.keep(going.nonzero().squeeze(1))
        found: list[list[int]] = [[] for _ in range(n)]
        for rows, tokens in drawn:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                found[row].append(token)
        decisions = Decisions.collect(records, FEATURES[walk.process.feature] * self.llm.width).to(store)
        examined, rejected, forced, asked = counts.cpu()
        kept = decisions if walk.record else None
        return ProxyCompletions(found, over_N.tolist(), examined, rejected, forced, asked, kl.cpu(), kept)
