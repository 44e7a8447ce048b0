# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Tokens of a server's model: prompts as text and as ids, and the ids of tokens that a server returns as text.

Tokenizers are those of the server's model, except where another one is mentioned.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import end_of_turn
from trl_ext.data.completion import decode_after, encode_after
from trl_ext.data.tokenization import encode_prompt
from trl_ext.models.tokenizers import token_names

from .errors import RequestRefused
from .protocol import Candidate, Prompt


class ServedText:
    """
    A prompt and the answer so far.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer for `ids`.
        prompt (`str`, `list[int]` or `list[dict]`): Text, token ids or messages.
        chat (`bool`): Whether messages are sent to the server as they are. Otherwise they are rendered here, with the
            tokenizer's chat template.
        by_id (`bool`): Whether token ids are sent, so that the sampled tokens are kept as they are. A server that is
            sent text tokenizes all of it again for each request, and so does `ids`.
        chat_template_kwargs (`dict[str, Any]`, *optional*): Arguments of the chat template, `tools` included, for
            messages.

    Attributes:
        fields (`dict[str, Any]`): What each request says about the chat template, for a chat endpoint.
        answer (`str`): The answer so far.
        ids (`list[int]`): Token ids of prompt and answer.

    Raises:
        `ValueError`: The prompt has no tokens, or the endpoint does not take prompts of its kind.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        *,
        chat: bool,
        by_id: bool,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        messages = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
        if chat and not messages:
            raise ValueError("A chat endpoint takes messages, not text or token ids: use the completions endpoint.")
        template = dict(chat_template_kwargs or {})
        if isinstance(prompt, list) and not messages:
            ids: Any = prompt
        else:
            ids = encode_prompt(tokenizer, prompt, **template)  # type: ignore[arg-type]
        if not ids:
            raise ValueError("The prompt has no tokens: there is nothing to continue.")
        self.tokenizer, self.by_id, self.answer = tokenizer, by_id, ""
        self.messages: Any = prompt if chat else None
        tools = template.pop("tools", None)
        sent = {"tools": tools, "chat_template_kwargs": template}
        self.fields = {name: value for name, value in sent.items() if value and chat}
        self.prompt_ids: list[int] = list(ids)  # type: ignore[arg-type]
        self.prompt = prompt if isinstance(prompt, str) else _text(tokenizer, self.prompt_ids)
        self.ids = list(self.prompt_ids)
        # Whether the tokenizer makes the prompt's ids from its text. Ids of another origin are kept as they are.
        self._tokenizes_back = isinstance(prompt, str) or encode_prompt(tokenizer, self.prompt) == self.prompt_ids
        self._first_length = 0

    def request(self) -> tuple[Prompt, str]:
        """The prompt to send, and the beginning of the assistant's answer if the prompt is messages."""
        if self.messages is not None:
            return self.messages, self.answer
        return (self.ids if self.by_id else self.prompt + self.answer), ""

    def with_text(self, text: str) -> list[int]:
        """Token ids of prompt, answer and `text`, as the server would tokenize them."""
        answer = self.answer + text
        if not answer:
            return list(self.prompt_ids)
        if self._tokenizes_back:
            return encode_prompt(self.tokenizer, self.prompt + answer)
        return [*self.prompt_ids, *encode_after(self.tokenizer, answer)]

    def add_text(self, text: str) -> None:
        """Append `text` to the answer."""
        self.ids = self.with_text(text)
        self.answer += text

    def add_token(self, token: int, text: str) -> None:
        """Append a token to the answer: its id if ids are sent, its text otherwise."""
        if self.by_id:
            self.ids.append(token)
            [self.answer] = decode_after(self.tokenizer, [self.prompt_ids], [self.answer_ids])
        else:
            self.add_text(text)

    def check_continued(self, prompt_tokens: int | None) -> None:
        """
        Check, by the number of tokens that it read, that a chat server continues the unfinished answer.

        Raises:
            [`~trl_ext.endpoint.errors.RequestRefused`]: It has ended the answer and started another.
        """
        if self.messages is None or prompt_tokens is None:
            return
        if not self.answer:
            self._first_length = prompt_tokens
        # The end of a turn and the start of the next are at least three tokens in any template
        elif self._first_length and prompt_tokens - self._first_length > len(self.answer_ids) + 2:
            raise RequestRefused(
                "The chat endpoint does not continue an unfinished answer: it ends it and starts another (it read "
                f"{prompt_tokens} tokens where {self._first_length + len(self.answer_ids)} were expected). Use the "
                "completions endpoint (chat=False), or block mode with blocks as long as an answer."
            )

    @property
    def answer_ids(self) -> list[int]:
        """Token ids of the answer. Where a token spans the end of the prompt, the answer is tokenized by itself."""
        length = len(self.prompt_ids)
        if self.ids[:length] == self.prompt_ids:
            return self.ids[length:]
        return encode_after(self.tokenizer, self.answer)


@dataclass(frozen=True, slots=True)
class Option:
    """
    A possible next token.

    Args:
        logprob (`float`): Its log-probability under the server's model, in nats.
        text (`str`): The text that it adds; empty for an incomplete character.
        id (`int`): Its id.
        end (`bool`): Whether it ends the answer.
    """

    logprob: float
    text: str
    id: int
    end: bool


class TokenNames:
    """
    Finds the tokens that a server means by its candidates. Safe to use from several threads.

    Servers name a token by its id, by the text that it adds, or as the vocabulary spells it ("Ġfilm", "▁film",
    "<0x0A>").

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the server's model.
        ends (`Sequence[str]`, *optional*): Tokens that end an answer, in addition to the tokenizer's end of sequence
            and the token by which its chat template ends a turn.

    Raises:
        `ValueError`: One of `ends` is not a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.ends = {tokenizer.eos_token_id, *map(tokenizer.get_vocab().get, ends), *_ends_of_turns(tokenizer)}
        if None in self.ends:
            raise ValueError(f"end_tokens: not all of {[tokenizer.eos_token, *ends]} are tokens of the tokenizer.")
        self._lock = threading.Lock()
        self._known: tuple[list[str], dict[str, int]] | None = None

    def options(self, candidates: Sequence[Candidate], *, by_text: bool) -> list[Option]:
        """
        The tokens of the candidates.

        Args:
            candidates (`Sequence[Candidate]`): The candidates that the server returned.
            by_text (`bool`): Whether the prefix is sent as text, so that tokens without a text cannot be used.

        Raises:
            `ValueError`: They are tokens of another vocabulary.
        """
        names, ids = self._names_and_ids()
        pairs = [(c, ids.get(c.text, -1) if c.id is None else c.id) for c in candidates]
        known = [(c, token, names[token]) for c, token in pairs if 0 <= token < len(names)]
        if 2 * len(known) < len(pairs):
            strange = next(c for c, token in pairs if not 0 <= token < len(names))
            raise ValueError(
                f"The server's model has another vocabulary: it returns {strange.text or strange.id!r}, which is not "
                f"a token of {self.tokenizer.name_or_path or 'the tokenizer'}. Pass the tokenizer of the server's "
                "model; if there is none here, use block mode, which needs none."
            )
        options = [Option(c.logprob, name, token, token in self.ends) for c, token, name in known]
        return [option for option in options if option.end or option.text or not by_text]

    def lacks_space(self, name: str, text: str) -> bool:
        """
        Whether a server names a token without the space that it begins with, as if it stood at the start of a text.
        The name is then that of another token too.

        Args:
            name (`str`): The server's name of a token.
            text (`str`): The text that the token has added.
        """
        ids = self._names_and_ids()[1]
        return text == f" {name}" and name in ids and text in ids

    def _names_and_ids(self) -> tuple[list[str], dict[str, int]]:
        """The text of each token, and the tokens by text and by their spelling in the vocabulary."""
        with self._lock:
            if self._known is None:
                names = token_names(self.tokenizer)
                spelled = self.tokenizer.convert_ids_to_tokens(list(range(len(names))))
                # A text is made of ordinary tokens. Those of single bytes are for characters that have no other.
                order = sorted(range(len(names)), key=lambda token: bool(_BYTE.fullmatch(spelled[token] or "")))
                ids: dict[str, int] = {}
                for name, token in [*((names[i], i) for i in order), *((spelled[i], i) for i in order)]:
                    if name:
                        ids.setdefault(name, token)
                self._known = names, ids
            return self._known


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _ends_of_turns(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token by which the chat template ends an answer, if there is one."""
    if tokenizer.chat_template is None:
        return []
    try:
        end = end_of_turn(tokenizer, [{"role": "user", "content": "x"}])
    except Exception:  # a template may refuse this conversation
        return []
    first = tokenizer(end, add_special_tokens=False)["input_ids"][:1]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token for token in first if token in special]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of a prompt, without the start token if a server adds one to any text."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    start = tokenizer.bos_token
    adds_start = start and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if adds_start else text
