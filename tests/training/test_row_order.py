# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The order of rows: repeated steps, rows of one length in a step."""

from types import SimpleNamespace

import pytest

from trl_ext.training.row_order import RowOrder, steps_in_epoch


@pytest.mark.parametrize(("rows", "step", "repeats"), [(8, 4, 2), (7, 4, 2), (3, 4, 3), (5, 1, 2)])
def test_each_step_comes_several_times_and_no_row_is_left_out(rows, step, repeats):
    sampler = RowOrder(rows, step, repeats, seed=3, epoch=lambda: 0)
    order = list(sampler)
    assert len(order) == len(sampler)
    steps = [order[i : i + step] for i in range(0, len(order), step)]
    assert len(steps) == -(-rows // step) * repeats
    for i in range(0, len(steps), repeats):
        assert all(other == steps[i] for other in steps[i : i + repeats])
    once = [row for i in range(0, len(steps), repeats) for row in steps[i]]
    assert sorted(once[:rows]) == list(range(rows))
    assert once[rows:] == [once[i % rows] for i in range(rows, len(once))]


def test_the_order_depends_on_seed_and_epoch_alone():
    epoch = [0]
    sampler = RowOrder(20, 4, 2, seed=3, epoch=lambda: epoch[0])
    first = list(sampler)
    assert list(sampler) == first
    epoch[0] = 1
    assert list(sampler) != first
    assert list(RowOrder(20, 4, 2, seed=4, epoch=lambda: 0)) != first
    assert list(RowOrder(5, 3, 1, seed=4, epoch=lambda: 0, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("repeats", [1, 2])
def test_rows_of_one_length_share_a_step(repeats):
    lengths = [1, 9, 5, 1, 9, 5, 1, 9, 5, 1, 9]
    order = list(RowOrder(11, 4, repeats, seed=4, epoch=lambda: 0, lengths=lengths))
    steps = [order[i : i + 4] for i in range(0, len(order), 4)][::repeats]
    assert [sorted(lengths[row] for row in step) for step in steps[:2]] == [[9, 9, 9, 9], [1, 5, 5, 5]]
    assert sorted(row for step in steps for row in step)[:11] == list(range(11)) or repeats == 2
    assert len(order) == len(RowOrder(11, 4, repeats, seed=4, epoch=lambda: 0, lengths=lengths))


@pytest.mark.parametrize(
    ("rows", "repeats", "drops"), [(9, 1, False), (9, 1, True), (8, 1, False), (9, 3, True), (1, 1, True)]
)
def test_steps_are_counted_before_there_is_a_trainer(rows, repeats, drops):
    """Two processes with batches of two rows, two of which are a step."""
    args = SimpleNamespace(train_batch_size=2, world_size=2, gradient_accumulation_steps=2, dataloader_drop_last=drops)
    order = len(RowOrder(rows, 8, repeats, seed=0, epoch=lambda: 0))
    batches = order // 4 if drops else -(-order // 4)
    assert steps_in_epoch(args, rows, repeats) == max(1, -(-batches // 2))
