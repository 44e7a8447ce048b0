# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Text of a given number of tokens, for suites that hand trainers text: the quickstart's prompts in pieces."""

from collections.abc import Iterator
from typing import Any

from .harness import ROOT
from .quality_train import read_rows


PROMPTS = ROOT / "recipes" / "quickstart" / "prompts_train.jsonl"


def pieces(tokenizer: Any, tokens: int) -> Iterator[str]:
    """The training prompts, one after the other, in pieces that have `tokens` tokens each when split by themselves."""
    ids = [i for row in read_rows(str(PROMPTS)) for i in tokenizer(" " + row["prompt"])["input_ids"]]
    for start in range(0, len(ids) - tokens + 1, tokens):
        text = tokenizer.decode(ids[start : start + tokens])
        if len(tokenizer(text)["input_ids"]) == tokens:
            yield text
