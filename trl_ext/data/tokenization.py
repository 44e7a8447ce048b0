# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Tokenization: rows of the schema as token ids, and the checks of their length."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .row_cache import this_version
from .schema import (
    AnyDataset,
    DataError,
    check_row,
    column_names,
    first_row,
    is_conversational,
    to_scored_rows,
    with_check,
)


TOKENIZED_COLUMNS = ("row_index", "prompt_ids", "completion_ids", "ended", "scores")


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
    return _render(tokenizer, prompt, add_generation_prompt=True, **chat_template_kwargs)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, with the start token if the tokenizer adds one, without the end token that some tokenizers add."""
    *several, probe = tokenizer([*texts, "x"])["input_ids"]  # one call, because a call costs more than the texts
    adds_end = tokenizer.eos_token_id is not None and probe[-1:] == [tokenizer.eos_token_id]
    return [list(ids[:-1] if adds_end else ids) for ids in several]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs: Any) -> list[int]:
    if tokenizer.chat_template is None:
        raise DataError(
            "The rows are conversational, but the tokenizer has no chat template. Use a chat model's tokenizer, set "
            "`tokenizer.chat_template`, or turn the rows into text."
        )
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)["input_ids"])


def _with_end(tokenizer: PreTrainedTokenizerBase, completion: str, ended: bool) -> str:
    """The completion, followed by the end-of-sequence token if it `ended`."""
    eos = tokenizer.eos_token or ""
    return completion + (eos if ended and not completion.endswith(eos) else "")


def _common_prefix(a: list[int], b: list[int]) -> int:
    """Number of leading ids that are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokenize_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Token ids of a row of the schema.

    Returns:
        `dict`: `prompt_ids` (`list[int]`); for rows with completions also `completion_ids` (`list[list[int]]`),
        `ended` (`list[bool]`) and `scores` (`list[float]`). Prompt and completion are tokenized together. The prompt
        ends at the first token in which one of the K results differs from the tokens of the prompt alone. That is
        before its last token if this token merges with the completion's first characters.
    """
    tools = row.get("tools")
    kwargs = dict(row.get("chat_template_kwargs") or {})
    if tools:
        kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    prompt, completions = row["prompt"], row.get("completions")
    if completions is None:
        return {"prompt_ids": encode_prompt(tokenizer, prompt, **kwargs)}
    ended = [bool(flag) for flag in row.get("ended") or [True] * len(completions)]
    # Prompt and completion are tokenized together, so that there is one start token and the usual token boundaries.
    if isinstance(prompt, str):
        texts = [_with_end(tokenizer, text, flag) for text, flag in zip(completions, ended, strict=True)]
        prompt_ids, *sequences = _encode(tokenizer, [prompt, *(prompt + text for text in texts)])
    else:
        prompt_ids = encode_prompt(tokenizer, prompt, **kwargs)
        sequences = [  # a completion that was cut off is rendered without the template's end of turn
            _render(tokenizer, prompt + completion, continue_final_message=not flag, **kwargs)
            for completion, flag in zip(completions, ended, strict=True)
        ]
    length = min(_common_prefix(prompt_ids, sequence) for sequence in sequences)
    if not length and isinstance(prompt, str):
        # A completion merges with the prompt's only token: keep the prompt, and tokenize the completions separately.
        length = len(prompt_ids)
        sequences = [prompt_ids + list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return {
        "prompt_ids": prompt_ids[:length],
        "completion_ids": [sequence[length:] for sequence in sequences],
        "ended": ended,
        "scores": [float(score) for score in row["scores"]],
    }


def _as_preference(message: str) -> str:
    """An error message about completions 0 and 1 that names the user's columns instead: `chosen` and `rejected`."""
    for i, column in enumerate(("chosen", "rejected")):
        message = message.replace(f"column 'completions': [{i}] ", f"column {column!r}: ")
    return message


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, int]:
    """
    Check, tokenize and truncate a dataset in any form that [`~trl_ext.data.schema.to_scored_rows`] accepts.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): The dataset. Other columns are kept.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        name (`str`): Name of the dataset in error messages.
        max_length (`int`): Maximum number of tokens of a prompt with its completion. `0` means no limit.
        num_proc (`int`, *optional*): Number of processes that tokenize.

    Returns:
        The dataset with the columns of [`tokenize_row`] and `row_index` (the row's number) added, and the number of
        rows that were dropped because their prompt alone fills `max_length` (0 for a stream, which is not read ahead).

    Raises:
        `DataError`: A row or column cannot be used, or no row is left.
    """
    kwargs: dict[str, Any] = {"num_proc": num_proc} if isinstance(dataset, Dataset) else {}
    is_preference = "chosen" in column_names(dataset)
    dataset = to_scored_rows(dataset, name, **kwargs)
    conversational = is_conversational(first_row(dataset, name))

    def tokenize(row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            check_row(row, index, conversational)
        except DataError as error:
            raise DataError(_as_preference(str(error)) if is_preference else str(error)) from None
        tokens = {"row_index": index, **tokenize_row(row, tokenizer)}
        if not tokens["prompt_ids"]:
            raise DataError(
                f"Row {index}, column 'prompt': has no tokens, so a model cannot predict a completion. Remove the row."
            )
        for i, ids in enumerate(tokens.get("completion_ids", ())):
            if not ids:
                raise DataError(f"Row {index}, column 'completions': [{i}] has no tokens, not even an end. Remove it.")
        if max_length and "completion_ids" in tokens:
            longest = max(max_length - len(tokens["prompt_ids"]), 0)
            tokens["completion_ids"] = [ids[:longest] for ids in tokens["completion_ids"]]
        return tokens

    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Tokenizing {name} dataset"
    dataset = dataset.map(this_version(tokenize), with_indices=True, **kwargs)
    if not max_length:
        return dataset, 0
    kwargs.pop("desc", None)
    short = this_version(lambda prompt_ids: len(prompt_ids) < max_length)
    kept = dataset.filter(short, input_columns="prompt_ids", **kwargs)
    if not isinstance(dataset, Dataset):
        return kept, 0
    if len(kept) == 0:
        raise DataError(f"Every prompt of the {name} dataset fills max_length={max_length}. Raise `max_length`.")
    return kept, len(dataset) - len(kept)


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
                f"Row {row['row_index']} of the {name} dataset has {prompt + max_new_tokens} tokens with "
                f"`max_completion_length` ({max_new_tokens}), but `vllm_max_model_length` is {generation_context}: "
                "set it higher, `max_length` or `max_completion_length` lower, or drop long rows."
            )
        length = prompt + max(max_new_tokens, *map(len, row.get("completion_ids") or ()), 0)
        if 0 < context < length:
            raise DataError(
                f"Row {row['row_index']} of the {name} dataset has {length} tokens"
                + (f" with `max_completion_length` ({max_new_tokens})" if max_new_tokens else "")
                + f", but the model's context length is {context}: set `max_length`"
                + (" or `max_completion_length`" if max_new_tokens else "")
                + " lower, or drop long rows."
            )

    return with_check(dataset, check, ("row_index", "prompt_ids", "completion_ids"))
