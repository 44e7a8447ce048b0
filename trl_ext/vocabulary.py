# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A digest by which a file can say which vocabulary its token ids, or the model in it, belong to."""

import hashlib
import json
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase


# By tokenizer, its number of tokens and `count`. A guide asks for each batch, and it takes a tenth of a second for
# 50,000 tokens.
_KNOWN: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], str]]" = WeakKeyDictionary()


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase, count: int = 0) -> str:
    """
    A hash of the vocabulary: equal for tokenizers that have the same tokens under the same ids.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        count (`int`, *optional*, defaults to `0`): Number of tokens, those with the lowest ids. `0` means all.
    """
    known, key = _KNOWN.setdefault(tokenizer, {}), (len(tokenizer), count)
    if key not in known:
        items = sorted(tokenizer.get_vocab().items())
        if count and count < len(items):
            items = sorted(sorted(items, key=lambda item: item[1])[:count])
        known[key] = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
    return known[key]
