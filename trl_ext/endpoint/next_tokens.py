# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What may come next, asked of a server: its likeliest tokens, or several short continuations."""

import random
import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.decoding.token_sampling import next_token_probabilities
from trl_ext.generation_settings import GenerationSettings

from .client import Endpoint
from .errors import BadAnswer, EndpointError, MissingLogprobs, RequestRefused, TooFewLogprobs
from .protocol import Answer, ask, takes_ids
from .tokens import Option, ServedText, TokenNames


_OR_SAMPLES = "or use block mode, which needs samples only."
_PATIENCE = 8  # tries for an answer that is not empty


class NextTokens:
    """
    The likeliest next tokens of a server's model. Safe to use from several threads.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): That of its model.
        top_k (`int`): Tokens to ask for.
        chat (`bool`, *optional*, defaults to `False`): Whether to use the chat endpoint.
        ends (`Sequence[str]`, *optional*): Tokens that end an answer, besides the tokenizer's own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        top_k: int,
        *,
        chat: bool = False,
        ends: Sequence[str] = (),
    ) -> None:
        if not 1 <= top_k <= len(tokenizer):
            raise ValueError(f"top_k must be at least 1 and at most the vocabulary's {len(tokenizer)}, got {top_k}.")
        self.endpoint, self.tokenizer, self.top_k, self.chat = endpoint, tokenizer, top_k, chat
        self.names = TokenNames(tokenizer, ends)
        # What the server turned out to do
        self._learning = threading.Lock()
        self._by_id: bool | None = None
        self._listed, self._names_end = 0, False

    def text(self, prompt: Any) -> ServedText:
        """A prompt to be answered, in the form that the server takes."""
        text = ServedText(self.tokenizer, prompt, chat=self.chat, by_id=False)
        with self._learning:
            if self._by_id is None:
                # Of a prompt, its beginning: a server may refuse one for its length.
                self._by_id = takes_ids(self.endpoint, text.messages or text.head_ids[:4])
        text.by_id = self._by_id and not self.chat
        return text

    def after(self, text: ServedText) -> list[Option]:
        """
        The tokens that may follow, at most `top_k`, the likeliest first. Empty if the server has ended the answer.

        Some servers do not name the end: they give an empty answer as often as their model draws it. That draw then
        counts, and the end is not guided. Of servers that do name it, an empty answer says nothing, and is asked for
        again.

        Raises:
            [`~trl_ext.endpoint.errors.EndpointError`]: It failed, or names no tokens, or too few.
            `ValueError`: Its model has another vocabulary.
        """
        for _ in range(_PATIENCE):
            answer = self._ask(text)
            if answer.listed:
                return self._options(answer, text)
            if answer.text or not answer.ended:
                raise MissingLogprobs(
                    f"{self.endpoint.base_url}: '{self.endpoint.model}' answers without log-probabilities. Have the "
                    f"server return them (llama.cpp: --logits_all true), {_OR_SAMPLES}"
                )
            if not self._names_end:
                break
        return []

    def _ask(self, text: ServedText) -> Answer:
        prompt, partial = text.request()
        try:
            [answer, *_] = ask(
                self.endpoint,
                prompt,
                partial=partial,
                logprobs=self.top_k,
                by_id=bool(self._by_id),
                temperature=1.0,
                top_p=1.0,
            )
        except RequestRefused as error:
            if "logprobs" in str(error):
                raise TooFewLogprobs(
                    f"{error} Ask for fewer (top_k, now {self.top_k}), have the server allow more (vLLM: "
                    f"--max-logprobs), {_OR_SAMPLES}",
                    status=error.status,
                ) from error
            raise
        except EndpointError as error:
            if error.status >= 500 and "logprobs" in str(error):
                raise MissingLogprobs(
                    f"{error} Have the server return them (llama.cpp: --logits_all true), {_OR_SAMPLES}",
                    status=error.status,
                ) from error
            raise
        text.check_continued(answer.prompt_tokens)
        return answer

    def _options(self, answer: Answer, text: ServedText) -> list[Option]:
        options = self.names.options(answer.candidates[0], by_text=not text.by_id)
        with self._learning:
            # Several tokens may have one name (half characters, special tokens), so that a few can be missing now and
            # then; a server that never gives more does not give what was asked for.
            self._listed = max(self._listed, answer.listed)
            self._names_end |= any(option.end for option in options)
        if self._listed < 0.75 * self.top_k:
            raise TooFewLogprobs(
                f"{self.endpoint.base_url}: asked for the {self.top_k} likeliest tokens, the server names "
                f"{self._listed}. Ask for as many as it gives (top_k {self._listed}), {_OR_SAMPLES}"
            )
        if not options:
            raise BadAnswer(
                f"{self.endpoint.base_url}: none of the {answer.listed} tokens that it names after "
                f"{text.answer[-40:]!r} can be sent back: they are parts of characters, or special. Ask for more "
                f"(top_k, now {self.top_k}), {_OR_SAMPLES}"
            )
        return options


def sample_blocks(endpoint: Endpoint, text: ServedText, count: int, length: int, **sampling: Any) -> list[Answer]:
    """
    Several continuations of a text.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server. If it takes no `n`, it is asked again.
        text ([`~trl_ext.endpoint.tokens.ServedText`]): What to continue.
        count (`int`): Continuations.
        length (`int`): Most tokens of each.
        sampling: Fields of the request: `temperature`, `top_p`.
    """
    prompt, partial = text.request()
    found: list[Answer] = []
    while len(found) < count:
        answers = ask(endpoint, prompt, partial=partial, n=count - len(found), max_tokens=length, **sampling)
        text.check_continued(answers[0].prompt_tokens)
        found += answers[: count - len(found)]
    return found


def request_fields(settings: GenerationSettings) -> dict[str, Any]:
    """Fields of a request. `top_k` and `min_p` are not OpenAI's: only where they are asked for."""
    more = {name: value for name in ("top_k", "min_p") if (value := getattr(settings, name))}
    return {"temperature": settings.temperature, "top_p": settings.top_p, **more}


def sample_option(logits_k: torch.Tensor, settings: GenerationSettings, rng: random.Random) -> int:
    """The option drawn from logits of shape (k,): the likeliest at temperature 0."""
    if not settings.temperature:
        return int(logits_k.argmax())
    weights_1C, order_1C = next_token_probabilities(logits_k[None], settings)
    [column] = rng.choices(range(weights_1C.shape[1]), weights_1C[0].tolist())
    return column if order_1C is None else int(order_1C[0, column])
