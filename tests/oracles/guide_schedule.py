# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which tokens a schedule guides, as plain loops over one text: numbers as Python's integers, words by their text."""

import math
import re
from typing import Any

from trl_ext.decoding.guide_schedule import GuideSchedule


def entropy(logits: list[float]) -> float:
    """- sum p log p."""
    largest = max(logits)
    total = sum(math.exp(x - largest) for x in logits)
    found = 0.0
    for x in logits:
        p = math.exp(x - largest) / total
        found -= p * math.log(p) if p > 0 else 0.0
    return found


def uniform(ids: list[int], seed: int) -> float:
    """SplitMix64 of a text's digest, with integers modulo 2^64."""
    word, digest = 2**64, 0
    for token in ids:
        digest = (digest * 6364136223846793005 + token + 1) % word
    z = (digest + (seed + 1) * 0x9E3779B97F4A7C15) % word
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % word
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % word
    z ^= z >> 31
    return (z >> 40) / 2**24


def begins_word(before: str, token: str) -> bool:
    """Whether a token with visible text begins a word after a text."""
    if not before:
        return True
    spaced = bool(token.strip()) and (token[0].isspace() or before[-1].isspace())
    return spaced or begins_sentence(before, token)


def begins_sentence(before: str, token: str) -> bool:
    """Whether a token with visible text begins a sentence after a text."""
    if not before:
        return True
    reached = before + token[: len(token) - len(token.lstrip())]
    end = "(?:^|[\n\r]|[.!?…][\"')\\]}*_`”’»]*\\s|[。！？｡])(?:\\s|[」』）】》])*$"
    return bool(token.strip()) and re.search(end, reached) is not None


def is_guided(
    schedule: GuideSchedule, prompt: list[int], answer: list[int], logits: list[float], tokenizer: Any = None
) -> bool:
    """Whether the token after prompt and answer is guided, from the language model's logits for it."""
    if isinstance(schedule.every, int) and len(answer) % schedule.every:
        return False
    if schedule.entropy and not entropy(logits) > schedule.entropy:
        return False
    if schedule.random and not uniform([*prompt, *answer], schedule.seed) < schedule.random:
        return False
    if isinstance(schedule.every, str):
        likeliest = max(range(len(logits)), key=lambda a: logits[a])
        if likeliest in tokenizer.all_special_ids:
            return True
        text = lambda ids: "".join(_text(tokenizer, token) for token in ids)  # noqa: E731
        begins = begins_word if schedule.every == "word" else begins_sentence
        return begins(text(answer) if answer else "", _text(tokenizer, likeliest))
    return True


def _text(tokenizer: Any, token: int) -> str:
    return "\ufffd" if token in tokenizer.all_special_ids else tokenizer.decode([token])
