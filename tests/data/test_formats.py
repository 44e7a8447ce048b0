# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Data in the forms in which it is published becomes the row schema; the page that lists the forms."""

import json

import pytest
from dataset_forms import AS_THEY_ARE, CONVERTED, REFUSED, user
from dataset_rows import assistant, stream
from datasets import Dataset, IterableDataset
from record_dataset_formats import PAGE, page

from trl_ext.data.formats.registry import FORMATS
from trl_ext.data.schema import DataError
from trl_ext.data.scored_rows import require_scores, to_scored_rows


FORMS = [*AS_THEY_ARE, *CONVERTED]
GROUPED = {each.name for each in FORMATS if each.group is not None}


def matching(found, wanted):
    """The columns of the converted rows that the example states."""
    return [{name: row[name] for name in some} for row, some in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("form", FORMS, ids=[form.found_in[:50] for form in FORMS])
def test_a_form_becomes_the_schema(form):
    found = list(to_scored_rows(Dataset.from_list(form.rows), "train", **form.settings))
    assert [
        {name: row[name] for name in wanted} for row, wanted in zip(found, form.becomes, strict=True)
    ] == form.becomes


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.name not in GROUPED], ids=lambda form: form.found_in[:50]
)
def test_a_streamed_form_becomes_the_same_rows(form):
    found = list(to_scored_rows(stream(form.rows), "train", **form.settings))
    assert [
        {name: row[name] for name in wanted} for row, wanted in zip(found, form.becomes, strict=True)
    ] == form.becomes


@pytest.mark.parametrize("form", CONVERTED, ids=lambda form: form.found_in[:50])
def test_one_line_says_what_was_recognised(form, caplog):
    """Only TRL's own pairs need none."""
    to_scored_rows(Dataset.from_list(form.rows), "train", **form.settings)
    if form.name not in ("preference", "scored"):
        assert f"The train dataset is read as `{form.name}` (" in caplog.text
    assert len(caplog.records) <= 1


def test_the_question_of_a_pair_is_said_to_be_the_prompt(caplog):
    to_scored_rows(Dataset.from_list([{"question": "a", "chosen": "b", "rejected": "c"}]), "train")
    assert "'question'" in caplog.text


@pytest.mark.parametrize("form", REFUSED, ids=lambda form: form.found_in[:50])
def test_a_form_that_is_refused(form):
    with pytest.raises(DataError, match=f"(?s){form.error}"):
        to_scored_rows(Dataset.from_list(form.rows), "train", **form.settings)


def test_every_format_has_an_example():
    assert {each.name for each in FORMATS} == {form.name for form in FORMS}


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/record_dataset_formats.py`"


# ------------------------------------------------------------------------------------------------------- conversions


def convert(rows, **settings):
    return list(to_scored_rows(Dataset.from_list(rows), "train", **settings))


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_forms_whose_rows_belong_together_are_refused_as_streams(name):
    form = next(form for form in CONVERTED if form.name == name)
    with pytest.raises(DataError, match=f"`{name}`.*a stream would have to be read to its end.*trl-ext convert"):
        to_scored_rows(stream(form.rows), "train")


def test_streams_are_not_read_ahead():
    seen = []

    def rows():
        for i in range(100):
            seen.append(i)
            yield {"query": f"q{i}", "responses": ["a", "b"], "scores": [1, 2]}

    found = iter(to_scored_rows(IterableDataset.from_generator(rows), "train"))
    assert [next(found)["prompt"] for _ in range(3)] == ["q0", "q1", "q2"]
    assert len(seen) < 20  # the first row is read a few times


def test_a_conversion_names_row_and_column():
    rows = [
        {"instruction": "a", "generations": ["b"], "ratings": [1]},
        {"instruction": "a", "generations": ["b"], "ratings": [1, 2]},
    ]
    with pytest.raises(DataError, match="Row 1 of the train dataset, column 'ratings': has 2 entries for 1 answers"):
        convert(rows)


def test_a_value_of_another_shape_names_the_row():
    good = {"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": 1.0, "score_1": 0.0}
    with pytest.raises(DataError, match="Row 1 of the train dataset: TypeError"):
        list(to_scored_rows(stream([good, good | {"question": None}]), "train"))


def test_rows_without_a_usable_answer_are_left_out_and_counted(caplog):
    rows = [{"query": f"q{i}", "responses": ["a", None], "scores": [None if i else 1.0, 2.0]} for i in range(2)]
    assert [row["prompt"] for row in convert(rows)] == ["q0"]
    assert "its 2 rows become 1" in caplog.text
    with pytest.raises(DataError, match="none of its 1 rows has a prompt and an answer"):
        convert(rows[1:])


def test_a_form_may_be_named_and_is_checked():
    rows = [{"instruction": "a", "output": "b", "output_1": "c", "output_2": "d", "preference": 1}]
    assert convert(rows)[0]["completions"] == ["c", "d"]
    assert convert(rows, dataset_format="prompt_completion")[0]["completions"] == ["b"]
    with pytest.raises(DataError, match="The train dataset: `dataset_format` 'nectar' needs the column prompt and"):
        convert(rows, dataset_format="nectar")
    with pytest.raises(DataError, match=r"`dataset_format` must be one of auto, scored.*got 'nectr'"):
        convert(rows, dataset_format="nectr")


def test_explicit_messages_that_the_answers_repeat():
    talk = [{"role": "system", "content": "s"}, user("q")]
    rows = [{"prompt": talk, "chosen": talk + assistant("a"), "rejected": talk + assistant("b")}]
    assert convert(rows)[0]["prompt"] == talk
    assert convert(rows)[0]["completions"] == [assistant("a"), assistant("b")]


def test_a_system_prompt_is_not_repeated():
    talk = [{"role": "system", "content": "s"}, user("q")]
    rows = [{"system": "s", "prompt": talk, "chosen": assistant("a"), "rejected": assistant("b")}]
    assert convert(rows)[0]["prompt"] == talk
    rows = [{"system": "s", "prompt": "s\n\nq", "chosen": "a", "rejected": "b"}]
    assert convert(rows)[0]["prompt"] == "s\n\nq"


def test_an_unknown_speaker_is_named():
    rows = [{"chosen": [{"from": "narrator", "value": "a"}], "rejected": [{"from": "gpt", "value": "b"}]}]
    with pytest.raises(DataError, match=r"Row 0 of .*, column 'chosen': holds a message from 'narrator'"):
        convert(rows)


@pytest.mark.parametrize("name", ["response", "answer", "output", "completion"])
def test_answers_without_scores_are_not_taken_for_nothing(name):
    rows = to_scored_rows(Dataset.from_list([{"prompt": "a", name: "b"}]), "train")
    with pytest.raises(DataError, match=f"lacks the column 'scores'; it has 'prompt', '{name}'.*columns: "):
        require_scores(rows, "train", ["prompt", name], rewarded=False)
    assert require_scores(rows, "train", ["prompt", name], rewarded=True).column_names == ["prompt"]


def test_answers_stay_where_reward_functions_may_read_them():
    assert convert([{"question": "a", "answer": "b"}], keep_columns=True)[0]["answer"] == "b"


def test_a_limit_is_of_rows_read():
    rows = [{"query": f"q{i}", "responses": ["a"], "scores": [1]} for i in range(5)]
    assert len(convert(rows, limit=2)) == 2


def test_prompts_with_only_bad_answers_are_counted(caplog):
    rows = [{"prompt": f"q{i}", "completion": "a", "label": bool(i)} for i in range(2)]
    assert [row["scores"] for row in convert(rows)] == [[0.0], [1.0]]
    assert "1 of them have only answers with the label 0" in caplog.text


def test_earlier_turns_of_an_instruction():
    """LLaMA-Factory's column `history`; its rows are conversations, also those without earlier turns."""
    row = {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}
    found = convert([row | {"history": [["hi", "hello"]]}, row | {"history": []}])
    assert found[0]["prompt"] == [user("hi"), *assistant("hello"), user("q")]
    assert found[1]["prompt"] == [user("q")]
    assert found[1]["completions"] == [assistant("a"), assistant("b")]


def test_an_empty_first_row_does_not_hide_the_form():
    answers = [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}]
    found = convert([{"prompt": "p", "answers": []}, {"prompt": "q", "answers": answers}])
    assert [row["prompt"] for row in found] == ["q"]


def test_scores_that_are_written_as_text():
    (row,) = convert([{"instruction": "q", "generations": ["a", "b", "c"], "ratings": ["1", "4.5", "N/A"]}])
    assert (row["completions"], row["scores"]) == (["a", "b"], [1.0, 4.5])


def test_a_score_of_one_answer_may_be_text():
    rows = [{"question": "q", "answer": "a", "score": s} for s in ("4.5", "N/A", "1")]
    assert convert(rows)[0]["scores"] == [4.5, 1.0]
    rows = [{"question": "q", "answer": "a", "rank": s} for s in ("1", "2")]
    assert convert(rows)[0]["scores"] == [-1.0, -2.0]
    rows = [{"prompt": "q", "completion": "a", "rating": "PG-13"}]
    assert "scores" not in convert(rows)[0]


@pytest.mark.parametrize("scores", [{}, {"scores": [2, 1]}])
@pytest.mark.parametrize("make", [Dataset.from_list, stream])
def test_texts_behind_messages_become_messages(scores, make):
    """Also behind a system prompt in a column, and where a completion is one message without a list."""
    rows = [{"prompt": [user("q")], "completions": ["a", "b"], **scores}]
    for row in (
        rows[0],
        rows[0] | {"system": "Be brief."},
        rows[0] | {"completions": [*assistant("a"), *assistant("b")]},
    ):
        (found,) = to_scored_rows(make([row]), "train")
        assert found["completions"] == [assistant("a"), assistant("b")]
        assert found["prompt"][-1] == user("q")
    (found,) = to_scored_rows(make([{"prompt": "q", "completions": [assistant("a")], "scores": [1]}]), "train")
    assert found["prompt"] == [user("q")]


def test_a_scored_conversation_ends_with_an_answer():
    talk = [user("q"), *assistant("a")]
    with pytest.raises(DataError, match=r"row 1, column 'messages': must be a conversation whose last message is the"):
        convert([{"messages": talk, "score": 1.0}, {"messages": talk[:1], "score": 1.0}])
    assert convert([{"messages": talk, "score": 1.0}, {"messages": None, "score": 1.0}])[0]["scores"] == [1.0]


def test_lists_in_a_pair_are_told_apart_from_a_missing_answer():
    with pytest.raises(DataError, match=r"column 'rejected': must be text or messages.*`completions`, beside their"):
        convert([{"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}])


def test_answers_that_are_messages():
    (row,) = convert([{"question": [user("q")], "responses": [assistant("a"), assistant("b")], "scores": [1, 2]}])
    assert row["completions"] == [assistant("a"), assistant("b")]


# ---------------------------------------------------------------------------------------------------------- messages


def test_messages_in_parts_are_read_in_every_place():
    """In completions, behind a first message of text in a stream, and as plain texts in the list of parts."""
    parts = [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ld."}]
    row = {
        "prompt": [user("Socks?")],
        "completions": [[assistant_in(parts)], [assistant_in(parts[:1])]],
        "scores": [1, 0],
    }
    assert convert([row])[0]["completions"] == [assistant("Fold."), assistant("Fo")]
    turns = [user("Socks?"), {"role": "user", "content": ["They ", "hide."]}]
    found = list(to_scored_rows(stream([{"prompt": turns, "chosen": "a", "rejected": "b"}]), "train"))
    assert found[0]["prompt"] == [user("Socks?"), user("They hide.")]


def assistant_in(parts):
    return {"role": "assistant", "content": parts}


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": None}, 3])
def test_a_part_that_is_no_text_is_an_error(part):
    rows = [{"prompt": [user([part])], "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="Row 0 of the train dataset, column 'prompt': holds a message with a part of"):
        list(to_scored_rows(stream(rows), "train"))


def test_a_system_prompt_is_not_written_twice():
    chat = [{"role": "system", "content": "Be brief."}, user("Socks?")]
    row = {"system": "Be brief.", "prompt": chat, "completions": [assistant("a")], "scores": [1.0]}
    assert convert([row])[0]["prompt"] == chat
    assert convert([row | {"prompt": chat[1:]}])[0]["prompt"] == chat
    [named] = convert([row | {"prompt": chat[1:]}], dataset_format="scored")
    assert named["prompt"] == chat[1:]  # as it is


def test_the_tools_of_openais_files_are_kept():
    tool = {"type": "function", "function": {"name": "get_weather"}}
    row = {"input": {"messages": [user("Rain?")], "tools": [tool]}, "preferred_output": assistant("No.")}
    [found] = convert([row | {"non_preferred_output": assistant("Yes.")}])
    assert json.loads(found["tools"]) == [tool]


def test_a_prompt_of_nothing_is_said_to_be_nothing():
    with pytest.raises(DataError, match=r"Row 0 of the train dataset: the prompt is nothing \(null\), and"):
        convert([{"prompt": None, "chosen": "Two.", "rejected": "Six."}])
