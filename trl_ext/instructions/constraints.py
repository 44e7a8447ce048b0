# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Constraints on an answer that code can check, and the reward function that counts how many are met.

A constraint is a mapping with its kind and the value that the kind needs: `{"kind": "words_at_most", "number": 30}`.
`KINDS` has them all. The column `constraints` of a dataset has a list of them for each row.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_ext.packages import Package, require_package
from trl_ext.validation import did_you_mean

from .text import answer_text, bullets, is_finished, sentences, words


# Of an answer that meets anything: an empty one has no commas, no forbidden word and no capital letter either. Two
# bullets of three words have as many.
MIN_DIFFERENT_WORDS = 5

LINGUA = Package("'trl-ext[instructions]'", ("lingua",))
# The languages that the detector tells apart, by ISO 639-1 code. Fewer are told apart better, and need less memory.
LANGUAGES = {
    "de": "GERMAN",
    "en": "ENGLISH",
    "es": "SPANISH",
    "fr": "FRENCH",
    "it": "ITALIAN",
    "nl": "DUTCH",
    "pl": "POLISH",
    "pt": "PORTUGUESE",
    "sv": "SWEDISH",
    "tr": "TURKISH",
}


class ConstraintError(ValueError):
    """A constraint that cannot be checked. The message names row and kind, and what the kind needs."""


@dataclass(frozen=True)
class Kind:
    """
    A kind of constraint.

    Args:
        value (`str`):
            The key of the value that it needs: `"number"` (whole, at least 1), `"text"`, `"texts"` (a list), or `""`.
        is_met (`Callable`):
            `(answer, value) -> bool`.
    """

    value: str
    is_met: Callable[[str, Any], bool]


def sentences_at_most(answer: str, number: int) -> bool:
    """A cut-off answer does not meet an upper limit: nobody knows how many sentences it would have had."""
    return is_finished(answer) and len(sentences(answer)) <= number


def sentences_at_least(answer: str, number: int) -> bool:
    """A last sentence that was cut off does not count."""
    return len(sentences(answer)) - (not is_finished(answer)) >= number


def sentences_exactly(answer: str, number: int) -> bool:
    """As both of the others."""
    return is_finished(answer) and len(sentences(answer)) == number


def words_at_most(answer: str, number: int) -> bool:
    """A cut-off answer meets the limit too, so choose limits that are below the length of generation."""
    return len(words(answer)) <= number


def words_at_least(answer: str, number: int) -> bool:
    """Numbers count as words."""
    return len(words(answer)) >= number


def bullets_exactly(answer: str, number: int) -> bool:
    """Text before and after the list is allowed; numbered lines are no bullets."""
    return len(bullets(answer)) == number


def keyword_in(answer: str, text: str) -> bool:
    """The word or phrase is there as a whole, in any case: "art" is not in "party"."""
    return _phrase(text).search(answer) is not None


def keyword_out(answer: str, text: str) -> bool:
    """The word or phrase is not there as a whole, in any case. Other forms of it are allowed."""
    return not keyword_in(answer, text)


def lowercase(answer: str, _: None) -> bool:
    """No capital letter, and a small one."""
    return answer == answer.lower() and answer != answer.upper()


def uppercase(answer: str, _: None) -> bool:
    """No small letter, and a capital one."""
    return answer == answer.upper() and answer != answer.lower()


def no_commas(answer: str, _: None) -> bool:
    """Commas inside numbers count, and those of other scripts."""
    return not re.search("[,،、，]", answer)


def json_keys(answer: str, texts: Sequence[str]) -> bool:
    """
    The answer is one JSON object with these keys, no others, and a value for each that is not empty.

    A code fence around it is allowed, text before or after it is not.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", answer, re.DOTALL | re.IGNORECASE)
    try:
        found = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and set(found) == set(texts)
        and all(x not in ("", None, [], {}) for x in found.values())
    )


def begins_with(answer: str, text: str) -> bool:
    """In any case; quotes and marks of emphasis before the words are allowed."""
    return _phrase(text).match(answer.lstrip("\"'“‘«*_ ")) is not None


def ends_with(answer: str, text: str) -> bool:
    """In any case; quotes, marks of emphasis and marks of the sentence after the words are allowed."""
    closing = "\"'”’»*_.!?… "
    ends = [match.end() for match in _phrase(text.rstrip(closing)).finditer(answer)]
    return bool(ends) and not answer[ends[-1] :].strip(closing)


def title_in_double_angles(answer: str, _: None) -> bool:
    """The first line is a title such as `<<A walk in the rain>>`, and text follows."""
    return _has_title(answer, r"<<([^<>]+)>>")


def title_in_square_brackets(answer: str, _: None) -> bool:
    """The first line is a title such as `[A walk in the rain]`, and text follows."""
    return _has_title(answer, r"\[([^\[\]]+)\]")


def language(answer: str, text: str) -> bool:
    """The detector finds this language the likeliest."""
    return _detected(answer) == text


# The value that a kind needs -> its checkers.
_CHECKERS: dict[str, tuple[Callable[[str, Any], bool], ...]] = {
    "number": (
        sentences_at_most,
        sentences_at_least,
        sentences_exactly,
        words_at_most,
        words_at_least,
        bullets_exactly,
    ),
    "text": (keyword_in, keyword_out, begins_with, ends_with, language),
    "texts": (json_keys,),
    "": (lowercase, uppercase, no_commas, title_in_double_angles, title_in_square_brackets),
}
KINDS = {check.__name__: Kind(value, check) for value, checks in _CHECKERS.items() for check in checks}


def constraints_met(
    prompts: Sequence[str | list[dict[str, Any]]],
    completions: Sequence[str | list[dict[str, Any]]],
    constraints: Sequence[Sequence[Mapping[str, Any]] | None],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """
    Reward function: the share of a row's constraints that the completion meets, from 0 to 1.

    A degenerate answer meets none (see [`which_are_met`]).

    Args:
        prompts (`Sequence`): Texts or lists of messages.
        completions (`Sequence`): Texts or lists of messages.
        constraints (`Sequence`): The column of the dataset: for each completion its row's constraints.
        log_metric (`Callable`, *optional*): Gets the share met of each kind, as `constraints/<kind>`.
        kwargs: Further arguments of reward functions, which are not used.

    Returns:
        `list[float | None]`: The rewards; `None` for a row without constraints.

    Raises:
        [`ConstraintError`]: A constraint cannot be checked.
        `ImportError`: A constraint is of the kind `language`, and the detector is not installed.
    """
    rewards: list[float | None] = []
    by_kind: dict[str, list[bool]] = {}
    for row, (prompt, completion, listed) in enumerate(zip(prompts, completions, constraints, strict=True)):
        met = which_are_met(answer_text(completion), listed or [], answer_text(prompt), row)
        rewards.append(sum(met) / len(met) if met else None)
        for constraint, is_met in zip(listed or [], met, strict=True):
            by_kind.setdefault(constraint["kind"], []).append(is_met)
    if log_metric is not None:
        for kind, found in by_kind.items():
            log_metric(f"constraints/{kind}", sum(found) / len(found))
    return rewards


def which_are_met(answer: str, constraints: Sequence[Mapping[str, Any]], prompt: str = "", row: int = 0) -> list[bool]:
    """
    Whether an answer meets each of its constraints.

    A degenerate answer meets none: one of fewer than `MIN_DIFFERENT_WORDS` different words, or a part of the prompt
    repeated. "The last words must be: the end" ends as it should, and says nothing.

    Args:
        answer (`str`): The text.
        constraints (`Sequence[Mapping]`): The constraints of its row.
        prompt (`str`, *optional*): The last message of the prompt.
        row (`int`, *optional*, defaults to `0`): Number of the row, for errors.

    Raises:
        [`ConstraintError`]: A constraint cannot be checked.
    """
    checks = [check_constraint(constraint, row) for constraint in constraints]
    told, said = ([word.casefold() for word in words(text)] for text in (prompt, answer))
    is_degenerate = len(set(said)) < MIN_DIFFERENT_WORDS or f" {' '.join(said)} " in f" {' '.join(told)} "
    return [not is_degenerate and kind.is_met(answer, value) for kind, value in checks]


def check_constraint(constraint: Mapping[str, Any], row: int = 0) -> tuple[Kind, Any]:
    """
    The kind of a constraint and its value. Keys whose value is `None` are ignored: a table has all keys in all rows.

    Raises:
        [`ConstraintError`]: There is no such kind, or the value is missing, of the wrong type, or one that the kind
            does not use.
    """
    if not isinstance(constraint, Mapping) or "kind" not in constraint:
        raise ConstraintError(
            f"Row {row}: a constraint is a mapping such as {{'kind': 'words_at_most', 'number': 30}}, but one is "
            f"{constraint!r}."
        )
    name = constraint["kind"]
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConstraintError(
            f"Row {row}: there is no kind of constraint {name!r}{did_you_mean(str(name), KINDS, repr)}; the kinds are "
            f"{', '.join(KINDS)}."
        )
    given = {key: value for key, value in constraint.items() if key != "kind" and value is not None}
    if unused := [key for key in given if key != kind.value]:
        raise ConstraintError(f"Row {row}: a constraint of kind {name!r} does not use {unused[0]!r}. Remove it.")
    value = given.get(kind.value)
    if kind.value and not _is_valid(kind.value, value):
        raise ConstraintError(f"Row {row}: a constraint of kind {name!r} needs {_NEEDS[kind.value]}, not {value!r}.")
    if name == "language" and value not in LANGUAGES:
        raise ConstraintError(
            f"Row {row}: a constraint of kind 'language' needs one of {', '.join(LANGUAGES)} as its `text`, not "
            f"{value!r}."
        )
    return kind, value


_NEEDS = {
    "number": "a whole number from 1 on as its `number`",
    "text": "words as its `text`",
    "texts": "a list of words as its `texts`",
}


def _is_valid(key: str, value: Any) -> bool:
    if key == "number":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if key == "text":
        return isinstance(value, str) and len(words(value)) > 0
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(x, str) and x.strip() for x in value)


@functools.lru_cache(maxsize=4096)
def _phrase(text: str) -> re.Pattern[str]:
    """Whole words in any case, with any space between them."""
    inner = r"\s+".join(re.escape(word) for word in text.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)


def _has_title(answer: str, form: str) -> bool:
    first, _, rest = answer.partition("\n")
    title = re.fullmatch(form, first.strip("#*_\"' "))
    return title is not None and title[1].strip().casefold() not in ("", "title", "your title") and bool(words(rest))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _detected(text: str) -> str | None:
    require_package("constraints: language", LINGUA)
    found = _detector().detect_language_of(text)
    return None if found is None else found.iso_code_639_1.name.lower()


@functools.cache
def _detector() -> Any:
    from lingua import Language, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*(getattr(Language, name) for name in LANGUAGES.values())).build()
