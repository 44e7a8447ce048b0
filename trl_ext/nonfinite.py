# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What training does about a loss or a reward that is no number: it is named, and then stopped at or left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .rewards import RewardError


logger = logging.get_logger(__name__)

SHOWN = 8  # rows that a message names


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite. The message says in which step, and of which rows."""


class LossGuard(TrainerCallback):
    """
    Looks at the loss of each micro-batch before the optimizer uses its gradient.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer that asks it.
        action (`str`): `"stop"` with an error, or `"skip"` the optimizer step.

    Attributes:
        skipped (`int`): Steps that were left out so far.

    Raises:
        `ValueError`: DeepSpeed, which steps before anybody can look, and `"skip"`.
    """

    def __init__(self, trainer: Trainer, action: str) -> None:
        if action == "skip" and trainer.is_deepspeed_enabled:
            raise ValueError("`nan_loss='skip'` cannot be used with DeepSpeed, which takes its step by itself.")
        self.accelerator, self.action, self.skipped = trainer.accelerator, action, 0
        self._found = False

    def check(self, loss: torch.Tensor, inputs: Mapping[str, Any], step: int) -> torch.Tensor:
        """
        The loss as it may be added to others: 0 if it is none.

        Raises:
            [`NonFiniteLossError`]: It is none, and the action is to stop.
        """
        if torch.isfinite(loss).all():
            return loss
        text = f"The loss of step {step} is {loss.mean().item()}{_rows_of(inputs)}."
        if self.action == "stop":
            raise NonFiniteLossError(
                f"{text} Look at these rows, lower `learning_rate`, or train in bf16 rather than fp16; "
                "`nan_loss='skip'` leaves such steps out."
            )
        logger.warning(f"{text} The step is left out.")
        self._found = True
        return torch.zeros_like(loss)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.action == "stop":
            return
        found = torch.tensor(float(self._found), device=self.accelerator.device)
        self._found = False
        if not self.accelerator.reduce(found, reduction="sum"):
            return
        model = kwargs["model"]
        if not all(bool(torch.isfinite(_local(p)).all()) for p in model.parameters() if p.requires_grad):
            raise NonFiniteLossError(
                f"After step {state.global_step} the weights themselves are not finite: nothing is left to skip. "
                "Resume from a checkpoint with a lower `learning_rate`."
            )
        model.zero_grad()  # the optimizer leaves what has no gradient as it is
        self.skipped += 1


def _local(parameter: torch.Tensor) -> torch.Tensor:
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _rows_of(inputs: Mapping[str, Any]) -> str:
    for name, what in (("data_row", "rows"), ("row_index", "rows"), ("response", "responses of the round")):
        if isinstance(inputs.get(name), torch.Tensor):
            return f" ({what} {_listed(inputs[name].unique().tolist())})"
    return ""


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(map(str, numbers[:SHOWN])) + more


def check_rewards(nans: Sequence[tuple[str, int]], completions: int, action: str, step: int) -> None:
    """
    Say which rewards are NaN.

    Args:
        nans (`Sequence[tuple[str, int]]`): Reward functions that gave NaN, and for completions of which rows.
        completions (`int`): Completions that were scored.
        action (`str`): `"stop"` with an error, or `"skip"` them with a warning.
        step (`int`): The step that they were drawn for.

    Raises:
        [`~trl_ext.rewards.RewardError`]: There are such, and the action is to stop.
    """
    if not nans:
        return
    names = ", ".join(sorted({repr(name) for name, _ in nans}))
    text = (
        f"In step {step} the reward function {names} returned NaN {len(nans)} times for {completions} completions "
        f"(rows {_listed(sorted({row for _, row in nans}))})."
    )
    if action == "stop":
        raise RewardError(f"{text} A function that does not apply returns None; `nan_rewards='skip'` leaves NaN out.")
    logger.warning(f"{text} These rewards are left out.")
