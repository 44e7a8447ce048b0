# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Generates prompts with constraints that code can check: everyday requests, the same for the same seed everywhere.

    python -m trl_ext.instructions.prompts --split train --num 800 --seed 0 -o prompts_train.jsonl

The splits `train` and `held_out` have no topic and no combination of kinds in common. `transfer` has the topics of
`held_out` and kinds that are not trained on, in any combination.
"""

import argparse
import itertools
import json
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trl_ext.atomic_files import write_text
from trl_ext.validation import did_you_mean

from .constraints import KINDS
from .requests import (
    BEGINNINGS,
    ENDINGS,
    FAMILIES,
    NUMBERS,
    OTHER_LANGUAGES,
    SHORT,
    WORDINGS,
    Family,
)


T = TypeVar("T")

SPLITS = ("train", "held_out", "transfer")
# Of each group a prompt has at most one kind: together they cannot be met, or mean little.
_ALTERNATIVES = (
    {
        *("sentences_at_most", "sentences_at_least", "sentences_exactly", "bullets_exactly", "json_keys"),
        *("title_in_double_angles", "title_in_square_brackets"),
    },
    {"words_at_most", "words_at_least", "json_keys"},
    {"begins_with", "bullets_exactly", "json_keys", "title_in_double_angles", "title_in_square_brackets"},
    {"lowercase", "uppercase"},
    {"uppercase", "json_keys"},
    {"no_commas", "json_keys"},
    {"ends_with", "json_keys"},
    {"sentences_at_most", "words_at_least"},
    {"sentences_at_least", "words_at_most"},
)
# What a request in another language is combined with, as there are wordings for it.
_WITH_LANGUAGE = {"language", *WORDINGS["fr"]}
_LIMITS_LENGTH = {kind for kind in KINDS if kind.startswith(("sentences", "words", "bullets", "json"))}


def make_prompts(
    split: str, num: int, seed: int = 0, kinds: Sequence[str] | None = None, max_constraints: int = 3
) -> list[dict[str, Any]]:
    """
    Generate prompts with constraints.

    Args:
        split (`str`):
            `"train"`, `"held_out"` (other topics, and other combinations of kinds) or `"transfer"` (the topics of
            `held_out`, and every combination). Single kinds are in `train` and `transfer`.
        num (`int`):
            Number of prompts. No two are equal.
        seed (`int`, *optional*, defaults to `0`):
            Seed. Prompts do not depend on the version of Python.
        kinds (`Sequence[str]`, *optional*):
            Kinds of constraints, of `KINDS`. By default `TRAIN_KINDS`, and `TRANSFER_KINDS` for `transfer`.
        max_constraints (`int`, *optional*, defaults to `3`):
            Largest number of constraints of a prompt. Each number from 1 on, or from 2 on in `held_out`, is as
            frequent as the others, if the kinds have combinations of it.

    Returns:
        `list[dict]`: Rows with `prompt` (messages), `constraints` (see `constraints.py`) and `topic`.

    Raises:
        `ValueError`: A split or kind does not exist, or the kinds allow no combination or fewer prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
    by_size = _combinations_of(split, _checked(split, kinds), max_constraints)
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(20 * num):
        if len(rows) == num:
            break
        row = make_row(rng, _pick(rng, _pick(rng, by_size)), split == "train")
        rows.setdefault(row["prompt"][0]["content"], row)
    if len(rows) < num:
        raise ValueError(f"These kinds have about {len(rows)} different prompts in the split {split!r}, not {num}.")
    return list(rows.values())


def make_row(rng: random.Random, kinds: Sequence[str], is_train: bool) -> dict[str, Any]:
    """A prompt with one constraint of each of the kinds, in an order by chance."""
    family = _pick(rng, OTHER_LANGUAGES if "language" in kinds else FAMILIES)
    topic = _pick(rng, family.train if is_train else family.held_out)
    sentences = [_pick(rng, family.requests).format(topic=topic.text)]
    constraints = []
    keywords = _shuffled(rng, topic.keywords)
    for kind in _shuffled(rng, kinds):
        constraint = _constraint(rng, kind, family, keywords)
        constraints.append(constraint)
        if kind != "language":
            sentences.append(_worded(rng, constraint, family.language))
    if not _LIMITS_LENGTH & set(kinds):
        sentences.insert(1, _pick(rng, SHORT[family.language]))
    content = " ".join(sentences)
    return {"prompt": [{"role": "user", "content": content}], "constraints": constraints, "topic": topic.text}


def combinations(kinds: Sequence[str], max_constraints: int = 3) -> Iterator[tuple[str, ...]]:
    """The combinations of kinds that one answer can meet, each in the order of `KINDS`, the small ones first."""
    ordered = [kind for kind in KINDS if kind in kinds]
    for size in range(1, max_constraints + 1):
        for combination in itertools.combinations(ordered, size):
            together = set(combination)
            if "language" in together and not together <= _WITH_LANGUAGE:
                continue
            if all(len(together & alternatives) <= 1 for alternatives in _ALTERNATIVES):
                yield combination


def is_held_out(combination: Sequence[str]) -> bool:
    """Whether a combination of kinds is kept for `held_out`: a third of those of two or three kinds."""
    return len(combination) > 1 and zlib.crc32(" ".join(combination).encode()) % 3 == 0


def _combinations_of(split: str, kinds: Sequence[str], max_constraints: int) -> list[list[tuple[str, ...]]]:
    """The combinations of a split, a list for each number of kinds that has some."""
    found = [
        each
        for each in combinations(kinds, max_constraints)
        if split == "transfer" or is_held_out(each) == (split == "held_out")
    ]
    if not found:
        raise ValueError(
            f"The split {split!r} has no combination of up to {max_constraints} of the kinds {', '.join(kinds)}. Name "
            "more kinds."
        )
    return [list(group) for _, group in itertools.groupby(found, len)]


def _checked(split: str, kinds: Sequence[str] | None) -> Sequence[str]:
    if kinds is None:
        return TRANSFER_KINDS if split == "transfer" else TRAIN_KINDS
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"There is no kind of constraint {kind!r}{did_you_mean(kind, KINDS, repr)}; the kinds are "
                f"{', '.join(KINDS)}."
            )
    return kinds


def _constraint(rng: random.Random, kind: str, family: Family, keywords: list[str]) -> dict[str, Any]:
    if kind == "language":
        return {"kind": kind, "text": family.language}
    if kind in NUMBERS:  # "1 sentence" has wordings in English only
        numbers = [number for number in NUMBERS[kind] if number > 1 or family.language == "en"]
        return {"kind": kind, "number": _pick(rng, numbers)}
    if kind in ("keyword_in", "keyword_out"):
        return {"kind": kind, "text": keywords.pop()}
    if kind in ("begins_with", "ends_with"):
        return {"kind": kind, "text": _pick(rng, BEGINNINGS if kind == "begins_with" else ENDINGS)}
    if kind == "json_keys":
        return {"kind": kind, "texts": _shuffled(rng, family.keys)[: 2 + _below(rng, 2)]}
    return {"kind": kind}


def _worded(rng: random.Random, constraint: dict[str, Any], language: str) -> str:
    """A constraint in words."""
    number, text = constraint.get("number", 0), constraint.get("text", "")
    if "texts" in constraint:
        *first, last = [f'"{each}"' for each in constraint["texts"]]
        text = f"{', '.join(first)} and {last}"
    wording = _pick(rng, WORDINGS[language][constraint["kind"]])
    return wording.format(n=number, s="" if number == 1 else "s", text=text)


def _below(rng: random.Random, limit: int) -> int:
    """A number from 0 to below `limit`. Only `random()` gives the same numbers in every version of Python."""
    return int(rng.random() * limit)


def _pick(rng: random.Random, values: Sequence[T]) -> T:
    return values[_below(rng, len(values))]


def _shuffled(rng: random.Random, values: Sequence[T]) -> list[T]:
    left = list(values)
    return [left.pop(_below(rng, len(left))) for _ in range(len(left))]


# SmolLM2-135M-Instruct meets each of them at a rate of 0.1 to 0.6 before training (the table of README.md). For
# transfer are those that it meets more often or less often, and two whose rates are between these.
TRAIN_KINDS = (
    "sentences_exactly",
    "words_at_most",
    "keyword_in",
    "begins_with",
    "no_commas",
    "title_in_double_angles",
)
TRANSFER_KINDS = tuple(kind for kind in KINDS if kind not in TRAIN_KINDS)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prompts to a file of JSON lines."""
    parser = argparse.ArgumentParser(
        prog="python -m trl_ext.instructions.prompts",
        description="Generate prompts with constraints that code can check.",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="which topics and combinations of kinds")
    parser.add_argument("--num", type=int, default=800, help="number of prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help=f"kinds of constraints, of: {', '.join(KINDS)}")
    parser.add_argument("--max_constraints", type=int, default=3, help="largest number of constraints of a prompt")
    parser.add_argument("-o", "--output_file", type=Path, required=True, help="file to write, .jsonl")
    flags = parser.parse_args(argv)
    try:
        rows = make_prompts(flags.split, flags.num, flags.seed, flags.kinds, flags.max_constraints)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_text(flags.output_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{flags.output_file}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
