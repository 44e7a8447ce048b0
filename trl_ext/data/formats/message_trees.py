# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats of conversations that branch: OpenAssistant's messages, one in a row (flat) or a tree in a row."""

from collections.abc import Iterator
from typing import Any

from .dataset_format import DatasetFormat, Row, scored_row


_ROLES = {"prompter": "user", "assistant": "assistant"}


def _flat(rows: list[Row]) -> list[Row]:
    """Every user's message with its ranked answers, below the conversation that led to it."""
    by_id = {row["message_id"]: row for row in rows}
    children: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("parent_id") is not None:
            children.setdefault(row["parent_id"], []).append(row)
    found: list[Row] = []
    for row in rows:
        if row["role"] == "prompter" and (thread := _thread(row, by_id)):
            found += _ranked(thread, children.get(row["message_id"], []), row)
    return found


def _thread(row: Row, by_id: dict[str, Row]) -> list[dict[str, Any]]:
    """The messages from the root to a row; none if a message between is missing."""
    messages: list[dict[str, Any]] = []
    while True:
        messages.insert(0, _message(row))
        if row.get("parent_id") is None:
            return messages
        if row["parent_id"] not in by_id:
            return []
        row = by_id[row["parent_id"]]


def _tree(row: Row) -> list[Row]:
    return [made for thread, node in _prompts([], row["prompt"]) for made in _ranked(thread, node["replies"], row)]


def _prompts(before: list[dict[str, Any]], node: Row) -> Iterator[tuple[list[dict[str, Any]], Row]]:
    """Every user's message below a node that has answers, with the conversation up to it."""
    thread = [*before, _message(node)]
    replies = node.get("replies") or []
    if node["role"] == "prompter" and replies:
        yield thread, node
    for reply in replies:
        yield from _prompts(thread, reply)


def _message(row: Row) -> dict[str, Any]:
    return {"role": _ROLES[row["role"]], "content": row["text"]}


def _ranked(prompt: list[dict[str, Any]], answers: list[Row], row: Row) -> list[Row]:
    """A row of the schema; rank 0 is the best."""
    kept = [x for x in answers if x["role"] == "assistant" and x.get("rank") is not None and not x.get("deleted")]
    more = {name: row[name] for name in ("message_tree_id", "lang") if name in row}
    made = scored_row(prompt, [answer["text"] for answer in kept], [-float(answer["rank"]) for answer in kept])
    return [more | each for each in made]


FORMATS = [
    DatasetFormat(
        "oasst",
        "OpenAssistant/oasst1, OpenAssistant/oasst2 (one message in a row)",
        ("message_id", "parent_id", "role", "text", "rank"),
        group=_flat,
    ),
    DatasetFormat(
        "oasst_trees",
        "OpenAssistant/oasst1, OpenAssistant/oasst2 (trees)",
        ("message_tree_id", "prompt"),
        _tree,
        matches=lambda row: isinstance(row["prompt"], dict) and "replies" in row["prompt"],
        consumes=("prompt",),
    ),
]
