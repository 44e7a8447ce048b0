# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Where the prompt of `chosen` and `rejected` ends, where no column has it."""

import pytest
from dataset_forms import BAD, GOOD, QUESTION, assistant, user

from trl_ext.data.pair_prompts import split_pair
from trl_ext.data.schema import DataError


def split(chosen, rejected, **others):
    prompt, *answers = split_pair({"chosen": chosen, "rejected": rejected, **others})
    return prompt, answers


@pytest.mark.parametrize(
    "mark",
    [
        "\n\nHuman: Hi.\n\nAssistant:",
        "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:",
        "User: Hi.\nAssistant:",
        "USER: Hi.\nASSISTANT:",
        "### Instruction:\nHi.\n\n### Response:\n",
        "Q: Hi?\nA:",
        "POST: Long.\n\nTL;DR:",
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        "<|user|>\nHi.\n<|assistant|>\n",
        "<start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n",
        "[INST] Hi. [/INST]",
    ],
)
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (" I would fold.", " I would not."),
        (" There.", " The."),
        (" Fold.", ""),
        (" Fold.", " Fold."),
        (" Fold.", " Fold. Then put."),
        ("Four.", "Five."),
        ("", ""),
    ],
    ids=["shared words", "shared letters", "empty", "identical", "beginning", "no space", "both empty"],
)
def test_a_transcript_is_cut_behind_the_last_shared_mark(mark, chosen, rejected):
    assert split(mark + chosen, mark + rejected) == (mark, [chosen, rejected])


def test_answers_that_go_on_with_another_turn():
    talk = "\n\nHuman: Hi.\n\nAssistant:"
    longer = " Hello.\n\nHuman: And?\n\nAssistant: No."
    assert split(talk + longer, f"{talk} Hello.") == (talk, [longer, " Hello."])
    # They differ in what the human says: the last answer that both share begins the completions.
    assert split(f"{talk} Hello.\n\nHuman: So", f"{talk} Hello.\n\nHuman: No")[0] == talk


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The film was good.", "The film was gory.", "The film was"),
        ("The film there", "The film then", "The film"),
        ("A long\nline one", "A long\nline two", "A long\nline"),
        ("Title\nyes", "Title\nyellow", "Title\n"),
        ("one  two", "one  six", "one "),
    ],
)
def test_other_texts_are_cut_between_words(chosen, rejected, prompt):
    assert split(chosen, rejected) == (prompt, [chosen[len(prompt) :], rejected[len(prompt) :]])


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("There", "Then"), ("Good.", "Bad."), ("The film", "The film"), ("The film was", "The film"), ("", "The film")],
)
def test_what_cannot_be_told_is_an_error_with_columns_and_remedy(chosen, rejected):
    with pytest.raises(DataError, match=r"The columns are 'chosen', 'rejected', 'id'.*columns: {prompt: question}"):
        split(chosen, rejected, id="a")


def test_ids_and_the_like_are_no_prompts():
    others = {"prompt_id": "a b c", "source": "x y z", "chosen_model": "some model", "score": 3, "tags": ["a"]}
    assert split("The film was good", "The film was bad", **others)[0] == "The film was"


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        (QUESTION + GOOD, QUESTION + BAD, 1),
        (QUESTION + GOOD, QUESTION + GOOD, 1),
        ([user("a"), assistant("b"), *QUESTION, *GOOD], [user("a"), assistant("b"), *QUESTION, *BAD], 3),
        ([*QUESTION, *GOOD, user("b"), assistant("c")], [*QUESTION, *GOOD], 1),
        ([*QUESTION, *GOOD, *GOOD], [*QUESTION, *GOOD, *BAD], 2),
    ],
    ids=["two answers", "identical", "several turns", "beginning", "two messages"],
)
def test_conversations_are_cut_between_messages(chosen, rejected, shared):
    assert split(chosen, rejected) == (chosen[:shared], [chosen[shared:], rejected[shared:]])


def test_conversations_without_a_shared_question():
    for chosen, rejected in ((GOOD, BAD), ([user("a"), *GOOD], [user("b"), *GOOD]), (QUESTION, QUESTION)):
        with pytest.raises(DataError, match=r"share no user's message. The columns are"):
            split(chosen, rejected)
