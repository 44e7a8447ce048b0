# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward function of readability: a measure to judge models by that were trained on other rewards."""

from collections.abc import Sequence
from typing import Any

from trl_ext.packages import Package, require_package

from .constraints import MIN_DIFFERENT_WORDS
from .text import answer_text, words


TEXTSTAT = Package("'trl-ext[instructions]'", ("textstat",))
# The grades between which the reward distinguishes: first year of school, and beyond university.
EASIEST, HARDEST = 0.0, 20.0


def readability(completions: Sequence[str | list[dict[str, Any]]], **kwargs: Any) -> list[float]:
    """
    Reward function: minus the Coleman-Liau index, from −20 (hard) to 0 (easy).

    The index (Coleman and Liau, 1975) is the school grade in the United States at which an English text can be read,
    from letters per word and sentences per word. It is textstat's, and unlike its measures that count syllables it
    needs no download. A text of fewer than `MIN_DIFFERENT_WORDS` different words counts as hard.

    Args:
        completions (`Sequence`): Texts or lists of messages.
        kwargs: Further arguments of reward functions, which are not used.

    Returns:
        `list[float]`: The rewards.

    Raises:
        `ImportError`: textstat is not installed.
    """
    require_package("readability", TEXTSTAT)
    import textstat

    texts = [answer_text(completion) for completion in completions]
    return [
        -min(max(textstat.coleman_liau_index(text), EASIEST), HARDEST)
        if len({word.casefold() for word in words(text)}) >= MIN_DIFFERENT_WORDS
        else -HARDEST
        for text in texts
    ]
