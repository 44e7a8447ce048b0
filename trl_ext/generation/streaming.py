# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Text shown while a model writes it."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer


class TextStream(BaseStreamer):
    """
    A streamer that hands on each piece of a completion's text as soon as it is certain.

    The pieces add up to the text of the [`~trl_ext.generation.generate.Completion`]: all tokens are decoded together
    each time, as a token's text depends on its neighbours, and what may still change is held back (half a character,
    the blanks at the end).

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        show (`Callable`): Called with each piece, never an empty one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], Any]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self._prompt_was_put = False
        self._ids: list[int] = []
        self._shown = ""

    def put(self, value: Any) -> None:
        """Take in the prompt, which comes first and is not shown, or the next tokens of the one completion."""
        if not self._prompt_was_put:
            self._prompt_was_put = True
            return
        self._ids += value.flatten().tolist()
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            self._show(text.rstrip())

    def end(self) -> None:
        """Called by `generate`, which knows no more than what it put: [`finish`] shows what is left."""

    def finish(self, text: str) -> None:
        """Show what of the completion's whole text was not shown yet."""
        self._show(text)

    def _show(self, text: str) -> None:
        if text.startswith(self._shown) and len(text) > len(self._shown):
            piece, self._shown = text[len(self._shown) :], text
            self.show(piece)
