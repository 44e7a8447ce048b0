# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Decoding loop over a static KV cache: each step, guidance included, replays one CUDA graph.

        token -> backbone -> hidden state -> head -> logits -> processors -> next token, written to its column
        \\________________________ one graph, which never waits for the device ________________________/

`generate` runs it as

    model.generate(**inputs, logits_processor=[...], custom_generate=static_generate)

Dimensions: N rows, P tokens of a prompt, S columns of the cache, V vocabulary, D hidden size.
"""

import logging
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.modes import without_gradients
from trl_ext.models.properties import base_of, cache_name
from trl_ext.models.sharding import synced_gpus_kwargs

from .cuda_graph import CHECK_EVERY, Replay, cached_loops, graph_key
from .scheduled_rows import ScheduledRows
from .static_tree import StaticTree, static_columns, static_unsupported_reason
from .token_sampling import SamplingProcessor, sample_columns


logger = logging.getLogger(__name__)

# Processors whose result depends on the logits and their settings only.
_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class StaticGuide(Protocol):
    """Guidance by a logits processor in CUDA-graph decoding, shared by all processors with the same key."""

    state: list[torch.Tensor]
    trees: list[StaticTree]
    scheduled: ScheduledRows | None

    def start(self, processor: Any, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Computes prompts without their last token, and copies the current settings of the processor."""

    def __call__(self, scores_NV: torch.Tensor, after_NT: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """
        Guided scores of the next token, from those of the language model, the tokens since the previous call, and the
        language model's hidden state of the last one.
        """
        ...


@runtime_checkable
class StaticProcessor(Protocol):
    """
    A logits processor that supports CUDA-graph decoding.

    A guide whose schedule skips positions is not called there, whatever the text: such a step is a graph of its own,
    and the guide reads the tokens between at once. What depends on the text or the logits is a mask in the graph of
    the step, and saves no time.
    """

    scheduled: ScheduledRows | None

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why it does not for this language model; empty if it does."""

    def static_length_reason(self, longest: int) -> str:
        """Why it does not for texts of up to so many columns; empty if it does."""

    def static_key(self) -> Hashable:
        """Key that is equal for processors that can share a guide."""

    def static_columns(self) -> int:
        """Columns of the cache that it needs after the text."""

    def static_guide(self, rows: int, columns: int) -> StaticGuide:
        """Makes the guide, with a static KV cache of its own."""


class StaticLoop:
    """
    The static KV caches of a language model and its guides, and the CUDA graph of a decoding step.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        rows (`int`), columns (`int`): N and S.
        processors (`Sequence[LogitsProcessor]`): Its logits processors. A call of [`run`] may pass others that
            have the same keys.
        ends (`Sequence[int]`): Tokens that end a completion.
        pad (`int` or `None`): Token after the end.
        sample (`bool`): Whether the next token is sampled. Otherwise it is the most likely one.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        columns: int,
        processors: Sequence[Any],
        ends: Sequence[int],
        pad: int | None,
        sample: bool,
    ) -> None:
        self.llm, self.sample = BackboneAndHead(model), sample
        device = self.llm.device
        self.tree = StaticTree(self.llm.backbone, rows, columns)
        self.steps: list[Any] = [
            p.static_guide(rows, columns) if isinstance(p, StaticProcessor) else p for p in processors
        ]
        self.token_N1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.written_NS = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.ended_N1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.count_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.ends = torch.tensor(list(ends), dtype=torch.long, device=device)
        self.pad = torch.tensor(0 if pad is None else pad, device=device)
        state = [self.tree.length_1, self.token_N1, self.written_NS, self.ended_N1, self.count_1]
        for step in self.steps:
            state += getattr(step, "state", [])
        self._state = state
        self._replays: dict[tuple[int, ...], Replay] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the static KV caches."""
        return self.tree.nbytes + sum(tree.nbytes for step in self.steps for tree in getattr(step, "trees", ()))

    def run(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor, processors: Sequence[Any], new: int) -> torch.Tensor:
        """
        Generates up to `new` tokens per row.

        Args:
            ids_NP, mask_NP (`torch.Tensor` of shape `(N, P)`): Prompts, padded on the left.
            processors (`Sequence[LogitsProcessor]`): The logits processors of this call.
            new (`int`): The most tokens.

        Returns:
            `torch.Tensor` of shape `(N, T)`: The tokens, as many as the row that ends last has.
        """
        # Without the last token, with which the graph begins. A prompt of one token is computed for the shapes only.
        alone = ids_NP.shape[1] == 1
        before, mask = (ids_NP, mask_NP) if alone else (ids_NP[:, :-1], mask_NP[:, :-1])
        self.tree.start(before, mask)
        for step, processor in zip(self.steps, processors, strict=True):
            if isinstance(processor, StaticProcessor):
                step.start(processor, before, mask)
                if step.scheduled is not None:
                    step.scheduled.start(ids_NP, mask_NP)
                    step.scheduled.counts_2.zero_()
        if alone:
            for tree in (self.tree, *(tree for step in self.steps for tree in getattr(step, "trees", ()))):
                tree.cut(0)
        self.token_N1.copy_(ids_NP[:, -1:])
        self.ended_N1.zero_()
        self.count_1.zero_()
        unread = [1] * len(self.steps)
        for t in range(1, new + 1):
            self._advance(t - 1, unread)
            if len(self.ends) and t % CHECK_EVERY == 0 and bool(self.ended_N1.all()):
                break
        for step, processor in zip(self.steps, processors, strict=True):
            if isinstance(processor, StaticProcessor) and step.scheduled is not None:
                assert processor.scheduled is not None
                processor.scheduled.add_counts(step.scheduled)
        written = self.written_NS[:, :t].clone()
        if not len(self.ends):
            return written
        hits = torch.isin(written, self.ends)
        lengths = torch.where(hits.any(1), hits.int().argmax(1) + 1, t)
        return written[:, : int(lengths.max())]

    def _advance(self, position: int, unread: list[int]) -> None:
        """
        One step.

        Args:
            position (`int`): Number of new tokens so far.
            unread (`list[int]`): For each processor, the last tokens that its guide has not read yet; changed.
        """
        asked = [not (s := getattr(step, "scheduled", None)) or not s.schedule.skips(position) for step in self.steps]
        reads = tuple(count if yes else 0 for count, yes in zip(unread, asked, strict=True))
        if reads not in self._replays:
            self._replays[reads] = Replay(self._next, self._state, self.llm.device, reads)
        self._replays[reads]()
        for i, yes in enumerate(asked):
            unread[i] = 1 if yes else unread[i] + 1

    def _next(self, reads: tuple[int, ...]) -> None:
        """A step in which the guides read so many of the last tokens; 0 leaves a guide out."""
        hidden_ND = self.tree.append(self.token_N1)
        scores = self.llm.logits(hidden_ND)
        for step, count in zip(self.steps, reads, strict=True):
            if not hasattr(step, "state"):
                scores = step(self.token_N1, scores)
            elif count:
                scores = step(scores, self._last(count), hidden_ND)
            else:
                step.scheduled.count(None)
        token = sample_columns(scores.softmax(-1)) if self.sample else scores.argmax(-1, keepdim=True)
        if len(self.ends):
            token = torch.where(self.ended_N1, self.pad, token)
            self.ended_N1.logical_or_(torch.isin(token, self.ends))
        self.written_NS.index_copy_(1, self.count_1, token)
        self.token_N1.copy_(token)
        self.count_1.add_(1)
        for step in self.steps:
            if getattr(step, "scheduled", None) is not None:
                step.scheduled.append(token.squeeze(1))

    def _last(self, count: int) -> torch.Tensor:
        """The last tokens (N, count); all but a single one are new ones."""
        if count == 1:
            return self.token_N1
        columns = self.count_1 - count + torch.arange(count, device=self.count_1.device)
        return self.written_NS.index_select(1, columns)


class CUDAGraphsUnavailable(ValueError):
    """
    Raised where CUDA-graph decoding is not available.

    Args:
        reason (`str`): Why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"CUDA-graph decoding is not available: {reason}. Leave out `custom_generate`.")
        self.reason = reason


def unsupported_reason(
    model: Any, processors: Sequence[Any], criteria: Sequence[Any], config: GenerationConfig
) -> str:
    """
    Why [`static_generate`] does not support a model or settings; empty if it does.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        processors (`Sequence[LogitsProcessor]`): Its logits processors.
        criteria (`Sequence[StoppingCriteria]`): Its stopping criteria.
        config ([`~transformers.GenerationConfig`]): The settings.
    """
    if synced_gpus_kwargs(model).get("synced_gpus"):
        return "the model is sharded over several processes"
    if (config.num_beams or 1) > 1:
        return "it does not support beam search"
    if config.return_dict_in_generate:
        return "it returns tokens only (`return_dict_in_generate`)"
    base = base_of(model)
    if "_original_forward" in vars(base) and not torch.is_autocast_enabled(base.device.type):
        return "accelerate has wrapped its forward; call it inside `accelerator.autocast()`"
    try:
        llm = BackboneAndHead(model)
    except ValueError as error:
        return str(error)
    for processor in processors:
        if isinstance(processor, StaticProcessor):
            reason = processor.static_unsupported_reason(llm)
            if reason:
                return reason
        elif type(processor) not in _WARPERS and type(processor) is not SamplingProcessor:
            return f"{type(processor).__name__} depends on the text so far"
    for criterion in criteria:
        if type(criterion) not in (EosTokenCriteria, MaxLengthCriteria):
            return f"{type(criterion).__name__} depends on the text so far"
    return static_unsupported_reason(llm.backbone)


@without_gradients
def static_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor:
    """
    Decoding loop of `generate` with `custom_generate=static_generate`, with the tokens of the ordinary loop.

    Sampled tokens have the same distribution. The loop may sample a few more than it returns, so that a second call
    continues from another RNG state than after the ordinary loop. A streamer receives the prompt only. Calls from
    several threads run one after another.

    Raises:
        [`CUDAGraphsUnavailable`]: It does not support the model, the settings or the inputs.
    """
    loops = cached_loops(base_of(model))
    with loops.lock:
        reason = unsupported_reason(model, logits_processor, stopping_criteria, generation_config)
        reason = reason or _input_reason(model, input_ids, model_kwargs)
        rows, width = input_ids.shape
        longest = next(c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria))
        guides = [p for p in logits_processor if isinstance(p, StaticProcessor)]
        reason = reason or next(filter(None, (p.static_length_reason(longest) for p in guides)), "")
        if reason:
            raise CUDAGraphsUnavailable(reason)
        after = max([p.static_columns() for p in guides], default=0)
        columns = static_columns(longest + after + 1)
        ends = [i for c in stopping_criteria if isinstance(c, EosTokenCriteria) for i in c.eos_token_id.tolist()]
        pad = None if generation_config.pad_token_id is None else int(generation_config.pad_token_id)
        key = (rows, columns, tuple(ends), pad, generation_config.do_sample, *map(_key, logits_processor))
        loop = loops.get(
            (*key, *graph_key(model)),
            lambda: StaticLoop(model, rows, columns, logits_processor, ends, pad, generation_config.do_sample),
        )
        found = loop.run(input_ids, _mask(input_ids, model_kwargs), logits_processor, longest - width)
    return torch.cat([input_ids, found], 1)


def _mask(ids_NP: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    mask = given.get("attention_mask")
    return torch.ones_like(ids_NP) if mask is None else mask


def _input_reason(model: Any, ids_NP: torch.Tensor, given: dict[str, Any]) -> str:
    """Why the loop cannot begin with the inputs of `generate`; empty if it can."""
    if given.get("inputs_embeds") is not None or not ids_NP.shape[1]:
        return "it begins with token ids, at least one per row"
    cache = given.get(cache_name(model))
    if cache is not None and cache.get_seq_length():
        return "the cache that was passed has tokens already"
    mask = _mask(ids_NP, given)
    if mask.shape != ids_NP.shape:
        return f"the attention mask has shape {tuple(mask.shape)} for ids of shape {tuple(ids_NP.shape)}"
    mask = mask.bool()
    if bool((mask[:, 1:] < mask[:, :-1]).any()) or not bool(mask[:, -1].all()):
        return "prompts are not padded on the left"
    positions = given.get("position_ids")  # those that `generate` makes itself, or the caller's
    if positions is not None and not torch.equal(positions.expand_as(mask)[mask], (mask.cumsum(1) - 1)[mask]):
        return "the positions that were passed are not those of the attention mask"
    return ""


def try_static_generate(
    model: Any,
    ids_PT: torch.Tensor,
    mask_PT: torch.Tensor,
    k: int,
    settings: Any,
    config: GenerationConfig,
    steps: Sequence[Any],
    observed: bool,
) -> torch.Tensor | None:
    """
    Generates by CUDA-graph decoding, or leaves it to the ordinary loop.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts, padded on the left.
        k (`int`): Completions per prompt.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]), config ([`~transformers.GenerationConfig`]):
            The generation settings.
        steps (`Sequence[LogitsProcessor]`): The logits processors.
        observed (`bool`): Whether an observer sees each token.

    Returns:
        `torch.Tensor` of shape `(P x k, T)` or `None`: Prompts and completions; `None` where the ordinary loop has to
            generate them.

    Raises:
        `ValueError`: `cuda_graphs` is `"always"`, and CUDA-graph decoding is not available.
    """
    always = settings.cuda_graphs == "always"
    try:
        with cached_loops(base_of(model)).lock:
            reason = _settings_reason(k, settings, config, observed) or unsupported_reason(model, steps, (), config)
            if reason:
                raise CUDAGraphsUnavailable(reason)
            return model.generate(
                input_ids=ids_PT.repeat_interleave(k, 0),
                attention_mask=mask_PT.repeat_interleave(k, 0),
                generation_config=config,
                logits_processor=LogitsProcessorList(steps),
                custom_generate=static_generate,
            )
    except CUDAGraphsUnavailable as error:
        # Raised above, or by `static_generate` for settings of the model's own generation config.
        if always:
            raise ValueError(
                f"`cuda_graphs` is 'always', but {error.reason}. Set it to 'auto' to use the ordinary loop there."
            ) from error
        logger.info("The ordinary decoding loop is used: %s.", error.reason)
    except torch.OutOfMemoryError:
        release_static_caches(model)
        if always:
            raise
        logger.warning("Not enough memory for a static KV cache of full length; the ordinary decoding loop is used.")
    return None


def _settings_reason(k: int, settings: Any, config: GenerationConfig, observed: bool) -> str:
    """Why the loop does not support these settings; empty if it does."""
    if observed:
        return "tokens are seen one by one"
    if config.repetition_penalty not in (None, 1.0) or settings.generation_kwargs or config.stop_strings:
        return "`repetition_penalty` and `generation_kwargs` may depend on the text so far"
    if k > 1 and not settings.own_sampling:
        return "several completions per prompt need sampling"
    return ""


def release_static_caches(model: Any) -> None:
    """Frees the static KV caches of a model, for training that needs the memory."""
    cached_loops(base_of(model)).clear()


def _key(processor: Any) -> Hashable:
    if isinstance(processor, StaticProcessor):
        return processor.static_key()
    if isinstance(processor, SamplingProcessor):
        settings = processor.settings
        return SamplingProcessor, settings.temperature, settings.top_k, settings.top_p, settings.min_p
    return type(processor), *sorted((name, value) for name, value in vars(processor).items())
