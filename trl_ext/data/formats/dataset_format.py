# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a dataset format is, and the steps that conversions have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..messages import is_messages
from ..schema import DataError, as_completion


Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class DatasetFormat:
    """
    A form of rows, and how it becomes the row schema.

    Args:
        name (`str`):
            Its name, a value of `dataset_format`.
        found_in (`str`):
            Datasets that have it.
        columns (`tuple[str, ...]`):
            Columns that it needs. With `|` between names, one of them.
        convert (`Callable`, *optional*):
            From a row to rows of the schema: one, none if the row has no usable answer, or several. By default rows
            are taken as they are.
        group (`Callable`, *optional*):
            The same for all rows of a dataset together, where a row of the schema is made of several.
        matches (`Callable`, *optional*):
            Whether a row that has the columns has this form. By default the columns tell it.
        consumes (`tuple[str, ...]`, *optional*):
            Columns whose content the converted row has in `completions`, `scores` or `rewards`.
        labels (`bool`, *optional*, defaults to `False`):
            Whether the scores are labels, of which 0 says that an answer is bad.
    """

    name: str
    found_in: str
    columns: tuple[str, ...]
    convert: Callable[[Row], list[Row]] | None = None
    group: Callable[[list[Row]], list[Row]] | None = None
    matches: Callable[[Row], bool] = lambda row: True
    consumes: tuple[str, ...] = ()
    labels: bool = False

    def recognises(self, row: Row) -> bool:
        """Whether a row has this form."""
        return all(any(name in row for name in names.split("|")) for names in self.columns) and self.matches(row)


# Columns that can hold the prompt, where none is called so.
PROMPT_COLUMNS = ("question", "query", "instruction", "input", "conversations", "conversation", "history", "context")
CONVERSATIONS = ("messages", "conversations", "conversation")  # columns with all of a conversation
_SYSTEM_COLUMNS = ("system", "system_prompt")


def prompt_of(row: Row) -> Any:
    """
    The prompt of a row, behind the text of a column `system`; `None` if no column is known to hold one.

    It is the column `prompt`, or the only one of [`PROMPT_COLUMNS`], or else `messages`; `instruction` goes together
    with `input`, behind the turns in `history`.

    Raises:
        `DataError`: Several columns may hold it.
    """
    if "prompt" in row:
        return with_system(row, row["prompt"])
    found = [name for name in PROMPT_COLUMNS if name in row and _is_content(row[name])]
    if not found and is_messages(row.get("messages")):  # beside a prompt, these are often a copy of an answer
        found = ["messages"]
    if found and found[0] == "instruction":  # `input` is an optional part of it
        parts = [row[name] for name in ("instruction", "input") if isinstance(row.get(name), str) and row[name]]
        found = [name for name in found if name != "input"]
        if len(found) == 1:
            return with_system(row, _behind_history(row, "\n".join(parts)))
    if len(found) > 1:
        names = " and ".join(map(repr, found))
        raise DataError(f"{names} may both be the prompt: name it, as in `columns: {{prompt: {found[0]}}}`.")
    return with_system(row, row[found[0]]) if found else None


def _behind_history(row: Row, prompt: str) -> Any:
    """The prompt behind the turns of a column `history`, pairs of a question and an answer, if there is one."""
    if "history" not in row or not isinstance(row["history"], list | None):
        return prompt
    turns = [text for pair in row["history"] or [] for text in pair]
    roles = ("user", "assistant") * (len(turns) // 2 + 1)
    return [{"role": role, "content": text} for role, text in zip(roles, [*turns, prompt], strict=False)]


def has_prompt(row: Row) -> bool:
    """Whether a column can hold the prompt."""
    return "prompt" in row or any(_is_content(row.get(name)) for name in (*PROMPT_COLUMNS, "messages"))


def last_answer(messages: Any, column: str) -> tuple[list[Row], list[Row]]:
    """
    The messages of a conversation before its last one, and the last one.

    Raises:
        `DataError`: The last message is not the assistant's, or there is no other.
    """
    roles = [message["role"] for message in messages] if is_messages(messages) else []
    if len(roles) < 2 or roles[-1] != "assistant":
        raise DataError(
            f"column {column!r}: must be a conversation whose last message is the assistant's; its roles are "
            f"{', '.join(map(repr, roles)) or 'none'}. Remove the row."
        )
    return messages[:-1], messages[-1:]


def _is_content(value: Any) -> bool:
    return is_messages(value) or (isinstance(value, str) and bool(value))


def has_system(row: Row) -> bool:
    """Whether a row has a column for a system prompt."""
    return any(isinstance(row.get(name), str) for name in _SYSTEM_COLUMNS)


def with_system(row: Row, prompt: Any) -> Any:
    """The prompt behind the row's system prompt, unless it begins with it."""
    texts = [row[name] for name in _SYSTEM_COLUMNS if isinstance(row.get(name), str) and row[name].strip()]
    if not texts or not prompt:
        return prompt
    if isinstance(prompt, str):
        return prompt if prompt.startswith(texts[0]) else f"{texts[0]}\n\n{prompt}"
    if prompt and prompt[0]["role"] != "system":
        return [{"role": "system", "content": texts[0]}, *prompt]
    return prompt


def required_prompt(row: Row) -> Any:
    """[`prompt_of`], or a `DataError` if there is none."""
    prompt = prompt_of(row)
    if prompt is None:
        raise DataError(
            f"there is no prompt. The columns are {', '.join(map(repr, row))}: name it, as in `columns: {{prompt: "
            "question}`, or remove the row."
        )
    return prompt


def scored_row(
    prompt: Any,
    answers: Sequence[Any],
    scores: Sequence[Any],
    *,
    sources: Sequence[str] = (),
    rewards: Mapping[str, Sequence[Any]] | None = None,
) -> list[Row]:
    """
    A row of the schema, without the answers that are missing or have no score; no row if none is left.

    Args:
        prompt (`str` or `list[dict]`): The prompt.
        answers (`Sequence`): Texts or lists of messages. A text becomes a message if the prompt is conversational.
        scores (`Sequence`): Their scores, higher is better; `None` or NaN for none.
        sources (`Sequence[str]`, *optional*): Where each answer comes from.
        rewards (`dict[str, Sequence]`, *optional*): Further numbers for each answer, by name.
    """
    kept = [i for i, answer in enumerate(answers) if answer and i < len(scores) and is_number(scores[i])]
    if not kept:
        return []
    row = {
        "prompt": prompt,
        "completions": [_as_answer(prompt, answers[i]) for i in kept],
        "scores": [float(scores[i]) for i in kept],
        "ended": [True] * len(kept),
    }
    if sources:
        row["sources"] = [str(sources[i]) for i in kept]
    if rewards:
        row["rewards"] = {name: [values[i] for i in kept] for name, values in rewards.items()}
    return [row]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number or a boolean."""
    return isinstance(value, int | float) and math.isfinite(value)


def as_number(value: Any) -> float | None:
    """A number, also one that is written as text; `None` for "N/A"."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_answer(prompt: Any, answer: Any) -> Any:
    return as_completion({"prompt": prompt}, answer) if isinstance(answer, str) else answer
