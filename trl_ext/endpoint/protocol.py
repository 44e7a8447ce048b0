# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
What is asked of a completions or chat endpoint, and how its answers are read.

Servers agree on the protocol's names and on little else. Likely tokens come as a table from text to log-probability
(completions) or as a list of entries (chat; llama.cpp's own server on both endpoints); some servers give ids, as the
entry's `id` or as `token_id:17` in place of the text. Where tokens are named by text alone, those that are no whole
characters and those that are not shown (special ones) cannot be told apart: they are left out.
"""

import math
from dataclasses import dataclass
from typing import Any

from .client import Endpoint
from .errors import BadAnswer, EndpointBusy, EndpointClosed, EndpointError, EndpointUnreachable


Prompt = str | list[int] | list[dict[str, Any]]
APIS = ("completions", "chat")
_ID = "token_id:"
# vLLM's name for candidates by id, and its and others' for going on in the middle of an answer
_BY_ID = {"return_tokens_as_token_ids": True}
_GO_ON = {"add_generation_prompt": False, "continue_final_message": True}


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A token that the server says might come next.

    Args:
        logprob (`float`): Its log-probability, in nats.
        text (`str`): Its text; empty where that is not whole characters, or not shown.
        id (`int`, *optional*): Its id, where the server gives ids.
    """

    logprob: float
    text: str
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    One of the answers to a request.

    Args:
        text (`str`): What was written.
        ended (`bool`): Whether the model ended it, as opposed to the number of tokens.
        candidates (`list[list[Candidate]]`): What might have come instead, for each token that was written.
        listed (`int`): Most entries that the server gave for a token, those that are left out included.
        prompt_tokens (`int`, *optional*): Length of what it read, as it counted.
    """

    text: str
    ended: bool
    candidates: list[list[Candidate]]
    listed: int = 0
    prompt_tokens: int | None = None


def ask(
    endpoint: Endpoint,
    prompt: Prompt,
    *,
    partial: str = "",
    n: int = 1,
    max_tokens: int = 1,
    logprobs: int = 0,
    by_id: bool = False,
    max_retries: int | None = None,
    **fields: Any,
) -> list[Answer]:
    """
    Ask for continuations.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]):
            The server.
        prompt (`str`, `list[int]` or `list[dict]`):
            Text or token ids for the completions endpoint, messages for the chat endpoint.
        partial (`str`, *optional*, defaults to `""`):
            What the assistant has said already, for messages.
        n (`int`, *optional*, defaults to `1`):
            Answers. A server that takes no `n` gives fewer.
        max_tokens (`int`, *optional*, defaults to `1`):
            Most tokens of an answer.
        logprobs (`int`, *optional*, defaults to `0`):
            Candidates to ask for, for each token.
        by_id (`bool`, *optional*, defaults to `False`):
            Whether to ask that tokens be named by their ids.
        max_retries (`int`, *optional*):
            Instead of the client's own.
        fields:
            Further fields of the request: `temperature`, `top_p`.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: No answer, or none that can be read.
    """
    body: dict[str, Any] = {"max_tokens": max_tokens, "n": n, **fields}
    chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
    if chat:
        spoken = [{"role": "assistant", "content": partial}] if partial else []
        body |= {"messages": [*prompt, *spoken], **(_GO_ON if spoken else {})}
        body |= {"logprobs": True, "top_logprobs": logprobs} if logprobs else {}
    else:
        body |= {"prompt": prompt}
        body |= {"logprobs": logprobs} if logprobs else {}
    if by_id:
        body |= _BY_ID
    path = "chat/completions" if chat else "completions"
    return read(endpoint.post(path, body, max_retries=max_retries), f"{endpoint.base_url}/{path}", keep=logprobs)


def takes_ids(endpoint: Endpoint, prompt: list[int] | list[dict[str, Any]]) -> bool:
    """
    Whether the server reads token ids and names tokens by ids, found out by a request for one token.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: It cannot be reached or is too busy to say.
    """
    try:
        # A 500 may be a fault that passes, or how this server refuses: three of them are taken for the latter.
        answers = ask(endpoint, prompt, logprobs=1, by_id=True, max_retries=2)
    except (EndpointUnreachable, EndpointBusy, EndpointClosed):
        raise
    except EndpointError:  # 400, 422 or 500: each server has its own way
        return False
    found = [candidate for answer in answers for token in answer.candidates for candidate in token]
    return bool(found) and all(candidate.id is not None for candidate in found)


def read(body: dict[str, Any], where: str, keep: int = 0) -> list[Answer]:
    """
    The answers of a response of either endpoint.

    Args:
        body (`dict`): The response.
        where (`str`): What errors call the server.
        keep (`int`, *optional*, defaults to `0`): Candidates that were asked for (`0`: keep all). Servers add the
            token that they drew, which would be likelier to be a candidate than others as unlikely.

    Raises:
        [`~trl_ext.endpoint.errors.BadAnswer`]: It is not what the protocol says.
    """
    try:
        choices = body["choices"]
        if not isinstance(choices, list) or not choices:
            raise BadAnswer(f"{where}: the answer has no choices: {str(body)[:300]}")
        usage = body.get("usage") or {}
        ordered = sorted(choices, key=lambda choice: choice.get("index") or 0)
        return [_answer(choice, usage.get("prompt_tokens"), keep) for choice in ordered]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadAnswer(f"{where}: the answer is not of the protocol's form ({reason}): {str(body)[:300]}") from error


def _answer(choice: dict[str, Any], prompt_tokens: Any, keep: int) -> Answer:
    message = choice.get("message")
    text = choice["text"] if message is None else message.get("content") or ""
    if not isinstance(text, str):
        raise TypeError(f"the text is {text!r}")
    drawn, tokens = _tokens(choice.get("logprobs") or {})
    return Answer(
        text=text,
        ended=choice.get("finish_reason") == "stop",
        candidates=[_merged(token, name, keep) for token, name in zip(tokens, drawn, strict=False)],
        listed=max(map(len, tokens), default=0),
        prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
    )


def _tokens(logprobs: dict[str, Any]) -> tuple[list[str], list[list[Candidate]]]:
    """Name of each token that was written, and its candidates, from whichever of the two forms."""
    if logprobs.get("content") is not None:
        tables = [[_entry(entry) for entry in token.get("top_logprobs") or []] for token in logprobs["content"]]
        return [token.get("token", "") for token in logprobs["content"]], tables
    tables = [
        [_entry({"token": text, "logprob": value}) for text, value in (token or {}).items()]
        for token in logprobs.get("top_logprobs") or []
    ]
    return logprobs.get("tokens") or [""] * len(tables), tables


def _entry(entry: dict[str, Any]) -> Candidate:
    text, logprob = entry["token"], float(entry["logprob"])
    if math.isnan(logprob) or logprob > 1e-3:
        raise ValueError(f"the log-probability of {text!r} is {logprob}")
    if text.startswith(_ID) and text[len(_ID) :].isdigit():
        return Candidate(logprob, "", int(text[len(_ID) :]))
    number = entry.get("id")
    # U+FFFD is how servers write bytes that are no character yet.
    return Candidate(logprob, "" if "\ufffd" in text else text, number if isinstance(number, int) else None)


def _merged(token: list[Candidate], drawn: str, keep: int) -> list[Candidate]:
    """What can be told apart, the likeliest first. One name stands for one token: the likeliest that has it."""
    ranked = sorted(token, key=lambda candidate: -candidate.logprob)
    hidden = any(candidate.id is None and not candidate.text for candidate in ranked)
    # Entries that collided leave room for the drawn token among as many as were asked for.
    if 0 < len(ranked) <= keep and hidden and ranked[-1].text == drawn:
        ranked.pop()
    best: dict[int | str, Candidate] = {}
    for candidate in ranked[: keep or None]:
        if candidate.id is not None or candidate.text:
            best.setdefault(candidate.text if candidate.id is None else candidate.id, candidate)
    return list(best.values())
