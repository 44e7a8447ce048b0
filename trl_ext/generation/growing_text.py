# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The text of a completion while it grows: which part of it is final, and where a stop text ends it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import decode_after


WINDOW = 32  # tokens; a character, or what a tokenizer joins, has a few


class GrowingText:
    """
    The text of a completion, token by token.

    The last tokens are decoded again at each step, as the text of a token depends on its neighbours: up to `WINDOW` of
    them, so that a step takes as long at the end of a long text as at its start. A piece is handed out when nothing
    can change it: an incomplete character, trailing spaces (which some tokenizers clean up) and the beginning of a
    stop text are held back.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        prompt_ids (`Sequence[int]`): Token ids of the prompt.
        stops (`Sequence[str]`, *optional*): Texts that end the completion. Neither they nor what follows are part of
            its text.

    Attributes:
        text (`str`): The text so far, as far as it is final.
        stopped (`bool`): Whether a stop text has come.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.prompt_ids, self.stops = tokenizer, list(prompt_ids), list(stops)
        self.text, self.stopped = "", False
        self._sent = ""
        self._settled, self._settled_text = 0, ""  # tokens that are not decoded again, and their text

    def grow(self, ids: Sequence[int], *, final: bool = False) -> str:
        """
        The next piece of the text.

        Args:
            ids (`Sequence[int]`): All tokens of the completion so far.
            final (`bool`, *optional*, defaults to `False`): Whether no more tokens follow.

        Returns:
            `str`: The piece; may be empty.
        """
        if self.stopped:
            return ""
        whole = self._decode(list(ids), final)
        found = [place for stop in self.stops if (place := whole.find(stop)) >= 0]
        if found:
            self.stopped = True
            whole = whole[: min(found)]
        elif not final:
            whole = self._certain(whole)
        self.text = whole
        return self.rest(whole)

    def _decode(self, ids: list[int], final: bool) -> str:
        """The text of the tokens so far; once more as a whole when it is final."""
        if final:
            self._settled, self._settled_text = 0, ""
        known = self._settled
        [new] = decode_after(self.tokenizer, [self.prompt_ids + ids[:known]], [ids[known:]])
        whole = self._settled_text + new
        # Between two characters the text of what follows does not depend on where it begins.
        if len(ids) - known >= WINDOW and not whole.endswith("\ufffd"):
            self._settled, self._settled_text = len(ids), whole
        return whole

    def rest(self, text: str) -> str:
        """The piece of a text that was not handed out yet; empty if the tokenizer took back what was handed out."""
        if not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece

    def _certain(self, text: str) -> str:
        if text.endswith("\ufffd"):
            return self.text
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        return text[: len(text) - held].rstrip()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop text begins with."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)
