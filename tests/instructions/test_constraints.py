# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The checkers of constraints: passes and failures by hand for each kind, the reward, and bad constraints."""

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trl_ext.instructions import constraints as module
from trl_ext.instructions.constraints import KINDS, ConstraintError, check_constraint, constraints_met, which_are_met
from trl_ext.instructions.text import answer_text, bullets, is_finished, sentences, words
from trl_ext.packages import is_installed
from trl_ext.rewards.functions import RewardError, load_rewards


# ----------------------------------------------------------------------------------------------- words and sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met J. K. Rowling. They talked.", ["Dr. Smith met J. K. Rowling.", "They talked."]),
        ("Take a tool, e.g. a hammer, from the U.S. shop. Done.", 2),
        ("He left at 5 p.m. and slept. She left at 6 p.m. Then it rained.", 3),
        ("Apples, pears, etc. are fruit. I like apples, pears, etc. They are good.", 3),
        ("It costs 3.50 euros. Version 2.0 is out.", 2),
        ('He said "Stop!" and ran. "Really?" she asked.', 2),
        ('He said "Stop." Then he ran.', 2),
        ("Wait... what is that? No idea…", 2),
        ("all in small letters. still two sentences.", 2),
        ("this one stops... and goes on! with small letters.", 3),
        ("It was I. Then he left.", 2),
        ("What?! No!!!", 2),
        ("No mark at the end", ["No mark at the end"]),
        ("First line\ngoes on here. Second.", ["First line goes on here.", "Second."]),
        ("# A heading\nText under it.", ["A heading", "Text under it."]),
        ("Tips:\n- Eat well\n- Sleep\n\nThat is all.", ["Tips:", "Eat well", "Sleep", "That is all."]),
        ("1. Wash it.\n2. Dry it.", ["Wash it.", "Dry it."]),
        ("A paragraph\n\nanother", 2),
        ("", 0),
        ("... !", 0),
        ("---\n***", 0),
    ],
)
def test_sentences(text: str, expected: int | list[str]) -> None:
    assert sentences(text) == expected if isinstance(expected, list) else len(sentences(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Done.", True),
        ("Done. \n", True),
        ('"Done!"', True),
        ("**Done.**", True),
        ("(Done?)", True),
        ("Done! 🙂", True),
        ("Done. And then the", False),
        ("- one\n- two", False),
        ("", False),
    ],
)
def test_an_answer_that_was_cut_off(text: str, expected: bool) -> None:
    assert is_finished(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't like well-known, over-used words.", 6),
        ("It is 3.5 or 1,000", 5),
        ("one,two;three—four", 4),
        ("**bold** _and_ `code` # *", 3),
        ("Straße für Café", 3),
        ("... - !", 0),
    ],
)
def test_words(text: str, expected: int) -> None:
    assert len(words(text)) == expected


def test_bullets() -> None:
    text = """Here are some:
- one
* **two**
+ three
• four
  - nested
1. a number
---
* * *
**bold at the start**
-no space
-
```
- code
```
That - is all."""
    assert bullets(text) == ["one", "**two**", "three", "four", "nested"]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" text \n", "text"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": " b "}], "b"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([], ""),
    ],
)
def test_the_text_of_a_completion(completion: Any, expected: str) -> None:
    assert answer_text(completion) == expected


# ----------------------------------------------------------------------------------------------------------- checkers

JSON = '{"name": "Rex the dog", "reason": "It is short and loud."}'

# Kind -> the constraint's value, answers that meet it, and answers that do not.
CASES: dict[str, list[tuple[Any, list[str], list[str]]]] = {
    "sentences_at_most": [
        (
            2,
            ["It rains a lot here.", "It rains. I stay at home."],
            ["One. Two. Three is more than two.", "It rains. I"],
        ),
        (1, ["Mr. Jones has one dog."], ["It rains. I stay at home.", "It rains a lot here and"]),
    ],
    "sentences_at_least": [
        (
            2,
            ["It rains. I stay at home.", "One. Two. And a third one."],
            ["It rains a lot here.", "It rains. I stay at"],
        ),
    ],
    "sentences_exactly": [
        (
            2,
            ["It rains. I stay at home.", "- It rains.\n- I stay at home."],
            ["It rains a lot here.", "It rains. I stay. At home now.", "It rains. I stay at home. And"],
        ),
    ],
    "words_at_most": [
        (5, ["It is warm and dry.", "- It - is * warm\n- and dry"], ["It is warm and very dry."]),
    ],
    "words_at_least": [
        (6, ["It is warm and very dry.", "It isn't warm and very dry"], ["It is warm and dry."]),
    ],
    "bullets_exactly": [
        (
            2,
            ["- some bread\n- fresh milk and eggs", "You need:\n\n* some bread\n* fresh milk\n\nThat is all."],
            [
                "- some bread\n- fresh milk\n- two eggs",
                "1. some bread\n2. fresh milk and eggs",
                "some bread - fresh milk - eggs",
                "**some bread**\n**fresh milk and eggs**",
            ],
        ),
    ],
    "keyword_in": [
        ("art", ["I think Art is good for us."], ["The party was good for us all."]),
        ("ice cream", ["I like vanilla ice\ncream a lot."], ["I like ice and also cream."]),
        ("c++", ["You can learn C++, it is fun."], ["You can learn C, it is fun."]),
    ],
    "keyword_out": [
        ("art", ["The party was good for us all."], ["I think ART is good for us."]),
    ],
    "begins_with": [
        (
            "In short",
            ["In short, it is a good idea.", 'in short it is a "good" idea', "**In short**: it is a good idea"],
            ["It is, in short, a good idea.", "In shorts it is a good idea.", "Sure! In short, it is a good idea."],
        ),
    ],
    "ends_with": [
        (
            "Good luck!",
            ["You can do it now. Good luck!", "You can do it now. *good luck*", 'You can do it now: "Good luck."'],
            ["Good luck! You can do it now.", "Good luck with it: you can do it", "You can do it now. Good lucky"],
        ),
        ("That is all.", ["You need bread and milk. That is all."], ["You need bread and milk. That is"]),
    ],
    "json_keys": [
        (
            ["name", "reason"],
            [JSON, f"```json\n{JSON}\n```", f"```\n{JSON}\n```", f" {JSON}\n"],
            [
                f"Here you are: {JSON}",
                f"{JSON} I hope this helps you.",
                '{"name": "Rex the very good dog"}',
                '{"name": "Rex the dog", "reason": ""}',
                *(f'{{"name": "Rex the very good dog", "reason": {empty}}}' for empty in ("null", "[]", "{}")),
                '{"name": "Rex the dog", "reason": "It is short", "cost": 1}',
                '{"name": "Rex the dog", "reason": NaN, "reason": "a b c", "reason": NaN}',
                '[{"name": "Rex", "reason": "It is short and loud."}]',
                '{"name": "Rex the dog", "reason": "It is short and lou',
                "name: Rex the dog, reason: it is short",
                "[" * 100_000 + " one two three four five",
            ],
        ),
    ],
    "lowercase": [
        (None, ["it is warm and dry.", "it is 30 degrees and dry, é"], ["It is warm and dry.", "it is warm and drY"]),
    ],
    "uppercase": [
        (None, ["IT IS WARM AND DRY.", "IT IS 30° AND DRY, É"], ["It is warm and dry.", "IT IS WARM AND DRy"]),
    ],
    "no_commas": [
        (None, ["It is warm and dry; I like it."], ["It is warm, dry and nice.", "It costs 1,000 euros a month."]),
    ],
    "title_in_double_angles": [
        (
            None,
            ["<<A dry day>>\nIt is warm.", "# <<A dry day>>\n\nIt is warm.", "**<<A dry day>>**\nIt is warm."],
            [
                "<A dry day>\nIt is warm now.",
                "A dry day\n<<It is warm>>\nand so on",
                "<<A dry day, it is warm>>",
                "<<title>>\nIt is warm and dry today.",
                "<<A dry day>> It is warm.",
                "<<A dry day\nIt is warm now.",
            ],
        ),
    ],
    "title_in_square_brackets": [
        (
            None,
            ["[A dry day]\nIt is warm."],
            ["[[A dry day]]\nIt is warm.", "[A dry day](it is)\nwarm now", "[Your title]\nIt is warm and dry."],
        ),
    ],
    "language": [
        ("fr", ["Le ciel est bleu et la mer est belle."], ["The sky is blue and the sea is nice.", "12 34 56 78 90"]),
        ("de", ["Der Himmel ist blau und das Meer ist schön."], ["Le ciel est bleu et la mer est belle."]),
    ],
}


def constraint(kind: str, value: Any) -> dict[str, Any]:
    return {"kind": kind} | ({KINDS[kind].value: value} if KINDS[kind].value else {})


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, and where it is not installed a mock, which knows the word "is" in three languages."""
    if "lingua" in sys.modules or is_installed(module.LINGUA):
        return
    marks = {"FR": "est", "DE": "ist", "EN": "is"}

    def detect(text: str) -> Any:
        found = [code for code, word in marks.items() if word in text.split()]
        return SimpleNamespace(iso_code_639_1=SimpleNamespace(name=found[0])) if found else None

    lingua = ModuleType("lingua")
    lingua.Language = SimpleNamespace(**{name: name for name in module.LANGUAGES.values()})  # type: ignore[attr-defined]
    builder = SimpleNamespace(build=lambda: SimpleNamespace(detect_language_of=detect))
    lingua.LanguageDetectorBuilder = SimpleNamespace(from_languages=lambda *_: builder)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lingua", lingua)
    module._detector.cache_clear()
    monkeypatch.setattr(module, "_detector", module._detector.__wrapped__)


def test_every_kind_has_cases() -> None:
    assert set(CASES) == set(KINDS)
    assert all(met and failed for cases in CASES.values() for _, met, failed in cases)


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize(
    ("kind", "value", "answer", "expected"),
    [
        (kind, value, answer, expected)
        for kind, cases in CASES.items()
        for value, met, failed in cases
        for answers, expected in ((met, True), (failed, False))
        for answer in answers
    ],
)
def test_a_checker(kind: str, value: Any, answer: str, expected: bool) -> None:
    """By hand. The checker alone, without the rule for degenerate answers."""
    assert KINDS[kind].is_met(answer_text(answer), value) == expected


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["", "  \n", "...", "no", "no " * 50, "a b c d a b c d"])
def test_degenerate_answers_meet_nothing(kind: str, answer: str) -> None:
    value = {"number": 1, "text": "fr" if kind == "language" else "no", "texts": ["no"], "": None}[KINDS[kind].value]
    assert which_are_met(answer, [constraint(kind, value)]) == [False]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The last words of your answer must be: *The End!*", False),
        ("last words of your ANSWER must be the end", False),
        ("Describe a dog. The last words of your answer must be: the end.", False),
        ("My dog is brown and loud. The end.", True),
        ("your answer must be the end the end", True),  # not a part of it: words follow that do not follow there
    ],
)
def test_a_part_of_the_prompt_meets_nothing(answer: str, expected: bool) -> None:
    prompt = 'Describe a dog. The last words of your answer must be: "The end."'
    assert which_are_met(answer, [constraint("ends_with", "The end.")]) == [True]
    assert which_are_met(answer, [constraint("ends_with", "The end.")], prompt) == [expected]


# ------------------------------------------------------------------------------------------------------------- reward

ROWS = [
    [
        {"kind": "words_at_most", "number": 6, "text": None, "texts": None},
        {"kind": "no_commas"},
        {"kind": "lowercase"},
    ],
    [{"kind": "keyword_in", "text": "sun"}],
    [],
    None,
]
ANSWERS = ["It is warm and dry.", "The moon is not a star.", "Anything at all.", ""]


@pytest.mark.parametrize("as_messages", [False, True])
def test_the_reward_is_the_share_that_is_met(as_messages: bool) -> None:
    """By hand: two of three, none of one, and rows without constraints, to which the reward does not apply."""
    completions = [[{"role": "assistant", "content": text}] for text in ANSWERS] if as_messages else ANSWERS
    logged: dict[str, float] = {}
    [reward] = load_rewards("trl_ext.instructions.constraints:constraints_met")
    assert reward.name == "constraints_met"
    assert reward.required_columns == ["constraints"]
    prompts = [[{"role": "user", "content": "?"}]] * 4 if as_messages else ["?"] * 4
    found = reward(prompts, completions, constraints=ROWS, log_metric=logged.__setitem__)
    assert found == [pytest.approx(2 / 3), 0.0, None, None]
    assert logged == {
        "constraints/words_at_most": 1.0,
        "constraints/no_commas": 1.0,
        "constraints/lowercase": 0.0,
        "constraints/keyword_in": 0.0,
    }


def test_a_logged_rate_is_of_the_rows_that_have_the_kind() -> None:
    logged: dict[str, float] = {}
    rows = [[{"kind": "no_commas"}], [{"kind": "no_commas"}], [{"kind": "lowercase"}]]
    answers = ["It is warm and dry.", "It is warm, dry and nice.", "It is warm and dry."]
    assert constraints_met(["?"] * 3, answers, rows, logged.__setitem__) == [1, 0, 0]
    assert logged == {"constraints/no_commas": 0.5, "constraints/lowercase": 0.0}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "word_at_most", "number": 3}, "no kind of constraint 'word_at_most'; did you mean 'words_at_most'"),
        ({"kind": None}, "no kind of constraint None"),
        ({"kind": ["lowercase"]}, "no kind of constraint"),
        ({"number": 3}, "a constraint is a mapping such as"),
        ("lowercase", "a constraint is a mapping such as"),
        ({"kind": "words_at_most"}, "kind 'words_at_most' needs a whole number from 1 on as its `number`, not None"),
        ({"kind": "words_at_most", "number": 0}, "not 0"),
        ({"kind": "words_at_most", "number": 2.5}, "not 2.5"),
        ({"kind": "words_at_most", "number": "3"}, "not '3'"),
        ({"kind": "words_at_most", "number": True}, "not True"),
        ({"kind": "words_at_most", "number": math.nan}, "not nan"),
        ({"kind": "keyword_in", "text": " "}, "kind 'keyword_in' needs words as its `text`, not ' '"),
        ({"kind": "keyword_in", "text": 3}, "not 3"),
        ({"kind": "ends_with", "text": "!"}, "kind 'ends_with' needs words as its `text`, not '!'"),
        ({"kind": "json_keys", "texts": []}, "kind 'json_keys' needs a list of words as its `texts`"),
        ({"kind": "json_keys", "texts": "name"}, "not 'name'"),
        ({"kind": "json_keys", "texts": ["name", 1]}, "needs a list"),
        ({"kind": "no_commas", "number": 3}, "kind 'no_commas' does not use 'number'"),
        ({"kind": "keyword_in", "word": "sun"}, "kind 'keyword_in' does not use 'word'"),
        ({"kind": "language", "text": "xx"}, "kind 'language' needs one of de, en, .* as its `text`, not 'xx'"),
    ],
)
def test_a_bad_constraint_is_named(bad: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=f"^Row 1: .*{message}"):
        constraints_met(["?"] * 2, ["a b c d e"] * 2, [[{"kind": "lowercase"}], [{"kind": "lowercase"}, bad]])


def test_the_reward_functions_name_is_in_the_error() -> None:
    [reward] = load_rewards("trl_ext.instructions.constraints.constraints_met")
    with pytest.raises(RewardError, match="'constraints_met' raised ConstraintError: Row 0: there is no kind"):
        reward(["?"], ["a b c d e"], constraints=[[{"kind": "lower"}]])


def test_what_a_table_adds_is_ignored() -> None:
    """In Parquet, constraints of different kinds have the keys of all of them."""
    kind, value = check_constraint({"kind": "json_keys", "number": None, "text": None, "texts": ["a"]})
    assert (kind, value) == (KINDS["json_keys"], ["a"])


def test_a_missing_detector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lingua", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`constraints: language` needs .* pip install 'trl-ext"):
        constraints_met(["?"], ["a b c d e"], [[{"kind": "language", "text": "fr"}]])
