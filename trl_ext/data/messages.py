# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Messages as `role` and `content`, a text: from the form of ShareGPT (`from` and `value`), and from contents in parts
(`[{"type": "text", "text": ...}]`), wherever a row has them.
"""

import json
from collections.abc import Sequence
from typing import Any

from .schema import DataError


# Who speaks, in the datasets that have `from` and `value` (ShareGPT, LLaMA-Factory, axolotl).
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def is_message(value: Any) -> bool:
    """Whether a value is one message, in either form."""
    return isinstance(value, dict) and ({"role", "content"} <= set(value) or {"from", "value"} <= set(value))


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages with `role`."""
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and "role" in x for x in value)


def needs_roles(value: Any) -> bool:
    """
    Whether a value holds messages in another form: `from` and `value`, contents in parts, or a single message without
    a list.
    """
    if is_message(value):
        return True
    if not isinstance(value, list) or not value:
        return False
    if isinstance(value[0], list):
        return any(map(needs_roles, value))
    return is_message(value[0]) and ("role" not in value[0] or any(map(_has_parts, value)))


def with_roles(value: Any) -> Any:
    """
    Messages as lists of `role` and `content`; a list of completions is converted one by one, other values stay.

    Raises:
        `DataError`: A speaker is not known, or a message has an image or another part that is no text.
    """
    if is_message(value):
        return [_with_role(value)]
    if isinstance(value, list):
        return [_with_role(item) if is_message(item) else with_roles(item) for item in value]
    return value


def _with_role(message: dict[str, Any]) -> dict[str, Any]:
    if _has_parts(message):
        message = message | {"content": "".join(map(_text_of, message["content"]))}
    if message.get("role") is not None or "from" not in message:
        return message
    speaker = str(message["from"]).lower()
    if speaker not in _ROLES:
        raise DataError(
            f"holds a message from {message['from']!r}, who is not known: speakers are {', '.join(_ROLES)}. Rename it."
        )
    return {"role": _ROLES[speaker], "content": message["value"]}


def lines_of(messages: Sequence[dict[str, Any]]) -> str:
    """
    Messages as text for a reader: each with its role, and its calls of tools as JSON.

    Args:
        messages (`Sequence[dict[str, Any]]`): Messages with `role`.
    """
    return "\n".join(f"{message['role']}: {_shown(message)}" for message in messages)


def _shown(message: dict[str, Any]) -> str:
    calls = [json.dumps(call, ensure_ascii=False, default=str) for call in message.get("tool_calls") or []]
    return " ".join(filter(None, [str(message.get("content") or ""), *calls]))


def _has_parts(message: Any) -> bool:
    """Whether the content of a message is a list of parts, such as texts and images."""
    return isinstance(message, dict) and isinstance(message.get("content"), list)


def _text_of(part: Any) -> str:
    """
    The text of a part of a content.

    Raises:
        `DataError`: The part is something else, such as an image.
    """
    if isinstance(part, str):
        return part
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind not in (None, "text") or not isinstance(text, str):
        raise DataError(
            f"holds a message with a part of type {kind!r}, but the methods here train on text: the model would learn "
            "to describe what it does not see. Remove the part if the row makes sense without it, or else the row."
        )
    return text
