# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Chat templates: conversations as text, and what a template writes behind a prompt for a completion.

A template may render a completion in another way than a model generates it: it opens a thought in the prompt, or
leaves the reasoning of an answer out. Training reads what [`continuation`] returns, which always follows the prompt
that the model is asked with.
"""

import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .row_errors import located
from .schema import DataError


Messages = list[dict[str, Any]]

TEMPLATE_COLUMNS = ("chat_template_kwargs", "tools")  # columns whose contents the chat template gets
_PROBE = "PROBE-OF-AN-ANSWER"  # stands for an answer where only the text around it matters
_OPENED_TAG = re.compile(r"(<[^<>/\s]+>|\[[A-Z_]+\])\s*$")  # a tag at the end of a prompt, such as `<think>`


def use_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """
    Set the chat template of a tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        path (`str`): A Jinja file, or the directory or Hub id of a tokenizer with a chat template.

    Raises:
        `DataError`: The file is empty, or the tokenizer has no chat template.
        `OSError`: There is no such tokenizer.
    """
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    else:
        tokenizer.chat_template = AutoTokenizer.from_pretrained(path, trust_remote_code=False).chat_template
    if not tokenizer.chat_template:
        raise DataError(f"`chat_template_path`: {path!r} has no chat template.")


def template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the chat template in the columns `chat_template_kwargs` and `tools` of a row."""
    kwargs = _as_object(row, "chat_template_kwargs") or {}
    kwargs = {name: value for name, value in kwargs.items() if value is not None}  # Arrow adds keys of other rows
    tools = _as_object(row, "tools")
    return kwargs | {"tools": tools} if tools else kwargs


def with_template_kwargs(row: dict[str, Any], defaults: dict[str, Any] | None) -> dict[str, Any]:
    """The row with the setting `chat_template_kwargs` in its column of this name. What the row has itself wins."""
    if not defaults:
        return row
    own = _as_object(row, "chat_template_kwargs") or {}
    return row | {"chat_template_kwargs": {**defaults, **{k: v for k, v in own.items() if v is not None}}}


def _as_object(row: dict[str, Any], column: str) -> Any:
    """The value of a column that may hold JSON as text, so that rows with different keys fit in one table."""
    value = row.get(column)
    if not isinstance(value, str) or not value:
        return value
    with located(f"column {column!r}", "Write JSON, or leave the value empty."):
        return json.loads(value)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, **kwargs: Any) -> str:
    """
    A conversation as text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer with the chat template.
        messages (`list[dict]`): The conversation.
        kwargs: Arguments of `apply_chat_template`.

    Raises:
        `DataError`: The tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "The rows are conversational, but the tokenizer has no chat template. Use a chat model's tokenizer, set "
            "`tokenizer.chat_template`, or turn the rows into text."
        )
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


def end_of_turn(tokenizer: PreTrainedTokenizerBase, prompt: Messages, **kwargs: Any) -> str:
    """The text that the template writes behind an answer; the end-of-sequence token if it drops the answer."""
    text = render(tokenizer, [*prompt, {"role": "assistant", "content": _PROBE}], **kwargs)
    _, found, end = text.rpartition(_PROBE)
    return end if found else tokenizer.eos_token or ""


def unstopped_turn(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Container[int]) -> str:
    """
    Why an answer that ends as the chat template ends it would be continued; empty if generation stops there.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer with the chat template.
        eos_token_ids (`Container[int]`): Token ids that end generation.
    """
    try:
        end = end_of_turn(tokenizer, [{"role": "user", "content": "x"}])
    except Exception:  # a template may refuse a conversation that is not like those of the dataset
        return ""
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if any(token in eos_token_ids for token in ids):
        return ""
    if not end.strip():
        return (
            f"The chat template writes nothing behind an answer, so that training does not teach the model to end it. "
            f"Generation stops at {tokenizer.eos_token!r}: add that to the template."
        )
    token = tokenizer.convert_ids_to_tokens(ids[0])
    known = token in tokenizer.get_added_vocab() or token in tokenizer.all_special_tokens
    remedy = f"set eos_token={token!r}" if known else f"let the template end turns with {tokenizer.eos_token!r}"
    return (
        f"The chat template ends an answer with {end!r}, but generation stops at {tokenizer.eos_token!r}: the model "
        f"learns to write that and goes on, up to `max_completion_length`. To end answers there, {remedy}."
    )


# ------------------------------------------------------------------------------------------------------ completions


def continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    completion: Messages,
    ended: bool,
    *,
    before: str,
    notes: dict[str, str],
    **kwargs: Any,
) -> str:
    """
    The text of a completion behind the prompt that the model is asked with, generation prompt included.

    This is the template's rendering of both, without the prompt, with three exceptions. A completion that was cut is
    its own text, which is what was generated. So is one that the template leaves a part of out, followed by the end of
    turn. If the template ends the prompt in another way when a completion follows, the completion stands behind the
    prompt all the same.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer with the chat template.
        prompt (`list[dict]`): The messages of the prompt.
        completion (`list[dict]`): The messages of the completion.
        ended (`bool`): Whether the model ended the completion.
        before (`str`): The rendered prompt, with the generation prompt.
        notes (`dict[str, str]`): Gets what the user has to know, by kind (see `_NOTES` of `tokenization.py`).
        kwargs: Arguments of the chat template.
    """
    if not ended and (last := only_text(completion[-1:])) is not None:
        earlier = completion[:-1]
        start = render(tokenizer, [*prompt, *earlier], add_generation_prompt=True, **kwargs) if earlier else before
        if start.startswith(before):
            return start[len(before) :] + _in_opened_tag(last, start)[0]
    answer, goes_on = only_text(completion), False
    if answer is not None:
        answer, goes_on = _in_opened_tag(answer, before)
    rendered = render(tokenizer, [*prompt, *completion], continue_final_message=not ended, **kwargs)
    if rendered.startswith(before):
        behind: str | None = rendered[len(before) :]
    else:
        behind = _behind(before, rendered, render(tokenizer, prompt, **kwargs), notes)
    if answer is not None and (behind is None or not _is_kept(answer.strip(), behind, goes_on)):
        if behind is not None:
            notes.pop("prompt", None)
            notes["left out"] = lost_part(answer.strip(), behind)
        behind = answer + end_of_turn(tokenizer, prompt, **kwargs)
    if behind is None:
        behind = rendered[common_length(before, rendered) :]
    if lost := left_out(completion, behind, content=answer is None):
        notes["lost"] = lost
    return behind


def only_text(completion: str | Messages) -> str | None:
    """The text of a completion that is text or one message; `None` if it is more than that, such as a tool call."""
    if isinstance(completion, str):
        return completion
    if len(completion) != 1 or completion[0].get("tool_calls"):
        return None
    content = completion[0].get("content")
    return content if isinstance(content, str) else None


def _in_opened_tag(answer: str, before: str) -> tuple[str, bool]:
    """
    The answer without a tag at its start that the prompt has opened already, such as `<think>`, and whether it goes on
    within that tag, because it closes it.
    """
    tag = _OPENED_TAG.search(before)
    if tag is None:
        return answer, False
    closing = f"{tag[1][0]}/{tag[1][1:]}"
    if answer.lstrip().startswith(tag[1]):
        answer = answer.lstrip().removeprefix(tag[1]).removeprefix(before[tag.end(1) :])
    return answer, closing in answer


def _is_kept(answer: str, behind: str, goes_on: bool) -> bool:
    """Whether a rendered turn has the answer, first of all if it goes on within a tag that the prompt opened."""
    return behind.lstrip().startswith(answer) if goes_on else answer in behind


def _behind(before: str, rendered: str, prompt: str, notes: dict[str, str]) -> str | None:
    """
    What a rendered conversation that does not begin with its prompt has instead of the completion behind it; `None` if
    the messages of the prompt are rendered differently.

    Args:
        before (`str`): The prompt with the generation prompt.
        rendered (`str`): The prompt with the completion.
        prompt (`str`): The messages of the prompt alone.
        notes (`dict[str, str]`): See [`continuation`].
    """
    if not (rendered.startswith(prompt) and before.startswith(prompt)):
        notes["prompt"] = before[common_length(before, rendered) :]
        return None
    opening, turn = before[len(prompt) :], rendered[len(prompt) :]
    same = common_length(opening, turn)
    while same and not (opening[same - 1].isspace() or opening[same - 1] in ">]"):  # not within a word or a tag
        same -= 1
    notes["prompt"] = opening[same:]
    return turn[same:]


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of items or letters at the start of two sequences that are equal."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(first), len(second)))


def lost_part(text: str, kept: str) -> str:
    """The beginning of `text` up to the longest end of it that is in `kept`."""
    low, high = 0, len(text)  # if an end of the text is in `kept`, so are all shorter ones
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if text[middle:] in kept else (middle + 1, high)
    return text[:low] or text


_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of messages that some templates render


def left_out(completion: Messages, text: str, *, content: bool = True) -> str:
    """
    What a rendered text lacks of the first message of a completion that it does not have completely; else empty.

    Args:
        completion (`list[dict]`): The completion. Only the assistant's messages count.
        text (`str`): The text that should have it.
        content (`bool`, *optional*, defaults to `True`): Whether the content counts, or only what is in other fields:
            reasoning and tool calls.
    """
    for message in completion:
        for field in (*_REASONING, *(["content"] if content else [])):
            value = message.get(field) if message.get("role") == "assistant" else None
            if isinstance(value, str) and value.strip() not in text:
                return lost_part(value.strip(), text)
    return missing_tools([call for message in completion for call in message.get("tool_calls") or ()], text)


def missing_tools(tools: Any, text: str) -> str:
    """
    The first of some tools, or calls of tools, whose name is not in a rendered text; empty if all are.

    Many templates write neither, without an error: `apply_chat_template` passes them to every template.
    """
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text:
            return json.dumps(function, ensure_ascii=False, default=str)
    return ""
