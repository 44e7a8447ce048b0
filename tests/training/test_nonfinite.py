# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Every method reports a non-finite loss or reward with its step and rows, and then stops or skips it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward
from tiny_trainers import METHODS, OPENINGS, losses, make_trainer

from trl_ext.rewards.functions import RewardError
from trl_ext.training import nonfinite
from trl_ext.training.nonfinite import LossGuard, NonFiniteLossError


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(nonfinite.logger, "warning", said.append)
    return said


def poison(trainer: Any, step: int, value: float = math.nan) -> dict[int, list[torch.Tensor]]:
    """Let the loss of the given step (from 0) be `value`; returns the weights before each step, filled in training."""
    inner, weights = trainer.compute_loss, {}

    def compute_loss(model: Any, inputs: Any, **kwargs: Any) -> torch.Tensor:
        weights[trainer.state.global_step] = [p.detach().clone() for p in trainer.model.parameters()]
        loss = inner(model, inputs, **kwargs)
        return loss * value if trainer.state.global_step == step else loss

    trainer.compute_loss = compute_loss
    return weights


class SpoiltGradient(torch.autograd.Function):
    """The identity, whose gradient is the given non-finite value."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return torch.full_like(gradient, ctx.value), None


def spoil(trainer: Any, calls: tuple[int, ...], value: float = math.nan) -> tuple[list[Any], list[Any]]:
    """Let the gradient of micro-batches (from 0) be `value`; returns the weights before each, and its row numbers."""
    inner, weights, rows = trainer.compute_loss, [], []

    def compute_loss(model: Any, inputs: Any, **kwargs: Any) -> torch.Tensor:
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
        rows.append([OPENINGS.index(row["prompt"]) for row in inputs.get("rows", [])])
        loss = inner(model, inputs, **kwargs)
        return SpoiltGradient.apply(loss, value) if len(weights) - 1 in calls else loss

    trainer.compute_loss = compute_loss
    return weights, rows


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_training_stops_at_a_gradient_that_is_nan(method: str, max_grad_norm: float, tmp_path: Path) -> None:
    trainer = make_trainer(method, tmp_path, max_steps=3, max_grad_norm=max_grad_norm)
    weights, _ = spoil(trainer, (1,))
    with pytest.raises(
        NonFiniteLossError, match=r"^The gradient of step 2 is not finite.*\((rows|responses of the) .*\d"
    ):
        trainer.train()
    assert len(weights) == 2 and equal(weights[1], list(trainer.model.parameters()))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_whose_gradient_is_not_finite_is_left_out(
    value: float, max_grad_norm: float, tmp_path: Path, warnings: list[str]
) -> None:
    trainer = make_trainer(
        "rrhf", tmp_path, max_steps=3, nan_loss="skip", weight_decay=0.1, max_grad_norm=max_grad_norm,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    weights, rows = spoil(trainer, (3,), value)  # the second of step 2's two
    trainer.train()
    assert equal(weights[2], weights[4]), "the step was taken"
    assert not equal(weights[4], list(trainer.model.parameters())), "nothing was learned afterwards"
    named = ", ".join(map(str, sorted({*rows[2], *rows[3]})))
    assert warnings == [f"The gradient of step 2 is not finite, its loss is (rows {named}). The step is skipped."]
    assert [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry] == [0, 1, 1]


def test_gradients_of_a_scaled_loss_are_the_scalers(tmp_path: Path) -> None:
    """In fp16 the gradient scaler skips steps whose gradients overflow, to find its scale."""
    trainer = make_trainer("rrhf", tmp_path)
    trainer.accelerator.scaler = object()
    next(trainer.model.parameters()).grad = torch.full_like(next(trainer.model.parameters()), math.inf)
    trainer._guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.accelerator.scaler = None
    with pytest.raises(NonFiniteLossError, match="gradient of step 1 is not finite"):
        trainer._guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, model=trainer.model)


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_training_stops_at_a_loss_that_is_nan(method: str, tmp_path: Path) -> None:
    trainer = make_trainer(method, tmp_path, max_steps=4)
    weights = poison(trainer, 2)
    with pytest.raises(NonFiniteLossError, match=r"^The loss of step 3 is nan \((rows|responses of the round) \d"):
        trainer.train()
    assert equal(weights[2], list(trainer.model.parameters()))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_step_whose_loss_is_infinite_is_left_out(method: str, tmp_path: Path, warnings: list[str]) -> None:
    trainer = make_trainer(method, tmp_path, max_steps=4, nan_loss="skip", weight_decay=0.1)
    weights = poison(trainer, 1, math.inf)
    trainer.train()
    assert equal(weights[1], weights[2]), "the step was taken"
    assert not equal(weights[2], weights[3]), "nothing was learned afterwards"
    assert len(warnings) == 1 and warnings[0].startswith("The loss of step 2 is ") and "skipped" in warnings[0]
    assert all(map(math.isfinite, losses(trainer)))
    assert [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry] == [0, 1, 1, 1]


def test_only_the_step_is_left_out_when_gradients_accumulate(tmp_path: Path, warnings: list[str]) -> None:
    """One micro-batch of two makes the sum of both NaN."""
    trainer = make_trainer("rrhf", tmp_path, max_steps=1, nan_loss="skip", gradient_accumulation_steps=2)
    inner, calls = trainer.compute_loss, []

    def compute_loss(model: Any, inputs: Any, **kwargs: Any) -> torch.Tensor:
        calls.append([OPENINGS.index(row["prompt"]) for row in inputs["rows"]])
        return inner(model, inputs, **kwargs) * (math.nan if len(calls) == 1 else 1.0)

    trainer.compute_loss = compute_loss
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert len(calls) == 2 and equal(before, list(trainer.model.parameters()))
    assert f"(rows {min(calls[0])}, {max(calls[0])})" in warnings[0]


def test_weights_that_are_lost_are_an_error_even_so(tmp_path: Path, warnings: list[str]) -> None:
    trainer = make_trainer("rrhf", tmp_path, max_steps=2, nan_loss="skip")
    poison(trainer, 0)
    with torch.no_grad():
        next(trainer.model.parameters())[-1] = math.nan
    with pytest.raises(NonFiniteLossError, match="the weights are not finite"):
        trainer.train()


def test_deepspeed_cannot_leave_a_step_out(tmp_path: Path) -> None:
    trainer = make_trainer("rrhf", tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="nan_loss='skip'` cannot be used with DeepSpeed"):
        LossGuard(trainer, "skip")
    LossGuard(trainer, "stop")


class Doubtful:
    """NaN for the first completion of a call, and for all in the calls given."""

    __name__ = "doubtful"

    def __init__(self, silent: tuple[int, ...] = ()) -> None:
        self.calls, self.silent, self.prompt = 0, silent, ""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        self.calls, self.prompt = self.calls + 1, self.prompt or prompts[0]
        rewards = letter_reward(completions)
        return [math.nan] * len(rewards) if self.calls in self.silent else [math.nan, *rewards[1:]]


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_is_nan_is_left_out_and_named(method: str, tmp_path: Path, warnings: list[str]) -> None:
    settings = {"num_generations": 4, "max_steps": 3}
    # Nothing to decide on is an error of its own there.
    reward = Doubtful(silent=() if method == "proxy_rlhf" else (2,))
    trainer = make_trainer(method, tmp_path, reward_funcs=reward, **settings)
    trainer.train()
    assert len(warnings) == 3
    assert "In step 0 the reward function 'doubtful' returned NaN 1 times for " in warnings[0]
    assert f"(rows {OPENINGS.index(reward.prompt)})" in warnings[0], "not its number in the dataset"
    ratios = [entry["rewards/nan_ratio"] for entry in trainer.state.log_history if "rewards/nan_ratio" in entry]
    assert len(ratios) == 3 and 0 < ratios[0] < 0.5
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert all(map(math.isfinite, losses(trainer)))


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_is_nan_stops_if_it_is_to(method: str, tmp_path: Path) -> None:
    trainer = make_trainer(method, tmp_path, reward_funcs=Doubtful(), nan_rewards="stop", max_steps=2)
    with pytest.raises(RewardError, match=r"In step 0 the reward function 'doubtful' returned NaN 1 times .*rows \d"):
        trainer.train()


def test_none_says_that_a_function_does_not_apply(tmp_path: Path, warnings: list[str]) -> None:
    def sometimes(completions: list[Any], **_: Any) -> list[float | None]:
        return [None, *letter_reward(completions)[1:]]

    make_trainer("rrhf", tmp_path, reward_funcs=sometimes, nan_rewards="stop", max_steps=1).train()
    assert not warnings


@pytest.mark.parametrize("name", ["nan_loss", "nan_rewards"])
def test_settings(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be one of stop, skip, got 'ignore'"):
        make_trainer("rrhf", tmp_path, **{name: "ignore"})
