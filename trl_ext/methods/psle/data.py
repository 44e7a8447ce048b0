# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts with and without a principle, completions to imitate, and the batches of PSLE."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import template_kwargs
from trl_ext.data.sampled_ids import ID_COLUMNS
from trl_ext.data.schema import AnyDataset, DataError, column_names, first_row, with_check
from trl_ext.data.tokenization import encode_prompt, prepare_dataset

from .config import PSLEConfig


# The mark of each completion: generated from the plain prompt, or from the prompt with a principle.
PLAIN, GUIDED = 0, 1

# Columns that are ignored: PSLE takes prompts, as GRPO does, and generates the completions itself.
_COMPLETION_COLUMNS = ("completion", "completions", "chosen", "rejected", "scores", "ended", *ID_COLUMNS)


@dataclass
class DataCollatorForPrompts:
    """
    Collects tokenized rows in lists, without padding.

    A batch is a `dict` with `row_index` (`torch.Tensor` of shape `(B,)`), `prompt_ids` (`list[list[int]]`), `rows`
    (the rows themselves), and, for completions to imitate, `completion_ids` (`list[list[list[int]]]`, one per prompt).

    Examples:
    ```python
    >>> from trl_ext.methods.psle.data import DataCollatorForPrompts

    >>> batch = DataCollatorForPrompts()([{"row_index": 7, "prompt_ids": [1, 2], "guided_ids": [[5, 1, 2]]}])
    >>> batch["prompt_ids"], batch["rows"][0]["guided_ids"]
    ([[1, 2]], [[5, 1, 2]])
    ```
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "row_index": torch.tensor([row["row_index"] for row in rows]),
            "prompt_ids": [row["prompt_ids"] for row in rows],
            "rows": rows,
        }
        if "completion_ids" in rows[0]:
            batch["completion_ids"] = [row["completion_ids"] for row in rows]
        return batch


# ------------------------------------------------------------------------------------------------------- principles


def load_principles(args: PSLEConfig) -> list[str]:
    """
    The principles of the config: its texts, or those in its file.

    Raises:
        `DataError`: The file is missing or empty, or a principle is not a text.
    """
    if not args.principles_file:
        return _checked(list(args.principles or []), "`principles`")
    path = Path(args.principles_file).expanduser()
    if not path.is_file():
        raise DataError(f"`principles_file`: there is no file {args.principles_file!r}.")
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"`principles_file`: {args.principles_file!r} is not JSON: {error}.") from None
    if not isinstance(found, list) or not found:
        raise DataError(
            f"`principles_file`: {args.principles_file!r} has no principle; it should have one per line, or be a "
            "JSON list of texts."
        )
    return _checked(found, f"`principles_file` {args.principles_file!r}")


def _checked(principles: list[Any], where: str) -> list[str]:
    for i, principle in enumerate(principles):
        if not isinstance(principle, str) or not principle.strip():
            raise DataError(f"{where}: principle {i} must be a text that is not empty, got {principle!r}.")
    return principles


def with_principle(prompt: Any, principle: str, role: str, template: str) -> Any:
    """
    A copy of a prompt with a principle.

    Args:
        prompt (`str` or `list[dict]`): The plain prompt, a text or messages.
        principle (`str`): The principle; white space at its end is removed.
        role (`str`): For messages: `"system"` (an existing system message is extended) or `"user"` (the last turn).
        template (`str`): Joins `{principle}` and `{prompt}` in texts.

    Raises:
        `DataError`: The messages have no user turn with text.
    """

    def join(text: str) -> str:
        # Not `format`: a prompt may have braces.
        before, _, after = template.partition("{prompt}")
        return before.replace("{principle}", rule) + text + after.replace("{principle}", rule)

    rule = principle.rstrip()
    if isinstance(prompt, str):
        return join(prompt)
    if role == "system":
        first = prompt[0]
        if first["role"] != "system":
            return [{"role": "system", "content": rule}, *prompt]
        return [{**first, "content": f"{first.get('content') or ''}\n\n{rule}".strip()}, *prompt[1:]]
    turns = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not turns or not isinstance(prompt[turns[-1]].get("content"), str):
        raise DataError("it has no user turn with text for the principle; set `principle_role: system`.")
    i = turns[-1]
    return [*prompt[:i], {**prompt[i], "content": join(prompt[i]["content"])}, *prompt[i + 1 :]]


def _own_principles(row: dict[str, Any], index: int) -> list[str]:
    own = row.get("principle")
    if own is None or own == "" or own == []:
        return []
    texts = [own] if isinstance(own, str) else own
    if not isinstance(texts, list):
        raise DataError(f"Row {index}, column 'principle': must be text or a list of texts, got {own!r}.")
    return _checked(texts, f"Row {index}, column 'principle'")


# ------------------------------------------------------------------------------------------------------------- rows


def prepare_prompts(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    principles: list[str],
    args: PSLEConfig,
    *,
    name: str,
) -> tuple[AnyDataset, int]:
    """
    Rows with `prompt_ids`, the plain prompt, and `guided_ids`, a list with the prompt under each of its principles.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with `prompt`, and possibly `principle`
            (a text or a list of texts); other columns are for the reward functions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        principles (`list[str]`): For rows without their own. Best-of-n SFT uses none, and its `guided_ids` are empty.
        args ([`PSLEConfig`]): The trainer's config.
        name (`str`): The name of the dataset in messages.

    Returns:
        The dataset, and how many rows were dropped because their plain prompt alone fills `max_length`.

    Raises:
        `DataError`: A row or column cannot be used, a row has no principle, or a principle does not change its prompt.
    """
    dataset = dataset.remove_columns([column for column in _COMPLETION_COLUMNS if column in column_names(dataset)])
    kwargs: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    dataset, dropped = prepare_dataset(
        dataset,
        tokenizer,
        name=name,
        max_length=args.max_length,
        num_proc=args.dataset_num_proc,
        chat_template_kwargs=args.chat_template_kwargs,  # type: ignore[arg-type]
    )

    def guide(row: dict[str, Any]) -> dict[str, Any]:
        index = row["row_index"]
        if args.sft_target == "best":  # of the plain completions
            return {"guided_ids": []}
        texts = _own_principles(row, index) or principles
        if not texts:
            raise DataError(
                f"Row {index} of the {name} dataset has no principle. Set `principles` (texts) or `principles_file`, "
                "or add a column 'principle' to the dataset."
            )
        try:
            return {"guided_ids": [_guided_ids(row, text, tokenizer, args) for text in texts]}
        except DataError as error:
            raise DataError(f"Row {index}, column 'prompt': {error}") from None

    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Adding principles to {name} dataset"
    return dataset.map(guide, **kwargs), dropped


def _guided_ids(
    row: dict[str, Any], principle: str, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> list[int]:
    prompt = with_principle(row["prompt"], principle, args.principle_role, args.principle_template)
    try:
        ids = encode_prompt(tokenizer, prompt, **template_kwargs(row))
    except DataError:
        raise
    except Exception as error:  # a chat template can raise any error
        raise DataError(
            f"the chat template refuses the principle ({error}); set `principle_role` to the other of 'system' and "
            "'user'."
        ) from error
    if ids == row["prompt_ids"]:
        raise DataError(
            f"the principle {principle!r} does not change the tokens: the chat template drops it. Set "
            "`principle_role` to the other of 'system' and 'user'."
        )
    return ids


def check_context_length(dataset: AnyDataset, context: int, max_completion_length: int, hint: str = "") -> AnyDataset:
    """
    The dataset, where a prompt that is too long for the context, with or without its principle, is an error.

    Args:
        dataset (`AnyDataset`): Rows with `prompt_ids` and `guided_ids`.
        context (`int`): Context length of the generation backend (`0`: no limit).
        max_completion_length (`int`): Maximum length of a completion, in tokens.
        hint (`str`, *optional*): Further advice at the end of messages.

    Raises:
        `DataError`: There is such a row. A stream raises the error when it reaches the row.
    """

    def check(row: dict[str, Any]) -> None:
        plain = len(row["prompt_ids"])
        longest = max(map(len, row["guided_ids"]), default=0)
        if plain + max_completion_length > context and longest <= plain:
            raise DataError(
                f"Row {row['row_index']}, column 'prompt': it has {plain + max_completion_length} tokens with "
                f"`max_completion_length` ({max_completion_length}), but the context length is {context}. Lower "
                "`max_completion_length`, or drop long prompts by `max_length`." + hint
            )
        if longest + max_completion_length > context:
            raise DataError(
                f"Row {row['row_index']}, column 'prompt': with its principle it has {longest} tokens ({plain} "
                f"without), and with `max_completion_length` ({max_completion_length}) more than the context length "
                f"of {context}. Shorten the principle, lower `max_completion_length`, or drop long prompts by "
                "`max_length`." + hint
            )

    return with_check(dataset, check, ("row_index", "prompt_ids", "guided_ids")) if context else dataset


def prepare_sft_dataset(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> tuple[AnyDataset, int]:
    """
    Completions to imitate, from TRL's formats: `prompt` and `completion`, `messages`, or `text`.

    Returns:
        The dataset with `prompt_ids` and `completion_ids` (one completion), and how many rows were dropped.

    Raises:
        `DataError`: The dataset has none of these formats, or a row cannot be used.
    """
    columns = column_names(dataset)
    form = next((f for f in (("prompt", "completion"), ("messages",), ("text",)) if set(f) <= set(columns)), None)
    if form is None:
        raise DataError(
            f"The SFT dataset has the columns {', '.join(map(repr, columns)) or 'none'}; its rows should have "
            "`prompt` and `completion`, `messages`, or `text`."
        )

    def as_scored(row: dict[str, Any], index: int) -> dict[str, Any]:
        if form == ("messages",):
            prompt, completion = row["messages"][:-1], row["messages"][-1:]
        elif form == ("text",):
            prompt, completion = _first_token(row["text"], tokenizer, index)
        else:
            prompt, completion = row["prompt"], row["completion"]
        return {"prompt": prompt, "completions": [completion], "scores": [0.0]}

    first_row(dataset, "SFT")
    kept = [column for column in ("tools", "chat_template_kwargs") if column in columns]
    scored = dataset.map(
        as_scored, with_indices=True, remove_columns=[column for column in columns if column not in kept]
    )
    return prepare_dataset(
        scored,
        tokenizer,
        name="SFT",
        max_length=args.max_length,
        num_proc=args.dataset_num_proc,
        chat_template_kwargs=args.chat_template_kwargs,  # type: ignore[arg-type]
    )


def _first_token(text: Any, tokenizer: PreTrainedTokenizerBase, index: int) -> tuple[str, str]:
    """The first token of a text, which takes the place of a prompt, and the rest, as texts."""
    if not isinstance(text, str) or not text:
        raise DataError(
            f"Row {index} of the SFT dataset, column 'text': must be text that is not empty, got {text!r}."
        )
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        end = next((end for _, end in offsets if end), len(text))
    else:
        first = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:1])
        end = len(first) if first and text.startswith(first) else 1
    if end >= len(text):
        raise DataError(
            f"Row {index} of the SFT dataset, column 'text': {text!r} is one token, so there is nothing to predict. "
            "Remove the row."
        )
    return text[:end], text[end:]


# ------------------------------------------------------------------------------------------------------------ pairs


def view_marks(num_generations: int, guided: bool) -> list[int]:
    """The marks of a row's completions, in the order of generation."""
    return [PLAIN] * num_generations + [GUIDED] * (num_generations if guided else 0)


def pairs(marks: list[list[int]]) -> list[tuple[int, int, int]]:
    """
    (prompt, plain completion, guided completion) of each pair of a batch.

    Every plain completion of a prompt is paired with every guided one. Completions are numbered through the batch:
    `[[0, 1], [0, 0, 1]]` gives `[(0, 0, 1), (1, 2, 4), (1, 3, 4)]`.
    """
    found, start = [], 0
    for b, group in enumerate(marks):
        plain = [start + k for k, mark in enumerate(group) if mark == PLAIN]
        guided = [start + k for k, mark in enumerate(group) if mark == GUIDED]
        found += [(b, i, j) for i in plain for j in guided]
        start += len(group)
    return found
