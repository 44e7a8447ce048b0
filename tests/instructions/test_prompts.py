# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The generator of prompts: splits without overlap, prompts that can be met, the same rows everywhere, bad input."""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from trl_ext.instructions.constraints import KINDS, constraints_met
from trl_ext.instructions.prompts import (
    TRAIN_KINDS,
    TRANSFER_KINDS,
    combinations,
    is_held_out,
    main,
    make_prompts,
    make_row,
)
from trl_ext.instructions.requests import FAMILIES, NUMBERS, OTHER_LANGUAGES, SHORT, WORDINGS
from trl_ext.instructions.text import words


def kinds_of(rows: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {tuple(sorted(each["kind"] for each in row["constraints"])) for row in rows}


def topics_of(rows: list[dict[str, Any]]) -> set[str]:
    return {row["topic"] for row in rows}


def content(row: dict[str, Any]) -> str:
    [message] = row["prompt"]
    assert message["role"] == "user"
    return message["content"]


# ----------------------------------------------------------------------------------------------------------- the lists


def test_topics_of_the_splits_are_disjoint() -> None:
    train = [topic.text for family in (*FAMILIES, *OTHER_LANGUAGES) for topic in family.train]
    held_out = [topic.text for family in (*FAMILIES, *OTHER_LANGUAGES) for topic in family.held_out]
    assert len(set(train + held_out)) == len(train) + len(held_out)
    assert len(train) > 100 and len(held_out) > 40


def test_a_topics_keywords_are_not_in_it() -> None:
    """A keyword that the request has already is hardly a constraint. With two, one may be asked for, one forbidden."""
    for family in (*FAMILIES, *OTHER_LANGUAGES):
        for topic in (*family.train, *family.held_out):
            assert len(set(topic.keywords)) == len(topic.keywords) == (2 if family.language == "en" else 1)
            told = {word.casefold() for word in words(topic.text)}
            assert not told & {word.casefold() for word in topic.keywords}, topic


def test_every_kind_has_wordings() -> None:
    assert set(WORDINGS["en"]) == set(KINDS) - {"language"}
    assert {family.language for family in OTHER_LANGUAGES} == set(WORDINGS) - {"en"} == set(SHORT) - {"en"}
    for language, by_kind in WORDINGS.items():
        assert language == "en" or set(by_kind) == set(WORDINGS["fr"])
        for kind, wordings in by_kind.items():
            assert len(set(wordings)) >= 2
            place = {"number": "{n}", "": ""}.get(KINDS[kind].value, "{text}")
            assert all(place in wording for wording in wordings)
            assert (kind in NUMBERS) == (KINDS[kind].value == "number")


def test_held_out_topics_and_train_topics_have_every_form() -> None:
    for family in (*FAMILIES, *OTHER_LANGUAGES):
        assert all("{topic}" in request for request in family.requests)
        assert len(family.train) > len(family.held_out) >= 2
        assert family.language != "en" or len(set(family.keys)) >= 3


# ---------------------------------------------------------------------------------------------------------- the splits


@pytest.mark.parametrize("kinds", [TRAIN_KINDS, TRANSFER_KINDS, tuple(KINDS)], ids=["train", "transfer", "all"])
def test_splits_share_no_topic_and_no_combination(kinds: tuple[str, ...]) -> None:
    """For whatever kinds, as a combination's split depends on nothing else."""
    train = make_prompts("train", 400, seed=1, kinds=kinds)
    held_out = make_prompts("held_out", 150, seed=1, kinds=kinds)
    assert not topics_of(train) & topics_of(held_out)
    assert not kinds_of(train) & kinds_of(held_out)
    assert all(len(combination) > 1 for combination in kinds_of(held_out))
    assert {kind for combination in kinds_of(train) for kind in combination} == set(kinds)


def test_what_is_kept_for_transfer_is_not_trained_on() -> None:
    assert set(TRAIN_KINDS).isdisjoint(TRANSFER_KINDS)
    assert set(TRAIN_KINDS) | set(TRANSFER_KINDS) == set(KINDS)
    train, transfer = make_prompts("train", 300), make_prompts("transfer", 150)
    assert not topics_of(train) & topics_of(transfer)
    assert {kind for each in kinds_of(train) for kind in each} == set(TRAIN_KINDS)
    assert {kind for each in kinds_of(transfer) for kind in each} == set(TRANSFER_KINDS)
    assert any(len(combination) == 1 for combination in kinds_of(transfer))


def test_a_third_of_the_combinations_is_held_out() -> None:
    several = [each for each in combinations(tuple(KINDS)) if len(each) > 1]
    assert 0.25 < sum(map(is_held_out, several)) / len(several) < 0.42


def test_numbers_of_constraints_are_equally_frequent() -> None:
    rows = make_prompts("train", 600, max_constraints=3)
    counts = [sum(len(row["constraints"]) == n for row in rows) for n in (1, 2, 3)]
    assert sum(counts) == 600
    assert min(counts) > 150
    assert {len(row["constraints"]) for row in make_prompts("train", 50, max_constraints=1)} == {1}


def test_prompts_differ() -> None:
    rows = make_prompts("train", 800)
    assert len({content(row) for row in rows}) == 800


def test_the_length_is_limited_by_a_constraint_or_a_request() -> None:
    for row in make_prompts("train", 200, kinds=tuple(KINDS)):
        limits = any(each["kind"].startswith(("sen", "wor", "bul", "jso")) for each in row["constraints"])
        short = any(text in content(row) for texts in SHORT.values() for text in texts)
        assert limits != short, content(row)


# --------------------------------------------------------------------------------------------- prompts that can be met


def answer_to(constraints: list[dict[str, Any]]) -> str:
    """An answer that meets the constraints, of words that no constraint forbids."""
    found = {each["kind"]: each.get("number") or each.get("text") or each.get("texts") for each in constraints}
    opening, closing = found.get("begins_with", "zig zag"), found.get("ends_with", "zug").rstrip(".!")
    body = f"{opening} zeg zeb {found.get('keyword_in', 'zog')}"
    if "json_keys" in found:
        return json.dumps({key: f"{body} z{key}".lower() for key in found["json_keys"]})
    body += " zeg" * found.get("words_at_least", 0)
    count = found.get("sentences_exactly") or found.get("sentences_at_least") or 1
    text = f"{opening} zeg. " * (count - 1) + f"{body} {closing}."
    if "bullets_exactly" in found:
        text = "- zeg zog\n" * (found["bullets_exactly"] - 1) + f"- {text}"
    if "title_in_double_angles" in found:
        text = f"<<zag>>\n{text}"
    if "title_in_square_brackets" in found:
        text = f"[zag]\n{text}"
    return text.upper() if "uppercase" in found else text.lower() if "lowercase" in found else text


@pytest.mark.parametrize("is_train", [True, False])
def test_every_combination_can_be_met(is_train: bool) -> None:
    """Several prompts of each combination: one answer meets all but the language, which its words are not of."""
    rng = random.Random(0)
    for combination in combinations(tuple(KINDS)):
        for _ in range(3):
            row = make_row(rng, combination, is_train)
            asked = [each for each in row["constraints"] if each["kind"] != "language"]
            answer = answer_to(row["constraints"])
            assert constraints_met([row["prompt"]], [answer], [asked]) == [1.0 if asked else None], (
                content(row),
                answer,
            )


def test_what_a_prompt_says_is_what_is_checked() -> None:
    """Every value of a constraint is in the prompt, and nothing that was not filled in."""
    for row in make_prompts("train", 400, seed=3, kinds=tuple(KINDS)):
        for each in row["constraints"]:
            if each["kind"] != "language":
                values = [str(each.get("number") or each.get("text") or ""), *each.get("texts", [])]
                assert all(value in content(row) for value in values)
        assert not {"{", "}"} & set(content(row))
        assert "  " not in content(row)
        assert " 1 sentences" not in content(row)


def test_a_forbidden_word_is_not_asked_for() -> None:
    for row in make_prompts("train", 800, seed=4, kinds=tuple(KINDS)):
        forbidden = [each["text"] for each in row["constraints"] if each["kind"] == "keyword_out"]
        asked = [t for each in row["constraints"] for t in (each.get("text"), *each.get("texts", ())) if t]
        for word, text in itertools.product(forbidden, asked):
            assert word not in words(text) or text == word
        assert len(forbidden) == sum(text in forbidden for text in asked)


# ----------------------------------------------------------------------------------------------------- same everywhere


def test_rows_are_the_same_everywhere() -> None:
    """A digest of the rows of every kind, recorded: `random()` is the only function of `random` that they rest on."""
    rows = [make_prompts(split, 100, seed=7, kinds=tuple(KINDS)) for split in ("train", "held_out", "transfer")]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "b948a8ff08763e81"


def test_the_seed_decides() -> None:
    assert make_prompts("train", 50, seed=5) == make_prompts("train", 50, seed=5)
    assert make_prompts("train", 50, seed=5) != make_prompts("train", 50, seed=6)
    assert make_prompts("train", 20, seed=5) == make_prompts("train", 50, seed=5)[:20]


def test_numbers_of_the_generator_are_those_of_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """`choice`, `shuffle` and the like may change between versions of Python."""
    for name in ("choice", "choices", "shuffle", "sample", "randrange", "randint"):
        monkeypatch.delattr(random.Random, name, raising=False)
    assert len(make_prompts("train", 20)) == 20


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_rows_that_datasets_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import load_dataset

    path = tmp_path / "new" / "prompts.jsonl"
    kinds = [kind for kind in KINDS if kind != "language"]  # whose detector is an optional package
    main(["--split", "transfer", "--num", "40", "--seed", "2", "--kinds", *kinds, "-o", str(path)])
    assert "40 prompts" in capsys.readouterr().out
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert written == make_prompts("transfer", 40, seed=2, kinds=kinds)
    read = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    answers = [answer_to(row["constraints"]) for row in written]
    assert constraints_met(read["prompt"], answers, read["constraints"]) == [1.0] * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test", "num": 1}, "no split 'test'; the splits are train, held_out, transfer"),
        ({"split": "train", "num": 1, "kinds": ["lower"]}, "no kind of constraint 'lower'"),
        ({"split": "train", "num": 1, "kinds": ["lowercas"]}, "did you mean 'lowercase'"),
        (
            {"split": "held_out", "num": 1, "kinds": ["lowercase"]},
            "'held_out' has no combination of up to 3 of the kinds",
        ),
        ({"split": "train", "num": 1, "kinds": []}, "has no combination"),
        ({"split": "train", "num": 1, "max_constraints": 0}, "has no combination of up to 0"),
        ({"split": "transfer", "num": 10_000, "kinds": ["language"]}, "about .* different prompts .* not 10000"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_prompts(**arguments)


def test_the_command_shows_the_error_alone(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: There is no kind of constraint 'lower'"):
        main(["--kinds", "lower", "-o", str(tmp_path / "x.jsonl")])
    assert not (tmp_path / "x.jsonl").exists()
