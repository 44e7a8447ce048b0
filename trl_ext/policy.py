# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever answers prompts, as evaluation sees it: a name, a tokenizer and two callables."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .logprobs import LogProbs, completion_logps
from .models import adapter_disabled
from .sampling import Completion, GenerationSettings, generate, pad_token_id


@dataclass(frozen=True)
class Policy:
    """
    Something that answers prompts, as evaluation sees it.

    Parameters:
        name (`str`):
            What tables and errors call it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Turns prompts into the token ids that the two callables take.
        generate (`Callable`):
            `(prompt_ids, settings) -> completions`: for each prompt the list of its
            [`~trl_ext.sampling.Completion`]s. Draws from torch's global generator.
        logps (`Callable`, *optional*):
            `(prompt_ids, completion_ids) -> logps`: for each completion of each prompt the log-probabilities of its
            tokens, in nats, a tensor of shape `(T,)`, under the distribution that `generate` draws from at temperature
            1. Without it the KL is left out.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    generate: Callable[[list[list[int]], GenerationSettings], list[list[Completion]]]
    logps: Callable[[list[list[int]], list[list[list[int]]]], list[list[torch.Tensor]]] | None = None


def model_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    batch_size: int = 64,
    use_adapter: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> Policy:
    """
    The [`Policy`] of a transformers model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        name (`str`, *optional*, defaults to `"model"`): What tables and errors call it.
        batch_size (`int`, *optional*, defaults to `64`): Sequences that are generated or scored at once.
        use_adapter (`bool`, *optional*, defaults to `True`): `False` measures a [`~peft.PeftModel`]'s base model
            instead, so that the two share their weights.
        progress (`Callable`, *optional*): Called with the number of prompts just answered, after each batch.
    """

    def adapter() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if use_adapter else adapter_disabled(model)

    def sample(prompt_ids: list[list[int]], settings: GenerationSettings) -> list[list[Completion]]:
        with adapter():
            return generate(model, tokenizer, prompt_ids, settings, batch_size=batch_size, progress=progress)

    def logps(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        pad = pad_token_id(tokenizer)
        # Separate rows: the same arithmetic for a model and its base, and nothing to share at one completion a prompt.
        rows = LogProbs(model, pad, shared_prefix="never")
        with adapter():
            return completion_logps(
                model, prompt_ids, completion_ids, pad_token_id=pad, batch_size=batch_size, log_probs=rows
            )

    return Policy(name=name, tokenizer=tokenizer, generate=sample, logps=logps)


def same_vocabulary(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether the two have the same tokens under the same ids."""
    return tokenizer is other or tokenizer.get_vocab() == other.get_vocab()


def can_read(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase, ids: Iterable[Iterable[int]]) -> bool:
    """
    Whether token ids mean to `reader` what they mean to `writer`.

    One vocabulary may extend the other (a padding token was added before training, say) as long as `reader` has every
    token that occurs.
    """
    if reader is writer:
        return True
    known, written = reader.get_vocab(), writer.get_vocab()
    extends = known.items() <= written.items() or written.items() <= known.items()
    return extends and {token for row in ids for token in row} <= set(known.values())
