# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The datasets of the suite `preferences`, and how their rows are divided.

Rows are read as `trl-ext` reads them, in any of its forms. Text becomes messages: the model is a chat model, and a
reward model of messages reads the same end of a turn in training and in use. A conversation is in one part only: rows
that begin with the same message of a user stay together.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_ext.data.load import load_dataset
from trl_ext.data.schema import DataError, check_row
from trl_ext.data.scored_rows import to_scored_rows
from trl_ext.data.tokenization import tokenize_row


Row = dict[str, Any]

TRAIN, OTHER, HELD_OUT = "train", "other", "held_out"
PARTS = (TRAIN, OTHER, HELD_OUT)
# Two equal parts to train on, and at most this share of the rows to measure on.
HELD_OUT_SHARE = 0.3

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Dataset:
    """
    A file of human or judged preferences.

    Args:
        name (`str`): The beginning of the names of its arms.
        file (`str`): Its name in the folder that the user names.
        source (`str`): Where its rows come from.
        principle (`str`): PSLE's.
        passages (`int`, *optional*, defaults to `0`): Tokens that its prompts may have beyond the task's limit,
            because they bring the texts that an answer is taken from.
        of_harm (`bool`, *optional*, defaults to `False`): Whether the rejected completion of a pair is harmful, so
            that a judge of the pairs can also tell harmful answers from others.
    """

    name: str
    file: str
    source: str
    principle: str
    passages: int = 0
    of_harm: bool = False


DATASETS = {
    entry.name: entry
    for entry in (
        Dataset(
            "harmless",
            "hh_harmless_pairs.jsonl",
            "anthropics/hh-rlhf, harmless-base: `chosen` and `rejected`, two transcripts that share their beginning",
            "Be harmless: help nobody to hurt anybody, insult nobody, and decline kindly what would do harm.",
            of_harm=True,
        ),
        Dataset(
            "alpaca",
            "alpaca_eval_ranked.jsonl",
            "tatsu-lab/alpaca_eval: an instruction as `prompt` (messages), the answers of 3 to 10 models as "
            "`completions`, the probability that a judge prefers each to a reference as `scores`",
            "Answer the request completely, correctly and clearly, and keep to what was asked.",
        ),
        Dataset(
            "qa",
            "qa_feedback_k4.jsonl",
            "allenai/FineGrainedRLHF, QA-Feedback: a question and its passages as `prompt`, four answers as "
            "`completions`, each one's wins in six comparisons by people as `scores`",
            "Answer with what the passages say, completely and precisely, and add nothing else.",
            passages=64,
        ),
    )
}


def load_rows(path: Path) -> list[Row]:
    """
    All rows of a file, as messages with scored completions.

    Raises:
        [`~trl_ext.data.schema.DataError`]: The file is missing, cannot be read, or has rows without scored
            completions; the message names file and row.
    """
    dataset = to_scored_rows(load_dataset(str(path), split="train"), path.name)
    missing = {"completions", "scores"} - set(dataset.column_names or ())
    if missing:
        raise DataError(
            f"{path.name}: the rows have no column {' and '.join(map(repr, sorted(missing)))}. Preferences are "
            "`prompt`, `completions` and `scores`, or `chosen` and `rejected`."
        )
    rows = [as_messages(row) for row in dataset]
    for index, row in enumerate(rows):
        check_row(row, index, conversational=True, name=path.name)
    return rows


def as_messages(row: Row) -> Row:
    """A row whose prompt and completions are messages; transcripts of "Human:" and "Assistant:" become turns."""
    prompt, completions = row["prompt"], row["completions"]
    if isinstance(prompt, list):
        return {key: row[key] for key in ("prompt", "completions", "scores", "ended") if row.get(key) is not None}
    before, *turns = _SPEAKER.split(prompt)
    messages = [{"role": "user", "content": prompt.strip()}]
    if turns and not before.strip():
        pairs = zip(turns[::2], turns[1::2], strict=True)
        messages = [{"role": _ROLES[name], "content": text.strip()} for name, text in pairs]
        if messages[-1] == {"role": "assistant", "content": ""}:  # where the answer begins
            messages.pop()
    answers = [[{"role": "assistant", "content": text.strip()}] for text in completions]
    return {"prompt": messages, "completions": answers, "scores": row["scores"]}


def fitting(row: Row, tokenizer: Any, tokens: int, completions: int) -> Row | None:
    """
    The row with those of its completions that fit, or `None` if they have no order.

    Args:
        row (`dict`): A row of messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): That of the model.
        tokens (`int`): Tokens that prompt and completion may have together.
        completions (`int`): Completions that are kept. Of more, those at equal distances in the order of scores, the
            best and the worst among them.
    """
    if row["prompt"][-1]["role"] != "user":
        return None
    ids = tokenize_row(row, tokenizer)
    fits = [
        i
        for i, own in enumerate(ids["completion_ids"])
        if row["completions"][i][-1]["content"] and len(ids["prompt_ids"]) + len(own) <= tokens
    ]
    if len(fits) > completions:
        ranked = sorted(fits, key=lambda i: row["scores"][i])
        fits = sorted(ranked[round(k * (len(ranked) - 1) / (completions - 1))] for k in range(completions))
    if len({row["scores"][i] for i in fits}) < 2:
        return None
    return {
        "prompt": row["prompt"],
        "completions": [row["completions"][i] for i in fits],
        "scores": [float(row["scores"][i]) for i in fits],
    }


def divide(rows: Sequence[Row], train: int, held_out: int) -> dict[str, list[Row]]:
    """
    Rows in three parts that share no conversation: two to train on, equally many, and one to measure on.

    The order is that of a hash of the conversation's first message: it depends neither on the file's order nor on a
    seed.

    Args:
        rows (`Sequence[dict]`): Rows of messages.
        train (`int`): Rows of the first two parts together, at most.
        held_out (`int`): Rows of the third, at most; and at most 30 % of all.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_beginning(row), []).append(row)
    limits = {HELD_OUT: min(held_out, int(HELD_OUT_SHARE * len(rows))), TRAIN: train // 2, OTHER: train // 2}
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for name in sorted(groups, key=lambda text: hashlib.sha256(text.encode()).digest()):
        below = [part for part in PARTS if len(parts[part]) < limits[part]]
        if HELD_OUT in below:
            part = HELD_OUT
        elif below:
            part = min(below, key=lambda part: len(parts[part]))
        else:
            break
        parts[part] += groups[name]
    size = min(len(parts[TRAIN]), len(parts[OTHER]), train // 2)
    return {HELD_OUT: parts[HELD_OUT][: limits[HELD_OUT]], TRAIN: parts[TRAIN][:size], OTHER: parts[OTHER][:size]}


def _beginning(row: Row) -> str:
    """The first message of a user, without differences of white space."""
    first = next((message["content"] for message in row["prompt"] if message["role"] == "user"), "")
    return " ".join(first.split())


def prompts_of(rows: Sequence[Row], limit: int) -> list[Row]:
    """The different prompts of rows, at most `limit`."""
    found = {json.dumps(row["prompt"]): {"prompt": row["prompt"]} for row in rows}
    return list(found.values())[:limit]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
