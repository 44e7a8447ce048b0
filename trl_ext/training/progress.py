# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The progress of training: transformers' bar with an estimate that counts steps, rounds of sampling and evaluations
separately. A round takes as long as many steps, so that an average over both would be wrong until the last one.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, has_length

from trl_ext.progress import Progress


_RECENT = 50  # steps that the estimate is an average of, as completions grow longer or shorter during training


def steps_per_epoch(args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> int:
    """Number of optimizer steps in an epoch; of a stream, whose length is unknown, all of them."""
    if not has_length(train_dataloader):
        return max(1, state.max_steps)
    return max(1, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))


class TrainingTime:
    """
    Measures steps, rounds and evaluations, and estimates the time that the rest of training takes.

    Args:
        max_steps (`int`): Number of steps of the run.
        round_of (`Callable`): From the number of a step, from 0, to that of the round whose completions it trains on.
        evaluations_after (`Callable`): From a number of completed steps to the number of evaluations that follow.
        step (`int`, *optional*, defaults to `0`): Number of completed steps, of a resumed run.
        clock (`Callable`, *optional*, defaults to `time.monotonic`): The time in seconds.
    """

    def __init__(
        self,
        max_steps: int,
        round_of: Callable[[int], int],
        evaluations_after: Callable[[int], int] = lambda step: 0,
        *,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_steps, self.round_of, self.evaluations_after = max_steps, round_of, evaluations_after
        self._clock, self._step, self._measured = clock, step, 0
        self._round = round_of(step - 1) if step else -1
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._rounds: deque[float] = deque(maxlen=_RECENT)
        self._evaluations: dict[int, float] = {}  # by step: each may be on several datasets
        self._last = clock()  # end of what was measured last

    def step_begins(self) -> None:
        """The batches of the next step are complete. If it is the first of a round, they have been sampled."""
        number = self.round_of(self._step)
        if number != self._round:
            self._round = number
            self._rounds.append(self._since_last())

    def step_ends(self, step: int) -> None:
        """`step` steps are completed."""
        if self._measured == 1:
            self._steps.clear()  # the first step is slower than the others
        self._steps.append(self._since_last())
        self._step, self._measured = step, self._measured + 1

    def evaluation_ends(self) -> None:
        """The model was evaluated on a dataset."""
        self._evaluations[self._step] = self._evaluations.get(self._step, 0.0) + self._since_last()

    def remaining(self) -> float | None:
        """Estimate of the remaining time in seconds; `None` before the end of the first step."""
        if not self._steps:
            return None
        rounds = self.round_of(self.max_steps - 1) - self._round
        seconds = (self.max_steps - self._step) * fmean(self._steps)
        seconds += rounds * (fmean(self._rounds) if self._rounds else 0.0)
        if self._evaluations:
            seconds += self.evaluations_after(self._step) * fmean(self._evaluations.values())
        return max(seconds - (self._clock() - self._last), 0.0)

    def _since_last(self) -> float:
        before, self._last = self._last, self._clock()
        return self._last - before


class TrainingProgress(ProgressCallback):
    """
    A bar for the steps of training and one for each evaluation; without a terminal, a line a minute.

    Args:
        round_of (`Callable`): From the number of a step, from 0, and the number of steps in an epoch, to the number of
            the round whose completions the step trains on.
    """

    def __init__(self, round_of: Callable[[int, int], int]) -> None:
        super().__init__()
        self._round_of = round_of
        self._training: Progress | None = None
        self._evaluation: Progress | None = None
        self._time: TrainingTime | None = None

    def close(self, finished: bool = False) -> None:
        """Remove the bars, also after an error."""
        for phase in (self._evaluation, self._training):
            if phase is not None:
                phase.close(finished)
        self._evaluation = self._training = self._time = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()  # that of a larger batch size which `auto_find_batch_size` has tried
        per_epoch = steps_per_epoch(args, state, kwargs.get("train_dataloader"))
        self._time = TrainingTime(
            state.max_steps,
            lambda step: self._round_of(step, per_epoch),
            lambda step: _evaluations_after(step, args, state, per_epoch),
            step=state.global_step,
        )
        left = self._time.remaining
        self._training = Progress(
            "training", state.max_steps, "steps", done=state.global_step, leave=True, remaining=left
        )
        self._training.start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._time is not None:
            self._time.step_begins()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._time is not None and self._training is not None:
            self._time.step_ends(state.global_step)
            self._training.advance(state.global_step - self._training.done)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not has_length(eval_dataloader):
            return
        if self._evaluation is None:
            self._evaluation = Progress("evaluating", len(eval_dataloader), "batches")
            self._evaluation.start()
        self._evaluation.advance()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
        if self._time is not None:
            self._time.evaluation_ends()

    def on_predict(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._training is None or not state.is_world_process_zero:
            return
        shown = {name: value for name, value in (logs or {}).items() if name != "total_flos"}
        tqdm.write(str({name: f"{x:.4g}" if isinstance(x, float) else x for name, x in shown.items()}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close(finished=True)


def _evaluations_after(step: int, args: TrainingArguments, state: TrainerState, per_epoch: int) -> int:
    """Number of evaluations after `step` steps, up to the end of training."""
    if args.eval_strategy == IntervalStrategy.STEPS:
        return state.max_steps // state.eval_steps - step // state.eval_steps
    if args.eval_strategy == IntervalStrategy.EPOCH:
        return math.ceil(state.max_steps / per_epoch) - step // per_epoch
    return 0
