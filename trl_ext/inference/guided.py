# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A frozen model whose logits go through logits processors, as a policy.

Dimensions: N sequences, P tokens of a prompt, T tokens of a completion, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.generation.generate import Processors, generate
from trl_ext.generation.observer import Observer
from trl_ext.generation.streaming import streamed
from trl_ext.generation_settings import GenerationSettings, pad_token_id
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.properties import accepts_argument, base_of, context_length
from trl_ext.progress import progress

from .policy import GuideWeights, Policy


MAX_LOGITS = 2**27  # in one forward pass; half a gigabyte in float32


def policy_with_processors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    processors: Processors,
    *,
    name: str,
    batch_size: int = 64,
    extras: dict[str, Any] | None = None,
    series: str = "",
    method: str = "",
    context: int = 0,
    weights: GuideWeights | None = None,
    guided: GuidedTokens | None = None,
    truncation: str = "",
    sees_row: Callable[[dict[str, Any], list[int]], None] | None = None,
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a model whose logits go through processors.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        processors (`Callable`):
            `(ids_PT, mask_PT) -> processors`, see [`~trl_ext.generation.generate.generate`].
        name (`str`):
            Name in tables and errors.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences to generate or score at once.
        extras (`dict`, *optional*), series, method, truncation (`str`, *optional*, default to `""`), weights, sees_row
            (*optional*): See [`~trl_ext.inference.policy.Policy`].
        context (`int`, *optional*, defaults to `0`):
            Context length, if models behind the processors have a shorter one. `0` means the model's.
        guided ([`~trl_ext.decoding.scheduled_rows.GuidedTokens`], *optional*):
            Counts the tokens that `generate` makes, for processors that guide some of them.
    """

    def sample(
        prompt_ids: list[list[int]], settings: GenerationSettings, *, observer: Observer | None = None
    ) -> list[list[Completion]]:
        used: list[Any] = []

        def kept(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> Sequence[Any]:
            made = processors(ids_PT, mask_PT)
            used.extend(made)
            return made

        found = generate(
            model, tokenizer, prompt_ids, settings, batch_size=batch_size, processors=kept, observer=observer
        )
        if guided is not None:
            for processor in used:
                if getattr(processor, "scheduled", None) is not None:
                    guided.add(*processor.scheduled.counts_2.tolist())
        return found

    def logps(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        return logps_with_processors(
            model,
            processors,
            prompt_ids,
            completion_ids,
            pad_token_id=pad_token_id(tokenizer),
            batch_size=batch_size,
        )

    return Policy(
        name=name,
        tokenizer=tokenizer,
        generate=sample,
        logps=logps,
        stream=partial(streamed, tokenizer, sample),
        extras=extras or {},
        series=series,
        method=method,
        context=context or context_length(model),
        model=model,
        weights=weights,
        guided=guided,
        truncation=truncation,
        shows_guidance=weights is not None,
        sees_row=sees_row,
    )


def guide_weights(processor: GuidedLogitsProcessor, change: Callable[[dict[str, float]], Policy]) -> GuideWeights:
    """The weights of a processor's heads; `change` as for [`~trl_ext.inference.policy.GuideWeights`]."""
    return GuideWeights(processor.weights_by_head, change, processor.about)


@torch.no_grad()
def logps_with_processors(
    model: PreTrainedModel,
    processors: Processors,
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    *,
    pad_token_id: int,
    batch_size: int = 64,
) -> list[list[torch.Tensor]]:
    """
    Log-probabilities of completions under the processed logits, at temperature 1.

    One forward pass computes the logits of a batch of completions; the processors are called token by token, as
    `generate` calls them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model; it is put in evaluation mode.
        processors (`Callable`):
            `(ids_PT, mask_PT) -> processors`, see [`~trl_ext.generation.generate.generate`].
        prompts (`list[list[int]]`):
            Prompts of at least one token.
        completions (`list[list[list[int]]]`):
            The completions of each prompt; an empty one gets an empty tensor.
        pad_token_id (`int`):
            Token in padding.
        batch_size (`int`, *optional*, defaults to `64`):
            Maximum number of completions in one forward pass.

    Returns:
        `list[list[torch.Tensor]]`: For each completion the log-probabilities of its tokens in nats, of shape `(T,)`,
        float32 on the CPU.
    """
    vocabulary = base_of(model).config.get_text_config().vocab_size

    def batch_logps(prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
        return _batch_logps(model, processors, prompts, completions, pad_token_id)

    with evaluation_mode(model):
        return logps_in_batches(prompts, completions, batch_logps, batch_size, max_tokens=MAX_LOGITS // vocabulary)


def logps_in_batches(
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    batch_logps: Callable[[list[list[int]], list[list[int]]], torch.Tensor],
    batch_size: int,
    *,
    max_tokens: int = 0,
) -> list[list[torch.Tensor]]:
    """
    Log-probabilities of completions, computed in batches of similar length.

    Args:
        prompts (`list[list[int]]`):
            Token ids of the prompts.
        completions (`list[list[list[int]]]`):
            The completions of each prompt; an empty one gets an empty tensor.
        batch_logps (`Callable`):
            `(prompts, completions) -> logps` of shape `(N, T)`, for N completions with their prompts. They come with
            the longest first, and T is its length.
        batch_size (`int`):
            Maximum number of completions in a batch.
        max_tokens (`int`, *optional*, defaults to `0`):
            Maximum of N times T. `0` means no limit.

    Returns:
        `list[list[torch.Tensor]]`: For each completion the log-probabilities of its tokens, of shape `(T,)`, float32
        on the CPU.
    """
    results: list[list[torch.Tensor]] = [[torch.zeros(0) for _ in group] for group in completions]
    places = [(b, i) for b, group in enumerate(completions) for i, completion in enumerate(group) if completion]
    places.sort(key=lambda place: -len(completions[place[0]][place[1]]))
    start = 0
    with progress("log-probabilities", len(places), "completions") as phase:
        while start < len(places):
            size = batch_size
            if max_tokens:
                b, i = places[start]  # the longest completion of the batch
                size = max(1, min(size, max_tokens // len(completions[b][i])))
            batch = places[start : start + size]
            start += size
            texts = [completions[b][i] for b, i in batch]
            logps_NT = batch_logps([prompts[b] for b, _ in batch], texts)
            for (b, i), text, logps_T in zip(batch, texts, logps_NT, strict=True):
                results[b][i] = logps_T[: len(text)].float().cpu()
            phase.advance(len(batch))
    return results


def _batch_logps(
    model: PreTrainedModel,
    processors: Processors,
    prompts: list[list[int]],
    completions: list[list[int]],
    pad: int,
) -> torch.Tensor:
    """Log-probabilities of shape `(N, T)`; those in the padding after a completion are not defined."""
    prompt_width, completion_width = max(map(len, prompts)), max(map(len, completions))
    rows, masks = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = prompt_width - len(prompt), completion_width - len(completion)
        rows.append([pad] * left + list(prompt) + list(completion) + [pad] * right)
        masks.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor(masks, device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1]}
    if accepts_argument(model, "position_ids"):
        inputs["position_ids"] = (mask[:, :-1].cumsum(-1) - 1).clamp(min=0)
    if accepts_argument(model, "logits_to_keep"):
        inputs["logits_to_keep"] = completion_width
    if accepts_argument(model, "use_cache"):
        inputs["use_cache"] = False
    logits = model(**inputs).logits[:, -completion_width:]
    steps = processors(ids[:, :prompt_width], mask[:, :prompt_width])
    logps = []
    for t in range(completion_width):
        scores = logits[:, t].float()
        for step in steps:
            scores = step(ids[:, : prompt_width + t], scores)
        logps.append(scores.log_softmax(-1).gather(1, ids[:, prompt_width + t, None]))
    return torch.cat(logps, 1)
