# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Tables for `compute_metrics`: a row for each prompt, a column for each completion, NaN where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_trainers import SCORED, make_trainer
from transformers import EvalPrediction

from trl_ext.training.predictions import completion_table, on_tables


NAN = float("nan")
# Groups of 1, 2 and 3 completions; -100 is a reward as any other.
ROWS = [
    {**row, "completions": row["completions"][:k], "scores": [-100.0, 2.0, 1.0][:k]}
    for k, row in enumerate(SCORED[:3], 1)
]
SCORES = [[-100, NAN, NAN], [-100, 2, NAN], [-100, 2, 1]]


def test_tables() -> None:
    table = completion_table(torch.tensor([1.0, 2.0, 3.0]), [[2], [], range(2)], 3)
    np.testing.assert_equal(table.numpy(), [[NAN, NAN, 1], [NAN] * 3, [2, 3, NAN]])
    assert completion_table(torch.zeros(0), [[], []], 2).isnan().all()
    by_head = completion_table(torch.arange(6.0).reshape(3, 2), [[0, 1], [0]], 1)
    np.testing.assert_equal(by_head.numpy(), [[[0, 1], [2, 3]], [[4, 5], [NAN, NAN]]])


def test_padding_of_transformers_is_nan_and_a_reward_of_the_same_value_is_not() -> None:
    seen: list[Any] = []

    def metrics(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        seen.extend(prediction)
        return {"x": float(compute_result)}

    found = on_tables(metrics)(
        EvalPrediction(np.array([-1.0, -100.0]), np.array([-100.0, -100.0])), compute_result=True
    )
    assert found == {"x": 1.0}
    np.testing.assert_equal(seen, [[-1, NAN], [-100, NAN]])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", ["rrhf", "vas"])
def test_scored_rows(tmp_path: Path, method: str, streamed: bool) -> None:
    """The same tables in evaluation and prediction, for batches of any size, and for streams, whose K is not known."""
    seen: list[Any] = []

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"best": float(np.nanmax(prediction.label_ids))}

    rows = Dataset.from_list(ROWS)
    given = rows.to_iterable_dataset() if streamed else rows
    for size in (1, 3):
        run = make_trainer(
            method, tmp_path, ROWS, reward_funcs=None, resample_steps=0, num_generations=1, compute_metrics=metrics,
            per_device_eval_batch_size=size,
        )  # fmt: skip
        assert run.evaluate(given)["eval_best"] == 2.0
        output = run.predict(given)
        assert output.metrics["test_best"] == 2.0
        for labels in (seen[-2].label_ids, seen[-1].label_ids, output.label_ids):
            np.testing.assert_equal(labels, SCORES)
        np.testing.assert_equal(np.isnan(output.predictions), np.isnan(SCORES))
        np.testing.assert_equal(seen[-2].predictions, output.predictions)
    np.testing.assert_allclose(seen[0].predictions, seen[-1].predictions, atol=1e-4)


def test_values_are_means_over_tokens_in_units_of_the_rewards(tmp_path: Path) -> None:
    rows = [{**row, "rewards": {"a": row["scores"], "b": [None] * len(row["scores"])}} for row in ROWS]
    run = make_trainer("vas", tmp_path, rows, reward_funcs=None, resample_steps=0, heads=["a", "b"], num_generations=1)
    run.model.config.reward_mean, run.model.config.reward_std = [3.0, 0.0], [2.0, 1.0]
    output = run.predict(Dataset.from_list(rows))
    assert output.predictions.shape == output.label_ids.shape == (3, 3, 2)
    np.testing.assert_equal(output.label_ids[..., 0], SCORES)
    assert np.isnan(output.label_ids[..., 1]).all()
    batch = run.data_collator([run.train_dataset[2]])
    with torch.no_grad():
        tokens = run.token_values(run.model, batch["prompt_ids"], batch["completion_ids"])
    for k, length in enumerate(map(len, batch["completion_ids"][0])):
        mean_H = tokens.values[k, :length].mean(dim=0)
        expected = [float(mean_H[0]) * 2 + 3, float(mean_H[1])]
        assert output.predictions[2, k].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_completions_has_rows_too(tmp_path: Path) -> None:
    """All rewards of the second prompt are unknown; its row is there, so that the others keep their places."""

    def reward(prompts: list[str], **_: Any) -> list[float | None]:
        return [None if prompt == ROWS[1]["prompt"] else float(n) for n, prompt in enumerate(prompts)]

    rows = [{"prompt": row["prompt"]} for row in ROWS]
    for method in ("rrhf", "vas"):
        run = make_trainer(method, tmp_path, rows, reward_funcs=reward, per_device_eval_batch_size=1)
        output = run.predict(Dataset.from_list(rows))
        np.testing.assert_equal(output.label_ids, [[0, 1], [NAN, NAN], [0, 1]])
        np.testing.assert_equal(np.isnan(output.predictions), np.isnan(output.label_ids))
