# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Tokenization: rows of the schema as token ids, and the checks of their length."""

import json
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .chat_template import (
    common_length,
    continuation,
    missing_tools,
    only_text,
    render,
    template_kwargs,
    with_template_kwargs,
)
from .completion import decode_after
from .row_cache import this_version
from .row_errors import located, shortened
from .sampled_ids import ID_COLUMNS, sampled_ids, tokenizer_tag
from .schema import (
    AnyDataset,
    DataError,
    as_completion,
    check_row,
    column_names,
    first_row,
    is_conversational,
    where,
    with_check,
)


logger = logging.get_logger(__name__)

TEMPLATE_REMEDY = (
    "If the chat template refuses the row, change or remove it (many templates take no system message and no tool "
    "calls, or want user and assistant in turn), or use another template with `chat_template_path`."
)
TOKENIZED_COLUMNS = ("row_index", "prompt_ids", "completion_ids", "ended", "scores")


def is_tokenized(dataset: AnyDataset) -> bool:
    """Whether a dataset comes from [`prepare_dataset`]. Sampled rows have some of its columns too."""
    columns = set(column_names(dataset))
    return {"row_index", "prompt_ids"} <= columns and "tokenizers" not in columns


def left_padded(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Token ids as one batch, padded on the left, so that generation continues each row at its end.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids of N sequences, the longest of T tokens.
        pad_token_id (`int`): Id of the padding token.
        device (`torch.device` or `str`, *optional*): Device of the tensors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(N, T)`: Token ids, and a mask that is 1 for tokens and 0 for
        padding.
    """
    width = max(len(row) for row in rows)
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], **chat_template_kwargs: Any
) -> list[int]:
    """
    Token ids of a prompt. A conversation is rendered with the chat template, up to the start of the next answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        prompt (`str` or `list[dict]`): The prompt: text, or a list of messages.
        chat_template_kwargs: Further arguments of the chat template, such as `tools`.

    Raises:
        `DataError`: The prompt is conversational and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return _encode(tokenizer, [prompt])[0]
    text = render(tokenizer, prompt, **{"add_generation_prompt": True} | chat_template_kwargs)
    return _encode_rendered(tokenizer, [text])[0]


def encode_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Token ids of the prompt of a row, whose columns `tools` and `chat_template_kwargs` reach the chat template."""
    return encode_prompt(tokenizer, row["prompt"], **template_kwargs(row))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """
    Ids of texts, with the start token if the tokenizer adds one, without the end token that some tokenizers add.

    A text that begins with the start token, because a chat template wrote it, gets no second one.
    """
    *several, probe = tokenizer([*texts, "x"])["input_ids"]  # one call, because a call costs more than the texts
    adds_end = tokenizer.eos_token_id is not None and probe[-1:] == [tokenizer.eos_token_id]
    start = [tokenizer.bos_token_id] * 2
    return [list(ids[int(ids[:2] == start) : -1 if adds_end else None]) for ids in several]


def _encode_rendered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that have all their special tokens already, such as rendered conversations."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _with_end(tokenizer: PreTrainedTokenizerBase, completion: str, ended: bool) -> str:
    """The completion, followed by the end-of-sequence token if it `ended`."""
    eos = tokenizer.eos_token or ""
    return completion + (eos if ended and not completion.endswith(eos) else "")


def tokenize_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Token ids of a row of the schema.

    Returns:
        `dict`: `prompt_ids` (`list[int]`), the prompt as [`encode_prompt`] gives it, whatever follows; for rows with
        completions also `completion_ids` (`list[list[int]]`), `ended` (`list[bool]`) and `scores` (`list[float]`).
        The ids of a completion are those that it was sampled as, if the row has them and they fit (see
        [`~trl_ext.data.sampled_ids`]). Otherwise prompt and completion are tokenized together. If the tokens of the
        prompt are not the beginning of that, the completion is tokenized by itself.
    """
    return _tokenize_row(row, tokenizer, _tag(row, tokenizer))[0]


def _tag(columns: Container[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tag that those of sampled ids are compared with; empty if there are none."""
    return tokenizer_tag(tokenizer) if "tokenizers" in columns else ""


def _tokenize_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tag: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of [`tokenize_row`], and what the user has to know about it, by kind; see `_NOTES`."""
    prompt, completions = row["prompt"], row.get("completions")
    notes: dict[str, str] = {}
    if not isinstance(prompt, str) and prompt[-1].get("role") == "assistant":
        notes["answered"] = str(prompt[-1].get("content") or "")
    if completions is None:
        return {"prompt_ids": _encode_checked_prompt(row, tokenizer, notes)}, notes
    ended = [bool(flag) for flag in row.get("ended") or [True] * len(completions)]
    completion_ids = _sampled_ids(row, tokenizer, tag, notes) if tag else [[] for _ in completions]
    unknown = [i for i, ids in enumerate(completion_ids) if not ids]
    if isinstance(prompt, str):
        before, encode = prompt, _encode
        texts = [_with_end(tokenizer, completions[i], ended[i]) for i in unknown]
    else:
        kwargs = template_kwargs(row)
        before, encode = render(tokenizer, prompt, add_generation_prompt=True, **kwargs), _encode_rendered
        if lost := _missing_in_prompt(prompt, kwargs, before):
            notes["tools"] = lost
        shared: dict[str, Any] = {"before": before, "notes": notes, **kwargs}
        texts = [continuation(tokenizer, prompt, completions[i], ended[i], **shared) for i in unknown]
    # Prompt and completion are tokenized together, so that there is one start token and the usual token boundaries.
    prompt_ids, *sequences = encode(tokenizer, [before, *(before + text for text in texts)])
    for i, text, sequence in zip(unknown, texts, sequences, strict=True):
        if sequence[: len(prompt_ids)] == prompt_ids:
            completion_ids[i] = sequence[len(prompt_ids) :]
        else:
            notes.setdefault("prompt", _changed_end(tokenizer, prompt_ids, sequence))
            completion_ids[i] = _encode_behind(tokenizer, prompt_ids, text)
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "ended": ended,
        "scores": [float(score) for score in row["scores"]],
    }, notes


def _encode_checked_prompt(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, notes: dict[str, str]
) -> list[int]:
    """[`encode_row`], with a note on tools that the prompt lacks."""
    prompt, kwargs = row["prompt"], template_kwargs(row)
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    text = render(tokenizer, prompt, **{"add_generation_prompt": True} | kwargs)
    if lost := _missing_in_prompt(prompt, kwargs, text):
        notes["tools"] = lost
    return _encode_rendered(tokenizer, [text])[0]


def _missing_in_prompt(prompt: list[dict[str, Any]], kwargs: dict[str, Any], text: str) -> str:
    """The first tool, or call of a tool, that a rendered prompt lacks; empty if it has all."""
    calls = [call for message in prompt for call in message.get("tool_calls") or ()]
    return missing_tools(kwargs.get("tools"), text) or missing_tools(calls, text)


def _sampled_ids(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tag: str, notes: dict[str, str]
) -> list[list[int]]:
    """For each completion of a row the ids that it was sampled as; empty where they are not known or do not fit."""
    prompt_ids = encode_row(tokenizer, row)
    texts = [only_text(completion) for completion in row["completions"]]
    found = [sampled_ids(row, i, text, prompt_ids, tokenizer, tag, notes) for i, text in enumerate(texts)]
    if any(found) and row.get("prompt_ids") and row["prompt_ids"] != prompt_ids:
        notes["other prompt"] = tokenizer.decode(row["prompt_ids"])
    return found


def _changed_end(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], sequence: list[int]) -> str:
    """The text of the last tokens of a prompt that change when a completion follows."""
    return str(tokenizer.decode(prompt_ids[common_length(prompt_ids, sequence) :]))


def _encode_behind(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], text: str) -> list[int]:
    """
    Ids of a text that follows a prompt and is tokenized by itself.

    Some tokenizers put a space in front of a text. They do not if a token stands there, which is then removed.
    """
    alone = _encode_rendered(tokenizer, [text])[0]
    candidates = [alone]
    for anchor in ("x", "\n"):
        start, sequence = _encode_rendered(tokenizer, [anchor, anchor + text])
        if sequence[: len(start)] == start:
            candidates.append(sequence[len(start) :])
    whole = tokenizer.decode(prompt_ids) + text
    return next((ids for ids in candidates if tokenizer.decode(prompt_ids + ids) == whole), alone)


_NOTES_COLUMN = "tokenization_notes"  # until they have been logged: as JSON, by kind the number of the row and a text

# What the user has to know about how rows were tokenized, by kind. Each is said once for a dataset.
_NOTES = {
    "prompt": "the prompt alone ends in {text}, which changes when a completion follows: the tokenizer joins it with "
    "the completion, or the chat template leaves it out. Completions are trained on behind the complete prompt, as "
    "they are generated. For text, move a space from the end of the prompts to the start of the completions. For a "
    "prompt that opens a thought, use completions with reasoning, or `chat_template_kwargs` that switch thinking off.",
    "answered": "the prompt ends with a message of the assistant, {text}. It is taken for a complete one, behind "
    "which the model begins another. If it is the answer, take it out of the prompt; if it is the beginning of one, "
    "move it to the start of the completions.",
    "left out": "the chat template drops or changes a part of the completion ({text}). It is trained on as the "
    "dataset has it.",
    "lost": "the chat template leaves this out of a completion, so it is not trained on: {text}. Write it into the "
    "`content` of the message, or use a chat template that keeps it (`chat_template_path`).",
    "tools": "the chat template leaves this tool, or call of a tool, out of the prompt: {text}. Use a chat template "
    "that writes it (`chat_template_path`), describe it in a message, or remove the row.",
    "tokenizer": "the token ids of completions are those of another tokenizer, {text}, so that the completions are "
    "tokenized again. Train with the model that they were sampled from to use its tokens.",
    "text": "the token ids of a completion do not stand for its text ({text}), so it is tokenized again.",
    "other prompt": "completions were sampled from another prompt than the one that is trained on. It was {text}: use "
    "the same chat template and `chat_template_kwargs` as for sampling.",
}


def _describe_note(kind: str, text: str, index: int, name: str) -> str:
    """A warning about the tokenization of row `index` of the dataset called `name`."""
    return f"{where(index, name)}: {_NOTES[kind].format(text=repr(shortened(text)))}"


def _with_warnings(dataset: AnyDataset, name: str, has_ids: bool) -> AnyDataset:
    """
    The tokenized dataset without the notes about its rows, which are logged (once for each kind), and without the
    column that names the tokenizer of sampled ids.

    The notes are a column until then, so that processes that tokenize and cached rows cause the same warnings.
    """
    told: set[str] = set()

    def tell(written: str) -> None:
        notes = json.loads(written) if written else {}
        for kind in sorted(notes.keys() - told):
            told.add(kind)
            index, text = notes[kind]
            logger.warning(_describe_note(kind, text, index, name))

    if isinstance(dataset, Dataset):
        for written in dataset.unique(_NOTES_COLUMN):  # fast, where most rows have none
            tell(written)
    else:
        dataset = with_check(dataset, lambda row: tell(row[_NOTES_COLUMN]), [_NOTES_COLUMN])
    return dataset.remove_columns([_NOTES_COLUMN, *(["tokenizers"] if has_ids else [])])


def _tokenize_or_blame(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tag: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """[`_tokenize_row`]; an error of the template or the tokenizer names the column that it failed on."""
    try:
        return _tokenize_row(row, tokenizer, tag)
    except DataError:
        raise
    except Exception as error:
        with located("column 'prompt'", TEMPLATE_REMEDY):
            encode_row(tokenizer, row)
        with located("column 'completions'", TEMPLATE_REMEDY):
            raise error


def _check_and_tokenize(
    row: dict[str, Any],
    index: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    max_length: int,
    conversational: bool,
    tag: str,
    chat_template_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """The columns that [`prepare_dataset`] adds to row `index`, and its notes."""
    check_row(row, index, conversational, name)
    with located(where(index, name)):
        row = with_template_kwargs(row, chat_template_kwargs)
        found, notes = _tokenize_or_blame(row, tokenizer, tag)
    written = json.dumps({kind: [index, text] for kind, text in notes.items()}) if notes else ""
    tokens = {"row_index": index, **found, _NOTES_COLUMN: written}
    if chat_template_kwargs:
        tokens["chat_template_kwargs"] = row["chat_template_kwargs"]
    if not tokens["prompt_ids"]:
        place = where(index, name, "prompt")
        raise DataError(f"{place}: has no tokens, so a model cannot predict a completion. Remove the row.")
    for i, ids in enumerate(tokens.get("completion_ids", ())):
        if not ids:
            place = where(index, name, "completions")
            raise DataError(f"{place}: [{i}] has no tokens, not even an end. Remove it.")
    if max_length and "completion_ids" in tokens:
        tokens |= truncate_completions(row | tokens, max_length, tokenizer)
    return tokens


def _has_room(prompt_ids: list[int], max_length: int) -> bool:
    return len(prompt_ids) < max_length


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    num_proc: int | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[Dataset | IterableDataset, int]:
    """
    Check, tokenize and truncate a dataset of the row schema, from [`~trl_ext.data.scored_rows.to_scored_rows`].

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The dataset. Other columns are kept.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        name (`str`): Name of the dataset in error messages.
        max_length (`int`): Maximum number of tokens of a prompt with its completion. `0` means no limit.
        num_proc (`int`, *optional*): Number of processes that tokenize.
        chat_template_kwargs (`dict[str, Any]`, *optional*): Arguments of the chat template for all rows. Those in a
            column of this name win.

    Returns:
        The dataset with the columns of [`tokenize_row`] and `row_index` (the row's number) added, and the number of
        rows that were dropped because their prompt alone fills `max_length` (0 for a stream, which is not read ahead).

    Raises:
        `DataError`: A row or column cannot be used, or no row is left.
    """
    kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}
    conversational = is_conversational(first_row(dataset, name))
    columns = column_names(dataset)
    if "completions" not in columns:  # then these are of completions that the dataset does not have
        dataset = dataset.remove_columns([column for column in ID_COLUMNS if column in columns])
        columns = [column for column in columns if column not in ID_COLUMNS]
    tag = _tag(columns, tokenizer)

    settings: dict[str, Any] = {"name": name, "max_length": max_length, "chat_template_kwargs": chat_template_kwargs}
    tokenize = partial(_check_and_tokenize, tokenizer=tokenizer, conversational=conversational, tag=tag, **settings)
    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Tokenizing {name} dataset"
    tokenized = dataset.map(this_version(tokenize), with_indices=True, **kwargs)
    dataset = _with_warnings(tokenized, name, has_ids=bool(tag))
    return without_full_prompts(dataset, max_length, name=name, num_proc=num_proc)


def without_full_prompts(
    dataset: Dataset | IterableDataset,
    max_length: int,
    *,
    name: str,
    num_proc: int | None = None,
    column: str = "prompt_ids",
) -> tuple[Dataset | IterableDataset, int]:
    """
    The rows whose prompt leaves room for a completion, and how many others there are (0 for a stream).

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with `prompt_ids`.
        max_length (`int`): Maximum number of tokens of a prompt with its completion. `0` means no limit.
        name (`str`): Name of the dataset in error messages.
        num_proc (`int`, *optional*): Number of processes.
        column (`str`, *optional*, defaults to `"prompt_ids"`): The token ids of the prompts.

    Raises:
        `DataError`: No row is left.
    """
    if not max_length:
        return dataset, 0
    short = this_version(partial(_has_room, max_length=max_length))
    if not isinstance(dataset, Dataset):
        return dataset.filter(short, input_columns=column), 0
    kept = dataset.filter(short, input_columns=column, num_proc=num_proc)
    if len(kept) == 0:
        raise DataError(f"Every prompt of the {name} dataset fills max_length={max_length}. Raise `max_length`.")
    return kept, len(dataset) - len(kept)


def truncate_completions(
    row: dict[str, Any], max_length: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """
    The columns of a tokenized row that change if its completions are cut to fit in `max_length` with the prompt.

    A completion that is cut has not ended, and its text is what is left of it: reward functions see what is trained
    on.

    Args:
        row (`dict`): A row with `prompt`, `completions` and the columns of [`tokenize_row`].
        max_length (`int`): Maximum number of tokens of prompt and completion.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
    """
    longest = max(max_length - len(row["prompt_ids"]), 0)
    cut: dict[str, list[Any]] = {name: list(row[name]) for name in ("completions", "completion_ids", "ended")}
    for i, ids in enumerate(cut["completion_ids"]):
        if len(ids) > longest:
            [text] = decode_after(tokenizer, [row["prompt_ids"]], [ids[:longest]])
            cut["completions"][i] = as_completion(row, text)
            cut["completion_ids"][i], cut["ended"][i] = ids[:longest], False
    return cut


def check_positions(
    dataset: AnyDataset, context: int, *, name: str, max_new_tokens: int = 0, generation_context: int = 0
) -> AnyDataset:
    """
    Check that every row fits in the model's context length. The rows of a stream are checked when they are read.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Result of [`prepare_dataset`].
        context (`int`): Context length of the model. `0` means not known.
        name (`str`): Name of the dataset in error messages.
        max_new_tokens (`int`, *optional*, defaults to `0`): Maximum number of tokens of the completions that training
            generates for the rows.
        generation_context (`int`, *optional*, defaults to `0`): Context length of the generation backend, if it is
            shorter than the model's.

    Returns:
        The dataset. A stream is returned with the check added to it.

    Raises:
        `DataError`: A row is too long.
    """

    def check(row: dict[str, Any]) -> None:
        prompt = len(row["prompt_ids"])
        if max_new_tokens and 0 < generation_context < prompt + max_new_tokens:
            raise DataError(
                f"{where(row['row_index'], name)} has {prompt + max_new_tokens} tokens with "
                f"`max_completion_length` ({max_new_tokens}), but `vllm_max_model_length` is {generation_context}: "
                "set it higher, `max_length` or `max_completion_length` lower, or drop long rows."
            )
        length = prompt + max(max_new_tokens, *map(len, row.get("completion_ids") or ()), 0)
        if 0 < context < length:
            raise DataError(
                f"{where(row['row_index'], name)} has {length} tokens"
                + (f" with `max_completion_length` ({max_new_tokens})" if max_new_tokens else "")
                + f", but the model's context length is {context}: set `max_length`"
                + (" or `max_completion_length`" if max_new_tokens else "")
                + " lower, or drop long rows."
            )

    return with_check(dataset, check, ("row_index", "prompt_ids", "completion_ids"))
