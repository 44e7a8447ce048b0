# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Generates completions with a transformers model, for the trainers and the commands alike.

Dimensions: P prompts, K completions per prompt, N = P x K sequences of one call of the model, T tokens.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from trl_ext.data.completion import Completion, decode_completions
from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.kv_cache import prompt_cache
from trl_ext.decoding.repetition_penalty import RepetitionPenalty
from trl_ext.decoding.token_sampling import SamplingProcessor
from trl_ext.devices import supports_cuda_graphs
from trl_ext.generation_settings import INSTEAD_OF_DIVERSE_BEAMS, GenerationSettings
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.properties import cache_name, has_virtual_tokens, inserted_tokens
from trl_ext.models.sharding import catch_up_calls, synced_gpus_kwargs
from trl_ext.progress import progress
from trl_ext.validation import require

from .observer import ObservedSteps, Observer, SavedLogprobs
from .token_guidance import GuidingProcessor, SavedGuidance


# Returns the logits processors for the left-padded prompts of one call of the model: ids and mask of shape (P, T).
Processors = Callable[[torch.Tensor, torch.Tensor], Sequence[LogitsProcessor]]


def usual_batch_size(device: torch.device) -> int:
    """Sequences per call of the model if `generation_batch_size` is not set: 64 on a CPU, 128 elsewhere."""
    return 64 if device.type == "cpu" else 128


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    batch_size: int = 128,
    processors: Processors | None = None,
    observer: Observer | None = None,
) -> list[list[Completion]]:
    """
    Generate K completions of each prompt.

    All randomness comes from torch's global generator: after `torch.manual_seed` with the same seed, the completions
    are the same.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, or a PEFT model around one. Its mode is restored afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`list[list[int]]`):
            Token ids of the prompts, from [`~trl_ext.data.tokenization.encode_prompt`]. None may be empty.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]):
            How to generate.
        batch_size (`int`, *optional*, defaults to `128`):
            Sequences in one call of the model: `batch_size // K` prompts, at least one.
        processors (`Callable`, *optional*):
            `(ids_PT, mask_PT) -> processors`: called before each call of the model with its prompts, padded on the
            left. Returns [`~transformers.LogitsProcessor`]s, which are applied to the logits before temperature,
            top-k and the like.
        observer ([`~trl_ext.generation.observer.Observer`], *optional*):
            Sees each token and may end completions; for one completion per prompt.

    Returns:
        `list[list[Completion]]`: K completions for each prompt, in the order of `prompts`.

    Raises:
        `ValueError`: A prompt is empty, `batch_size` is below 1, `generation_kwargs` has an unknown name, the observer
            cannot see this generation or asks for the candidates of several processors, or PEFT does not generate
            correctly with an adapter of this kind.
        `OSError`: The code of the diverse beam search cannot be loaded.
    """
    require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}.")
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"Prompt {i} has no tokens: there is nothing to continue.")
    if _repeats_virtual_tokens(model) and not inserted_tokens(model):
        raise ValueError(
            "PEFT generates other tokens than it trains with prefix tuning since transformers 5.24: train on "
            "completions that a dataset has, or use LoRA or prompt tuning."
        )
    if observer is not None:
        check_observable(observer, settings)
    with progress("sampling", len(prompts), hidden=observer is not None) as phase:
        if settings.searches_each and settings.num_generations > 1:
            return _searched_each(model, tokenizer, prompts, settings, batch_size, phase.advance, processors)
        return _in_batches(
            model, tokenizer, prompts, settings, batch_size, phase.advance, processors=processors, observer=observer
        )


def _in_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    batch_size: int,
    advance: Callable[[float], Any],
    *,
    processors: Processors | None = None,
    observer: Observer | None = None,
) -> list[list[Completion]]:
    """K completions of each prompt. `advance` is called with the number of prompts, or part of one, just completed."""
    results: list[list[Completion]] = [[] for _ in prompts]
    config = settings.generation_config(model, tokenizer)
    step = max(1, batch_size // settings.num_generations)
    # The K completions of a prompt may be generated in several calls, but not the beams of one search.
    most = batch_size if settings.num_beams == 1 else settings.num_generations
    # Sorting by length saves padding. The longest come first, so that an out-of-memory error comes early.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # Virtual tokens come before the padding, and would be farther from the prompt than in training.
    runs = (
        [list(run) for _, run in groupby(order, lambda i: len(prompts[i]))] if has_virtual_tokens(model) else [order]
    )
    batches = [run[start : start + step] for run in runs for start in range(0, len(run), step)]
    calls = len(batches) * -(-settings.num_generations // most)
    with evaluation_mode(model), torch.no_grad():
        for chosen in batches:
            for done in range(0, settings.num_generations, most):
                k = min(most, settings.num_generations - done)
                batch = [prompts[i] for i in chosen]
                steps = None if observer is None else _Observation(observer, chosen, settings, config)
                rows = _sequences(model, tokenizer, batch, k, settings, config, processors, steps)
                for n, completion in enumerate(decode_completions(rows, batch, tokenizer, config)):
                    results[chosen[n // k]].append(completion)
                advance(len(chosen) * k / settings.num_generations)
        for _ in catch_up_calls(model, calls):
            _sequences(model, tokenizer, [[config.pad_token_id]], 1, settings, config, None, None)
    return results


def _searched_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    batch_size: int,
    advance: Callable[[float], Any],
    processors: Processors | None,
) -> list[list[Completion]]:
    """K completions of each prompt, from a beam search each."""
    k = settings.num_generations
    found = _in_batches(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(k)],
        replace(settings, num_generations=1),
        batch_size,
        lambda searches: advance(searches / k),
        processors=processors,
    )
    return [[found[i + j][0] for j in range(k)] for i in range(0, len(found), k)]


def _sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    k: int,
    settings: GenerationSettings,
    config: GenerationConfig,
    processors: Processors | None,
    observation: "_Observation | None",
) -> list[list[int]]:
    """
    One call of the model.

    Returns:
        `list[list[int]]`: Generated ids of P x k sequences, those of one prompt next to each other. They do not
        include the prompt, and the padding is not removed.
    """
    ids_PT, mask_PT = left_padded(prompts, config.pad_token_id, model.device)
    width = ids_PT.shape[1]
    extra: dict[str, Any] = synced_gpus_kwargs(model)
    steps = list(processors(ids_PT, mask_PT)) if processors is not None else []
    seeds = None
    if observation is not None:
        observation.watch(steps)
        steps, seeds = [*steps, *observation.processors], observation.seeds
        extra["stopping_criteria"] = StoppingCriteriaList([observation.criterion])
    if settings.own_sampling:
        steps.append(SamplingProcessor(settings, seeds))
    output = _static_generate(model, ids_PT, mask_PT, k, settings, config, steps, observation is not None)
    if output is not None:
        return output[:, width:].tolist()
    if (penalty := config.repetition_penalty or 1.0) != 1:
        config = copy.deepcopy(config)
        config.repetition_penalty = 1.0
        steps.insert(0, RepetitionPenalty(penalty, mask_PT))
    if _repeats_virtual_tokens(model):
        extra["use_cache"] = False  # every step then reads all tokens, the virtual ones once
    if settings.own_sampling and "use_cache" not in extra:
        extra[cache_name(model)] = prompt_cache(model, ids_PT, mask_PT, k)
    if settings.own_sampling:
        ids_PT, mask_PT = (tensor.repeat_interleave(k, dim=0) for tensor in (ids_PT, mask_PT))
    else:
        config = copy.deepcopy(config)
        config.num_return_sequences = k
        if config.stop_strings:
            extra["tokenizer"] = tokenizer
    if steps:
        extra["logits_processor"] = LogitsProcessorList(steps)
    if settings.num_beam_groups > 1:
        extra |= {"custom_generate": settings.custom_generate, "trust_remote_code": settings.trust_remote_code}
    try:
        output = model.generate(input_ids=ids_PT, attention_mask=mask_PT, generation_config=config, **extra)
    except OSError as error:
        if settings.num_beam_groups == 1:
            raise
        raise OSError(f"Cannot load '{settings.custom_generate}'. {INSTEAD_OF_DIVERSE_BEAMS}") from error
    return output[:, width:].tolist()


def check_observable(observer: Observer, settings: GenerationSettings) -> None:
    """
    Check that an observer can see a generation.

    Raises:
        `ValueError`: There are several completions per prompt or a beam search, or the observer has seeds and
            transformers samples (`generation_kwargs`).
    """
    require(settings.num_generations == 1, "An observer is for one completion per prompt: set num_generations to 1.")
    require(
        settings.num_beams == 1 and not settings.searches_each,
        "A beam search chooses its tokens at the end, so an observer cannot see them: set num_beams to 1.",
    )
    require(
        observer.seeds is None or not settings.generation_kwargs,
        "With generation_kwargs transformers samples, which has one seed for all prompts: unset them.",
    )


class _Observation:
    """What an observer adds to one call of the model, for the completions `rows`."""

    def __init__(
        self, observer: Observer, rows: Sequence[int], settings: GenerationSettings, config: GenerationConfig
    ) -> None:
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        saved = None if observer.top_logprobs is None else SavedLogprobs(observer.top_logprobs)
        self.processors = [] if saved is None else [saved]
        self.criterion = ObservedSteps(observer, rows, ends, saved)
        self.seeds = None if observer.seeds is None else [observer.seeds[row] for row in rows]

    def watch(self, steps: Sequence[LogitsProcessor]) -> None:
        """Have the processor that guides say what it does, if the observer asks for that."""
        guiding = [step for step in steps if isinstance(step, GuidingProcessor)]
        top = self.criterion.observer.top_candidates
        if top is None or not guiding:
            return
        require(len(guiding) == 1, "An observer sees one logits processor that guides: join their guides in one.")
        guiding[0].saved = self.criterion.guidance = SavedGuidance(top)


def _repeats_virtual_tokens(model: PreTrainedModel) -> bool:
    """Whether an adapter adds its virtual tokens in every step: PEFT finds the KV cache under its former name only."""
    return has_virtual_tokens(model) and cache_name(model) != "past_key_values"


def _static_generate(
    model: PreTrainedModel,
    ids_PT: torch.Tensor,
    mask_PT: torch.Tensor,
    k: int,
    settings: GenerationSettings,
    config: GenerationConfig,
    steps: Sequence[LogitsProcessor],
    observed: bool,
) -> torch.Tensor | None:
    """Result of [`~trl_ext.decoding.static_generate.try_static_generate`]; `None` if settings exclude CUDA graphs."""
    wanted = settings.cuda_graphs
    if wanted == "never" or (wanted == "auto" and not supports_cuda_graphs(ids_PT.device)):
        return None
    from trl_ext.decoding.static_generate import try_static_generate

    return try_static_generate(model, ids_PT, mask_PT, k, settings, config, steps, observed)
