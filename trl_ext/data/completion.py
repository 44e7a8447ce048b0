# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A completion: its text, its token ids and whether the model ended it. Decoding and truncation of completions."""

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from .schema import as_completion


@dataclass(frozen=True, slots=True)
class Completion:
    """
    One completion of a prompt.

    Args:
        text (`str`):
            Decoded tokens without special ones, up to the end-of-sequence token; empty if that came first.
        ids (`list[int]`):
            Token ids, with the end-of-sequence token if the model generated one. Empty only if the completion comes
            from a dataset and is not tokenized.
        ended (`bool`):
            Whether the model ended it, as opposed to reaching `max_completion_length`.
        source (`str`, *optional*, defaults to `""`):
            Name of the model or the dataset column that it comes from.
        vocabulary (`str`, *optional*, defaults to `""`):
            [`~trl_ext.data.sampled_ids.vocabulary_digest`] of the tokenizer of `ids`, if they are the tokens that a
            model sampled and a dataset is to keep them.
        messages (`list[dict[str, Any]]`, *optional*):
            The completion as a dataset has it, where that is several messages. By default it is one message of the
            assistant if the prompt is conversational.
    """

    text: str
    ids: list[int]
    ended: bool
    source: str = ""
    vocabulary: str = ""
    messages: list[dict[str, Any]] | None = None

    def content(self, row: dict[str, Any]) -> str | list[dict[str, Any]]:
        """The completion in the form of the row's prompt: text, or a list of messages."""
        return as_completion(row, self.text) if self.messages is None else self.messages


def truncated(completion: Completion, max_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Completion:
    """The first `max_tokens` tokens of a completion; the completion itself if it is shorter or `max_tokens` < 1."""
    if not 0 < max_tokens < len(completion.ids):
        return completion
    ids = completion.ids[:max_tokens]
    return Completion(text=tokenizer.decode(ids, skip_special_tokens=True), ids=ids, ended=False)


def decode_completions(
    sequences: list[list[int]], tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[Completion]:
    """
    Completions made of generated token ids: each sequence is cut after its end and decoded.

    Args:
        sequences (`list[list[int]]`): What `generate` returned, without the prompts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        config ([`~transformers.GenerationConfig`]): Its `eos_token_id`, `stop_strings` and `pad_token_id` are used.
    """
    eos = set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    stop_strings = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    has_eos, trimmed = [], []
    for ids in sequences:
        end = next((position + 1 for position, token in enumerate(ids) if token in eos), 0)
        has_eos.append(end > 0)
        trimmed.append(ids[:end] if end else list(ids))
    completions = []
    for text, ids, ended in zip(
        tokenizer.batch_decode(trimmed, skip_special_tokens=True), trimmed, has_eos, strict=True
    ):
        if not ended and any(stop in text for stop in stop_strings):
            ended = True
            while len(ids) > 1 and ids[-1] == config.pad_token_id:  # `generate` pads what follows a stop string
                ids.pop()
        completions.append(Completion(text=text, ids=ids, ended=ended))
    return completions


def decode_groups(
    sequences: list[list[int]], group_size: int, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[list[Completion]]:
    """[`decode_completions`], grouped by prompt: each run of `group_size` sequences belongs to one prompt."""
    completions = decode_completions(sequences, tokenizer, config)
    return [completions[i : i + group_size] for i in range(0, len(completions), group_size)]
