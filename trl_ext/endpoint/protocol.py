# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Requests to the completions and chat endpoints of OpenAI's API, and parsing of their answers.

Servers agree on the names of the fields and differ in their contents. The likeliest tokens come as a table from text
to log-probability (completions), or as a list of entries (chat, and both endpoints of llama.cpp's own server). Some
servers add token ids, as the entry's `id` or as `token_id:17` in place of the text. Where tokens have only a text,
incomplete characters and special tokens have the same one, or none: these tokens are left out.
"""

import math
from dataclasses import dataclass
from typing import Any

from .client import Endpoint
from .errors import BadAnswer, EndpointError, RequestRefused, error_of_status, excerpt


Prompt = str | list[int] | list[dict[str, Any]]
_ID = "token_id:"
# vLLM's field for candidates by id; the fields of vLLM and others to continue an unfinished answer
_BY_ID = {"return_tokens_as_token_ids": True}
_CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
# Reasons for the end of an answer, by which servers say that the model ended it, or that they failed
_ENDED = frozenset("stop eos eos_token stop_sequence end_turn tool_calls function_call".split())
_FAILED = frozenset("error abort".split())
_REASONING = ("reasoning_content", "reasoning")  # of messages, for servers that parse it


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A possible next token, as returned by a server.

    Args:
        logprob (`float`): Its log-probability, in nats.
        text (`str`): Its text; empty for an incomplete character or a special token.
        id (`int`, *optional*): Its id, if the server returns ids.
    """

    logprob: float
    text: str
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    One of the answers to a request.

    Args:
        text (`str`): The text.
        ended (`bool`): Whether the model ended it, rather than the limit on its length.
        candidates (`list[list[Candidate]]`): For each token of the text, the likeliest tokens at its position.
        listed (`int`): Largest number of entries that the server returned for a position, before any were left out.
        prompt_tokens (`int`, *optional*): Length of the prompt, as counted by the server.
        completion_tokens (`int`, *optional*): Length of the answer, as counted by the server; not known where it gave
            several.
        ids (`list[int]`, *optional*): Token ids of the text, if the server returns them (vLLM: `return_token_ids`).
        names (`list[str]`, *optional*): The server's names of the tokens of the text.
    """

    text: str
    ended: bool
    candidates: list[list[Candidate]]
    listed: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ids: list[int] | None = None
    names: list[str] | None = None


def ask(
    endpoint: Endpoint,
    prompt: Prompt | list[list[int]],
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
    Request answers to a prompt.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]):
            The server.
        prompt (`str`, `list[int]`, `list[dict]` or `list[list[int]]`):
            Text or token ids for the completions endpoint, messages for the chat endpoint; or the token ids of several
            prompts, whose answers follow one another.
        partial (`str`, *optional*, defaults to `""`):
            Beginning of the answer, for the assistant to continue. For messages only.
        n (`int`, *optional*, defaults to `1`):
            Answers per prompt. Servers that ignore `n` return one.
        max_tokens (`int`, *optional*, defaults to `1`):
            Maximum length of an answer, in tokens.
        logprobs (`int`, *optional*, defaults to `0`):
            Number of candidates to request per position.
        by_id (`bool`, *optional*, defaults to `False`):
            Whether to request the candidates' ids in place of their texts.
        max_retries (`int`, *optional*):
            Replaces the client's own.
        fields:
            Further fields of the request, such as `temperature` and `top_p`.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The request failed, or its answer does not follow the protocol.
    """
    body: dict[str, Any] = {"max_tokens": max_tokens, "n": n, **fields}
    chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
    if chat:
        begun = [{"role": "assistant", "content": partial}] if partial else []
        body |= {"messages": [*prompt, *begun], **(_CONTINUE if begun else {})}
        body |= {"logprobs": True, "top_logprobs": logprobs} if logprobs else {}
    else:
        body |= {"prompt": prompt}
        body |= {"logprobs": logprobs} if logprobs else {}
    if by_id:
        body |= _BY_ID
    path = "chat/completions" if chat else "completions"
    where = f"{endpoint.base_url}/{path}"
    found: list[Answer] = endpoint.post(
        path, body, read=lambda body: read(body, where, keep=logprobs, max_tokens=max_tokens), max_retries=max_retries
    )
    return found


def sampled_ids(answer: Answer) -> list[int] | None:
    """Token ids of an answer, from the names of its tokens; `None` if the server has not named them by id."""
    names = answer.names or []
    known = [name[len(_ID) :] for name in names if name.startswith(_ID) and name[len(_ID) :].isdigit()]
    return [int(name) for name in known] if names and len(known) == len(names) else None


def takes_ids(endpoint: Endpoint, prompt: list[int] | list[dict[str, Any]]) -> bool:
    """
    Whether the server accepts token ids and returns those of its candidates, found out by a request for one token.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The server cannot be reached, or is too busy.
    """
    try:
        # A 500 may be temporary, or how this server refuses ids: after three of them it is taken as a refusal.
        answers = ask(endpoint, prompt, logprobs=1, by_id=True, max_retries=2)
    except EndpointError as error:
        # 400, 422, 500 or an answer of another form, depending on the server
        if error.status in (200, 500) or (isinstance(error, RequestRefused) and not error.transient):
            return False
        raise
    found = [candidate for answer in answers for token in answer.candidates for candidate in token]
    return bool(found) and all(candidate.id is not None for candidate in found)


def served_models(endpoint: Endpoint) -> list[str]:
    """
    Names of the models that a server has.

    Raises:
        [`~trl_ext.endpoint.errors.EndpointError`]: The request failed, or its answer does not follow the protocol.
    """
    body = endpoint.get("models")
    try:
        return [str(model["id"]) for model in body["data"]]
    except (KeyError, TypeError) as error:
        raise BadAnswer(f"{endpoint.base_url}/models: not a list of models: {excerpt(str(body))}") from error


def read(body: dict[str, Any], where: str, keep: int = 0, max_tokens: int = 0) -> list[Answer]:
    """
    Parse the response of either endpoint.

    Args:
        body (`dict`): The response.
        where (`str`): Address of the server, for errors.
        keep (`int`, *optional*, defaults to `0`): Number of candidates that were requested; the rest is dropped. `0`
            keeps all. Servers add the token that they sampled: kept, it would be a candidate more often than other
            tokens as unlikely.
        max_tokens (`int`, *optional*, defaults to `0`): Number of tokens that was requested. A server that gives no
            reason for the end of a shorter answer has let its model end it.

    Raises:
        [`~trl_ext.endpoint.errors.BadAnswer`]: The response does not follow the protocol.
        [`~trl_ext.endpoint.errors.EndpointError`]: It is an error that a gateway sends with status 200.
    """
    try:
        if body.get("error") or body.get("object") == "error":
            raise _error(body, where)
        choices = body["choices"]
        if not isinstance(choices, list) or not choices:
            raise _bad_answer(where, "the answer has no choices", body)
        usage = body.get("usage") or {}
        ordered = sorted(choices, key=lambda choice: choice.get("index") or 0)
        if any(choice.get("error") or choice.get("finish_reason") in _FAILED for choice in ordered):
            raise _bad_answer(where, "the server broke off an answer", body)
        counted = [usage.get("prompt_tokens"), usage.get("completion_tokens") if len(choices) == 1 else None]
        lengths = [count if isinstance(count, int) else None for count in counted]
        short = lengths[1] is not None and lengths[1] < max_tokens
        return [_answer(choice, where, lengths, keep, short) for choice in ordered]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise _bad_answer(where, f"the answer does not follow the protocol ({reason})", body) from error


def _bad_answer(where: str, reason: str, body: dict[str, Any]) -> BadAnswer:
    return BadAnswer(f"{where}: {reason}: {excerpt(str(body))}", status=200, transient=True)


def _error(body: dict[str, Any], where: str) -> EndpointError:
    """The error in a response with status 200: that of its status, if it has one."""
    found = body.get("error") or body
    status = found.get("code", found.get("status")) if isinstance(found, dict) else None
    if isinstance(status, int | str) and str(status).isdigit() and 400 <= int(status) < 600:
        return error_of_status(where, int(status), {}, excerpt(str(found)))
    return _bad_answer(where, "the answer is an error", body)


def _answer(choice: dict[str, Any], where: str, lengths: list[int | None], keep: int, short: bool) -> Answer:
    message = choice.get("message")
    text = choice["text"] if message is None else message.get("content") or ""
    if not isinstance(text, str):
        raise TypeError(f"the text is {text!r}")
    if not text and message is not None and any(message.get(name) for name in _REASONING):
        raise RequestRefused(
            f"{where}: the server takes the model's reasoning out of its answer, which cannot be continued then. Use "
            "the completions endpoint (chat=False), start the server without a reasoning parser, or switch the "
            "reasoning off (chat_template_kwargs).",
            status=200,
        )
    sampled, tokens = _tokens(choice.get("logprobs") or {})
    reason = choice.get("finish_reason")
    unexplained_end = reason is None and (short or not (text or tokens))
    return Answer(
        text=text,
        ended=unexplained_end or str(reason).lower() in _ENDED,
        candidates=[_merged(token, name, keep) for token, name in zip(tokens, sampled, strict=False)],
        listed=max(map(len, tokens), default=0),
        prompt_tokens=lengths[0],
        completion_tokens=lengths[1],
        ids=None if choice.get("token_ids") is None else [int(token) for token in choice["token_ids"]],
        names=sampled,
    )


def _tokens(logprobs: dict[str, Any]) -> tuple[list[str], list[list[Candidate]]]:
    """Name and candidates of each token of an answer, in either of the two forms."""
    if logprobs.get("content") is not None:
        tables = [[_entry(entry) for entry in token.get("top_logprobs") or []] for token in logprobs["content"]]
        return [token.get("token", "") for token in logprobs["content"]], tables
    tables = [
        [_entry({"token": text, "logprob": value}) for text, value in (token or {}).items()]
        for token in logprobs.get("top_logprobs") or []
    ]
    return logprobs.get("tokens") or [""] * len(tables), tables


def _entry(entry: dict[str, Any]) -> Candidate:
    text, value = entry["token"], entry["logprob"]
    # JSON has no infinity: servers write null or -9999 for a token that is impossible.
    logprob = -math.inf if value is None or value == -9999 else float(value)
    if math.isnan(logprob) or logprob > 1e-3:
        raise ValueError(f"the log-probability of {text!r} is {logprob}")
    if text.startswith(_ID) and text[len(_ID) :].isdigit():
        return Candidate(logprob, "", int(text[len(_ID) :]))
    number = entry.get("id")
    # Servers write the bytes of an incomplete character as U+FFFD.
    return Candidate(logprob, "" if "\ufffd" in text else text, number if isinstance(number, int) else None)


def _merged(token: list[Candidate], sampled: str, keep: int) -> list[Candidate]:
    """
    The possible candidates with a text or an id, likeliest first. Of several with one text, the likeliest is kept.
    """
    ranked = sorted(token, key=lambda candidate: -candidate.logprob)
    nameless = any(candidate.id is None and not candidate.text for candidate in ranked)
    # Tokens without a name share one entry, so the sampled token may be there beside fewer entries than requested.
    if 0 < len(ranked) <= keep and nameless and ranked[-1].text == sampled:
        ranked.pop()
    best: dict[int | str, Candidate] = {}
    for candidate in ranked[: keep or None]:
        if candidate.logprob > -math.inf and (candidate.id is not None or candidate.text):
            best.setdefault(candidate.text if candidate.id is None else candidate.id, candidate)
    return list(best.values())
