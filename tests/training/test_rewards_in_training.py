# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rewards in the trainers of all methods: GRPO's protocol of reward functions, attributes, failures, columns."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from tiny_trainers import METHODS, PROMPTS, make_trainer

from trl_ext.rewards.functions import RewardError


ROWS = [row | {"label": number} for number, row in enumerate(PROMPTS)]


@pytest.mark.parametrize("method", METHODS)
def test_functions_are_called_as_by_grpo(method: str, tmp_path: Path) -> None:
    """A metric by name, a column of the table, the trainer's state, every column of the row; also async functions."""
    steps = []

    def logs(
        prompts: Any,
        completions: Any,
        completion_ids: Any,
        label: Any,
        trainer_state: Any,
        log_metric: Any,
        log_extra: Any,
    ) -> list[float]:
        steps.append(trainer_state.global_step)
        assert len(label) == len(completions) and all(isinstance(number, int) for number in label)
        log_metric("labels", sum(label) / len(label))
        log_extra("kind", ["long" if len(text) > 8 else len(text) for text in completions])
        return [float(len(text)) for text in completions]

    async def later(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        log_metric("calls", 1.0)
        assert {"label", "completion_ids", "trainer_state", "prompts"} <= columns.keys()
        return letter_reward(completions)

    settings = {"max_steps": 2, "log_completions": True, "reward_batch_size": 2, "num_completions_to_print": 1}
    trainer = make_trainer(method, tmp_path, ROWS, eval_rows=ROWS[:2], reward_funcs=[logs, later], **settings)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "labels" in entry]
    assert logged and all(0 <= entry["labels"] <= 7 and entry["calls"] == 1.0 for entry in logged)
    assert set(steps) >= {0, 1}
    found = trainer.evaluate()
    assert 0 <= found["eval_labels"] <= 1 and "labels" not in found
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) >= 2 and all(set(pd.read_parquet(table)["kind"].map(type)) == {str} for table in tables)


def test_a_reward_model_that_training_would_change(tmp_path: Path) -> None:
    """A value model that begins as the reward model is its own copy: `ValueModel` takes the weights themselves."""
    made = make_trainer("vas", tmp_path)
    tokenizer = made.processing_class
    judge = make_model(len(tokenizer), num_labels=1)

    def trainer(value_model: Any) -> Any:
        return type(made)(
            made.policy,
            judge,
            made.args,
            Dataset.from_list(PROMPTS),
            value_model=value_model,
            processing_class=tokenizer,
            reward_processing_classes=tokenizer,
        )

    with pytest.raises(ValueError, match="'LlamaForSequenceClassification' has weights that are trained here"):
        trainer(judge)
    trainer(copy.deepcopy(judge))


@pytest.mark.parametrize("method", METHODS)
def test_rewards_that_are_all_the_same_are_said_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("trl_ext.training.trainer.logger.warning", lambda text, *_: said.append(str(text)))

    def constant(completions: list[str], **_: Any) -> list[float]:
        return [0.1] * len(completions)

    for reward, expected in ((constant, 1), (letter_reward, 0)):
        said.clear()
        make_trainer(method, tmp_path, ROWS, reward_funcs=reward, max_steps=3, logging_steps=1).train()
        assert sum("all rewards since the last log are the same" in text for text in said) == expected


@pytest.mark.parametrize("method", METHODS)
def test_attributes_that_scripts_for_trl_read(method: str, tmp_path: Path) -> None:
    model = make_model(len(make_tokenizer()), seed=2, num_labels=1)
    model.name_or_path = model.config._name_or_path = "org/judge"
    made = []

    def build(processing_classes: Any, **settings: Any) -> Any:
        from tiny_trainers import discover

        trainer_class = discover().methods[method].method.trainer_class()
        init = trainer_class.__init__

        def with_classes(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, reward_processing_classes=processing_classes, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer_class, "__init__", with_classes)
            made.append(make_trainer(method, tmp_path, reward_funcs=[model, letter_reward], **settings))
        return made[-1]

    tokenizer = make_tokenizer()
    trainer = build([tokenizer, None], reward_weights=[0.5, 2.0])
    assert trainer.reward_funcs == [model, letter_reward]
    assert trainer.reward_func_names == ["judge", "letter_reward"]
    assert trainer.reward_processing_classes == [tokenizer, None]
    assert torch.equal(trainer.reward_weights, torch.tensor([0.5, 2.0]))
    with pytest.raises(ValueError, match=r"\(1\) must match the number of reward functions \(2: judge, letter_reward"):
        build(tokenizer)
    trainer = make_trainer(method, tmp_path)
    assert trainer.reward_processing_classes == [None] and trainer.reward_weights.tolist() == [1.0]


@pytest.mark.parametrize("method", METHODS)
def test_what_was_scored_is_kept_if_a_later_call_fails(method: str, tmp_path: Path) -> None:
    """The third call fails once; training again calls the function for the first two batches no more."""
    calls: list[tuple[str, ...]] = []

    def flaky(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
        calls.append((*prompts, *completions))
        if len(calls) == 2:
            raise OSError("the judge is busy")
        return letter_reward(completions)

    settings = {"max_steps": 1, "reward_batch_size": 1, "per_device_train_batch_size": 4}
    trainer = make_trainer(method, tmp_path, reward_funcs=flaky, **settings)
    with pytest.raises(RewardError, match="the judge is busy"):
        trainer.train()
    assert (tmp_path / "unfinished_scores_0.json").is_file()
    again = make_trainer(method, tmp_path, reward_funcs=flaky, **settings)
    again.train()
    assert not (tmp_path / "unfinished_scores_0.json").exists()
    assert calls[1] == calls[2] and len(calls) == len(set(calls)) + 1
    whole = make_trainer(method, tmp_path / "whole", **settings)
    whole.train()
    assert [entry.get("reward") for entry in again.state.log_history] == [
        entry.get("reward") for entry in whole.state.log_history
    ]


@pytest.mark.parametrize("method", ["rrhf", "psle", "proxy_rlhf"])
def test_functions_may_compare_with_the_answers_of_pairs(method: str, tmp_path: Path) -> None:
    """As with GRPO, `chosen` and `rejected` are columns like others for methods that take only the prompts."""
    seen = set()

    def closer(completions: list[str], chosen: list[str], rejected: list[str], **_: Any) -> list[float]:
        seen.update(zip(chosen, rejected, strict=True))
        return letter_reward(completions)

    rows = [{**row, "chosen": " was good", "rejected": " was bad"} for row in PROMPTS]
    make_trainer(method, tmp_path, rows, reward_funcs=closer, max_steps=1).train()
    assert seen == {(" was good", " was bad")}


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_column_is_found_before_anything_is_generated(method: str, tmp_path: Path) -> None:
    def right(completions: list[str], solution: list[str], **_: Any) -> list[float]:
        return [float(text == answer) for text, answer in zip(completions, solution, strict=True)]

    message = r"'right' needs the column 'solution', which the dataset lacks\. .* reward functions get 'label'\."
    with pytest.raises(ValueError, match=message):
        make_trainer(method, tmp_path, ROWS, reward_funcs=right)
    make_trainer(method, tmp_path, eval_rows=[row | {"solution": "a"} for row in PROMPTS], reward_funcs=right)


@pytest.mark.parametrize("method", METHODS)
def test_a_column_that_only_the_evaluation_set_has_reaches_the_functions(method: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    def by_answer(completions: list[str], answer: list[str] | None = None, **_: Any) -> list[float]:
        seen.append(answer)
        return [0.0] * len(completions)

    extended = [row | {"answer": "good"} for row in PROMPTS[:2]]
    trainer = make_trainer(method, tmp_path, eval_rows=extended, reward_funcs=by_answer)
    trainer.evaluate()
    assert {answer for answers in seen for answer in answers} == {"good"}


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_has_nothing_of_another_that_failed_or_predicted(method: str, tmp_path: Path) -> None:
    """Generated completions: `predict` measures what `evaluate` does, and what reward functions log is of one call."""
    fails = [False]

    def flaky(completions: list[str], log_metric: Any, **_: Any) -> list[float]:
        log_metric("calls", len(completions))
        if fails.pop():
            raise OSError("the judge is busy")
        fails.append(False)
        return letter_reward(completions)

    trainer = make_trainer(
        method, tmp_path, eval_rows=PROMPTS[:3], reward_funcs=flaky, per_device_eval_batch_size=2, reward_batch_size=2
    )

    def measured(metrics: dict[str, float]) -> dict[str, float]:
        times = ("second", "time", "epoch")
        return {k.partition("_")[2]: v for k, v in metrics.items() if not any(time in k for time in times)}

    before = measured(trainer.evaluate())
    assert "calls" in before
    assert measured(trainer.predict(trainer.eval_dataset).metrics) == before
    fails.append(True)
    with pytest.raises(RewardError, match="the judge is busy"):
        trainer.evaluate()
    fails.append(False)
    assert measured(trainer.evaluate()) == before
