# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A completion: its text, its tokens, and whether the model ended it."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Completion:
    """
    One completion of a prompt.

    Args:
        text (`str`): Decoded tokens without special ones, cut at the end of sequence; empty if that came first.
        ids (`list[int]`): Token ids, with the end-of-sequence token if the model wrote one. Never empty.
        ended (`bool`): Whether the model ended it, as opposed to reaching `max_completion_length`.
    """

    text: str
    ids: list[int]
    ended: bool


def cut(completion: Completion, room: int, tokenizer: PreTrainedTokenizerBase) -> Completion:
    """The first `room` tokens of a completion; all of it where it fits, or where there is no room at all."""
    if not 0 < room < len(completion.ids):
        return completion
    ids = completion.ids[:room]
    return Completion(text=tokenizer.decode(ids, skip_special_tokens=True), ids=ids, ended=False)
