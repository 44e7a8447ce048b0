# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A completion: its text, its token ids and whether the model ended it. Decoding and truncation of completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from .schema import as_completion


@dataclass(frozen=True, slots=True)
class Completion:
    """
    One completion of a prompt.

    Args:
        text (`str`):
            What the tokens add to the text of the prompt, without special ones, up to the end-of-sequence token; empty
            if that came first.
        ids (`list[int]`):
            Token ids, with the end-of-sequence token if the model generated one. Empty only if the completion comes
            from a dataset and is not tokenized.
        ended (`bool`):
            Whether the model ended it, as opposed to reaching `max_completion_length`.
        source (`str`, *optional*, defaults to `""`):
            Name of the model or the dataset column that it comes from.
        tokenizer (`str`, *optional*, defaults to `""`):
            [`~trl_ext.data.sampled_ids.tokenizer_tag`] of the tokenizer of `ids`, if a model sampled these tokens and
            a dataset is to keep them.
        messages (`list[dict[str, Any]]`, *optional*):
            The completion as a dataset has it, where that is several messages. By default it is one message of the
            assistant if the prompt is conversational.
        kl (`float`, *optional*):
            How far a guided policy that has `own_kl` moved the completion from the model that it guides, in nats.
    """

    text: str
    ids: list[int]
    ended: bool
    source: str = ""
    tokenizer: str = ""
    messages: list[dict[str, Any]] | None = None
    kl: float | None = field(default=None, compare=False)

    def content(self, row: dict[str, Any]) -> str | list[dict[str, Any]]:
        """The completion in the form of the row's prompt: text, or a list of messages."""
        return as_completion(row, self.text) if self.messages is None else self.messages


def truncated(completion: Completion, max_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Completion:
    """The first `max_tokens` tokens of a completion; the completion itself if it is shorter or `max_tokens` < 1."""
    if not 0 < max_tokens < len(completion.ids):
        return completion
    ids = completion.ids[:max_tokens]
    whole, text = tokenizer.batch_decode([completion.ids, ids], skip_special_tokens=True)
    space = completion.text.removesuffix(whole) if completion.text.endswith(whole) else ""
    return Completion(text=space + text, ids=ids, ended=False)


_CONTEXT = 16  # tokens of a prompt that its completion is decoded after


def drops_first_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """
    Whether the tokenizer decodes a token differently at the start of a text, as those of Llama 2's kind do: they put a
    space before every text, and take it off again.
    """
    ids = tokenizer("a a", add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    return any(tokenizer.decode(ids[:i]) + tokenizer.decode(ids[i:]) != whole for i in range(1, len(ids)))


def decode_after(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[str]:
    """
    The texts that completions add to those of their prompts, without special tokens.

    Decoded by itself, a completion would lose the space that it begins with, for tokenizers that
    [`drops_first_space`] recognises.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        prompts (`Sequence[Sequence[int]]`): Token ids of N prompts.
        completions (`Sequence[Sequence[int]]`): Token ids of their N completions.

    Returns:
        `list[str]`: N texts.
    """
    alone: list[str] = tokenizer.batch_decode([list(ids) for ids in completions], skip_special_tokens=True)
    if not drops_first_space(tokenizer):
        return alone
    ends, before = _ends(tokenizer, prompts)
    together = tokenizer.batch_decode(
        [end + list(ids) for end, ids in zip(ends, completions, strict=True)], skip_special_tokens=True
    )
    # A character that begins in the prompt and ends in the completion belongs to neither.
    return [
        whole[len(start) :] if whole.startswith(start) else text
        for whole, start, text in zip(together, before, alone, strict=True)
    ]


def _ends(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[str]]:
    """
    The last tokens of prompts and their texts, which begin with a complete character.

    Where a character has a token for each of its bytes, one that lacks some makes all characters incomplete that
    follow without another token in between.
    """
    ends = [list(prompt[-_CONTEXT:]) for prompt in prompts]
    texts: list[str] = tokenizer.batch_decode(ends, skip_special_tokens=True)
    for i, prompt in enumerate(prompts):
        while texts[i].startswith("\ufffd") and len(ends[i]) < len(prompt):
            ends[i] = list(prompt[-4 * len(ends[i]) :])
            texts[i] = str(tokenizer.decode(ends[i], skip_special_tokens=True))
    return ends, texts


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Token ids of a text that continues another one: without special tokens, and without the space that tokenizers of
    Llama 2's kind put before every text.
    """
    if not drops_first_space(tokenizer):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start, whole = tokenizer(["\n", "\n" + text], add_special_tokens=False)["input_ids"]
    if list(whole[: len(start)]) != list(start):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(whole[len(start) :])


def decode_completions(
    sequences: list[list[int]],
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig,
) -> list[Completion]:
    """
    Completions made of generated token ids: each sequence is cut after its end and decoded.

    Args:
        sequences (`list[list[int]]`): What `generate` returned, without the prompts.
        prompts (`Sequence[Sequence[int]]`): The prompts, each with as many sequences, next to each other.
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
    group_size = len(sequences) // max(1, len(prompts))
    owners = [prompt for prompt in prompts for _ in range(group_size)]
    completions = []
    for text, ids, ended in zip(decode_after(tokenizer, owners, trimmed), trimmed, has_eos, strict=True):
        if not ended and any(stop in text for stop in stop_strings):
            ended = True
            while len(ids) > 1 and ids[-1] == config.pad_token_id:  # `generate` pads what follows a stop string
                ids.pop()
        completions.append(Completion(text=text, ids=ids, ended=ended))
    return completions


def decode_groups(
    sequences: list[list[int]],
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig,
) -> list[list[Completion]]:
    """[`decode_completions`], grouped by prompt."""
    completions = decode_completions(sequences, prompts, tokenizer, config)
    group_size = max(1, len(completions) // max(1, len(prompts)))
    return [completions[i : i + group_size] for i in range(0, len(completions), group_size)]
