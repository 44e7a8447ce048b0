# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext convert`: what it recognises, shows and writes."""

import json
from pathlib import Path

import pytest

from trl_ext.cli.main import main
from trl_ext.data.load import load_dataset


NECTAR = [
    {"prompt": f"q{i}", "answers": [{"answer": "a" * 1000, "rank": 2.0}, {"answer": "b", "rank": 1.0}]}
    for i in range(5)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NECTAR))


def convert(*words):
    return main(["convert", "--dataset_name", "rows.jsonl", *words])


@pytest.mark.parametrize("output", ["out.jsonl", "deep/out.parquet"])
def test_rows_are_shown_and_written(output, capsys, caplog):
    assert convert("--output_file", output) == 0
    printed = capsys.readouterr().out
    assert [f'"q{i}"' in printed for i in range(5)] == [True, True, True, False, False]
    assert "[... 600 letters ...]" in printed
    assert "5 rows with prompts, 2 completions in the first row, and scores" in printed
    assert "read as `nectar`: berkeley-nest/Nectar" in printed
    assert "read as `nectar`" in caplog.text
    rows = list(load_dataset(output, split="train"))
    assert [row["scores"] for row in rows] == [[-2.0, -1.0]] * 5
    assert rows[0]["completions"] == ["a" * 1000, "b"]


def test_columns_formats_and_a_limit(capsys):
    Path("rows.jsonl").write_text('{"ask": "a", "replies": ["b"], "marks": [1]}\n' * 3)
    assert convert("--columns", "prompt=ask,completions=replies,scores=marks", "--max_num_prompts", "2") == 0
    assert "2 rows with prompts, 1 completion in" in capsys.readouterr().out
    assert convert("--columns", '{"prompt": "ask"}', "--dataset_format", "prompt_only") == 0
    assert "prompts only" in capsys.readouterr().out


GOOD = {"prompt": "a", "completions": ["a", "b"], "scores": [1.0, 0.0]}
WRONG_VALUES = [
    ({"scores": [1.0]}, "column 'scores': has 1 entries for 2 completions"),
    ({"scores": [1.0, float("nan")]}, "column 'scores': [1] is nan"),
    ({"completions": ["", "b"]}, "column 'completions': [0] is empty text"),
    ({"prompt": ""}, "column 'prompt': is empty text"),
]
WRONG_TYPES = [  # of all rows, as a column has one type
    ({"scores": ["good", "bad"]}, "column 'scores': [0] must be a number, got 'good'"),
    ({"completions": '["a", "b"]', "scores": "[1, 0]"}, "column 'completions': must be a list, got text"),
    ({"prompt": ["a"]}, "column 'prompt': holds 'a', which is not a message"),
]


def refused(rows, message, capsys):
    Path("rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert convert("--output_file", "out.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(("row", "message"), WRONG_VALUES + WRONG_TYPES)
def test_rows_that_training_refuses_are_refused(row, message, capsys):
    refused([{**GOOD, **row}] * 5, f"Row 0 of the 'rows.jsonl' dataset, {message}", capsys)


@pytest.mark.parametrize(("row", "message"), WRONG_VALUES)
def test_every_row_is_checked_and_not_only_those_that_are_shown(row, message, capsys):
    refused([GOOD] * 4 + [{**GOOD, **row}], f"Row 4 of the 'rows.jsonl' dataset, {message}", capsys)


def test_completions_without_scores_are_checked_too(capsys):
    Path("rows.jsonl").write_text('{"prompt": "a", "completions": ["a"]}\n{"prompt": "a", "completions": []}\n')
    assert convert() == 2
    assert "Row 1 of the 'rows.jsonl' dataset, column 'completions': is empty (K = 0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "rows.csv",
            "prompt;chosen;rejected\na;b;c\n",
            "has one column, 'prompt;chosen;rejected': it is a table that",
        ),
        (
            "rows.json",
            '{"data": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}',
            "rows in lists called 'data': write",
        ),
        ("rows.json", '{"train": [{"prompt": "a"}], "test": []}', "rows in lists called 'train': write the rows"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"prompt": "b\n',
            "line 2 is not valid JSON (Invalid control character, column",
        ),
    ],
)
def test_a_file_of_another_shape_is_explained(name, text, message, capsys):
    Path(name).write_text(text)
    assert main(["convert", "--dataset_name", name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_another_encoding_is_explained(name, capsys):
    text = "prompt,chosen,rejected\nFüße,größer,nö\n" if name == "rows.csv" else '{"prompt": "Füße"}\n'
    Path(name).write_text(text, encoding="latin-1")
    assert main(["convert", "--dataset_name", name]) == 2
    assert f"{name}' cannot be read: it is not in UTF-8. Save it in that encoding" in capsys.readouterr().err


def test_rows_for_other_trainers(capsys):
    assert convert("--format", "dpo", "--output_file", "out.jsonl", "--min_margin", "1") == 0
    printed = capsys.readouterr().out
    assert "read as `nectar`" in printed
    assert "5 rows for TRL's DPOTrainer and RewardTrainer" in printed
    row = load_dataset("out.jsonl", split="train")[0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("q0", "b", "a" * 1000)
    assert convert("--format", "kto") == 0
    assert "10 rows for TRL's KTOTrainer, label true 5 times, false 5" in capsys.readouterr().out
    assert convert("--format", "pairs", "--min_margin", "2") == 2
    assert "no row is left: 5 prompts without a pair that is min_margin apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_file", "out.csv"], "output_file must end in .jsonl or .parquet"),
        (["--output_file", "rows.jsonl"], "exists: pass --overwrite_output"),
        (["--max_num_prompts", "-1"], "max_num_prompts` must be at least 0"),
        (["--columns", "prompt=ask"], "The 'rows.jsonl' dataset lacks the column 'ask' of `columns`"),
        (["--dataset_format", "nectr"], "--dataset_format must be one of auto, "),
        (["--dataset_train_split", "test"], "no split 'test'"),
        (["--chat_template_kwargs", "{}"], "--chat_template_kwargs"),  # nothing is rendered
    ],
)
def test_bad_settings(words, message, capsys):
    assert convert(*words) == 2
    assert message in capsys.readouterr().err
