# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The metric of the best model: losses and KL fall; a name that evaluations do not have is an error at the first."""

import pytest
from tiny_trainers import make_trainer

from trl_ext import RRHFConfig
from trl_ext.training.best_metric import check_best_metric, smaller_is_better


ROWS = [{"prompt": "the film", "completions": [" was good", " bad"], "scores": [1.0, 0.0]}] * 4
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("metric", "falls"),
    [
        *((name, True) for name in ("loss", "eval_loss", "loss/sft", "eval_loss/rank", "heldout_loss", "a_loss/sft")),
        *((name, True) for name in ("kl", "objective/kl", "warm_up/loss")),
        *(
            (name, False)
            for name in ("reward", "rewards/accuracies", "kendall_tau", "logps/chosen", "glossy", "lossy/x")
        ),
    ],
)
def test_which_metrics_fall(metric, falls, tmp_path):
    assert smaller_is_better(metric) is falls
    args = RRHFConfig(str(tmp_path), metric_for_best_model=metric)
    assert args.greater_is_better is not falls
    for given in (True, False):
        assert (
            RRHFConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=given).greater_is_better is given
        )


def test_without_a_metric_nothing_is_decided(tmp_path):
    assert RRHFConfig(str(tmp_path)).greater_is_better is None
    assert RRHFConfig(str(tmp_path), load_best_model_at_end=True, eval_strategy="steps").greater_is_better is False


def test_a_metric_that_exists():
    for metric in (None, "loss", "eval_loss", "hh_reward"):
        check_best_metric(metric, ["eval_loss", "eval_hh_reward", "epoch"])


def test_a_metric_that_evaluations_lack():
    for metric in ("rewards/accuracy", "eval_rewards/accuracy"):
        with pytest.raises(
            ValueError, match=rf"is '{metric}', which .*; did you mean 'rewards/accuracies'\? They have l"
        ):
            check_best_metric(metric, ["eval_loss", "eval_rewards/accuracies", "epoch"])
    with pytest.raises(
        ValueError, match=r"`metric_for_best_model` is 'epoch', which evaluations .*\. They have loss\."
    ):
        check_best_metric("epoch", ["eval_loss", "epoch"])


def test_the_error_comes_with_the_first_evaluation(tmp_path):
    settings = {"reward_funcs": None, "resample_steps": 0, "eval_rows": ROWS, **BEST, **SAVED}
    run = make_trainer("rrhf", tmp_path, ROWS, metric_for_best_model="accuracy", eval_on_start=True, **settings)
    assert "eval_loss" in run.evaluate()  # outside of training, nothing is compared
    with pytest.raises(ValueError, match="`metric_for_best_model` is 'accuracy'"):
        run.train()
    assert run.state.global_step == 0


def test_the_best_model_by_a_loss_has_the_smallest(tmp_path):
    settings = {"reward_funcs": None, "resample_steps": 0, "eval_rows": ROWS, **BEST, **SAVED}
    run = make_trainer("rrhf", tmp_path, ROWS, metric_for_best_model="loss/sft", learning_rate=1e-2, **settings)
    run.train()
    losses = [entry["eval_loss/sft"] for entry in run.state.log_history if "eval_loss/sft" in entry]
    assert losses[0] != losses[1]
    assert run.state.best_metric == min(losses)
