# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A run continues exactly, or an error says what has changed: batch sizes, processes, rows, versions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tiny_trainers import PROMPTS, SCORED, losses, make_trainer

from trl_ext.training.run_record import FILE, RunRecord, check_continues, rows_digest


OFFLINE: dict[str, Any] = {"resample_steps": 0, "reward_funcs": None, "rows": SCORED, "num_train_epochs": 2}


def run(method: str, folder: Path, resume: bool = False, **settings: Any) -> Any:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 1e-2}
    trainer = make_trainer(method, folder, **common | settings)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    return trainer


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rrhf", {}),
        ("rrhf", OFFLINE),
        ("vas", {}),
        ("vas", {**OFFLINE, "num_epochs_per_batch": 2}),
        ("psle", {}),
        ("proxy_rlhf", {"num_mini_batches": 4, "max_steps": 8}),
    ],
)
def test_another_batch_size_is_named(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    run(method, tmp_path, **settings)
    with pytest.raises(ValueError, match="`per_device_train_batch_size` was 2 and is 4"):
        run(method, tmp_path, resume=True, per_device_train_batch_size=4, **settings)
    with pytest.raises(ValueError, match="`seed` was 1 and is 2"):
        run(method, tmp_path, resume=True, seed=2, **settings)


def test_steps_of_the_same_rows_may_be_split_in_another_way(tmp_path: Path) -> None:
    """Without generated completions a step is the same whatever its micro-batches are."""
    whole = run("rrhf", tmp_path, **OFFLINE)
    other = run("rrhf", tmp_path, resume=True, **OFFLINE, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert losses(other) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "settings", "changes", "words"),
    [
        ("vas", {**OFFLINE, "num_epochs_per_batch": 2}, {"num_epochs_per_batch": 1}, "was 2 and is 1"),
        ("proxy_rlhf", {"num_mini_batches": 4}, {"num_ppo_epochs": 2}, "was 4 and is 8"),
    ],
)
def test_steps_on_the_same_rows_are_as_many(
    method: str, settings: dict[str, Any], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Otherwise the rows that are skipped are not those that were trained on."""
    run(method, tmp_path, **settings)
    with pytest.raises(ValueError, match=f"the number of steps on the same rows {words}"):
        run(method, tmp_path, resume=True, **settings | changes)


def test_completions_belong_to_their_micro_batches(tmp_path: Path) -> None:
    run("rrhf", tmp_path)
    with pytest.raises(
        ValueError, match=r"`per_device_train_batch_size` was 2 and is 1; `gradient_acc.* was 1 and is 2"
    ):
        run("rrhf", tmp_path, resume=True, per_device_train_batch_size=1, gradient_accumulation_steps=2)


def test_other_rows_are_named(tmp_path: Path) -> None:
    run("rrhf", tmp_path, **OFFLINE)
    changed = [{**row, "completions": [" was bad", *row["completions"][1:]]} for row in SCORED]
    for rows in (SCORED[:7], changed, list(reversed(SCORED))):
        with pytest.raises(ValueError, match=r"the train dataset was 8 rows \(.*\) and is . rows \("):
            run("rrhf", tmp_path, resume=True, **OFFLINE | {"rows": rows})


def test_rows_that_are_not_skipped_may_be_others(tmp_path: Path) -> None:
    run("rrhf", tmp_path, **OFFLINE)
    settings = OFFLINE | {"rows": SCORED[:4], "per_device_train_batch_size": 1, "ignore_data_skip": True}
    assert run("rrhf", tmp_path, resume=True, **settings).state.global_step == 4


def test_a_checkpoint_of_another_version(tmp_path: Path) -> None:
    run("rrhf", tmp_path, **OFFLINE)
    file = tmp_path / "checkpoint-2" / FILE
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"version": "9.0", "format": record["format"] + 1}))
    with pytest.raises(ValueError, match=r"was written by trl-ext 9\.0; trl-ext .* Resume with the version that"):
        run("rrhf", tmp_path, resume=True, **OFFLINE)
    file.write_text(json.dumps(record | {"version": "9.0"}))  # which writes the same checkpoints
    assert run("rrhf", tmp_path, resume=True, **OFFLINE).state.global_step == 4
    file.unlink()
    with pytest.raises(ValueError, match="was written by another trainer or an older trl-ext"):
        run("rrhf", tmp_path, resume=True, **OFFLINE)


def test_another_number_of_processes(tmp_path: Path) -> None:
    record = RunRecord.of(make_trainer("rrhf", tmp_path))
    record.save(tmp_path)
    two = replace(record, num_processes=2, per_device_train_batch_size=1)
    check_continues(tmp_path, two, exact_layout=False)
    with pytest.raises(ValueError, match="the number of processes was 1 and is 2"):
        check_continues(tmp_path, two, exact_layout=True)
    with pytest.raises(ValueError, match="the number of processes was 1 and is 2"):
        check_continues(tmp_path, replace(record, num_processes=2), exact_layout=False)


@pytest.mark.parametrize(
    ("order", "processes"),
    [
        ({"dataloader_drop_last": True}, 1),  # 10 rows: 2 batches of 4, but 5 of 2, which are 3 steps
        ({"train_sampling_strategy": "batch_rebalance"}, 1),
        ({"rows": ""}, 2),  # accelerate shards a stream, so that a step of two processes has other rows
    ],
)
def test_a_layout_that_the_order_of_rows_depends_on(order: dict[str, Any], processes: int, tmp_path: Path) -> None:
    record = replace(RunRecord.of(make_trainer("rrhf", tmp_path)), **order)
    record.save(tmp_path)
    half = replace(record, per_device_train_batch_size=record.per_device_train_batch_size // 2)
    split = replace(half, num_processes=processes, gradient_accumulation_steps=2 // processes)
    with pytest.raises(ValueError, match=r"was 1 and is 2|was 2 and is 1"):
        check_continues(tmp_path, split, exact_layout=False)
    if "rows" in order:  # one process reads a stream in order
        check_continues(tmp_path, replace(half, gradient_accumulation_steps=2), exact_layout=False)


def test_a_batch_size_that_was_found_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    record = RunRecord.of(make_trainer("rrhf", tmp_path))
    record.save(tmp_path)
    larger = replace(record, per_device_train_batch_size=8)
    check_continues(tmp_path, larger, exact_layout=True, finds_batch_size=True)


def test_the_digest_of_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = [{"row_index": i, "prompt_ids": tokenizer(row["prompt"])["input_ids"]} for i, row in enumerate(PROMPTS)]
    dataset = Dataset.from_list(rows * 100)
    assert rows_digest(dataset).startswith("800 rows (")
    assert rows_digest(dataset.to_iterable_dataset()) == ""
