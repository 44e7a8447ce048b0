# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Tokens of a server's model: a prompt as the server takes it and as ids, and the ids of tokens that it names by text.

Everything here supposes the tokenizer of the server's model, except where it says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.data.tokenization import encode_prompt

from .errors import RequestRefused
from .protocol import Candidate, Prompt


class ServedText:
    """
    A prompt and what was answered so far.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of whoever reads `ids`.
        prompt (`str`, `list[int]` or `list[dict]`): Text, token ids or messages.
        chat (`bool`): Whether messages go to the server as they are; otherwise they are rendered here, by the
            tokenizer's chat template.
        by_id (`bool`): Whether token ids are sent. What was drawn is then kept token by token. A server that takes
            text splits it by itself, so `ids` are then those of the whole text split anew.

    Attributes:
        answer (`str`): The answer so far.
        ids (`list[int]`): Token ids of prompt and answer.

    Raises:
        `ValueError`: The prompt has no tokens, or is none that the endpoint takes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat: bool, by_id: bool) -> None:
        messages = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
        if chat and not messages:
            raise ValueError("A chat endpoint takes messages, not text or token ids: use the completions endpoint.")
        ids = prompt if isinstance(prompt, list) and not messages else encode_prompt(tokenizer, prompt)  # type: ignore[arg-type]
        if not ids:
            raise ValueError("The prompt has no tokens: there is nothing to continue.")
        self.tokenizer, self.by_id, self.answer = tokenizer, by_id, ""
        self.messages: Any = prompt if chat else None
        self.head_ids: list[int] = list(ids)  # type: ignore[arg-type]
        self.head = prompt if isinstance(prompt, str) else _text(tokenizer, self.head_ids)
        self.ids = list(self.head_ids)
        # Whether the prompt's ids are what its text is split into; others (made by hand, say) are kept as they are.
        self._plain = isinstance(prompt, str) or encode_prompt(tokenizer, self.head) == self.head_ids
        self._read_at_first = 0

    def request(self) -> tuple[Prompt, str]:
        """What to send: the prompt, and what the assistant has said if the prompt is messages."""
        if self.messages is not None:
            return self.messages, self.answer
        return (self.ids if self.by_id else self.head + self.answer), ""

    def with_text(self, text: str) -> list[int]:
        """Ids of all that is there followed by `text`, as the server splits them."""
        whole = self.answer + text
        if not whole:
            return list(self.head_ids)
        if self._plain:
            return encode_prompt(self.tokenizer, self.head + whole)
        return [*self.head_ids, *self.tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def add_text(self, text: str) -> None:
        """Take `text` into the answer."""
        self.ids = self.with_text(text)
        self.answer += text

    def add_token(self, token: int, text: str) -> None:
        """Take a token into the answer; of a server that takes text, its name."""
        if self.by_id:
            self.ids.append(token)
            self.answer = self.tokenizer.decode(self.answer_ids, skip_special_tokens=True)
        else:
            self.add_text(text)

    def check_continued(self, prompt_tokens: int | None) -> None:
        """
        Check that a chat server goes on in the middle of the answer, by the length of what it read.

        Raises:
            [`~trl_ext.endpoint.errors.RequestRefused`]: It has closed the answer and begun another.
        """
        if self.messages is None or prompt_tokens is None:
            return
        if not self.answer:
            self._read_at_first = prompt_tokens
        # The end of a turn and the start of another are at least three tokens in any template
        elif self._read_at_first and prompt_tokens - self._read_at_first > len(self.answer_ids) + 2:
            raise RequestRefused(
                "The chat endpoint does not go on in the middle of an answer: it ends it and begins another (it read "
                f"{prompt_tokens} tokens where {self._read_at_first + len(self.answer_ids)} were expected). Use the "
                "completions endpoint (chat=False), or block mode with blocks as long as an answer."
            )

    @property
    def answer_ids(self) -> list[int]:
        """Ids of the answer; those of the answer alone where it has merged with the end of the prompt."""
        kept = len(self.head_ids)
        if self.ids[:kept] == self.head_ids:
            return self.ids[kept:]
        return list(self.tokenizer(self.answer, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Option:
    """
    A token that may be drawn next.

    Args:
        logprob (`float`): Its log-probability under the server's model, in nats.
        text (`str`): What it adds to the text; empty where that is no whole characters.
        id (`int`): Its id.
        end (`bool`): Whether it ends the answer.
    """

    logprob: float
    text: str
    id: int
    end: bool


class TokenNames:
    """
    What the tokens that a server names are.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the server's model.
        ends (`Sequence[str]`, *optional*): Tokens that end an answer, besides the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.ends = {tokenizer.eos_token_id, *map(tokenizer.get_vocab().get, ends)}
        if None in self.ends:
            raise ValueError(f"end_tokens: not all of {[tokenizer.eos_token, *ends]} are tokens of the tokenizer.")
        self._names: list[str] | None = None
        self._ids: dict[str, int] = {}

    def options(self, candidates: Sequence[Candidate], *, by_text: bool) -> list[Option]:
        """
        The tokens among the candidates.

        Args:
            candidates (`Sequence[Candidate]`): What the server named.
            by_text (`bool`): Whether the prefix is sent as text, so that a token without text cannot be used.

        Raises:
            `ValueError`: They are tokens of another vocabulary.
        """
        if self._names is None:
            self._names = token_names(self.tokenizer)
            for token, name in enumerate(self._names):
                if name:
                    self._ids.setdefault(name, token)
        pairs = [(c, self._ids.get(c.text, -1) if c.id is None else c.id) for c in candidates]
        known = [(c, token, self._names[token]) for c, token in pairs if 0 <= token < len(self._names)]
        if 2 * len(known) < len(pairs):
            strange = next(c for c, token in pairs if not 0 <= token < len(self._names))
            raise ValueError(
                f"The server's model has another vocabulary: it names {strange.text or strange.id!r}, which is no "
                f"token of {self.tokenizer.name_or_path or 'the tokenizer'}. Pass the tokenizer of the server's "
                "model; if there is none here, use block mode, which needs none."
            )
        options = [Option(c.logprob, name, token, token in self.ends) for c, token, name in known]
        return [option for option in options if option.end or option.text or not by_text]


def token_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    What each token adds to a text; empty for those that are no whole characters.

    A token is decoded behind another one, as some tokenizers drop the space that a text begins with.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    pairs = [[*anchor, token] for token in range(len(tokenizer))]
    texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    return [text[len(before) :] if text.startswith(before) and "\ufffd" not in text else "" for text in texts]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of a prompt, without the start token that a server puts before any text by itself."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    start = tokenizer.bos_token
    puts_start = start and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if puts_start else text
