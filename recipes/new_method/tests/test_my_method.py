# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""MyMethod: its losses against plain loops, and two steps of training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl_ext.method import discover

from my_method.losses import best_completion, ranking_loss


MODEL = Path(__file__).parents[1] / "recipes" / "models" / "imdb-2m"
S = torch.tensor([0.3, -1.0, 0.5, 0.1, -0.2, 0.7])
SCORES = torch.tensor([1.0, 3.0, 1.0, 2.0, 0.0, 5.0])
GROUP = torch.tensor([0, 0, 0, 1, 1, 2])  # three, two and one completion


def test_ranking_loss_equals_a_plain_loop() -> None:
    expected = [0.0, 0.0, 0.0]
    for i in range(6):
        rivals = [j for j in range(6) if GROUP[j] == GROUP[i] and SCORES[j] < SCORES[i]]
        expected[GROUP[i]] += math.log(sum(math.exp(S[j]) for j in [i, *rivals])) - S[i].item()
    assert ranking_loss(S, SCORES, GROUP, 3).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[2] == pytest.approx(0)  # nothing to rank


def test_the_gradient_raises_the_best_and_lowers_the_worst() -> None:
    s_N = torch.zeros(3, requires_grad=True)
    ranking_loss(s_N, torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3, dtype=torch.long), 1).sum().backward()
    assert s_N.grad is not None
    assert s_N.grad[2] < 0 < s_N.grad[0]


def test_equal_scores_are_not_ranked() -> None:
    assert ranking_loss(S, torch.ones(6), GROUP, 3).tolist() == [0.0, 0.0, 0.0]


def test_best_completion_is_the_first_of_tied_ones() -> None:
    assert best_completion(torch.tensor([1.0, 3.0, 3.0, 2.0, 0.0, 5.0]), GROUP, 3).tolist() == [1, 3, 5]


@pytest.mark.parametrize("generates", [False, True])
def test_two_steps(tmp_path: Path, generates: bool) -> None:
    """From scored rows, and from prompts with a reward function."""
    method = discover().methods["my_method"].method
    rows: list[dict[str, Any]] = [{"prompt": "The film was"}, {"prompt": "I thought the story"}] * 2
    if not generates:
        rows = [{**row, "completions": [" great.", " fine.", " dull."], "scores": [2.0, 1.0, 0.0]} for row in rows]
    args = method.config_class()(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        num_generations=3,
        max_completion_length=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(text.count("e")) for text in completions]

    trainer = method.trainer_class()(
        str(MODEL), args=args, train_dataset=Dataset.from_list(rows), reward_funcs=reward if generates else None
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
