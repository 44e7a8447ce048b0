# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Formats with a list of answers to a prompt, with scores, ranks, or in order."""

from collections.abc import Callable, Sequence
from typing import Any

from ..schema import DataError
from .dataset_format import DatasetFormat, Row, as_number, has_prompt, is_number, required_prompt, scored_row


ANSWER_LISTS = ("completions", "responses", "answers", "outputs", "output", "generations", "candidates")
SCORE_LISTS = ("scores", "score", "ratings", "rating", "rewards", "reward", "ranks", "rank", "ranking")
_TEXTS = ("text", "answer", "response", "completion", "content", "output")
_SCORES = ("overall_score", "fine-grained_score", "pm_score", "score", "rating", "reward", "rank")


def _scores(name: str, values: Sequence[Any]) -> list[Any]:
    """Numbers of which a higher one is better: rank 1 is the best."""
    return [-value if is_number(value) and name.startswith("rank") else value for value in values]


def _first_of(names: Sequence[str], row: Row, kind: type | tuple[type, ...] = object) -> str | None:
    return next((name for name in names if row.get(name) is not None and isinstance(row[name], kind)), None)


def _parallel(row: Row) -> list[Row]:
    """A column with the answers, and one with their scores or ranks, in the same order."""
    answers, scores = _first_of(ANSWER_LISTS, row, list), _first_of(SCORE_LISTS, row, list)
    if answers is None or scores is None:
        return []
    if len(row[answers]) != len(row[scores]):
        raise DataError(
            f"column {scores!r}: has {len(row[scores])} entries for {len(row[answers])} answers in {answers!r}."
        )
    sources = row.get("models") or row.get("generation_models") or row.get("sources") or [answers] * len(row[answers])
    sources = sources if len(sources) == len(row[answers]) else [answers] * len(row[answers])
    return scored_row(
        required_prompt(row), row[answers], _scores(scores, [*map(as_number, row[scores])]), sources=sources
    )


def _has_parallel(row: Row) -> bool:
    answers, scores = _first_of(ANSWER_LISTS, row, list), _first_of(SCORE_LISTS, row, list)
    return has_prompt(row) and answers is not None and scores is not None and not _holds(row[answers], dict)


def _holds(values: Sequence[Any], kind: type) -> bool:
    return bool(values) and isinstance(values[0], kind)


def _objects(column: str, prompt: Callable[[Row], Any] = required_prompt) -> Callable[[Row], list[Row]]:
    """The conversion of a column of answers that are dictionaries with a text and a score or a rank."""

    def convert(row: Row) -> list[Row]:
        answers = [answer for answer in row[column] or [] if answer]
        texts = [answer.get(_first_of(_TEXTS, answer, str) or "") for answer in answers]
        scores: list[Any] = []
        for answer in answers:
            name = _first_of(_SCORES, answer)
            scores += _scores(name, [as_number(answer[name])]) if name else [None]
        sources = [answer.get("model") or column for answer in answers]
        return scored_row(prompt(row), texts, scores, sources=sources)

    return convert


def _has_objects(row: Row) -> bool:
    column = _first_of(ANSWER_LISTS, row, list)
    if column is None or not has_prompt(row) or not _holds(row[column], dict):
        return False
    answer = row[column][0]
    return _first_of(_TEXTS, answer, str) is not None and any(name in answer for name in _SCORES)


def _any_objects(row: Row) -> list[Row]:
    column = _first_of(ANSWER_LISTS, row, list)
    return _objects(column)(row) if column else []


def _best_first(row: Row) -> list[Row]:
    """A list of answers in order, the best first, as in LLaMA-Factory's first form of comparisons."""
    texts = row["output"] or []
    scores = [float(len(texts) - 1 - i) for i in range(len(texts))]
    return scored_row(required_prompt(row), texts, scores, sources=["output"] * len(texts))


FORMATS = [
    DatasetFormat(
        "query_responses",
        "files with a query, its responses and their scores",
        ("query", "responses", "scores"),
        _parallel,
        consumes=("responses", "scores"),
    ),
    DatasetFormat(
        "ultrafeedback",
        "openbmb/UltraFeedback",
        ("instruction", "completions"),
        _objects("completions"),
        matches=lambda row: not row["completions"] or _holds(row["completions"], dict),
        consumes=("completions",),
    ),
    DatasetFormat(
        "nectar",
        "berkeley-nest/Nectar",
        ("prompt", "answers"),
        _objects("answers"),
        matches=_has_objects,
        consumes=("answers",),
    ),
    DatasetFormat(
        "stack_exchange_preferences",
        "HuggingFaceH4/stack-exchange-preferences",
        ("question", "answers"),
        _objects("answers"),
        matches=_has_objects,
        consumes=("answers",),
    ),
    DatasetFormat(
        "distilabel",
        "distilabel's UltraFeedback task",
        ("generations", "ratings"),
        _parallel,
        consumes=("generations", "ratings"),
    ),
    DatasetFormat(
        "ranked_answers",
        "Alpaca rankings, and other lists of answers beside a list of scores or ranks",
        ("|".join(ANSWER_LISTS), "|".join(SCORE_LISTS)),
        _parallel,
        matches=_has_parallel,
        consumes=(*ANSWER_LISTS, *SCORE_LISTS),
    ),
    DatasetFormat(
        "answer_objects",
        "other lists of answers that hold their score or rank",
        ("|".join(ANSWER_LISTS),),
        _any_objects,
        matches=_has_objects,
        consumes=ANSWER_LISTS,
    ),
    DatasetFormat(
        "best_first",
        "LLaMA-Factory's comparisons with a list `output`, the best first",
        ("instruction", "output"),
        _best_first,
        matches=lambda row: isinstance(row["output"], list) and _holds(row["output"], str),
        consumes=("output",),
    ),
]
