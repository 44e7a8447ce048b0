# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A frozen model whose logits go through processors, as something that answers prompts and can be measured.

N sequences, P tokens of a prompt, T tokens of a completion, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.generation.generate import Processors, generate
from trl_ext.generation.streaming import TextStream
from trl_ext.generation_settings import GenerationSettings, pad_token_id
from trl_ext.models.load import base_of, context_length
from trl_ext.models.modes import evaluation_mode

from .policy import Policy


LOGITS = 2**27  # numbers in one forward's logits: half a gigabyte in float32


def policy_with_processors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    processors: Processors,
    *,
    name: str,
    batch_size: int = 64,
    progress: Callable[[int], Any] | None = None,
    extras: dict[str, Any] | None = None,
    series: str = "",
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a model whose logits go through processors.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        processors (`Callable`): `(ids_PT, mask_PT) -> processors`, as [`~trl_ext.generation.generate.generate`] takes
            it.
        name (`str`): What tables and errors call it.
        batch_size (`int`, *optional*, defaults to `64`): Sequences that are generated or scored at once.
        progress (`Callable`, *optional*): Called with the number of prompts just answered, after each batch.
        extras (`dict`, *optional*): What the report writes beside the metrics.
        series (`str`, *optional*, defaults to `""`): Line of the frontier that it is a point of.
    """

    def sample(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        return generate(
            model, tokenizer, prompt_ids, settings, batch_size=batch_size, progress=progress, processors=processors
        )

    def logps(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        pad = pad_token_id(tokenizer)
        return logps_with_processors(
            model, processors, prompt_ids, completion_ids, pad_token_id=pad, batch_size=batch_size
        )

    def stream(ids: list[int], settings: GenerationSettings, show: Callable[[str], None]) -> Completion:
        streamer = TextStream(tokenizer, show)
        [[completion]] = generate(model, tokenizer, [ids], settings, processors=processors, streamer=streamer)
        streamer.finish(completion.text)
        return completion

    return Policy(
        name=name,
        tokenizer=tokenizer,
        generate=sample,
        logps=logps,
        stream=stream,
        extras=extras or {},
        series=series,
        context=context_length(model),
    )


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

    The model reads each completion once; the processors are called token by token, as `generate` calls them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model; it is put in evaluation mode.
        processors (`Callable`): `(ids_PT, mask_PT) -> processors`, as [`~trl_ext.generation.generate.generate`] takes
            it.
        prompts (`list[list[int]]`): Prompts of at least one token.
        completions (`list[list[list[int]]]`): For each prompt its completions; an empty one gets an empty tensor.
        pad_token_id (`int`): Token in padding.
        batch_size (`int`, *optional*, defaults to `64`): Most completions in one forward.

    Returns:
        `list[list[torch.Tensor]]`: For each completion the log-probabilities of its tokens in nats, of shape (T,),
        float32 on the CPU.
    """
    results: list[list[torch.Tensor]] = [[torch.zeros(0) for _ in group] for group in completions]
    rows = [(b, i) for b, group in enumerate(completions) for i, completion in enumerate(group) if completion]
    rows.sort(key=lambda row: len(completions[row[0]][row[1]]), reverse=True)
    vocabulary = base_of(model).config.get_text_config().vocab_size
    with evaluation_mode(model):
        for chunk in _chunks(rows, [len(completions[b][i]) for b, i in rows], vocabulary, batch_size):
            texts = [completions[b][i] for b, i in chunk]
            found = _logps(model, processors, [prompts[b] for b, _ in chunk], texts, pad_token_id)
            for (b, i), text, logps in zip(chunk, texts, found, strict=True):
                results[b][i] = logps[: len(text)].float().cpu()
    return results


def _chunks(
    rows: list[tuple[int, int]], lengths: list[int], vocabulary: int, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Rows, sorted by falling length, as many at once as `batch_size` and the size of their logits allow."""
    start = 0
    while start < len(rows):
        size = max(1, min(batch_size, LOGITS // (lengths[start] * vocabulary)))
        yield rows[start : start + size]
        start += size


def _logps(
    model: PreTrainedModel,
    processors: Processors,
    prompts: list[list[int]],
    completions: list[list[int]],
    pad: int,
) -> torch.Tensor:
    """Log-probabilities of shape (N, T); those behind the end of a completion mean nothing."""
    before, after = max(map(len, prompts)), max(map(len, completions))
    sizes = [(before - len(p), len(p), len(c), after - len(c)) for p, c in zip(prompts, completions, strict=True)]
    rows = [
        [pad] * left + list(p) + list(c) + [pad] * right
        for p, c, (left, _, _, right) in zip(prompts, completions, sizes, strict=True)
    ]
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor([[0] * left + [1] * (p + c) + [0] * right for left, p, c, right in sizes], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1]}
    accepted = inspect.signature(type(base_of(model)).forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = (mask[:, :-1].cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = after
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    logits = model(**inputs).logits[:, -after:]
    steps = processors(ids[:, :before], mask[:, :before])
    found = []
    for t in range(after):
        scores = logits[:, t].float()
        for step in steps:
            scores = step(ids[:, : before + t], scores)
        found.append(scores.log_softmax(-1).gather(1, ids[:, before + t, None]))
    return torch.cat(found, 1)
