# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Shows the text of a completion while the model generates it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from trl_ext.data.completion import Completion
from trl_ext.generation_settings import GenerationSettings

from .growing_text import GrowingText
from .observer import StreamerObserver


class TextStream(BaseStreamer):
    """
    A streamer that passes on each new piece of a completion's text as soon as it is final.

    The pieces add up to the text of the [`~trl_ext.data.completion.Completion`]. See
    [`~trl_ext.generation.growing_text.GrowingText`] for what is held back.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        show (`Callable`): Called with each piece, which is not empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], Any]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self._text: GrowingText | None = None
        self._ids: list[int] = []

    def put(self, value: Any) -> None:
        """Receive the prompt, which comes first and is not shown, or the next tokens of the completion."""
        if self._text is None:
            self._text = GrowingText(self.tokenizer, value.flatten().tolist())
            return
        self._ids += value.flatten().tolist()
        self._show(self._text.grow(self._ids))

    def end(self) -> None:
        """Do nothing. `generate` calls this without the final text; [`finish`] shows the rest."""

    def finish(self, text: str) -> None:
        """Show the rest of the completion's final text."""
        self._show(text if self._text is None else self._text.rest(text))

    def _show(self, piece: str) -> None:
        if piece:
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
