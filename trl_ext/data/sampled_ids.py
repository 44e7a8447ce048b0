# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Token ids that a dataset has beside the text of completions, so that training reads the tokens that were sampled.

The columns are `completion_ids` (for each completion its ids, empty if they are not known), `tokenizers` (for each the
[`tokenizer_tag`] of the tokenizer of these ids) and `prompt_ids` (the prompt that the completions were sampled from;
empty if several tokenizers encoded it).
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.vocabulary import vocabulary_digest

from .completion import decode_after


ID_COLUMNS = ("completion_ids", "tokenizers", "prompt_ids")


def tokenizer_tag(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A tokenizer's name and a hash of its vocabulary, `name#hash`. Tokens that were added to the vocabulary, such as a
    padding token, do not count.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    digest = vocabulary_digest(tokenizer, tokenizer.vocab_size)
    return f"{Path(name).name if Path(name).is_absolute() else name}#{digest}"


def _same_vocabulary(tag: str, other: str) -> bool:
    return tag.rpartition("#")[2] == other.rpartition("#")[2]


def sampled_ids(
    row: dict[str, Any],
    i: int,
    text: str | None,
    prompt_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    tag: str,
    notes: dict[str, str],
) -> list[int]:
    """
    The token ids that completion `i` of a row was sampled as; empty if they are not known or do not fit.

    Args:
        row (`dict`): A row, possibly with the columns of this module.
        i (`int`): Number of the completion.
        text (`str`, *optional*): Its text. `None` if it is more than text, as a tool call is.
        prompt_ids (`list[int]`): Token ids of the prompt.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer that training uses.
        tag (`str`): Its [`tokenizer_tag`].
        notes (`dict[str, str]`): Gets the reason why ids are not used (see `_NOTES` of
            `tokenization.py`).
    """
    ids = [] if row.get("tokenizers") is None else row["completion_ids"][i]
    if not ids or text is None:
        return []
    if not _same_vocabulary(row["tokenizers"][i], tag):
        notes["tokenizer"] = str(row["tokenizers"][i])
        return []
    if max(ids) >= len(tokenizer) or not _stand_for(ids, text, prompt_ids, tokenizer):
        notes["text"] = text
        return []
    return list(ids)


def _stand_for(ids: list[int], text: str, prompt_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token ids stand for a text, by themselves or behind their prompt."""
    alone = tokenizer.decode(ids, skip_special_tokens=True) == text
    return alone or decode_after(tokenizer, [prompt_ids], [ids]) == [text]
