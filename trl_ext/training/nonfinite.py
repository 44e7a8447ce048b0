# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Handling of non-finite losses, gradients and rewards: report, then stop or skip."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from trl_ext.rewards.functions import RewardError


logger = logging.get_logger(__name__)

SHOWN = 8  # maximum number of rows in a message


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite. The message names the step and the rows."""


class LossGuard(TrainerCallback):
    """
    Checks the loss of each micro-batch, and the gradient of each step before the optimizer uses it.

    A gradient can be NaN although the loss is finite (the square root of 0, a sum that overflows in half precision);
    clipping then makes the entire gradient NaN. In fp16 the gradient is left to the gradient scaler, whose job is to
    skip such steps, and with DeepSpeed to its engine, which takes the step before a callback can check it.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer.
        action (`str`): `"stop"` with an error, or `"skip"` the optimizer step.

    Attributes:
        skipped (`int`): Number of steps that were skipped.

    Raises:
        `ValueError`: `"skip"` is used with DeepSpeed.
    """

    def __init__(self, trainer: Trainer, action: str) -> None:
        if action == "skip" and trainer.is_deepspeed_enabled:
            raise ValueError("`nan_loss='skip'` cannot be used with DeepSpeed, whose engine takes the step itself.")
        self.accelerator, self.action, self.skipped = trainer.accelerator, action, 0
        self._found = False
        self._rows: list[tuple[str, torch.Tensor]] = []  # of the step's micro-batches

    def check(self, loss: torch.Tensor, inputs: Mapping[str, Any], step: int) -> torch.Tensor:
        """
        The loss of a micro-batch, or 0 if it is not finite.

        Args:
            loss (`torch.Tensor`): The loss.
            inputs (`Mapping`): The micro-batch.
            step (`int`): The step that it belongs to.

        Raises:
            [`NonFiniteLossError`]: The loss is not finite, and the action is to stop.
        """
        rows = _rows_of(inputs)
        self._rows += rows
        if torch.isfinite(loss).all():
            return loss
        self._report(f"The loss of step {step} is {loss.mean().item()}{_named(_numbers(rows))}.")
        self._found = True
        return torch.zeros_like(loss)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        scaled = getattr(self.accelerator, "scaler", None) is not None
        largest = torch.zeros(()) if scaled else _largest(model)
        device = self.accelerator.device
        found = torch.stack([torch.tensor(float(self._found)), 1.0 - torch.isfinite(largest).float().cpu()])
        # All processes decide together: each may hold another part of the gradient.
        in_loss, in_gradient = self.accelerator.reduce(found.to(device), reduction="sum").tolist()
        rows, self._rows, self._found = self._rows, [], False
        if not (in_loss or in_gradient):
            return
        if not in_loss:
            numbers = gather_object(_numbers(rows))
            text = f"The gradient of step {state.global_step + 1} is not finite, its loss is{_named(numbers)}."
            self._report(text, warns=self.accelerator.is_main_process)  # the same text on all processes
        if not all(bool(torch.isfinite(_local(p)).all()) for p in model.parameters() if p.requires_grad):
            raise NonFiniteLossError(
                f"After step {state.global_step} the weights are not finite, so skipping steps does not help. Resume "
                "from a checkpoint with a lower `learning_rate`."
            )
        model.zero_grad()  # the optimizer does not change parameters without a gradient
        self.skipped += 1

    def _report(self, text: str, warns: bool = True) -> None:
        if self.action == "stop":
            raise NonFiniteLossError(
                f"{text} Check these rows, lower `learning_rate`, or train in bf16 rather than fp16. "
                "`nan_loss='skip'` skips such steps."
            )
        if warns:
            logger.warning(f"{text} The step is skipped.")


def _largest(model: torch.nn.Module) -> torch.Tensor:
    """The largest absolute value in this process's part of the gradient, or NaN. The 2-norm could overflow."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    gradients = [_local(g.coalesce().values() if g.is_sparse else g) for g in gradients]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    return torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf) if gradients else torch.zeros(())


def _local(parameter: torch.Tensor) -> torch.Tensor:
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _rows_of(inputs: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """The kind of rows in a batch, and their numbers; empty if they have none."""
    for name, what in (("data_row", "rows"), ("row_index", "rows"), ("response", "responses of the round")):
        if isinstance(inputs.get(name), torch.Tensor):
            return [(what, inputs[name])]
    return []


def _numbers(rows: Sequence[tuple[str, torch.Tensor]]) -> list[tuple[str, int]]:
    return [(what, number) for what, numbers in rows for number in numbers.flatten().tolist()]


def _named(numbers: Sequence[tuple[str, int]]) -> str:
    if not numbers:
        return ""
    return f" ({numbers[0][0]} {_listed(sorted({number for _, number in numbers}))})"


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(map(str, numbers[:SHOWN])) + more


def check_rewards(nans: Sequence[tuple[str, int]], completions: int, action: str, step: int) -> None:
    """
    Report rewards that are NaN.

    Args:
        nans (`Sequence[tuple[str, int]]`): Reward functions that returned NaN, and the row of each such completion.
        completions (`int`): Number of scored completions.
        action (`str`): `"stop"` with an error, or `"skip"` the rewards with a warning.
        step (`int`): The step for which the completions were generated.

    Raises:
        [`~trl_ext.rewards.functions.RewardError`]: There are such rewards, and the action is to stop.
    """
    if not nans:
        return
    names = ", ".join(sorted({repr(name) for name, _ in nans}))
    text = (
        f"In step {step} the reward function {names} returned NaN {len(nans)} times for {completions} completions "
        f"(rows {_listed(sorted({row for _, row in nans}))})."
    )
    if action == "stop":
        raise RewardError(
            f"{text} A function that does not apply should return None; `nan_rewards='skip'` ignores NaN."
        )
    logger.warning(f"{text} These rewards are ignored.")
