# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Requests for the next tokens of a server's model: its likeliest tokens, or several short continuations."""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.decoding.token_sampling import next_token_probabilities
from trl_ext.generation_settings import GenerationSettings

from .client import Endpoint
from .errors import BadAnswer, EndpointError, MissingLogprobs, RequestRefused, TooFewLogprobs
from .protocol import Answer, ask, sampled_ids, takes_ids
from .tokens import Option, ServedText, TokenNames


_OR_BLOCKS = "or use block mode, which needs samples only."
_TRIES = 8  # for an answer that is not empty


class NextTokens:
    """
    The likeliest next tokens of a server's model. Safe to use from several threads.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of its model.
        top_k (`int`): Number of tokens to request.
        chat (`bool`, *optional*, defaults to `False`): Whether to use the chat endpoint.
        ends (`Sequence[str]`, *optional*): Tokens that end an answer, in addition to the tokenizer's end of sequence.

    Raises:
        `ValueError`: `top_k` is out of range, or one of `ends` is not a token.
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
        # Properties of the server, known from its answers
        self._lock = threading.Lock()
        self._by_id: bool | None = None
        self._most_listed, self._returns_end = 0, False

    def text(self, prompt: Any, chat_template_kwargs: dict[str, Any] | None = None) -> ServedText:
        """A prompt in the form that the server accepts; `chat_template_kwargs` as for [`ServedText`]."""
        text = ServedText(
            self.tokenizer, prompt, chat=self.chat, by_id=False, chat_template_kwargs=chat_template_kwargs
        )
        with self._lock:
            if self._by_id is None:
                # The beginning of the prompt only, as a server may refuse a prompt for its length
                self._by_id = takes_ids(self.endpoint, text.messages or text.prompt_ids[:4])
        text.by_id = self._by_id and not self.chat
        return text

    def after(self, text: ServedText) -> list[Option]:
        """
        The `top_k` likeliest next tokens, likeliest first. Empty if the server has ended the answer.

        Some servers never return the end as a candidate, but an empty answer whenever their model samples the end.
        Then that sample decides, and guidance does not change the probability of the end. If a server does return the
        end as a candidate, its empty answers have no meaning, and the request is repeated.

        Raises:
            [`~trl_ext.endpoint.errors.EndpointError`]: The request failed, or the answer has too few tokens, or none.
            `ValueError`: The server's model has another vocabulary.
        """
        for _ in range(_TRIES):
            answer = self._ask(text)
            if answer.listed:
                self._check_names(answer, text)
                return self._options(answer, text)
            if answer.text or not answer.ended:
                raise MissingLogprobs(
                    f"{self.endpoint.base_url}: '{self.endpoint.model}' answers without log-probabilities. Have the "
                    f"server return them (llama.cpp: --logits_all true), {_OR_BLOCKS}"
                )
            if not self._returns_end:
                break
        return []

    def sample(self, text: ServedText, count: int, settings: GenerationSettings) -> tuple[int, bool]:
        """
        Continue a text by tokens that the server samples, all of them in one request.

        Args:
            text ([`~trl_ext.endpoint.tokens.ServedText`]): The text, which is extended.
            count (`int`): Number of tokens.
            settings ([`~trl_ext.generation_settings.GenerationSettings`]): How the server samples them.

        Returns:
            `tuple[int, bool]`: Number of tokens that the text has grown by, and whether the server has ended the
                answer. Fewer than `count` without an end mean that its context is full.

        Raises:
            [`~trl_ext.endpoint.errors.EndpointError`]: The request failed.
        """
        fields, before = request_fields(settings), len(text.answer_ids)
        if not text.by_id:
            [answer] = sample_blocks(self.endpoint, text, 1, count, **fields)
            text.add_text(answer.text)
            full = answer.ended or not answer.text  # the server's tokens need not be those of the text
            return len(text.answer_ids) - before if full else count, answer.ended
        prompt, partial = text.request()
        [answer, *_] = ask(
            self.endpoint, prompt, partial=partial, max_tokens=count, logprobs=1, by_id=True, **text.fields, **fields
        )
        ids = sampled_ids(answer)
        if ids is None:
            raise BadAnswer(f"{self.endpoint.base_url}: an answer of {count} tokens came without their ids.")
        for token in ids[:-1] if answer.ended and ids[-1:] and ids[-1] in self.names.ends else ids:
            text.add_token(token, "")
        return len(text.answer_ids) - before, answer.ended

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
                **text.fields,
            )
        except RequestRefused as error:
            if "logprobs" in str(error):
                raise TooFewLogprobs(
                    f"{error} Ask for fewer (top_k, now {self.top_k}), have the server allow more (vLLM: "
                    f"--max-logprobs), {_OR_BLOCKS}",
                    status=error.status,
                ) from error
            raise
        except EndpointError as error:
            if error.status >= 500 and "logprobs" in str(error):
                raise MissingLogprobs(
                    f"{error} Have the server return them (llama.cpp: --logits_all true), {_OR_BLOCKS}",
                    status=error.status,
                ) from error
            raise
        text.check_continued(answer.prompt_tokens)
        return answer

    def _check_names(self, answer: Answer, text: ServedText) -> None:
        if not text.by_id and answer.names and self.names.lacks_space(answer.names[0], answer.text):
            raise MissingLogprobs(
                f"{self.endpoint.base_url}: the server names the token {answer.text!r} {answer.names[0]!r}, like that "
                "without a space, so its tokens cannot be told apart. Use a server that returns token ids (vLLM), "
                f"{_OR_BLOCKS}"
            )

    def _options(self, answer: Answer, text: ServedText) -> list[Option]:
        options = self.names.options(answer.candidates[0], by_text=not text.by_id)
        with self._lock:
            # Tokens without a text (incomplete characters, special tokens) share one entry, so a few can be missing
            # now and then. A server that never returns more has a limit.
            self._most_listed = max(self._most_listed, answer.listed)
            self._returns_end |= any(option.end for option in options)
        if self._most_listed < 0.75 * self.top_k:
            raise TooFewLogprobs(
                f"{self.endpoint.base_url}: asked for the {self.top_k} likeliest tokens, the server returns "
                f"{self._most_listed}. Ask for as many as it returns (top_k {self._most_listed}), {_OR_BLOCKS}"
            )
        if not options:
            raise BadAnswer(
                f"{self.endpoint.base_url}: none of the {answer.listed} tokens that it returns after "
                f"{text.answer[-40:]!r} can be sent back: they are incomplete characters or special. Ask for more "
                f"(top_k, now {self.top_k}), {_OR_BLOCKS}"
            )
        return options


def sample_blocks(endpoint: Endpoint, text: ServedText, count: int, length: int, **sampling: Any) -> list[Answer]:
    """
    Sample several continuations of a text.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]): The server. If it ignores `n`, the request is repeated.
        text ([`~trl_ext.endpoint.tokens.ServedText`]): The text to continue.
        count (`int`): Number of continuations.
        length (`int`): Maximum length of each, in tokens.
        sampling: Further fields of the request, such as `temperature` and `top_p`.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The request failed.
    """
    prompt, partial = text.request()
    found: list[Answer] = []
    while len(found) < count:
        answers = ask(
            endpoint, prompt, partial=partial, n=count - len(found), max_tokens=length, **text.fields, **sampling
        )
        text.check_continued(answers[0].prompt_tokens)
        found += answers[: count - len(found)]
    # A block may end within a character, which the next one begins again.
    return [answer if answer.ended else replace(answer, text=answer.text.rstrip("\ufffd")) for answer in found]


def request_fields(settings: GenerationSettings) -> dict[str, Any]:
    """Sampling fields of a request. `top_k` and `min_p`, which OpenAI's API lacks, are left out where they are off."""
    more = {name: value for name in ("top_k", "min_p") if (value := getattr(settings, name))}
    return {"temperature": settings.temperature, "top_p": settings.top_p, **more}


def sample_option(logits_k: torch.Tensor, settings: GenerationSettings, rng: random.Random) -> int:
    """Sample an index from logits of shape (k,); the likeliest at temperature 0."""
    if not settings.temperature:
        return int(logits_k.argmax())
    weights_1C, order_1C = next_token_probabilities(logits_k[None], settings)
    [column] = rng.choices(range(weights_1C.shape[1]), weights_1C[0].tolist())
    return column if order_1C is None else int(order_1C[0, column])
