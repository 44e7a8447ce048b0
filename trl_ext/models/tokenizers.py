# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads tokenizers, and compares the vocabularies of two of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .load import adapter_base, hub_arguments, locate, refuse_empty


Difference: TypeAlias = tuple[int, str | None, str | None] | None

# By the two tokenizers: their numbers of tokens, and the difference. Guides compare for each batch, and it takes a
# tenth of a second for 50,000 tokens.
_COMPARED: (
    "WeakKeyDictionary[PreTrainedTokenizerBase, "
    "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[int, int], Difference]]]"
) = WeakKeyDictionary()


def same_vocabulary(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether the two have the same tokens under the same ids."""
    return tokenizer is other or tokenizer.get_vocab() == other.get_vocab()


def can_read(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase, ids: Iterable[Iterable[int]]) -> bool:
    """
    Whether token ids stand for the same tokens in `reader` as in `writer`.

    One vocabulary may extend the other, for example by a padding token that was added before training, as long as
    `reader` has every token that occurs.

    Args:
        reader, writer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizers.
        ids (`Iterable[Iterable[int]]`): Rows of token ids of `writer`.
    """
    if reader is writer:
        return True
    known, written = reader.get_vocab(), writer.get_vocab()
    extends = known.items() <= written.items() or written.items() <= known.items()
    return extends and {token for row in ids for token in row} <= set(known.values())


def vocabulary_difference(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Difference:
    """
    The first id that stands for different tokens in two vocabularies, and both tokens; `None` if there is none.

    One of them may have more tokens than the other, for example an added padding token.
    """
    compared, sizes = _COMPARED.setdefault(tokenizer, WeakKeyDictionary()), (len(tokenizer), len(other))
    if other not in compared or compared[other][0] != sizes:  # tokens may have been added since
        compared[other] = sizes, _difference(tokenizer, other)
    return compared[other][1]


def _difference(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Difference:
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine.items() <= theirs.items() or theirs.items() <= mine.items():
        return None
    tokens, others = ({i: token for token, i in vocabulary.items()} for vocabulary in (mine, theirs))
    first = next(i for i in sorted(tokens.keys() | others.keys()) if tokens.get(i) != others.get(i))
    return first, tokens.get(first), others.get(first)


def vocabulary_mismatch(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, who: str) -> str:
    """
    How the vocabulary of another model differs from that of a language model, as a sentence; empty if it does not.

    Args:
        tokenizer, other ([`~transformers.PreTrainedTokenizerBase`]): Tokenizers of the language model and the other.
        who (`str`): Name of the other model, for the sentence.
    """
    difference = vocabulary_difference(tokenizer, other)
    if difference is None:
        return ""
    token, mine, its = difference
    return (
        f"The {who} has another vocabulary than the language model: token {token} is {its!r} in its vocabulary and "
        f"{mine!r} in that of the language model."
    )


_TOKENIZER_FILES = "tokenizer_config.json tokenizer.json tokenizer.model spiece.model vocab.json vocab.txt".split()


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    padding_side: str = "left",
    **hub: Any,
) -> PreTrainedTokenizerBase:
    """
    Loads a tokenizer, and sets its pad token to its end-of-sequence token if it has none.

    Args:
        name_or_path (`str`): Hub id or directory; the directory of a LoRA adapter without a tokenizer falls back to
            its base model's.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.
        padding_side (`str`, *optional*, defaults to `"left"`): Side on which the tokenizer pads.
        hub: `subfolder`, `token`, `cache_dir` and the like.

    Raises:
        `OSError`: There is no such tokenizer.
        `ValueError`: It has neither a pad nor an end-of-sequence token.
    """
    name_or_path, inside = locate(name_or_path, hub.pop("subfolder", None))
    where = {**inside, **hub, "revision": revision}
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "padding_side": padding_side}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **where, **how)
    except (OSError, ValueError) as error:
        base = adapter_base(name_or_path, **hub_arguments(where))
        if base is None and Path(name_or_path).is_dir():  # the error of transformers is about sentencepiece
            if not any((Path(name_or_path) / name).is_file() for name in _TOKENIZER_FILES):
                refuse_empty(name_or_path)
                raise OSError(
                    f"There is no tokenizer in {name_or_path!r}: save it beside the model (`save_pretrained`)."
                ) from error
            raise OSError(f"The tokenizer in {name_or_path!r} cannot be loaded: {error}") from error
        if base is None:
            raise
        tokenizer = AutoTokenizer.from_pretrained(base, **hub_arguments(hub, place=False), **how)
    return ensure_pad_token(tokenizer)


def use_eos_token(tokenizer: PreTrainedTokenizerBase, eos_token: str) -> None:
    """
    Set the end-of-sequence token of a tokenizer, as TRL's SFT does with `eos_token`.

    Raises:
        `ValueError`: The vocabulary does not have the token.
    """
    if eos_token not in tokenizer.get_vocab():
        raise ValueError(
            f"`eos_token`: {eos_token!r} is not in the vocabulary of the tokenizer {tokenizer.name_or_path!r}. Use a "
            "token that it has, such as the one that ends a turn in its chat template."
        )
    tokenizer.eos_token = eos_token


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Sets a missing pad token to the end-of-sequence token. Raises `ValueError` if there is neither."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has neither a pad token nor an end-of-sequence token. Set one before training: "
                "`tokenizer.eos_token = ...` or `tokenizer.pad_token = ...`."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def token_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    The text that each token adds to a text; empty for incomplete characters.

    Tokens are decoded after another token, as some tokenizers drop a space at the start of a text.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    pairs = [[*anchor, token] for token in range(1 + max(tokenizer.get_vocab().values()))]
    texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    return [text[len(before) :] if text.startswith(before) and "\ufffd" not in text else "" for text in texts]
