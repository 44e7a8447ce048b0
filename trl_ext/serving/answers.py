# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers in OpenAI's form: whole, or as the chunks of a stream."""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.generation.token_guidance import Candidate

from .jobs import Job, Piece, Seen
from .requests import Request


class TokenTexts:
    """
    The texts that tokens add to a text, as answers name them.

    Tokens are decoded after another token, as some tokenizers drop a space at the start of a text. An incomplete
    character is U+FFFD.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
        self._before = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        """The text of a token."""
        if token not in self._known:
            text = self._decode([*self._anchor, token])
            self._known[token] = text.removeprefix(self._before)
        return self._known[token]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class Answers:
    """
    Makes the answers to one request.

    Args:
        request ([`~trl_ext.serving.requests.Request`]): The request.
        model (`str`): Name of the model that answers.
        texts ([`TokenTexts`]): Names of tokens.
        prompt_tokens (`int`): Number of tokens of the prompts.
    """

    def __init__(self, request: Request, model: str, texts: TokenTexts, prompt_tokens: int) -> None:
        self.request, self.texts, self.prompt_tokens = request, texts, prompt_tokens
        self.completion_tokens = 0
        kind = "chatcmpl" if request.chat else "cmpl"
        self._head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._object = "chat.completion" if request.chat else "text_completion"
        self._offsets: dict[int, int] = {}

    def whole(self, job: Job) -> dict[str, Any]:
        """The answer with all completions of a job."""
        choices = []
        self.completion_tokens += job.unused_tokens
        for row in job.rows:
            self.completion_tokens += len(row.tokens)
            text: dict[str, Any] = {"text": row.text}
            if self.request.chat:
                text = {"message": {"role": "assistant", "content": row.text}}
            choices.append(self._choice(row.index, text, row.tokens, row.finish_reason))
        return {**self._head, "object": self._object, "choices": choices, "usage": self.usage()}

    def first(self, count: int) -> list[dict[str, Any]]:
        """The chunks that a stream of so many completions begins with."""
        if not self.request.chat:
            return []
        delta = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk([self._choice(i, delta, [], None)]) for i in range(count)]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The chunk of a piece."""
        self.completion_tokens += len(piece.tokens)
        text: dict[str, Any] = {"text": piece.text}
        if self.request.chat:
            text = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk([self._choice(piece.index, text, piece.tokens, piece.finish_reason)])

    def last(self) -> list[dict[str, Any]]:
        """The chunks that a stream ends with."""
        return [self._chunk([]) | {"usage": self.usage()}] if self.request.include_usage else []

    def usage(self) -> dict[str, int]:
        """Number of tokens."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"{self._object}.chunk" if self.request.chat else self._object
        usage = {"usage": None} if self.request.include_usage else {}
        return {**self._head, "object": name, "choices": choices, **usage}

    def _choice(
        self, index: int, text: dict[str, Any], tokens: Sequence[Seen], finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **text, "logprobs": self._logprobs(index, tokens), "finish_reason": finish_reason}
        if self.request.guidance is not None:
            choice["guidance"] = [self._guidance(token) for token in tokens]
        return choice | ({"token_ids": [token.id for token in tokens]} if self.request.with_ids else {})

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.request.names_by_id else self.texts.of(token)

    def _logprobs(self, index: int, tokens: Sequence[Seen]) -> dict[str, Any] | None:
        if self.request.logprobs is None or not tokens:
            return None
        if self.request.chat:
            return {"content": [self._chat_entry(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(self.texts.of(token.id))
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [_number(_of(token).logprob) for token in tokens],
            "top_logprobs": [self._table(token) for token in tokens],
            "text_offset": offsets,
        }

    def _table(self, token: Seen) -> dict[str, float]:
        """Likeliest tokens, and the chosen one. Of tokens with one name the likeliest has it."""
        table: dict[str, float] = {}
        if self.request.logprobs:
            for other, logprob in [*_of(token).top, (token.id, _of(token).logprob)]:
                table.setdefault(self._name(other), _number(logprob))
        return table

    def _chat_entry(self, token: Seen) -> dict[str, Any]:
        own = _of(token)
        top = [self._entry(other, logprob) for other, logprob in own.top]
        return self._entry(token.id, own.logprob) | {"top_logprobs": top}

    def _guidance(self, token: Seen) -> dict[str, Any]:
        """What guides did at a token: the token, and the candidates, the likeliest with guidance first."""
        found = token.guidance
        assert found is not None

        def entry(each: Candidate) -> dict[str, Any]:
            values = dict(zip(found.heads, each.values, strict=True)) if each.values else None
            return {"token": self._name(each.token), "before": each.before, "after": each.after, "values": values}

        return entry(found.chosen) | {"candidates": [entry(each) for each in found.candidates]}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.texts.of(token)
        whole = None if "\ufffd" in text else list(text.encode())
        return {"token": self._name(token), "logprob": _number(logprob), "bytes": whole}


def _of(token: Seen) -> Any:
    assert token.logprobs is not None
    return token.logprobs


def _number(logprob: float) -> float:
    """JSON has no infinity: servers write -9999 for a token that is impossible."""
    return logprob if math.isfinite(logprob) else -9999.0
