# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Matching of the completions of two files."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_ext.judging.pairs import paired, read_completions


CHAT = [{"role": "user", "content": "hello"}]


def texts(pairs):
    return [(pair.row["prompt"], pair.a["completion"], pair.b["completion"]) for pair in pairs]


def test_prompts_are_matched_by_content_and_completions_by_number(evaluated):
    """The second file has the prompts in another order, one of them twice, and completions for the KL in both."""
    a = evaluated("a", {"m": [["1", "2"], ["3", "4"], ["5", "6"]]}, ["p", CHAT, "p"])
    b = evaluated("b", {"n": [["x", "y"], ["t", "u"], ["v", "w"]]}, [CHAT, "p", "p"])
    matched = paired(read_completions(a), read_completions(b.replace(".parquet", ".json")))
    assert texts(matched.pairs) == [
        *(("p", "1", "t"), ("p", "2", "u")),
        *((CHAT, "3", "x"), (CHAT, "4", "y")),
        *(("p", "5", "v"), ("p", "6", "w")),
    ]
    assert [pair.prompt_index for pair in matched.pairs] == [0, 0, 1, 1, 2, 2]
    assert matched.pairs[2].contents(swapped=True)[0] == [{"role": "assistant", "content": "x"}]
    assert matched.notes == []


def test_a_prompt_that_comes_twice_is_matched_by_its_other_columns(evaluated):
    """By the order of rows, a completion would be compared with one to another question, and scored by its answer."""
    rows = [{"prompt": "p", "answer": answer} for answer in ("one", "two", "three")]
    a = read_completions(evaluated("a", {"m": [["1"], ["2"], ["3"]]}, rows))
    b = read_completions(evaluated("b", {"n": [["3"], ["1"], ["2"]]}, [rows[2], rows[0], rows[1]]))
    matched = paired(a, b)
    assert [(pair.row["answer"], pair.a["completion"], pair.b["completion"]) for pair in matched.pairs] == [
        *(("one", "1", "1"), ("two", "2", "2"), ("three", "3", "3")),
    ]
    assert matched.notes == []


def test_columns_with_other_values_are_a_note(evaluated):
    """A reward function is called with the columns of A. Scores that the dataset has are no column that it gets."""
    a = read_completions(evaluated("a", {"m": [["1"], ["2"]]}, [{"prompt": "p", "answer": 1, "scores": [1]}, "q"]))
    b = read_completions(evaluated("b", {"n": [["x"], ["y"]]}, [{"prompt": "p", "answer": 2, "scores": [2]}, "q"]))
    matched = paired(a, b)
    assert texts(matched.pairs) == [("p", "1", "x"), ("q", "2", "y")]
    assert matched.notes == [
        "1 of 2 prompts have other values of 'answer' in the two files: a judge gets those of A",
    ]


def test_policies_are_chosen_by_name_or_its_last_part(evaluated):
    file = evaluated("a", {"run/base": [["1"]], "run/base best of 4": [["2"]]})
    assert read_completions(file, "base best of 4").groups[0][0]["completion"] == "2"
    assert read_completions(file, "run/base").policy == "run/base"
    with pytest.raises(
        ValueError, match=r"has the policies 'run/base', 'run/base best of 4': choose one with policy_b"
    ):
        read_completions(file, setting="policy_b")
    with pytest.raises(ValueError, match=r"policy_a: .*has no policy 'other', only 'run/base'"):
        read_completions(file, "other", setting="policy_a")


def test_what_only_one_file_has_is_an_error_or_a_note(evaluated):
    a = read_completions(evaluated("a", {"m": [["1", "2"], ["3", "4"]]}, ["p", "q"]))
    b = read_completions(evaluated("b", {"m": [["x"], ["y", "z"]]}, ["p", "other"]))
    message = (
        "1 of 2 prompts are only in '.*a.parquet', such as \"q\"; 1 of 2 prompts are only in '.*b.parquet', such as "
        '"other"; 1 of 1 prompts have another number of completions in the two files, such as 2 and 1 of "p"'
    )
    with pytest.raises(ValueError, match=f"{message}.*allow_missing"):
        paired(a, b)
    matched = paired(a, b, allow_missing=True)
    assert texts(matched.pairs) == [("p", "1", "x")]
    assert re.match(f"left out: {message}", "; ".join(matched.notes).replace("; left out: ", "; "))


def test_no_prompt_in_common(evaluated):
    a, b = evaluated("a", {"m": [["1"]]}, ["p" * 90]), evaluated("b", {"m": [["1"]]}, ["q"])
    with pytest.raises(ValueError, match=r'no prompt in common.*"p{59}\[\.\.\.\] and "q"'):
        paired(read_completions(a), read_completions(b), allow_missing=True)


def test_files_that_are_no_evaluations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file 'none\.parquet'"):
        read_completions("none.json")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_completions(str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"model": ["m"], "row": ["{}"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="lacks the columns completion, completion_index, row_index, sample"):
        read_completions(str(tmp_path / "other.parquet"))
