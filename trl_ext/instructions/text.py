# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Words, sentences and bullets of an answer, as the checkers count them.

They are for languages that put spaces between words. Everything is counted by rules that a reader can follow, so a
count is the same on every machine.
"""

import re
from typing import Any


# "don't", "well-known" and "3.5" are one word each.
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+|(?<=\d)[.,](?=\d)\d+)*")
_BULLET = re.compile(r"\s*[-*+•‣◦–]\s+(?=\S)(?!(?:[-*_]\s*)+$)")
_NUMBERED = re.compile(r"\s*\d+[.)]\s+")
_HEADING = re.compile(r"\s*#+\s+")
_FENCE = re.compile(r"\s*```")
# The end of a sentence: its marks, quotes and brackets that close with it, then a space or nothing.
_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s|$)")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs e.g i.e cf approx no vol fig p pp inc ltd jr sr dept est jan feb mar apr jun jul aug sep "
    "sept oct nov dec".split()
)
# They may end a sentence, and do where a capital letter follows.
_MAY_END = frozenset("etc a.m p.m".split())


def answer_text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: itself, or the content of its last message; empty if that has no text."""
    content = completion if isinstance(completion, str) else (completion[-1].get("content") if completion else "")
    if isinstance(content, list):  # parts of a multimodal message
        content = "".join(part.get("text") or "" for part in content)
    return (content or "").strip()


def words(text: str) -> list[str]:
    """The words and numbers of a text, without punctuation."""
    return _WORD.findall(text)


def bullets(text: str) -> list[str]:
    """
    The bullet points of a text: lines that begin with `-`, `*`, `+`, `•` or the like and a space, at any depth.

    Numbered lines, rules (`---`, `* * *`), bold text and lines of a code block are none.
    """
    return [_BULLET.sub("", line).strip() for line in _lines_outside_code(text) if _BULLET.match(line)]


def sentences(text: str) -> list[str]:
    """
    The sentences of a text.

    A sentence ends at `.`, `!`, `?` or `…`, but for abbreviations and initials. A list item, a heading and a paragraph
    end one too, whether a mark is there or not.
    """
    return [sentence for block in _blocks(text) for sentence in _split(block)]


def is_finished(text: str) -> bool:
    """Whether no word follows the last end of a sentence. A text that was cut off mostly ends in the middle of one."""
    ends = [match.end() for match in _END.finditer(text)]
    return bool(ends) and not words(text[ends[-1] :])


def _lines_outside_code(text: str) -> list[str]:
    lines, inside = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            lines.append(line)
    return lines


def _blocks(text: str) -> list[str]:
    """Paragraphs, list items and headings, without their marks. A line that goes on another is joined to it."""
    blocks: list[str] = []
    goes_on = False
    for line in text.splitlines():
        mark = _BULLET.match(line) or _NUMBERED.match(line) or _HEADING.match(line)
        content = line[mark.end() :] if mark else line
        if not words(content):  # an empty line, a rule
            goes_on = False
        elif goes_on and not mark:
            blocks[-1] += f" {content.strip()}"
        else:
            blocks.append(content.strip())
            goes_on = not _HEADING.match(line)
    return blocks


def _split(block: str) -> list[str]:
    found, start = [], 0
    for match in _END.finditer(block):
        if words(block[start : match.end()]) and not _is_inside(block, match):
            found.append(block[start : match.end()].strip())
            start = match.end()
    rest = block[start:].strip()
    return [*found, rest] if words(rest) else found


def _is_inside(block: str, match: re.Match[str]) -> bool:
    """Whether the sentence goes on after the mark: it is an abbreviation's or a quote's, or a pause."""
    before, after = block[: match.start()].split(), block[match.end() :].lstrip()
    if not before or not after:
        return False
    if match[0] != ".":
        is_quote_or_pause = match[0][-1] not in ".!?" or match[0] == "..."
        return is_quote_or_pause and after[0].islower() and block != block.lower()
    last = before[-1].lstrip("(\"'“‘[*_").casefold()
    is_initial = len(last) == 1 and last != "i" and before[-1][-1].isupper()
    has_full_stops = re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]", last) is not None  # u.s, e.g
    if last in _MAY_END:
        return not after[0].isupper()
    return last in _ABBREVIATIONS or is_initial or has_full_stops
