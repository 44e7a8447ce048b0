# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The row schema: conversion of preference data to it, and errors that name row and column."""

import pytest
from dataset_rows import CHAT, EOS, PLAIN, USER, assistant, completion_texts, completion_tokens, prepare, stream
from datasets import Dataset

from trl_ext.data.schema import DataError, check_row, is_conversational
from trl_ext.data.scored_rows import require_scores, to_scored_rows
from trl_ext.data.tokenization import encode_prompt


# --------------------------------------------------------------------------------------------------- preference data


def test_is_conversational():
    assert is_conversational(CHAT)
    assert not is_conversational(PLAIN)


@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_plain_preferences(tiny_tokenizer, make):
    rows = [{"prompt": "the film was", "chosen": " good", "rejected": " bad", "source": "x"}]
    (row,), _ = prepare(rows, make=make)
    assert row["scores"] == [1.0, 0.0]
    assert row["completions"] == [" good", " bad"]
    assert completion_tokens(tiny_tokenizer, row) == [["Ġgood", EOS], ["Ġbad", EOS]]
    assert row["source"] == "x"
    assert not {"chosen", "rejected"} & set(row)


def test_plain_preferences_without_prompt(tiny_tokenizer):
    (row,), _ = prepare([{"chosen": "the film was good", "rejected": "the film was bad"}])
    assert tiny_tokenizer.decode(row["prompt_ids"]) == "the film was"
    assert completion_texts(tiny_tokenizer, row) == [f" good{EOS}", f" bad{EOS}"]


@pytest.mark.parametrize("implicit", [False, True], ids=["with prompt", "without prompt"])
def test_conversational_preferences(chat_tokenizer, implicit):
    row = {"chosen": assistant("good"), "rejected": assistant("bad")}
    row = {name: USER + completion for name, completion in row.items()} if implicit else {"prompt": USER, **row}
    (row,), _ = prepare([row], chat_tokenizer)
    assert row["prompt_ids"] == encode_prompt(chat_tokenizer, USER)
    assert completion_texts(chat_tokenizer, row) == ["good<|im_end|>\n", "bad<|im_end|>\n"]


def test_completions_take_precedence_over_preferences():
    (row,), _ = prepare([PLAIN | {"chosen": " x", "rejected": " y"}])
    assert row["completions"] == PLAIN["completions"]


# ------------------------------------------------------------------------------------------------------------ errors


def without(row, *columns):
    return {name: value for name, value in row.items() if name not in columns}


BAD_PLAIN_ROWS = {
    "no completions": ({"completions": []}, "completions", "is empty .K = 0."),
    "completions missing": ({"completions": None}, "completions", "must be a list, got nothing"),
    "completions are text": (
        {"completions": "good"},
        "completions",
        "must be a list, got text. A CSV file cannot hold lists",
    ),
    "completions are a number": ({"completions": 3}, "completions", "must be a list, got `int`"),
    "empty completion": ({"completions": [" a", ""]}, "completions", r"\[1\] is empty text"),
    "null completion": ({"completions": [" a", None]}, "completions", r"\[1\] must be text.*got nothing"),
    "cut off at the start": (
        {"completions": [" a", ""], "ended": [True, False]},
        "completions",
        r"\[1\] is empty text",
    ),
    "too few scores": ({"scores": [1.0]}, "scores", "has 1 entries for 2 completions"),
    "too many scores": ({"scores": [1.0, 2.0, 3.0]}, "scores", "has 3 entries for 2 completions"),
    "no scores": ({"scores": None}, "scores", "must be a list with one number per completion"),
    "one score": ({"scores": 1.0}, "scores", "must be a list with one number per completion, got `float`. A CSV"),
    "NaN score": ({"scores": [1.0, float("nan")]}, "scores", r"\[1\] is nan"),
    "infinite score": ({"scores": [float("-inf"), 1.0]}, "scores", r"\[0\] is -inf"),
    "text score": ({"scores": [1.0, "2"]}, "scores", r"\[1\] must be a number, got '2'"),
    "null score": ({"scores": [1.0, None]}, "scores", r"\[1\] must be a number, got None"),
    "true score": ({"scores": [True, 1.0]}, "scores", r"\[0\] must be a number, got True"),
    "too few ended": ({"ended": [True]}, "ended", "must be a list of 2 booleans"),
    "ended is not a list": ({"ended": True}, "ended", "must be a list of 2 booleans"),
    "empty prompt": ({"prompt": ""}, "prompt", "is empty text. Remove the row: a model cannot(?!.*`ended`)"),
    "null prompt": ({"prompt": None}, "prompt", "must be text.*got nothing"),
    "number prompt": ({"prompt": 3}, "prompt", "must be text.*got `int`"),
    "chat prompt": ({"prompt": USER}, "prompt", "must be text, as in the first row, got a list of messages"),
    "chat completion": (
        {"completions": [" a", assistant("b")]},
        "completions",
        r"\[1\] must be text.*list of messages",
    ),
}

BAD_CHAT_ROWS = {
    "plain prompt": ({"prompt": "question"}, "prompt", "must be a list of messages, as in the first row, got text"),
    "plain completion": (
        {"completions": [assistant("a"), "b"]},
        "completions",
        r"\[1\] must be a list of messages.*got text",
    ),
    "no messages": ({"prompt": []}, "prompt", "has no messages"),
    "empty completion": ({"completions": [[], assistant("b")]}, "completions", r"\[0\] has no messages"),
    "no role": ({"prompt": [{"content": "x"}]}, "prompt", "holds .*, which is not a message"),
    "no dict": ({"completions": [assistant("a"), ["b"]]}, "completions", r"\[1\] holds 'b', which is not a message"),
    **{
        f"cut off at {content!r}": (
            {"completions": [assistant(content), assistant("b")], "ended": [False, True]},
            "completions",
            r"\[0\] ends with an empty message, although it was cut off",
        )
        for content in ("", None)
    },
}

BAD = [
    *((PLAIN, *bad, name) for name, bad in BAD_PLAIN_ROWS.items()),
    *((CHAT, *bad, f"chat: {name}") for name, bad in BAD_CHAT_ROWS.items()),
]


@pytest.mark.parametrize(("good", "change", "column", "problem"), [c[:4] for c in BAD], ids=[c[4] for c in BAD])
def test_a_row_that_does_not_follow_the_schema_is_named(chat_tokenizer, good, change, column, problem):
    """Streamed, because an Arrow table refuses most of these rows itself."""
    rows = [good, good, good | change]
    with pytest.raises(DataError, match=f"Row 2 of the train dataset, column '{column}': {problem}"):
        prepare(rows, chat_tokenizer, make=stream)


def test_valid_rows_are_accepted(chat_tokenizer):
    for good in (
        PLAIN,
        CHAT,
        PLAIN | {"ended": [False, False]},
        CHAT | {"completions": [assistant(None), assistant("b")]},
    ):
        check_row(good, 0, is_conversational(good))
        assert len(prepare([good], chat_tokenizer, make=stream)[0]) == 1


def test_a_row_of_a_table_that_does_not_follow_the_schema_is_named():
    with pytest.raises(DataError, match=r"Row 1 of the train .*, column 'scores': \[0\] must be a number, got None"):
        prepare([PLAIN, PLAIN | {"scores": [None, 1.0]}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(PLAIN, "scores"), "lacks the column 'scores'; it has 'prompt', 'completions'"),
        (without(PLAIN, "prompt"), "lacks the column 'prompt'; it has 'completions', 'scores'"),
        ({"question": "x", "answer": "y"}, "lacks the column 'scores'; it has 'question', 'answer'"),
        ({"ask": "x", "reply": "y"}, "lacks the column 'prompt'; it has 'ask', 'reply'"),
        ({"prompt": "x", "chosen": "y"}, "lacks the column 'rejected'; it has 'prompt', 'chosen'"),
        ({"prompt": "x", "rejected": "y"}, "lacks the column 'chosen'; it has 'prompt', 'rejected'"),
        ({"completions": ["y"]}, "lacks the column 'prompt' and 'scores'; it has 'completions'"),
    ],
)
@pytest.mark.parametrize("make", [Dataset.from_list, stream], ids=["map", "stream"])
def test_missing_columns_are_named_with_the_columns_found(make, row, message):
    with pytest.raises(DataError, match=f"The train dataset {message}"):
        require_scores(to_scored_rows(make([row]), "train"), "train", list(row), rewarded=False)


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_list([]),
        Dataset.from_list([PLAIN]).select([]),
        stream([]),
        Dataset.from_list([PLAIN]).to_iterable_dataset().filter(lambda row: False),
    ],
    ids=["table", "table with columns", "stream", "stream with columns"],
)
def test_a_dataset_without_rows(dataset):
    with pytest.raises(DataError, match="The train dataset has no rows"):
        to_scored_rows(dataset, "train")
