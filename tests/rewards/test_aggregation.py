# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How several rewards become one score: the weighted sum, and GDPO's normalisation of each within a prompt."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainers import make_trainer

from trl_ext.cli.sample import SampleArguments
from trl_ext.data.completion import Completion
from trl_ext.methods.rrhf.config import RRHFConfig
from trl_ext.rewards.aggregation import AGGREGATIONS, NORMALIZED_SUM, SUM, aggregate, check_aggregation, normalized
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import score_completions


# Two rewards on different scales. Deviations of 1 and 100; with the epsilon, 0.9999 and nearly 1.
REWARDS = {"small": [0.0, 1.0, 2.0], "large": [100.0, 0.0, -100.0]}


def test_the_default_is_the_weighted_sum():
    assert aggregate(REWARDS, [1.0, 0.5]) == [50.0, 1.0, -48.0]
    assert aggregate(REWARDS, [1.0, 0.5], SUM) == aggregate(REWARDS, [1.0, 0.5])


def test_worked_normalized_sum():
    """Each reward is -1, 0, 1 of its deviations (in either direction): the weights alone decide."""
    small, large = 1 / 1.0001, 100 / 100.0001
    expected = [-small + 0.5 * large, 0.0, small - 0.5 * large]
    assert aggregate(REWARDS, [1.0, 0.5], NORMALIZED_SUM) == pytest.approx(expected)
    # the sum follows the large reward, the normalised sum the one with the greater weight
    assert max(range(3), key=aggregate(REWARDS, [1.0, 0.5]).__getitem__) == 0
    assert max(range(3), key=aggregate(REWARDS, [1.0, 0.5], NORMALIZED_SUM).__getitem__) == 2


def test_rewards_that_do_not_apply_do_not_count():
    """None and NaN stay out of mean, deviation and sum; 1 and 3 have the mean 2 and the deviation sqrt 2."""
    first, second, third, fourth = normalized([1.0, None, 3.0, math.nan])
    assert (first, third) == pytest.approx((-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4)))
    assert second is None and math.isnan(fourth)
    rewards = {"one": [1.0, None, 3.0], "other": [None, None, 5.0]}
    scores = aggregate(rewards, [1.0, 1.0], NORMALIZED_SUM)
    assert scores[0] == pytest.approx(first) and math.isnan(scores[1]) and scores[2] == pytest.approx(third)


@pytest.mark.parametrize("rewards", [[2.0], [2.0, 2.0, 2.0], [None, 2.0]])
def test_a_reward_without_a_difference_becomes_zero(rewards):
    assert [value for value in normalized(rewards) if value is not None] == [0.0] * len([r for r in rewards if r])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_normalized_is_the_definition(rewards):
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(value - mean) / (deviation + 1e-4) for value in rewards]
    assert normalized(rewards) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_aggregation_is_named():
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be one of sum_then_normalize, normalize"):
        aggregate(REWARDS, [1.0, 1.0], "mean")


def test_groups_are_normalised_by_themselves_and_keep_their_rewards():
    values = {"a": [0.0, 2.0, 5.0, 5.0, 11.0], "b": [1.0, 0.0, 0.0, 7.0, 0.0]}
    rewards = [Reward(name, lambda name=name, **_: values[name]) for name in values]
    groups = [[Completion(f" {i}{n}", [], True) for i in range(size)] for n, size in enumerate((2, 3))]
    rows = [{"prompt": "x"}, {"prompt": "y"}]
    found = score_completions(rows, groups, rewards, [2.0, 1.0], aggregation=NORMALIZED_SUM)
    expected = [
        aggregate({name: each[part] for name, each in values.items()}, [2.0, 1.0], NORMALIZED_SUM)
        for part in (slice(0, 2), slice(2, 5))
    ]
    assert [[scored.score for scored in group] for group in found] == expected
    assert [scored.reward for group in found for scored in group] == [1.0, 4.0, 10.0, 17.0, 22.0]
    assert found[1][2].rewards == {"a": 11.0, "b": 0.0}


# ----------------------------------------------------------------------------------------------------------- training


def letters(completions, **_):
    return [float(sum(map(str.isalpha, text))) for text in completions]


def thousands(completions, **_):
    return [-1000.0 * len(text) for text in completions]


@pytest.mark.parametrize("method", ["rrhf", "psle"])
def test_trainers_learn_from_the_scores_and_log_the_weighted_sum(tmp_path, method):
    """The scores of a prompt sum to 0, whatever the scale; `reward` is that of the functions."""
    trainers = [
        make_trainer(
            method, tmp_path / name, reward_funcs=[letters, thousands], reward_weights=[1.0, 0.5], num_generations=3,
            multi_objective_aggregation=name,
        )
        for name in AGGREGATIONS
    ]  # fmt: skip
    rounds = [run._sample_round([run.train_dataset[0], run.train_dataset[1]]) for run in trainers]
    plain, scaled = rounds
    assert plain.table["completion"] == scaled.table["completion"]
    assert plain.table["score"] == plain.weighted_sums == scaled.weighted_sums != scaled.table["score"]
    for row, rollout in scaled.rollouts.items():
        assert sum(rollout.scores) == pytest.approx(0.0, abs=1e-6) and len(set(rollout.scores)) > 1
        assert rollout.completion_ids == plain.rollouts[row].completion_ids
    logged = [run._meters["train"].pop(run.accelerator) for run in trainers]
    assert logged[0]["reward"] == logged[1]["reward"] == pytest.approx(torch.tensor(plain.weighted_sums).mean().item())
    assert logged[1]["reward_std"] < 10 < logged[0]["reward_std"]


def test_trls_name_and_values(tmp_path):
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be one of"):
        RRHFConfig(str(tmp_path), multi_objective_aggregation="sum")
    assert RRHFConfig(str(tmp_path)).multi_objective_aggregation == "sum_then_normalize"


def test_without_rewards_there_is_nothing_to_aggregate(tmp_path):
    """Scores of a dataset are taken as they are: the setting would be ignored."""
    message = "`multi_objective_aggregation: normalize_then_sum` has no effect without reward functions"
    check_aggregation("sum_then_normalize", [])
    with pytest.raises(ValueError, match=message):
        check_aggregation("normalize_then_sum", [])
    with pytest.raises(ValueError, match=message):
        make_trainer("rrhf", tmp_path, reward_funcs=None, multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(ValueError, match=message):
        SampleArguments(dataset_name="d", output_file="f.jsonl", multi_objective_aggregation="normalize_then_sum")
