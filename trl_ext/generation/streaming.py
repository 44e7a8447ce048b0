# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A streamer that shows the text of a completion while the model generates it."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from trl_ext.data.completion import decode_after


class TextStream(BaseStreamer):
    """
    A streamer that passes on each new piece of a completion's text as soon as it is final.

    The pieces add up to the text of the [`~trl_ext.data.completion.Completion`]. Each call decodes all tokens again,
    because the text of a token depends on its neighbours. Text that may still change is held back: incomplete
    characters and trailing spaces.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        show (`Callable`): Called with each piece, which is not empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], Any]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self._prompt: list[int] | None = None
        self._ids: list[int] = []
        self._shown = ""

    def put(self, value: Any) -> None:
        """Receive the prompt, which comes first and is not shown, or the next tokens of the completion."""
        if self._prompt is None:
            self._prompt = value.flatten().tolist()
            return
        self._ids += value.flatten().tolist()
        [text] = decode_after(self.tokenizer, [self._prompt], [self._ids])
        if not text.endswith("\ufffd"):
            self._show(text.rstrip())

    def end(self) -> None:
        """Do nothing. `generate` calls this without the final text; [`finish`] shows the rest."""

    def finish(self, text: str) -> None:
        """Show the rest of the completion's final text."""
        self._show(text)

    def _show(self, text: str) -> None:
        if text.startswith(self._shown) and len(text) > len(self._shown):
            piece, self._shown = text[len(self._shown) :], text
            self.show(piece)
