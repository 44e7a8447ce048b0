# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rows for DPO, KTO and SFT: worked by hand, read back by our formats, and taken by TRL's trainers."""

import copy
import math

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from trl_ext import from_scored_rows
from trl_ext.data.exports import ExportSettings, describe_export, export_rows
from trl_ext.data.schema import DataError
from trl_ext.data.scored_rows import to_scored_rows


ROW = {"prompt": "film?", "completions": ["a", "b", "c", "d"], "scores": [1.0, 4.0, 1.5, 3.0], "id": 7}
TIED = {"prompt": "plot?", "completions": ["a", "b"], "scores": [2.0, 2.0], "id": 8}
SINGLE = {"prompt": "cast?", "completions": ["a"], "scores": [2.0], "id": 9}
ROWS = [ROW, TIED, SINGLE]


def export(rows, form, **settings):
    chosen = ExportSettings(form, **settings)
    chosen.check_export()
    return export_rows(rows, chosen)


def pairs(**settings):
    made, counts = export(ROWS, "pairs", **settings)
    return [row["chosen"] + row["rejected"] for row in made], counts


def test_pairs():
    made, counts = export(ROWS, "dpo")
    assert made == [
        {"prompt": "film?", "id": 7, "chosen": "b", "rejected": "a",
         "score_chosen": 4.0, "score_rejected": 1.0, "score_margin": 3.0}
    ]  # fmt: skip
    assert counts == {"single": 1, "tied": 1}
    assert pairs(pairing="best_others")[0] == ["bd", "bc", "ba"]
    assert pairs(pairing="all")[0] == ["bd", "bc", "ba", "dc", "da", "ca"]
    assert pairs(pairing="all", min_margin=1.5)[0] == ["bc", "ba", "dc", "da"]  # 1.5 is enough
    found = export([ROW | {"ended": [True, False, True, True]}], "pairs", ended_only=True)[0]
    assert [(row["chosen"], row["rejected"]) for row in found] == [("d", "a")]
    counts = export([ROW | {"ended": [True, False, True, False]}], "pairs", pairing="all")[1]
    assert counts == {"cut_off": 6, "cut_off_chosen": 5}, "in pairs bd bc ba dc da ca"
    assert describe_export(counts).endswith("(ended_only leaves them out), 5 of them chosen")
    with pytest.raises(DataError, match=r"no row is left: .*1 prompts without a pair that is min_margin apart"):
        pairs(min_margin=3.5)
    same_text = {"prompt": "x", "completions": ["a", "a"], "scores": [1.0, 0.0]}
    assert export([same_text, ROW], "pairs")[1] == {"tied": 1}, "a pair of equal texts teaches nothing"


def test_labels():
    """The mean of 1, 4, 1.5, 3 is 2.375, the median 2.25."""

    def labels(rows, **settings):
        made, counts = export(rows, "kto", **settings)
        return "".join("-+"[row["label"]] for row in made), counts

    assert labels(ROWS) == ("-+-+", {"single": 1, "tied": 1, "label_true": 2, "label_false": 2})
    assert labels([ROW | {"scores": [0.0, 1.0, 1.5, 7.5]}])[0] == "---+"
    assert labels([ROW | {"scores": [0.0, 1.0, 1.5, 7.5]}], score_threshold="median")[0] == "--++"
    assert labels(ROWS, score_threshold=2)[0] == "-+-+" + "--" + "-", "a number compares all, also a single one"
    told = describe_export(labels([ROW], score_threshold="0")[1])
    assert told == "label true 4 times, false 0, KTO needs both: choose another score_threshold, such as mean"


def test_demonstrations():
    ended = {"ended": [True, False, True, True]}
    assert [row["completion"] for row in export(ROWS, "sft")[0]] == ["b", "a", "a"]
    made, counts = export([ROW | ended, SINGLE], "sft", score_threshold=2.5)
    assert made == [
        {"prompt": "film?", "id": 7, "completion": "b", "score": 4.0},
        {"prompt": "film?", "id": 7, "completion": "d", "score": 3.0},
    ]
    assert counts == {"cut_off": 1, "below_threshold": 1}
    assert [row["completion"] for row in export([ROW | ended], "sft", ended_only=True)[0]] == ["d"]
    assert export([ROW, ROW | {"ended": [False] * 4}], "sft", ended_only=True)[1] == {"unended": 1}
    unscored = {"prompt": "film?", "completions": ["a", "b"]}
    assert export([unscored], "sft")[0] == [{"prompt": "film?", "completion": each} for each in "ab"]


def test_which_demonstrations_are_kept():
    def kept(*rows, **settings):
        return [row["completion"] for row in export(rows, "sft", **settings)[0]]

    assert kept(ROW, keep_per_prompt=3) == ["b", "d", "c"]
    assert kept(TIED, SINGLE, keep="best", keep_per_prompt=9) == ["a", "b", "a"]  # equal scores keep their order
    assert kept(ROW, keep="threshold", score_threshold=1) == ["b", "c", "d"]
    assert kept(ROW, keep="threshold", score_threshold="mean", keep_per_prompt=1) == ["b"]
    ended = ROW | {"ended": [True, False, True, True]}
    assert kept(ended, ended_only=True, keep_per_prompt=2) == ["d", "c"]


def test_random_demonstrations_depend_on_the_seed_alone():
    """Each completion as often as any other: 400 rows, so 100 of each with a standard deviation of 9."""
    rows = [ROW] * 400
    found = [[row["completion"] for row in export(rows, "sft", keep="random", seed=seed)[0]] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert all(60 < found[0].count(each) < 140 for each in "abcd")
    changed = [row | {"scores": [9.0, 0.0, 0.0, 0.0]} for row in rows]
    assert [row["completion"] for row in export(changed, "sft", keep="random", seed=1)[0]] == found[0]
    two = export(rows, "sft", keep="random", keep_per_prompt=2)[0]
    assert all(a["completion"] != b["completion"] for a, b in zip(two[::2], two[1::2], strict=True))
    unscored = {"prompt": "film?", "completions": ["a", "b"]}
    assert len(export([unscored], "sft", keep="random")[0]) == 1


def test_what_is_left_of_another_form_goes():
    """TRL's KTOTrainer would take rows with `chosen` and `rejected` for pairs."""
    row = ROW | {"chosen": "x", "rejected": "y", "sources": list("mmnn"), "completion_ids": [[1]] * 4, "extra": {}}
    assert set(export([row], "kto")[0][0]) == {"prompt", "id", "completion", "score", "label"}


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ("dop", {}, "`format` must be one of scored, pairs, kto, sft, got 'dop'"),
        ("pairs", {"pairing": "each"}, "`pairing` must be one of"),
        ("pairs", {"min_margin": -1}, "`min_margin` must be at least 0"),
        ("pairs", {"score_threshold": 0}, "`score_threshold` has no effect with --format pairs: it is for kto or sft"),
        ("kto", {"min_margin": 1}, "`min_margin` has no effect with --format kto: it is for pairs"),
        ("scored", {"ended_only": True}, "`ended_only` has no effect with --format scored"),
        ("pairs", {"keep": "best"}, "`keep` has no effect with --format pairs: it is for sft"),
        ("sft", {"keep": "worst"}, "`keep` must be one of best, threshold, random, got 'worst'"),
        ("sft", {"keep": "threshold"}, "`keep: threshold` needs a `score_threshold`"),
        ("sft", {"keep": "random", "score_threshold": 1}, "`score_threshold` has no effect with `keep: random`"),
        ("sft", {"keep_per_prompt": -1}, "`keep_per_prompt` must be at least 0"),
        ("sft", {"score_threshold": "maen"}, "must be a number, mean or median, got 'maen'"),
    ],
)
def test_bad_settings(form, settings, message):
    with pytest.raises(ValueError, match=message):
        export(ROWS, form, **settings)


def test_rows_without_scores():
    for form, settings in (("pairs", {}), ("kto", {}), ("sft", {"score_threshold": 1})):
        with pytest.raises(DataError, match="Row 1, column 'scores': is missing"):
            export([ROW, {"prompt": "x", "completions": ["a"]}], form, **settings)
    with pytest.raises(DataError, match="Row 0, column 'completions'"):
        export([{"prompt": "x"}], "sft")


@pytest.mark.parametrize("form", ["pairs", "kto", "sft"])
@pytest.mark.parametrize(
    ("scores", "message"),
    [([None, 1.0], r"\[0\] must be a number"), ([1.0, math.nan], r"\[1\] is nan"), ([1.0], "has 1 entries for 2")],
)
def test_scores_that_are_no_numbers(form, scores, message):
    """They would be ranked, or get a label, without a word."""
    with pytest.raises(DataError, match=f"Row 0, column 'scores': {message}"):
        export([{"prompt": "x", "completions": ["a", "b"], "scores": scores}], form)


# -------------------------------------------------------------------------------------------------------- who reads it

CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completions": [[{"role": "assistant", "content": text}] for text in row["completions"]],
        "scores": row["scores"],
    }
    for row in ROWS
]


@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["text", "messages"])
def test_our_formats_read_them_back(rows):
    """The order of the completions, the labels and the best one are what a form keeps."""
    row = rows[0]
    best, worst = row["completions"][1], row["completions"][0]

    def back(form, **settings):
        return next(iter(to_scored_rows(from_scored_rows([row], form, **settings), "train")))

    found = back("pairs")
    assert (found["prompt"], found["completions"], found["scores"]) == (row["prompt"], [best, worst], [1.0, 0.0])
    found = back("kto")
    assert (found["completions"], found["scores"]) == (row["completions"], [0.0, 1.0, 0.0, 1.0])
    again = export([found], "kto", score_threshold=0)[0]
    assert [each["label"] for each in again] == [False, True, False, True]
    found = back("sft")
    assert (found["prompt"], found["completions"], found["scores"]) == (row["prompt"], [best], [4.0])
    assert export([row], "scored")[0] == [row]


@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["text", "messages"])
def test_trl_reads_them(tiny_model_dir, tiny_tokenizer, rows, tmp_path):
    """What each trainer tokenizes is the prompt and the completion of the row."""
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"
    common = {"model": tiny_model_dir, "processing_class": tokenizer}

    def texts(ids):
        return tiny_tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")

    def prepared(trainer, config, form):
        made: Dataset = from_scored_rows(rows * 2, form)
        return list(trainer(args=config, train_dataset=made, **common).train_dataset)

    first = prepared(DPOTrainer, DPOConfig(**settings), "pairs")[0]
    assert "film?" in texts(first["prompt_ids"])
    assert [texts(first[f"{name}_ids"])[-1] for name in ("chosen", "rejected")] == ["b", "a"]
    found = prepared(KTOTrainer, KTOConfig(**settings, per_device_train_batch_size=2), "kto")
    assert [row["label"] for row in found[:4]] == [False, True, False, True]
    assert [texts(row["completion_ids"])[-1] for row in found[:4]] == list("abcd")
    first = prepared(SFTTrainer, SFTConfig(**settings, completion_only_loss=True), "sft")[0]
    assert "film?" in texts(first["input_ids"])
    assert texts(first["input_ids"])[-1] == "b"
