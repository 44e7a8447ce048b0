# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Completions that trainers generate: weights of rewards, length and seeds; and evaluations after one that failed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import letter_reward
from peft import PeftType
from tiny_trainers import PROMPTS, make_trainer

from trl_ext import RRHFConfig
from trl_ext.rewards.functions import RewardError
from trl_ext.training import online_trainer


ONLINE = ["rrhf", "psle", "vas"]


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def rows_of(run: Any, count: int = 3) -> list[dict[str, Any]]:
    return [run.train_dataset[i] for i in range(count)]


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_score_is_the_weighted_sum_of_the_rewards(tmp_path: Path, method: str, mode: str) -> None:
    """2 x letters - 0.5 x tokens, which the loop adds up for each completion."""
    run = make_trainer(method, tmp_path, reward_funcs=[letter_reward, length], reward_weights=[2.0, -0.5])
    sampled = run._sample_round(rows_of(run), mode)
    expected = [
        2.0 * a - 0.5 * b for a, b in zip(sampled.table["letter_reward"], sampled.table["length"], strict=True)
    ]
    assert sampled.table["length"] == sampled.lengths and len(set(expected)) > 1
    assert sampled.table["score"] == pytest.approx(expected)
    assert [score for rollout in sampled.rollouts.values() for score in rollout.scores] == pytest.approx(expected)


@pytest.mark.parametrize("method", ONLINE)
def test_completions_are_cut_where_prompt_and_completion_reach_max_length(tmp_path: Path, method: str) -> None:
    """Prompts of 2, 3 and 2 tokens leave 3, 2 and 3 of the 6 that are generated; none is lost."""
    run = make_trainer(method, tmp_path, max_length=5)
    rows = rows_of(run)
    assert [len(row["prompt_ids"]) for row in rows] == [2, 3, 2]
    sampled = run._sample_round(rows)
    k = len(sampled.lengths) // 3
    for row, longest in zip(rows, (3, 2, 3), strict=True):
        found = sampled.rollouts[row["row_index"]].completion_ids
        assert len(found) == k and max(map(len, found)) == longest


@pytest.mark.parametrize("method", ONLINE)
def test_batches_of_an_evaluation_differ_and_evaluations_do_not(tmp_path: Path, method: str) -> None:
    run = make_trainer(method, tmp_path)

    def evaluation(step: int) -> list[list[list[list[int]]]]:
        """The completions of two batches with the same rows."""
        run.state.global_step = step
        run._begin_evaluation(None, "eval", "eval")
        return [[rollout.completion_ids for rollout in run._sample_evaluation(rows_of(run))] for _ in range(2)]

    first, second = evaluation(step=3)
    assert first != second
    assert evaluation(step=4) == [first, second]


def test_seeds_are_of_the_step_in_training_and_of_the_batch_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation they count down from -1, so that none is that of a step."""
    run = make_trainer("rrhf", tmp_path, seed=7)
    monkeypatch.setattr("trl_ext.training.trainer.seeded", lambda *given: given)
    run.accelerator = SimpleNamespace(process_index=1)
    run.state.global_step, run._eval_batches = 5, 2
    assert run._seeded("train") == (7, 5, 1)
    assert run._seeded("eval") == (7, -3, 1)


@pytest.mark.parametrize("method", ONLINE)
def test_an_evaluation_that_failed_leaves_nothing_in_the_next(tmp_path: Path, method: str) -> None:
    """The second of two batches fails; the same evaluation again has the metrics and completions of one alone."""
    calls: list[int] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ValueError("the server is down")
        return letter_reward(completions)

    settings: dict[str, Any] = {
        "eval_rows": PROMPTS[:4],
        "per_device_eval_batch_size": 2,
        "log_completions": True,
        "num_completions_to_print": 0,
    }
    run = make_trainer(method, tmp_path / "failed", reward_funcs=reward, **settings)
    with pytest.raises(RewardError, match="the server is down"):
        run.evaluate()
    found = run.evaluate()
    alone = make_trainer(method, tmp_path / "alone", **settings).evaluate()
    compared = ["eval_loss", "eval_reward", "eval_completions/mean_length", "eval_entropy"]
    compared = [name for name in compared if name in alone]
    assert len(compared) > 2 and {name: found[name] for name in compared} == pytest.approx(
        {name: alone[name] for name in compared}
    )
    tables = [
        pd.read_parquet(tmp_path / name / "completions/eval_completions_00000.parquet") for name in ("failed", "alone")
    ]
    assert list(tables[0]["completion"]) == list(tables[1]["completion"])


@pytest.mark.parametrize("method", ONLINE)
def test_dropped_rows_are_those_of_the_training_dataset(tmp_path: Path, method: str) -> None:
    """One of its prompts fills `max_length`, and two of the evaluation's."""
    long = {"prompt": "the film was good and so"}
    run = make_trainer(
        method, tmp_path, [*PROMPTS[:2], long], eval_rows=[*PROMPTS[:2], long, long], max_length=6, eval_strategy="no"
    )
    assert run._totals()["dropped_rows"] == 1.0


@pytest.mark.parametrize(
    ("kind", "rate", "warned"),
    [("LORA", 2e-5, True), ("LORA", 2e-4, False), ("IA3", 2e-5, False), (None, 2e-5, False)],
)
def test_lora_at_a_learning_rate_for_all_weights_is_reported(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, rate: float, warned: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(online_trainer.logger, "warning", said.append)
    monkeypatch.setattr(online_trainer, "is_peft_model", lambda model: kind is not None)
    adapter = SimpleNamespace(peft_type=kind and PeftType(kind))
    online_trainer._check_learning_rate(
        SimpleNamespace(active_peft_config=adapter), RRHFConfig("out", learning_rate=rate)
    )
    assert [line for line in said if "set it to 0.0002" in line] == said and bool(said) == warned
