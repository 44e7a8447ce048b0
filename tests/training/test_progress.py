# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The estimate of the time that training takes, with a clock that the test moves; the bar of a trainer."""

import pytest
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from trl_ext.progress import Progress
from trl_ext.training.progress import TrainingProgress, TrainingTime
from trl_ext.training.rounds import RolloutSchedule


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run_steps(time, clock, seconds, *, sampling):
    """Steps of `seconds` each, with `sampling` seconds before a step that begins a round."""
    for each in seconds:
        before = time._round
        clock.now += sampling if time.round_of(time._step) != before else 0
        time.step_begins()
        clock.now += each
        time.step_ends(time._step + 1)


@pytest.mark.parametrize(
    "steps, rest",
    [
        (1, 3 * 2 + 2 * 30 + 8 * 2),  # 11 steps of 2 s and the rounds before steps 5 and 9
        (4, 8 * 2 + 2 * 30),
        (5, 7 * 2 + 30),
        (12, 0),
    ],
)
def test_sampling_is_not_taken_for_a_step(steps, rest):
    """Twelve steps of 2 s, and before every fourth a round of 30 s: an average over both is wrong until the end."""
    clock = Clock()
    time = TrainingTime(12, lambda step: step // 4, clock=clock)
    assert time.remaining() is None
    run_steps(time, clock, [2] * steps, sampling=30)
    assert time.remaining() == pytest.approx(rest)


def test_the_first_step_counts_only_until_there_is_another():
    clock = Clock()
    time = TrainingTime(10, lambda step: 0, clock=clock)
    run_steps(time, clock, [20], sampling=5)
    assert time.remaining() == 9 * 20
    run_steps(time, clock, [2, 2], sampling=0)
    assert time.remaining() == 7 * 2
    clock.now += 1
    assert time.remaining() == 7 * 2 - 1


def test_evaluations_on_several_datasets_count_together():
    clock = Clock()
    time = TrainingTime(6, lambda step: 0, lambda step: 3 - step // 2, clock=clock)
    run_steps(time, clock, [1, 1], sampling=0)
    for seconds in (4, 6):
        clock.now += seconds
        time.evaluation_ends()
    assert time.remaining() == 4 * 1 + 2 * 10


def test_a_resumed_run_begins_within_a_round():
    clock = Clock()
    time = TrainingTime(12, lambda step: step // 4, step=6, clock=clock)
    clock.now += 100  # skips the data that was read
    run_steps(time, clock, [3, 2], sampling=0)
    run_steps(time, clock, [2], sampling=30)
    assert time.remaining() == 3 * 2


@pytest.mark.parametrize(
    "every_steps, every_epochs, rounds",
    [
        (2, 0, [0, 0, 1, 2, 2, 3]),  # three steps in an epoch: its last round has one
        (0, 1, [0, 0, 0, 1, 1, 1]),
        (0, 0, [0] * 6),
    ],
)
def test_rounds_of_steps(every_steps, every_epochs, rounds):
    schedule = RolloutSchedule(lambda rows: {}, None, every_steps=every_steps, every_epochs=every_epochs)
    assert [schedule.round_of(step, 3) for step in range(6)] == rounds


def test_the_callback_of_training_and_evaluation(capsys, monkeypatch, tmp_path):
    """It takes the place of transformers' bar, ends its phases whatever happens, and prints the logs."""
    phases = []
    monkeypatch.setattr(Progress, "start", lambda self: phases.append(self))
    monkeypatch.setattr(Progress, "close", lambda self, finished=True: setattr(self, "closed", finished))
    callback, control = TrainingProgress(lambda step, per_epoch: step // per_epoch), TrainerControl()
    assert isinstance(callback, ProgressCallback)  # `trainer.remove_callback(ProgressCallback)` removes it
    args = TrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=2, use_cpu=True)
    state = TrainerState(max_steps=4, eval_steps=2)
    callback.on_train_begin(args, state, control, train_dataloader=range(2))
    callback.on_step_begin(args, state, control)
    state.global_step = 1
    callback.on_step_end(args, state, control)
    callback.on_prediction_step(args, state, control, eval_dataloader=range(3))
    callback.on_log(args, state, control, logs={"loss": 1 / 3, "total_flos": 1, "note": "x"})
    training, evaluation = phases
    assert (training.name, training.total, training.done) == ("training", 4, 1)
    assert (evaluation.name, evaluation.total, evaluation.done) == ("evaluating", 3, 1)
    assert capsys.readouterr().out.strip() == "{'loss': '0.3333', 'note': 'x'}"
    callback.on_evaluate(args, state, control)
    assert evaluation.closed and not hasattr(training, "closed")
    callback.close()  # as after an error
    assert training.closed is False
    callback.on_evaluate(args, state, control)
    callback.on_log(args, state, control, logs={"eval_loss": 1.0})
    assert capsys.readouterr().out == ""
