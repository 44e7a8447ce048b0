# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows of files, texts of a given number of tokens, made of the quickstart's prompts, and texts that people wrote."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from .results import ROOT


PROMPTS = ROOT / "recipes" / "quickstart" / "prompts_train.jsonl"
DATA = ROOT / "data"  # where `benchmarks.quality.imdb_prompts` writes the prompts of the IMDB task
PRINCIPLE = "The following is a positive movie review.\n"
WRONG_PRINCIPLE = "The following is a negative movie review.\n"  # asks for what the reward is against


def read_rows(path: str, limit: int = 0) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, or the first `limit` of them."""
    # Not `splitlines`, for which a line also ends at separators that may stand in a string.
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    return rows[:limit] if limit else rows


def pieces(tokenizer: Any, tokens: int) -> Iterator[str]:
    """Parts of the training prompts, one after the other, that have `tokens` tokens each when tokenized alone."""
    ids = [i for row in read_rows(str(PROMPTS)) for i in tokenizer(" " + row["prompt"])["input_ids"]]
    for start in range(0, len(ids) - tokens + 1, tokens):
        text = tokenizer.decode(ids[start : start + tokens])
        if len(tokenizer(text)["input_ids"]) == tokens:
            yield text


def human_texts(count: int, shortest: int = 200) -> list[str]:
    """
    Paragraphs that people wrote and that every Python brings along: of its language reference.

    Args:
        count (`int`): How many, spread over all of it.
        shortest (`int`, *optional*, defaults to `200`): Characters that a paragraph has at least.
    """
    parts = [" ".join(part.split()) for topic in sorted(topics) for part in re.split(r"\n\s*\n", topics[topic])]
    long = [part for part in parts if len(part) >= shortest and not part.startswith((">>>", "::="))]
    return [long[i * len(long) // count] for i in range(min(count, len(long)))]
