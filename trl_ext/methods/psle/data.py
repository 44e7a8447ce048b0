# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts with and without a principle, completions to imitate, and the batches of PSLE."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import template_kwargs
from trl_ext.data.column_names import parse_columns
from trl_ext.data.row_cache import this_version
from trl_ext.data.row_errors import located
from trl_ext.data.sampled_ids import ID_COLUMNS
from trl_ext.data.schema import AnyDataset, DataError, column_names, first_row, where, with_check
from trl_ext.data.scored_rows import to_scored_rows
from trl_ext.data.tokenization import encode_prompt, prepare_dataset

from .config import PSLEConfig


# The mark of each completion: generated from the plain prompt, or from the prompt with a principle.
PLAIN, GUIDED = 0, 1

# Columns that are ignored: PSLE takes prompts, as GRPO does, and generates the completions itself. `chosen` and
# `rejected` stay, for reward functions that compare with them.
_COMPLETION_COLUMNS = ("completion", "completions", "scores", "ended", *ID_COLUMNS)


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
        `DataError`: The file is missing, empty or in no known form, a principle is not a text, or there are fewer
            than `principles_per_query`.
    """
    if args.principles_file:
        where = f"`principles_file` {args.principles_file!r}"
        principles = _checked(_read_principles(Path(args.principles_file).expanduser(), where), where)
    else:
        principles = _checked(args.principles, "`principles`")
    if principles and args.principles_per_query > len(principles):
        raise DataError(
            f"`principles_per_query` is {args.principles_per_query}, but there are {len(principles)} principles. "
            "Lower it, or set it to 0, which means all."
        )
    return principles


def _read_principles(path: Path, where: str) -> Any:
    if not path.is_file():
        raise DataError(f"{where}: there is no such file.")
    text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        if path.suffix == ".json":
            found = json.loads(text)
        elif path.suffix == ".jsonl":
            found = [json.loads(line) for line in lines]
        else:
            found = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else lines
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{where} is not {path.suffix[1:].upper()}: {error}.") from None
    if not found:
        raise DataError(
            f"{where} has no principle; it should have one per line, or be a list of texts in JSON or YAML."
        )
    return found


def _checked(principles: Any, where: str) -> list[str]:
    """The texts in `principles`: a text, a list of texts or of rows with a `principle`, or a mapping to texts."""
    if isinstance(principles, dict):
        principles = [text for text in principles.values() if text is not None]  # Arrow fills missing keys with null
    texts = [principles] if isinstance(principles, str) else list(principles or [])
    texts = [text["principle"] if isinstance(text, dict) and "principle" in text else text for text in texts]
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: principle {i} must be a text that is not empty, got {text!r}.")
    return texts


def principle_texts(principles: list[str], per_query: int) -> list[str]:
    """
    What may guide a row: for each principle a text of it and of those that follow it, `per_query` in all.

    Several principles become a numbered list, in the order in which they are given. The paper does not say how it
    joins them; numbered are those of SELF-ALIGN (Sun et al. 2023, arXiv 2305.03047). If all principles guide a prompt
    together (`0`, or at least as many as there are), there is one text.

    Examples:
    ```python
    >>> from trl_ext.methods.psle.data import principle_texts

    >>> principle_texts(["Be kind.", "Be brief.", "Be honest."], 2)
    ['1. Be kind.\\n2. Be brief.', '1. Be brief.\\n2. Be honest.', '1. Be kind.\\n2. Be honest.']
    ```
    """
    n = len(principles)
    count = min(per_query or n, n)
    if count == 1:
        return principles
    texts = []
    for start in range(1 if count == n else n):
        chosen = sorted((start + i) % n for i in range(count))
        texts.append("\n".join(f"{i}. {principles[k].strip()}" for i, k in enumerate(chosen, 1)))
    return texts


def principle_index(prompt_ids: list[int], iteration: int, count: int) -> int:
    """
    Which of `count` texts guides a prompt in an iteration (from 0): the next one in each iteration.

    It depends on the prompt and on the iteration alone, and so neither on the number of the row, which a stream that
    several processes read has no reliable one of, nor on how rows are put into batches.
    """
    if count == 1:
        return 0
    digest = hashlib.sha256(",".join(map(str, prompt_ids)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") + iteration) % count


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


def _own_principles(row: dict[str, Any], name: str) -> list[str]:
    """The principles in the columns `principle` or `principles` of a row, which is row `name` in messages."""
    given = {column: row[column] for column in ("principle", "principles") if row.get(column)}
    if len(given) == 2:
        raise DataError(f"{name} has both 'principle' and 'principles'; leave one of the columns empty.")
    for column, value in given.items():
        if not isinstance(value, str | list | dict):
            raise DataError(f"{name}, column {column!r}: must be a text or a list of texts, got {value!r}.")
        return _checked(value, f"{name}, column {column!r}")
    return []


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

    With `principles_per_query`, under each set of its principles; see [`principle_texts`].

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with `prompt`, and possibly `principle`
            or `principles` (a text or a list of texts); other columns are for the reward functions.
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

    if isinstance(dataset, Dataset):
        kwargs["desc"] = f"Adding principles to {name} dataset"
    guide = partial(_guide, tokenizer=tokenizer, principles=principles, args=args, name=name)
    return dataset.map(this_version(guide), **kwargs), dropped


def _guide(
    row: dict[str, Any], *, tokenizer: PreTrainedTokenizerBase, principles: list[str], args: PSLEConfig, name: str
) -> dict[str, Any]:
    """The column that [`prepare_prompts`] adds to a tokenized row."""
    row_name = where(row["row_index"], name)
    if args.sft_target == "best":  # of the plain completions
        return {"guided_ids": []}
    own = _own_principles(row, row_name) or principles
    if not own:
        raise DataError(
            f"{row_name} has no principle. Set `principles` (texts) or `principles_file`, or add a column "
            "'principle' to the dataset."
        )
    remedy = "If the chat template refuses the principle, set `principle_role` to the other of 'system' and 'user'."
    with located(where(row["row_index"], name, "prompt"), remedy):
        texts = principle_texts(own, args.principles_per_query)
        return {"guided_ids": [_guided_ids(row, text, tokenizer, args) for text in texts]}


def _guided_ids(
    row: dict[str, Any], principle: str, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> list[int]:
    prompt = with_principle(row["prompt"], principle, args.principle_role, args.principle_template)
    ids = encode_prompt(tokenizer, prompt, **template_kwargs(row))
    if ids == row["prompt_ids"]:
        raise DataError(
            f"the principle {principle!r} does not change the tokens: the chat template drops it. Set "
            "`principle_role` to the other of 'system' and 'user'."
        )
    return ids


def check_context_length(
    dataset: AnyDataset, context: int, max_completion_length: int, hint: str = "", *, name: str = "train"
) -> AnyDataset:
    """
    The dataset, where a prompt that is too long for the context, with or without its principle, is an error.

    Args:
        dataset (`AnyDataset`): Rows with `prompt_ids` and `guided_ids`.
        context (`int`): Context length of the generation backend (`0`: no limit).
        max_completion_length (`int`): Maximum length of a completion, in tokens.
        hint (`str`, *optional*): Further advice at the end of messages.
        name (`str`, *optional*, defaults to `"train"`): Name of the dataset in messages.

    Raises:
        `DataError`: There is such a row. A stream raises the error when it reaches the row.
    """

    def check(row: dict[str, Any]) -> None:
        plain = len(row["prompt_ids"])
        longest = max(map(len, row["guided_ids"]), default=0)
        place = where(row["row_index"], name, "prompt")
        if plain + max_completion_length > context and longest <= plain:
            raise DataError(
                f"{place}: it has {plain + max_completion_length} tokens with "
                f"`max_completion_length` ({max_completion_length}), but the context length is {context}. Lower "
                "`max_completion_length`, or drop long prompts by `max_length`." + hint
            )
        if longest + max_completion_length > context:
            raise DataError(
                f"{place}: with its principle it has {longest} tokens ({plain} "
                f"without), and with `max_completion_length` ({max_completion_length}) more than the context length "
                f"of {context}. Shorten the principle, lower `max_completion_length`, or drop long prompts by "
                "`max_length`." + hint
            )

    return with_check(dataset, check, ("row_index", "prompt_ids", "guided_ids")) if context else dataset


def prepare_sft_dataset(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, args: PSLEConfig
) -> tuple[AnyDataset, int]:
    """
    Completions to imitate: `prompt` and `completion`, `messages`, `text`, or any form with scored completions.

    Of `messages`, the last one is imitated. Of several completions, the one with the best score is, and of `chosen`
    and `rejected` the former. A `text` is imitated from its second token on, as by TRL's SFT; the first one (the start
    token, where the tokenizer adds it) takes the place of the prompt.

    Returns:
        The dataset with `prompt_ids` and `completion_ids` (one completion), and how many rows were dropped.

    Raises:
        `DataError`: The dataset has none of these formats, or a row cannot be used.
    """
    first_row(dataset, "SFT")
    columns = column_names(dataset)
    if "text" in columns and not _has_answers(columns):
        arguments = {"tokenizer": tokenizer, "max_length": args.max_length}
        return dataset.map(
            this_version(_tokenize_text), with_indices=True, fn_kwargs=arguments, remove_columns=columns
        ), 0
    conversations = "messages" in columns and not {"completion", "completions", "chosen"} & set(columns)
    dataset = to_scored_rows(
        dataset,
        "SFT",
        columns={name: column for name, column in parse_columns(args.columns).items() if column in columns},
        dataset_format="conversation" if conversations else "auto",
        num_proc=args.dataset_num_proc,
    )
    columns = column_names(dataset)
    if "completions" not in columns:
        raise DataError(
            f"The SFT dataset has the columns {', '.join(map(repr, columns))}; its rows should have `prompt` and "
            "`completion`, `messages`, `text`, or scored completions, of which the best is imitated."
        )
    other = [column for column in columns if column not in ("tools", "chat_template_kwargs")]
    return prepare_dataset(
        dataset.map(this_version(_to_imitate), remove_columns=other),
        tokenizer,
        name="SFT",
        max_length=args.max_length,
        num_proc=args.dataset_num_proc,
        chat_template_kwargs=args.chat_template_kwargs,  # type: ignore[arg-type]
    )


def _has_answers(columns: list[str]) -> bool:
    return bool({"prompt", "messages", "completions", "chosen"} & set(columns))


def _to_imitate(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the best completion only; the first if none has a score."""
    scores = row.get("scores") or [0.0]
    best = max(range(len(scores)), key=scores.__getitem__)
    ended = row.get("ended")
    return {
        "prompt": row["prompt"],
        "completions": row["completions"][best : best + 1],
        "scores": [0.0],
        "ended": None if ended is None else ended[best : best + 1],
    }


def _tokenize_text(
    row: dict[str, Any], index: int, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    text, end = row["text"], tokenizer.eos_token or ""
    place = where(index, "SFT", "text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: must be a text that is not empty, got {text!r}.")
    ids = encode_prompt(tokenizer, text if text.endswith(end) else text + end)
    ids = ids[:max_length] if max_length else ids
    if len(ids) < 2:
        raise DataError(f"{place}: has one token, so there is none to predict. Remove the row.")
    return {"row_index": index, "prompt_ids": ids[:1], "completion_ids": [ids[1:]]}


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
