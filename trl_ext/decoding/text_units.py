# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Where words and sentences begin in a text that is generated token by token, as tables of a vocabulary.

Dimensions: N rows, V vocabulary, Z states of a text.
"""

import copy
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.models.tokenizers import token_names


# What a text so far ends in
INSIDE, SPACE, MARK, NEW_SENTENCE, START = range(5)
STATES = 5

MARKS = ".!?\u2026"
CLOSERS = "\"')]}*_`\u201d\u2019\u00bb"
# Of languages that put no space between sentences
WIDE_MARKS = "\u3002\uff01\uff1f\uff61"
WIDE_CLOSERS = "\u300d\u300f\uff09\u3011\u300b"
LINE_BREAKS = "\n\r\x0b\x0c\u2028\u2029"


def advance(state: int, text: str) -> int:
    """
    What a text ends in after some more of it.

    - `INSIDE`: a word, or anything else that is none of the following.
    - `SPACE`: white space.
    - `MARK`: one of `MARKS`, and after it any number of `CLOSERS`.
    - `NEW_SENTENCE`: such an end and white space after it, a line break, or one of `WIDE_MARKS` and any number of
      `WIDE_CLOSERS`. What follows is the beginning of a sentence.
    - `START`: it is empty.

    Args:
        state (`int`): What it ended in before.
        text (`str`): The text that follows.
    """
    for character in text:
        state = NEW_SENTENCE if state == START else state
        if character in LINE_BREAKS:
            state = NEW_SENTENCE
        elif character.isspace():
            state = {INSIDE: SPACE, MARK: NEW_SENTENCE}.get(state, state)
        elif character in MARKS:
            state = MARK
        elif character in WIDE_MARKS or (state == NEW_SENTENCE and character in WIDE_CLOSERS):
            state = NEW_SENTENCE
        elif not (state == MARK and character in CLOSERS):
            state = INSIDE
    return state


class TextUnits:
    """
    Tables of a vocabulary that tell where words and sentences begin.

    A token begins a word if it has a character that is no white space, and either begins with white space or follows
    some. It begins a sentence if such white space, its own included, follows a mark (`. ! ? ...`, after which quotes
    and brackets may close) or has a line break; in Chinese and Japanese no white space is needed. Special tokens, such
    as the end of sequence, begin both: where they come is a decision of its own. So does the first token of a text.
    What begins a sentence begins a word, the only one that languages without white space have. An abbreviation counts
    as the end of a sentence.

    Which token comes next is not known when it is decided whether to guide it. The decision is about the likeliest
    one: a token is guided if the language model's likeliest token begins a word.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer.
        vocabulary (`int`): Tokens of the language model; for those that the tokenizer lacks see incomplete characters.

    Attributes:
        next_VZ (`torch.Tensor` of shape `(V, Z)`): State after a token.
        begins (`dict[str, torch.Tensor]`): Under `"word"` and `"sentence"` whether a token begins one after a text of
            each state, of shape `(V, Z)`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        # `all_special_ids` has those with a name, such as the end of sequence; the end of a turn need not have one.
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        texts = ["" if token in special else text for token, text in enumerate(token_names(tokenizer))]
        texts = [*texts[:vocabulary], *[""] * (vocabulary - len(texts))]
        # An incomplete character has no text, but it is one.
        seen = [text or "\ufffd" for text in texts]
        self.next_VZ = torch.tensor([[advance(state, text) for state in range(STATES)] for text in seen])
        starts = [text[: len(text) - len(text.lstrip())] for text in texts]
        reached_VZ = torch.tensor([[advance(state, start) for state in range(STATES)] for start in starts])
        visible_V1 = torch.tensor([[not text or start != text] for text, start in zip(texts, starts, strict=True)])
        end_V1 = torch.tensor([[token in special] for token in range(vocabulary)])
        first_Z = torch.arange(STATES) == START
        new_VZ = (reached_VZ == NEW_SENTENCE) & visible_V1
        self.begins = {
            "word": new_VZ | ((reached_VZ == SPACE) & visible_V1) | end_V1 | first_Z,
            "sentence": new_VZ | end_V1 | first_Z,
        }

    def to(self, device: torch.device) -> "TextUnits":
        """The tables on a device."""
        moved = copy.copy(self)
        moved.next_VZ = self.next_VZ.to(device)
        moved.begins = {name: table.to(device) for name, table in self.begins.items()}
        return moved


_KNOWN: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, TextUnits]]" = WeakKeyDictionary()


def text_units(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TextUnits:
    """The [`TextUnits`] of a tokenizer, made once."""
    known = _KNOWN.setdefault(tokenizer, {})
    if vocabulary not in known:
        known[vocabulary] = TextUnits(tokenizer, vocabulary)
    return known[vocabulary]
