# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reads the chunks of a stream in OpenAI's form: text, and its tokens with probabilities and values."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .answers import Option, Token


@dataclass(frozen=True)
class Chunk:
    """
    A piece of an answer.

    Args:
        text (`str`): The piece of text.
        tokens (`list[Token]`): The tokens since the last piece; empty if the server does not name them.
        finish_reason (`str`): Why the answer ends here; empty if it goes on.
    """

    text: str
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""


def read_chunk(body: dict[str, Any]) -> Chunk:
    """
    Read a chunk of either endpoint.

    Raises:
        `ValueError`: It does not follow the protocol.
    """
    try:
        choices = body.get("choices") or []
        if not choices:
            return Chunk("")
        choice = choices[0]
        delta = choice.get("delta")
        text = (choice.get("text") if delta is None else delta.get("content")) or ""
        if not isinstance(text, str):
            raise TypeError(f"the text is {text!r}")
        entries = choice.get("guidance")
        tokens = _guided(entries) if entries is not None else _logprobs(choice.get("logprobs") or {})
        return Chunk(text, with_texts(text, tokens), str(choice.get("finish_reason") or ""))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the server's answer does not follow the protocol ({type(error).__name__}: {error})."
        ) from error


def _guided(entries: list[dict[str, Any]]) -> list[Token]:
    def option(entry: dict[str, Any]) -> Option:
        return Option(str(entry["token"]), float(entry["after"]), float(entry["before"]), entry["values"])

    return [Token("", str(e["token"]), option(e), [option(c) for c in e["candidates"]]) for e in entries]


def _logprobs(given: dict[str, Any]) -> list[Token]:
    """Tokens from either form of log-probabilities: a list of entries (chat), or lists by field (completions)."""
    if given.get("content") is not None:
        return [
            Token("", _name(e), Option(_name(e), _probability(e["logprob"])), _likeliest(
                [(_name(other), other["logprob"]) for other in e.get("top_logprobs") or []]
            ))
            for e in given["content"]
        ]  # fmt: skip
    names, logprobs = given.get("tokens") or [], given.get("token_logprobs") or []
    tops = given.get("top_logprobs") or [None] * len(names)
    return [
        Token("", str(name), Option(str(name), _probability(own)), _likeliest(list((top or {}).items())))
        for name, own, top in zip(names, logprobs, tops, strict=False)
    ]


def _name(entry: dict[str, Any]) -> str:
    """Name of a token, from its bytes where they are text."""
    raw = entry.get("bytes")
    if raw:
        text = bytes(raw).decode("utf-8", errors="replace")
        return text if "\ufffd" not in text else str(entry["token"])
    return str(entry["token"])


def _probability(logprob: float | None) -> float:
    return math.exp(min(logprob, 0.0)) if logprob is not None else float("nan")


def _likeliest(entries: Sequence[tuple[str, float | None]]) -> list[Option]:
    found = [Option(name, _probability(logprob)) for name, logprob in entries if logprob is not None]
    return sorted(found, key=lambda option: -option.after)


_MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})  # of spaces and line breaks in vocabularies
_NO_TEXT = re.compile(r"\s*")


def with_texts(text: str, tokens: Sequence[Token]) -> list[Token]:
    """
    Tokens with the parts of a text that they add.

    Names of tokens are their texts where they are whole characters. Tokens whose names are not in the text, as parts
    of a character are, share what is between their neighbours: the last of them has it, the others have none. Without
    tokens, the text is one token without probabilities.

    Args:
        text (`str`): The text.
        tokens (`Sequence[Token]`): Its tokens in order.

    Returns:
        `list[Token]`: The tokens; their texts add up to the text.
    """
    if not tokens:
        return [Token(text, text)] if text else []
    found: list[Token] = []
    position, waiting = 0, 0  # waiting: tokens at the end of `found` that have no text yet
    for token in tokens:
        place, length = _find(text, position, token.name, gap=waiting > 0)
        if place < 0:
            found.append(replace(token, text=""))
            waiting += 1
            continue
        between = text[position:place]
        if between and waiting:
            found[-1] = replace(found[-1], text=between)
            between = ""
        found.append(replace(token, text=between + text[place : place + length]))
        position, waiting = place + length, 0
    rest = text[position:]
    if rest:
        parts = [i for i in range(len(found) - waiting, len(found)) if "\ufffd" in found[i].name]
        owner = max(parts, default=max(len(found) - waiting - 1, 0))
        found[owner] = replace(found[owner], text=found[owner].text + rest)
    return found


def _find(text: str, start: int, name: str, gap: bool) -> tuple[int, int]:
    """Where a token's text begins, and its length; -1 if it is not there. Only after a gap may it be farther away."""
    for spelling in (name, name.translate(_MARKS), name.translate(_MARKS).strip(" ")):
        if not spelling or "\ufffd" in spelling:
            continue
        if text.startswith(spelling, start):
            return start, len(spelling)
        spaces = _NO_TEXT.match(text, start)
        after = spaces.end() if spaces else start
        if text.startswith(spelling, after):
            return after, len(spelling)
        place = text.find(spelling, start) if gap else -1
        if place >= 0:
            return place, len(spelling)
    return -1, 0
