# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Batches of RRHF: ragged groups stay lists, and rows without completions keep their place."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.methods.rrhf.data import DataCollatorForScoredCompletions, group_index


def test_ragged_groups_stay_lists():
    rows = [
        {"row_index": 7, "prompt_ids": [1, 2], "completion_ids": [[3], [4, 5]], "scores": [0.0, 1.0], "topic": "x"},
        {"row_index": 2, "prompt_ids": [6], "completion_ids": [[7, 8, 9]], "scores": [0.5], "topic": "y"},
    ]
    batch = DataCollatorForScoredCompletions()(rows)
    assert batch.pop("row_index").tolist() == [7, 2]
    assert batch == {
        "prompt_ids": [[1, 2], [6]],
        "completion_ids": [[[3], [4, 5]], [[7, 8, 9]]],
        "scores": [[0.0, 1.0], [0.5]],
        "rows": rows,
    }


def test_row_index_is_a_tensor_of_whole_numbers():
    # Trainer finds the size of a batch by its first tensor, and rollouts are looked up by this number.
    batch = DataCollatorForScoredCompletions()([{"row_index": 3, "prompt_ids": [1]}] * 4)
    assert batch["row_index"].dtype == torch.long
    assert batch["row_index"].shape == (4,)


def test_rows_without_completions_have_empty_groups():
    rows = [
        {"row_index": 0, "prompt_ids": [1]},
        {"row_index": 1, "prompt_ids": [2], "completion_ids": None, "scores": None},
        {"row_index": 2, "prompt_ids": [3], "completion_ids": [[4]], "scores": [1.0]},
    ]
    batch = DataCollatorForScoredCompletions()(rows)
    assert batch["completion_ids"] == [[], [], [[4]]]
    assert batch["scores"] == [[], [], [1.0]]


@given(st.lists(st.lists(st.integers(), max_size=4), max_size=5))
def test_group_index_names_the_prompt_of_each_completion(groups):
    index = group_index(groups)
    flat = [item for group in groups for item in group]
    assert len(index) == len(flat)
    assert [
        [item for item, b in zip(flat, index, strict=True) if b == prompt] for prompt in range(len(groups))
    ] == groups
