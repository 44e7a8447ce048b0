# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts with and without a principle, rows to imitate, and the batches of PSLE."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.data.schema import AnyDataset, DataError, column_names, first_row, with_check
from trl_ext.data.tokenization import encode_prompt, prepare_dataset

from .config import PSLEConfig


# The views of a prompt, as marked on each answer.
PLAIN, GUIDED = 0, 1

# Columns of other forms of rows: PSLE takes prompts, as GRPO does, and draws the answers itself.
_ANSWERS = ("completion", "completions", "chosen", "rejected", "scores", "ended")


@dataclass
class DataCollatorForPrompts:
    """
    Groups tokenised rows; nothing is padded here, because the form of the rows is chosen for each batch.

    A batch is a `dict` with `row_index` (`torch.Tensor` of shape (B,)), `prompt_ids` (`list[list[int]]`), `rows` (the
    rows as they are), and, for rows to imitate, `completion_ids` (`list[list[list[int]]]`, one answer each).

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
    The principles of the config: its texts, or those of its file.

    Raises:
        `DataError`: The file is missing, holds none, or a principle is no text.
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
            f"`principles_file`: {args.principles_file!r} holds no principle; it should have one a line, or be a JSON "
            "list of texts."
        )
    return _checked(found, f"`principles_file` {args.principles_file!r}")


def _checked(principles: list[Any], where: str) -> list[str]:
    for i, principle in enumerate(principles):
        if not isinstance(principle, str) or not principle.strip():
            raise DataError(f"{where}: principle {i} must be a text that is not empty, got {principle!r}.")
    return principles


def with_principle(prompt: Any, principle: str, role: str, template: str) -> Any:
    """
    A prompt, text or messages, that carries a principle. The prompt itself is not changed.

    Args:
        prompt (`str` or `list[dict]`): The plain prompt.
        principle (`str`): The principle; white space at its end is dropped.
        role (`str`): For messages: `"system"` (joined to a system message that is there) or `"user"` (the last turn).
        template (`str`): Joins `{principle}` and `{prompt}` in texts.

    Raises:
        `DataError`: The messages have no user turn of text to put it in.
    """

    def join(text: str) -> str:
        # Not `format`: braces in a prompt are its own.
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
        raise DataError("has no user turn of text for the principle; set `principle_role: system`.")
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
            (a text, or a list of them); other columns are for the reward functions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's tokenizer.
        principles (`list[str]`): For rows without their own. Best-of-n SFT uses none, and its `guided_ids` are empty.
        args ([`PSLEConfig`]): `principle_role`, `principle_template`, `sft_target`, `max_length`.
        name (`str`): What messages call the data set.

    Returns:
        The data set, and how many rows were dropped because their plain prompt alone fills `max_length`.

    Raises:
        `DataError`: A row or column is unusable, a row has no principle, or a principle does not change its prompt.
    """
    dataset = dataset.remove_columns([column for column in _ANSWERS if column in column_names(dataset)])
    kwargs: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    dataset, dropped = prepare_dataset(
        dataset, tokenizer, name=name, max_length=args.max_length, num_proc=args.dataset_num_proc
    )

    def guide(row: dict[str, Any]) -> dict[str, Any]:
        index = row["row_index"]
        if args.sft_target == "best":  # of the plain answers: no principle has a part in it
            return {"guided_ids": []}
        texts = _own_principles(row, index) or principles
        if not texts:
            raise DataError(
                f"Row {index} of the {name} data set has no principle. Set `principles` (texts) or `principles_file`, "
                "or give the rows a column 'principle'."
            )
        try:
            return {"guided_ids": [_guided_ids(row, text, tokenizer, args) for text in texts]}
        except DataError as error:
            raise DataError(f"Row {index}, column 'prompt': {error}") from None

    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Adding principles to {name} data set"
    return dataset.map(guide, **kwargs), dropped


def _guided_ids(
    row: dict[str, Any], principle: str, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> list[int]:
    prompt = with_principle(row["prompt"], principle, args.principle_role, args.principle_template)
    tools, kwargs = row.get("tools"), dict(row.get("chat_template_kwargs") or {})
    if tools:
        kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    try:
        ids = encode_prompt(tokenizer, prompt, **kwargs)
    except DataError:
        raise
    except Exception as error:  # a chat template raises what it likes
        raise DataError(
            f"the chat template refuses the principle ({error}); set `principle_role` to the other of 'system' and "
            "'user'."
        ) from error
    if ids == row["prompt_ids"]:
        raise DataError(
            f"the principle {principle!r} leaves no trace in the tokens: the chat template drops it. Set "
            "`principle_role` to the other of 'system' and 'user'."
        )
    return ids


def check_context_length(dataset: AnyDataset, context: int, max_completion_length: int, hint: str = "") -> AnyDataset:
    """
    A data set of which a prompt that leaves no room for an answer, by itself or with its principle, is an error.

    Args:
        dataset (`AnyDataset`): Rows with `prompt_ids` and `guided_ids`.
        context (`int`): Positions of what draws (`0`: without limit).
        max_completion_length (`int`): Tokens of the longest answer.
        hint (`str`, *optional*): What else helps, at the end of messages.

    Raises:
        `DataError`: At once, or when a stream comes to such a row.
    """

    def check(row: dict[str, Any]) -> None:
        plain = len(row["prompt_ids"])
        longest = max(map(len, row["guided_ids"]), default=0)
        if plain + max_completion_length > context and longest <= plain:
            raise DataError(
                f"Row {row['row_index']}, column 'prompt': it comes to {plain + max_completion_length} tokens with "
                f"`max_completion_length` ({max_completion_length}), but the model has room for {context}: lower "
                "that, or drop long prompts by `max_length`." + hint
            )
        if longest + max_completion_length > context:
            raise DataError(
                f"Row {row['row_index']}, column 'prompt': with its principle it has {longest} tokens ({plain} "
                f"without), which has no room for {max_completion_length} more in the model's context of {context}. "
                "Shorten the principle, lower `max_completion_length`, or drop long prompts by `max_length`." + hint
            )

    return with_check(dataset, check, ("row_index", "prompt_ids", "guided_ids")) if context else dataset


def prepare_sft_dataset(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> tuple[AnyDataset, int]:
    """
    Rows to imitate, from TRL's forms: `prompt` and `completion`, `messages`, or `text`.

    Returns:
        The data set with `prompt_ids` and `completion_ids` (one answer), and how many rows were dropped.

    Raises:
        `DataError`: The data set has none of these forms, or a row is unusable.
    """
    columns = column_names(dataset)
    form = next((f for f in (("prompt", "completion"), ("messages",), ("text",)) if set(f) <= set(columns)), None)
    if form is None:
        raise DataError(
            f"The SFT data set has the columns {', '.join(map(repr, columns)) or 'none'}; its rows should have "
            "`prompt` and `completion`, `messages`, or `text`."
        )

    def as_scored(row: dict[str, Any]) -> dict[str, Any]:
        if form == ("messages",):
            prompt, answer = row["messages"][:-1], row["messages"][-1:]
        elif form == ("text",):
            prompt, space, tail = row["text"].partition(" ")  # there is no prompt: the first word predicts the rest
            answer = space + tail
        else:
            prompt, answer = row["prompt"], row["completion"]
        return {"prompt": prompt, "completions": [answer], "scores": [0.0]}

    first_row(dataset, "SFT")
    scored = dataset.map(as_scored, remove_columns=columns)
    return prepare_dataset(scored, tokenizer, name="SFT", max_length=args.max_length, num_proc=args.dataset_num_proc)


# ------------------------------------------------------------------------------------------------------------ pairs


def view_marks(num_generations: int, guided: bool) -> list[int]:
    """The views of a row's answers, in the order in which they are drawn."""
    return [PLAIN] * num_generations + [GUIDED] * (num_generations if guided else 0)


def pairs(marks: list[list[int]]) -> list[tuple[int, int, int]]:
    """
    (prompt, plain answer, guided answer) of each pair of a batch: every plain with every guided answer of a prompt.
    Answers are numbered through the batch: `[[0, 1], [0, 0, 1]]` gives `[(0, 0, 1), (1, 2, 4), (1, 3, 4)]`.
    """
    found, start = [], 0
    for b, group in enumerate(marks):
        plain = [start + k for k, mark in enumerate(group) if mark == PLAIN]
        guided = [start + k for k, mark in enumerate(group) if mark == GUIDED]
        found += [(b, i, j) for i in plain for j in guided]
        start += len(group)
    return found
