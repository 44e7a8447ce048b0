# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Shows the text of a completion while the model generates it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from trl_ext.data.completion import Completion, decode_after
from trl_ext.generation_settings import GenerationSettings

from .observer import StreamerObserver


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


def streamed(
    tokenizer: PreTrainedTokenizerBase,
    generate: Callable[..., list[list[Completion]]],
    ids: list[int],
    settings: GenerationSettings,
    show: Callable[[str], Any],
) -> Completion:
    """
    Generate one completion and show its text on the way.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        generate (`Callable`): `(prompt_ids, settings, *, observer) -> completions`, as a policy has it.
        ids (`list[int]`): Token ids of the prompt.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): Settings for one completion.
        show (`Callable`): Called with each piece of the text.
    """
    stream = TextStream(tokenizer, show)
    stream.put(torch.tensor(ids))
    [[completion]] = generate([ids], settings, observer=StreamerObserver(stream))
    stream.finish(completion.text)
    return completion
