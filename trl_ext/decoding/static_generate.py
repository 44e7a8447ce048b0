# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Where `generate` can use the loop of fixed shapes (static_loop.py), and that it says why where it cannot.

    model.generate(**inputs, logits_processor=[...], custom_generate=static_generate)

N rows, P tokens of a prompt.
"""

import logging
from collections.abc import Hashable, Sequence
from typing import Any

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
from trl_ext.models.load import base_of, cache_name
from trl_ext.models.sharding import synced_gpus_kwargs

from .cuda_graph import cached_loops
from .static_loop import COLUMN_MULTIPLE, StaticLoop, StaticProcessor, graph_key
from .static_support import static_unsupported_reason
from .token_sampling import SamplingProcessor


logger = logging.getLogger(__name__)

# Processors that look at the logits alone, and their settings.
_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class Unavailable(ValueError):
    """
    The loop cannot do what is asked; the message says why.

    Args:
        reason (`str`): Why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The static loop cannot be used: {reason}. Leave out `custom_generate`.")
        self.reason = reason


def unsupported_reason(
    model: Any, processors: Sequence[Any], criteria: Sequence[Any], config: GenerationConfig
) -> str:
    """
    Why [`static_generate`] cannot do what is asked; empty if it can.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        processors (`Sequence[LogitsProcessor]`): All that its logits go through.
        criteria (`Sequence[StoppingCriteria]`): What ends a text.
        config ([`~transformers.GenerationConfig`]): The settings.
    """
    if synced_gpus_kwargs(model).get("synced_gpus"):
        return "the model is in pieces on several processes"
    if (config.num_beams or 1) > 1:
        return "it has no beam search"
    if config.return_dict_in_generate:
        return "it returns tokens alone (`return_dict_in_generate`)"
    base = base_of(model)
    if "_original_forward" in vars(base) and not torch.is_autocast_enabled(base.device.type):
        return "accelerate has wrapped its forward; call it inside `accelerator.autocast()`"
    try:
        llm = BackboneAndHead(model)
    except ValueError as error:
        return str(error)
    for processor in processors:
        if isinstance(processor, StaticProcessor):
            fault = processor.static_unsupported_reason(llm)
            if fault:
                return fault
        elif type(processor) not in _WARPERS and type(processor) is not SamplingProcessor:
            return f"{type(processor).__name__} looks at the text so far"
    for criterion in criteria:
        if type(criterion) not in (EosTokenCriteria, MaxLengthCriteria):
            return f"{type(criterion).__name__} looks at the text so far"
    return static_unsupported_reason(llm.backbone)


@torch.no_grad()
def static_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor:
    """
    What `generate` runs with `custom_generate=static_generate`; the tokens are those of its own loop.

    Sampled ones are drawn from the same distribution; the loop may draw a few more than it returns, so that with the
    same seed a second call draws others than after the ordinary loop. A streamer gets the prompt alone. One call at a
    time, from whatever threads.

    Raises:
        [`Unavailable`]: It cannot do what is asked; says why.
    """
    loops = cached_loops(base_of(model))
    with loops.lock:
        reason = unsupported_reason(model, logits_processor, stopping_criteria, generation_config)
        reason = reason or _input_fault(model, input_ids, model_kwargs)
        if reason:
            raise Unavailable(reason)
        rows, width = input_ids.shape
        longest = next(c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria))
        behind = max([p.static_columns() for p in logits_processor if isinstance(p, StaticProcessor)], default=0)
        columns = -(-(longest + behind + 1) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
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


def _input_fault(model: Any, ids_NP: torch.Tensor, given: dict[str, Any]) -> str:
    """Why the loop cannot begin with what `generate` was given."""
    if given.get("inputs_embeds") is not None or not ids_NP.shape[1]:
        return "it begins with token ids, at least one a row"
    cache = given.get(cache_name(model))
    if cache is not None and cache.get_seq_length():
        return "the cache that it was given has tokens already"
    mask = _mask(ids_NP, given)
    if mask.shape != ids_NP.shape:
        return f"the attention mask has shape {tuple(mask.shape)} for ids of shape {tuple(ids_NP.shape)}"
    mask = mask.bool()
    if bool((mask[:, 1:] < mask[:, :-1]).any()) or not bool(mask[:, -1].all()):
        return "prompts are not padded on the left"
    positions = given.get("position_ids")  # those that `generate` makes itself, or the caller's
    if positions is not None and not torch.equal(positions.expand_as(mask)[mask], (mask.cumsum(1) - 1)[mask]):
        return "positions of tokens were given that are not those of the attention mask"
    return ""


def generate_static(
    model: Any,
    ids_PT: torch.Tensor,
    mask_PT: torch.Tensor,
    k: int,
    settings: Any,
    config: GenerationConfig,
    steps: Sequence[Any],
    streamer: Any,
) -> torch.Tensor | None:
    """
    Prompts and answers, (P x k, T), as [`~trl_ext.generation.generate.generate`] asks for them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        ids_PT, mask_PT (`torch.Tensor` of shape `(P, T)`): Prompts, padded on the left.
        k (`int`): Answers a prompt.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]), config ([`~transformers.GenerationConfig`]):
            How to draw.
        steps (`Sequence[LogitsProcessor]`): What logits go through.
        streamer: What tokens are put into, if anything.

    Returns:
        `torch.Tensor`, or `None` where the ordinary loop has to do it.

    Raises:
        `ValueError`: This loop is to be used always, and cannot be.
    """
    always = settings.cuda_graphs == "always"
    try:
        with cached_loops(base_of(model)).lock:
            reason = _asked_fault(k, settings, config, streamer) or unsupported_reason(model, steps, (), config)
            if reason:
                raise Unavailable(reason)
            return model.generate(
                input_ids=ids_PT.repeat_interleave(k, 0),
                attention_mask=mask_PT.repeat_interleave(k, 0),
                generation_config=config,
                logits_processor=LogitsProcessorList(steps),
                custom_generate=static_generate,
            )
    except Unavailable as fault:  # at once, or by what the model's own generation config adds
        if always:
            raise ValueError(
                f"`cuda_graphs` is 'always', but {fault.reason}. Set it to 'auto' to use the ordinary loop there."
            ) from fault
        logger.info("The ordinary loop is used: %s.", fault.reason)
    except torch.OutOfMemoryError:
        release_static_caches(model)
        if always:
            raise
        logger.warning("There is no memory for a cache of full length from the start; the ordinary loop is used.")
    return None


def _asked_fault(k: int, settings: Any, config: GenerationConfig, streamer: Any) -> str:
    """Why the loop cannot serve these settings; empty if nothing speaks against them."""
    if streamer is not None:
        return "tokens are streamed one by one"
    if config.repetition_penalty not in (None, 1.0) or settings.generation_kwargs or config.stop_strings:
        return "`repetition_penalty` and `generation_kwargs` may look at the text so far"
    if k > 1 and not settings.own_sampling:
        return "several answers are asked for without sampling"
    return ""


def release_static_caches(model: Any) -> None:
    """Give back the memory of the loops that were used with a model; training may need it."""
    cached_loops(base_of(model)).clear()


def _key(processor: Any) -> Hashable:
    if isinstance(processor, StaticProcessor):
        return processor.static_key()
    if isinstance(processor, SamplingProcessor):
        settings = processor.settings
        return SamplingProcessor, settings.temperature, settings.top_k, settings.top_p, settings.min_p
    return type(processor), *sorted((name, value) for name, value in vars(processor).items())
