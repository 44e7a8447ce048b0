# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads tokenizers, and compares the vocabularies of two of them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .load import adapter_base, refuse_empty, resolve_model_path


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


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name of the vocabulary: equal for tokenizers that give the same ids the same tokens."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def vocabulary_difference(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> tuple[int, str | None, str | None] | None:
    """
    The first id that means something else to the two, and what it means to each; `None` if none does.

    One of them may have more tokens than the other: a padding token that was added, say.
    """
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine.items() <= theirs.items() or theirs.items() <= mine.items():
        return None
    tokens, others = ({i: token for token, i in vocabulary.items()} for vocabulary in (mine, theirs))
    first = next(i for i in sorted(tokens.keys() | others.keys()) if tokens.get(i) != others.get(i))
    return first, tokens.get(first), others.get(first)


def vocabulary_mismatch(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, who: str) -> str:
    """
    What is wrong if token ids do not mean the same to a language model and to another, as a sentence; else `""`.

    Args:
        tokenizer, other ([`~transformers.PreTrainedTokenizerBase`]): The language model's, and the other's.
        who (`str`): What to call the other.
    """
    difference = vocabulary_difference(tokenizer, other)
    if difference is None:
        return ""
    token, mine, its = difference
    return (
        f"The {who} has another vocabulary than the language model: token {token} is {its!r} for it and {mine!r} for "
        "the language model."
    )


_TOKENIZER_FILES = "tokenizer_config.json tokenizer.json tokenizer.model spiece.model vocab.json vocab.txt".split()


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False, padding_side: str = "left"
) -> PreTrainedTokenizerBase:
    """
    Load a tokenizer and give it a pad token (its end-of-sequence token) if it has none.

    Args:
        name_or_path (`str`): Hub id or directory; the directory of a LoRA adapter without a tokenizer falls back to
            its base model's.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.
        padding_side (`str`, *optional*, defaults to `"left"`): Side that batches for generation are padded on.

    Raises:
        `OSError`: There is no such tokenizer.
        `ValueError`: It has neither a pad nor an end-of-sequence token.
    """
    name_or_path = resolve_model_path(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code, padding_side=padding_side
        )
    except (OSError, ValueError) as error:
        base = adapter_base(name_or_path)
        if base is None and Path(name_or_path).is_dir():  # transformers speaks of sentencepiece, and of no directory
            if not any((Path(name_or_path) / name).is_file() for name in _TOKENIZER_FILES):
                refuse_empty(name_or_path)
                raise OSError(
                    f"There is no tokenizer in {name_or_path!r}: save it beside the model (`save_pretrained`)."
                ) from error
            raise OSError(f"The tokenizer in {name_or_path!r} cannot be loaded: {error}") from error
        if base is None:
            raise
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code, padding_side=padding_side)
    return ensure_pad_token(tokenizer)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Pad with the end-of-sequence token where there is no pad token; raise `ValueError` if there is neither."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has neither a pad token nor an end-of-sequence token. Set one before training: "
                "`tokenizer.eos_token = ...` or `tokenizer.pad_token = ...`."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
