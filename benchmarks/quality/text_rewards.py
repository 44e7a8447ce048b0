# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward functions of the form of a text, for value models with several heads."""

from typing import Any

from trl_ext.instructions.text import answer_text, words


def length(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    """Reward function: the number of words, in tens."""
    return [len(words(answer_text(text))) / 10 for text in completions]


def exclamations(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    """Reward function: the number of exclamation marks."""
    return [float(answer_text(text).count("!")) for text in completions]
