# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Messages as `role` and `content`: from the form of ShareGPT, `from` and `value`, wherever a row has it."""

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
    """Whether a value holds messages in another form: `from` and `value`, or a single message without a list."""
    if is_message(value):
        return True
    if not isinstance(value, list) or not value:
        return False
    return (is_message(value[0]) and "role" not in value[0]) or (isinstance(value[0], list) and needs_roles(value[0]))


def with_roles(value: Any) -> Any:
    """
    Messages as lists of `role` and `content`; a list of completions is converted one by one, other values stay.

    Raises:
        `DataError`: A speaker is not known.
    """
    if is_message(value):
        return [_with_role(value)]
    if isinstance(value, list):
        return [_with_role(item) if is_message(item) else with_roles(item) for item in value]
    return value


def _with_role(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") is not None or "from" not in message:
        return message
    speaker = str(message["from"]).lower()
    if speaker not in _ROLES:
        raise DataError(
            f"holds a message from {message['from']!r}, who is not known: speakers are {', '.join(_ROLES)}. Rename it."
        )
    return {"role": _ROLES[speaker], "content": message["value"]}
