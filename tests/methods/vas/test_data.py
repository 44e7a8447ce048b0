# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rewards of completions: of the last token or per token, for one or several heads."""

import math

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset

from trl_ext import DataError
from trl_ext.data.scored_rows import to_scored_rows
from trl_ext.methods.vas.data import (
    DataCollatorForValues,
    dataset_heads,
    prepare_values,
    reward_tensors,
    total_rewards,
)


ROW = {"prompt": "the film", "completions": [" was good", " was"], "scores": [1.0, -2.0]}


def prepare(rows, heads=("reward",), max_length=0):
    rows = to_scored_rows(Dataset.from_list(rows), "train")
    return prepare_values(rows, make_tokenizer(), name="train", max_length=max_length, heads=heads)[0]


def test_scores_are_rewards_of_the_last_token():
    row = prepare([ROW])[0]
    assert [len(ids) for ids in row["completion_ids"]] == [3, 2]  # with the end of sequence
    assert row["token_rewards"] == [[[1.0]], [[-2.0]]]
    rewards, known = reward_tensors([row["token_rewards"]], [3, 2], 1)
    assert rewards[..., 0].tolist() == [[0.0, 0.0, 1.0], [0.0, -2.0, 0.0]]
    assert known.tolist() == [[True], [True]]


def test_rewards_per_token_with_and_without_the_end_of_sequence():
    row = prepare([ROW | {"scores": [[0.5, 1.0, 2.0], [3.0]]}])[0]
    assert row["scores"] == [3.5, 3.0]
    assert row["token_rewards"] == [[[0.5, 1.0, 2.0]], [[3.0, 0.0]]]
    rewards, _ = reward_tensors([row["token_rewards"]], [3, 2], 1)
    assert rewards[..., 0].tolist() == [[0.5, 1.0, 2.0], [3.0, 0.0, 0.0]]


def test_truncation_drops_rewards_per_token_but_keeps_scores():
    row = prepare([ROW | {"scores": [[0.5, 1.0, 2.0], [3.0, 4.0]]}], max_length=4)[0]
    assert [len(ids) for ids in row["completion_ids"]] == [2, 2]
    assert row["token_rewards"] == [[[0.5, 1.0]], [[3.0, 4.0]]]
    assert prepare([ROW], max_length=3)[0]["token_rewards"] == [[[1.0]], [[-2.0]]]


def test_heads_from_the_column_rewards():
    rewards = {"kind": [0.1, None], "short": [2.0, 3.0]}
    dataset = Dataset.from_list([ROW | {"rewards": rewards}])
    assert dataset_heads(dataset, "train") == ["kind", "short"]
    assert dataset_heads(Dataset.from_list([ROW]), "train") == ["reward"]
    row = prepare([ROW | {"rewards": rewards}], heads=["short", "kind", "reward"])[0]
    assert row["token_rewards"] == [[[2.0], [0.1], [1.0]], [[3.0], [], [-2.0]]]
    tensor, known = reward_tensors([row["token_rewards"]], [3, 2], 3)
    assert tensor[0, 2].tolist() == pytest.approx([2.0, 0.1, 1.0])
    assert known.tolist() == [[True] * 3, [True, False, True]]
    assert total_rewards([row["token_rewards"]], 0) == [2.0, 3.0]
    assert math.isnan(total_rewards([row["token_rewards"]], 1)[1])


def test_prompt_only_datasets_and_preferences():
    assert "token_rewards" not in prepare([{"prompt": "the film"}]).column_names
    row = prepare([{"prompt": "the film", "chosen": " good", "rejected": " bad"}])[0]
    assert row["token_rewards"] == [[[1.0]], [[0.0]]]


def test_collator_keeps_groups_as_lists():
    rows = [dict(row) for row in prepare([ROW, {**ROW, "completions": [" bad"], "scores": [4.0]}])]
    batch = DataCollatorForValues()(rows)
    assert batch["row_index"].tolist() == [0, 1] and batch["row_index"].dtype == torch.long
    assert batch["token_rewards"] == [[[[1.0]], [[-2.0]]], [[[4.0]]]]
    assert [len(group) for group in batch["completion_ids"]] == [2, 1]
    assert DataCollatorForValues()([{"row_index": 0, "prompt_ids": [1]}])["completion_ids"] == [[]]


@pytest.mark.parametrize(
    ("change", "heads", "words"),
    [
        ({"scores": [[0.5, 1.0], [3.0]]}, ["reward"], None),
        ({"scores": [[0.5], [3.0]]}, ["reward"], ["Row 1", "'scores'", "[0]", "1 rewards for 3 tokens"]),
        ({"scores": [[0.5, math.inf, 1.0], [3.0]]}, ["reward"], ["Row 1", "'scores'", "[0]", "finite", "inf"]),
        ({"scores": [[0.5, 1.0], None]}, ["reward"], ["Row 1", "'scores'", "[1]", "one per token"]),
        ({"scores": [[0.5, 1.0]]}, ["reward"], ["Row 1", "'scores'", "1 entries for 2 completions"]),
        ({"rewards": {"kind": [1.0]}}, ["kind"], ["Row 1", "'rewards'", "'kind'", "2 entries"]),
        ({"rewards": {"kind": [1.0, math.nan]}}, ["kind"], ["Row 1", "'kind'", "[1]", "nan"]),
        ({"rewards": {"kind": [1.0, 2.0]}}, ["short"], ["'rewards'", "'short'", "'kind'"]),
    ],
)
def test_errors_name_row_and_column(change, heads, words):
    first = {"rewards": {"kind": [0.0, 0.0]}} if "rewards" in change else {"scores": [[0.0, 0.0], [0.0]]}
    rows = [ROW | first, ROW | change]
    if words is None:
        prepare(rows, heads)
        return
    with pytest.raises(DataError) as caught:
        prepare(rows, heads)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_rewards_of_another_type_are_rejected():
    by_completion = ROW | {"rewards": [{"kind": 1.0, "short": 0.0}, {"kind": 0.5, "short": 2.0}]}
    for call in (lambda data: dataset_heads(data, "train"), lambda data: prepare(list(data))):
        with pytest.raises(
            DataError,
            match=r"Row 0 of .*, column 'rewards': must be a dictionary from names .*got list",
        ):
            call(Dataset.from_list([by_completion]))


def test_a_head_without_a_column():
    with pytest.raises(DataError, match=r"'short'.*no column `rewards`"):
        prepare([ROW], ["short"])
