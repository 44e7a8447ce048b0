# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Scoring of groups of completions: the sum and its parts, what is refused and how, and what functions may log."""

import math
import threading

import pytest
from transformers import TrainerState

from trl_ext.data.completion import Completion
from trl_ext.rewards.aggregation import NORMALIZED_SUM, SUM
from trl_ext.rewards.functions import Reward, RewardError
from trl_ext.rewards.scoring import ScoredCompletion, check_reward_weights, score_completions


def group(*texts: str) -> list[Completion]:
    return [Completion(text, [], True) for text in texts]


def length(completions, **_):
    return [float(len(text)) for text in completions]


def scored(rewards, texts=("a", "bbb"), **arguments):
    """The scored completions of one prompt."""
    [found] = score_completions([{"prompt": "p"}], [group(*texts)], rewards, **arguments)
    return found


# ------------------------------------------------------------------------------------------------------------- scores


def test_the_score_is_normalised_where_that_is_asked_for_and_the_reward_is_not():
    """Rewards 1 and 3: mean 2, deviation sqrt(2). Rewards 10 and 10 become 0."""
    rewards = [Reward("length", length), Reward("ten", lambda completions, **_: [10.0] * len(completions))]
    found = scored(rewards, weights=[2.0, 0.5], aggregation=NORMALIZED_SUM)
    unit = 1 / (math.sqrt(2) + 1e-4)
    assert [x.score for x in found] == pytest.approx([-2 * unit, 2 * unit])
    assert [x.reward for x in found] == [2 * 1 + 5, 2 * 3 + 5]
    assert [x.rewards for x in found] == [{"length": 1.0, "ten": 10.0}, {"length": 3.0, "ten": 10.0}]
    plain = scored(rewards, weights=[2.0, 0.5])
    assert [x.score for x in plain] == [x.reward for x in plain] == [7.0, 11.0]
    assert [x.score for x in plain] == [x.score for x in scored(rewards, weights=[2.0, 0.5], aggregation=SUM)]


def test_scores_are_normalised_within_a_group_of_completions():
    rows = [{"prompt": "p"}, {"prompt": "q"}]
    groups = [group("a", "bbb"), group("ccccc", "ddddddd")]
    found = score_completions(rows, groups, [Reward("length", length)], aggregation=NORMALIZED_SUM)
    first, second = [[x.score for x in each] for each in found]
    assert first == pytest.approx(second) and first[0] < 0 < first[1]


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be one of"):
        scored([Reward("length", length)], aggregation="mean")


def test_without_reward_functions_there_is_no_score():
    found = scored([])
    assert [x.text for x in found] == ["a", "bbb"]
    assert all(math.isnan(x.score) and math.isnan(x.reward) and x.rewards == {} and x.extra == {} for x in found)


def test_the_reward_is_the_score_unless_it_is_given():
    completion = group("a")[0]
    assert ScoredCompletion(completion, 2.0, {}).reward == 2.0
    assert ScoredCompletion(completion, 2.0, {}, reward=3.0).reward == 3.0
    assert ScoredCompletion(completion, 2.0, {}, reward=0.0).reward == 0.0


def test_names_of_functions_that_returned_nan_in_their_order():
    rewards = [
        Reward("one", lambda **_: [math.nan, 1.0]),
        Reward("two", lambda **_: [None, None]),
        Reward("three", lambda **_: [math.nan, 2.0]),
    ]
    found = scored(rewards)
    assert [x.returned_nan for x in found] == [("one", "three"), ()]
    assert math.isnan(found[0].score) and found[1].score == 3.0


# ------------------------------------------------------------------------------------------------------------- errors


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"^Reward functions must have different names, got \['a', 'b', 'a'\]\.$"):
        scored([Reward("a", length), Reward("b", length), Reward("a", length)])


@pytest.mark.parametrize("groups", [[], [group("a"), group("b")]])
def test_a_group_for_each_row(groups):
    message = rf"^1 rows for {len(groups)} groups of completions: pass one group per row\.$"
    with pytest.raises(ValueError, match=message):
        score_completions([{"prompt": "p"}], groups, [Reward("length", length)])


def test_weights_are_one_for_each_reward_and_finite():
    assert check_reward_weights(None, ["a", "b"]) == [1.0, 1.0]
    assert check_reward_weights((2, 0.5), ["a", "b"]) == [2, 0.5]
    assert check_reward_weights([], []) == []
    for weights, names, message in (
        ([1.0], ["a", "b"], "`reward_weights` has 1 entries for 2 reward functions (a, b)."),
        ([1.0], [], "`reward_weights` has 1 entries for 0 reward functions."),
        ([math.nan, 1.0], ["a", "b"], "`reward_weights` must be finite, got [nan, 1.0]."),
        ([1.0, -math.inf], ["a", "b"], "`reward_weights` must be finite, got [1.0, -inf]."),
    ):
        with pytest.raises(ValueError) as caught:
            check_reward_weights(weights, names)
        assert str(caught.value) == message


def test_weights_are_checked_before_a_function_is_called():
    called = []
    with pytest.raises(ValueError, match="has 2 entries for 1 reward functions"):
        scored([Reward("length", lambda **_: called.append(1))], weights=[1.0, 2.0])
    assert not called


# --------------------------------------------------------------------------------------------- what functions receive


def arguments_of_a_call(rows, groups, **arguments):
    seen = []

    def look(**kwargs):
        seen.append(kwargs)
        return [0.0] * len(kwargs["prompts"])

    score_completions(rows, groups, [Reward("look", look)], **arguments)
    [found] = seen
    return found


def test_token_ids_are_passed_if_any_completion_has_some():
    rows = [{"prompt": "p"}]
    assert arguments_of_a_call(rows, [group("a", "b")])["completion_ids"] is None
    mixed = [Completion("a", [], True), Completion("b", [1, 2], True)]
    assert arguments_of_a_call(rows, [mixed])["completion_ids"] == [[], [1, 2]]


def test_messages_for_a_conversational_prompt():
    prompt = [{"role": "user", "content": "hello"}]
    found = arguments_of_a_call([{"prompt": prompt}], [group("a", "b")])
    assert found["prompts"] == [prompt, prompt]
    assert found["completions"] == [[{"role": "assistant", "content": text}] for text in "ab"]


def test_an_empty_trainer_state_unless_one_is_given():
    found = arguments_of_a_call([{"prompt": "p"}], [group("a")])["trainer_state"]
    assert isinstance(found, TrainerState) and found.global_step == 0
    own = TrainerState(global_step=7)
    assert arguments_of_a_call([{"prompt": "p"}], [group("a")], trainer_state=own)["trainer_state"] is own
    assert arguments_of_a_call([{"prompt": "p"}], [group("a")], trainer_state=None)["trainer_state"] is None


def test_no_completions_no_call():
    called = []
    rewards = [Reward("never", lambda **_: called.append(1))]
    assert score_completions([{"prompt": "p"}], [[]], rewards) == [[]]
    assert score_completions([], [], rewards) == []
    assert not called


def test_a_batch_is_filled_to_its_size_and_no_further():
    sizes = []

    def count(completions, **_):
        sizes.append(len(completions))
        return [0.0] * len(completions)

    rows, groups = [{"prompt": "p"}] * 5, [group("a", "b"), group("c", "d"), [], group("e"), group("f", "g", "h")]
    for size, expected in ((4, [4, 4]), (5, [5, 3]), (1, [2, 2, 1, 3]), (8, [8]), (0, [8])):
        sizes.clear()
        score_completions(rows, groups, [Reward("count", count, batch_size=size)])
        assert sizes == expected, size


# ------------------------------------------------------------------------------------------------ what functions log


def logging_reward(log, name="log", batch_size=64):
    def func(completions, log_metric, log_extra, **_):
        log(completions, log_metric, log_extra)
        return [0.0] * len(completions)

    return Reward(name, func, batch_size=batch_size)


def test_columns_of_several_functions_are_kept_for_each_completion():
    texts = logging_reward(lambda texts, _, extra: extra("text", [t.upper() for t in texts]), "texts")
    sizes = logging_reward(lambda texts, _, extra: extra("size", [len(t) for t in texts]), "sizes", batch_size=1)
    rows, groups = [{"prompt": "p"}, {"prompt": "q"}], [group("a"), group("bb", "ccc")]
    found = score_completions(rows, groups, [texts, sizes])
    assert [[x.extra for x in each] for each in found] == [
        [{"text": "A", "size": 1}],
        [{"text": "BB", "size": 2}, {"text": "CCC", "size": 3}],
    ]


def test_metrics_are_numbers_under_a_name():
    metrics = {"before": [1.0]}
    scored([logging_reward(lambda texts, metric, _: (metric("m", True), metric(3, "0.5")))], metrics=metrics)
    assert metrics == {"before": [1.0], "m": [1.0], "3": [0.5]}
    scored([logging_reward(lambda texts, metric, _: metric("m", 2))])  # nobody asks for them


@pytest.mark.parametrize("value", ["high", None, [1.0]])
def test_a_metric_that_is_no_number_is_refused(value):
    with pytest.raises(RewardError) as caught:
        scored([logging_reward(lambda texts, metric, _: metric("m", value))])
    assert str(caught.value) == (f"The reward function 'log' called log_metric('m', {value!r}): a metric is a number.")


@pytest.mark.parametrize("column", ["step", "prompt", "completion", "score", "guided", "log", "other"])
def test_a_column_that_the_table_has_is_refused(column):
    rewards = [logging_reward(lambda texts, _, extra: extra(column, [1] * len(texts))), Reward("other", length)]
    with pytest.raises(RewardError) as caught:
        scored(rewards)
    assert str(caught.value) == (
        f"The reward function 'log' called log_extra({column!r}, ...), but the table of completions has this column "
        "already: choose another name."
    )


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3]])
def test_a_column_has_a_value_for_each_completion(values):
    with pytest.raises(RewardError) as caught:
        scored([logging_reward(lambda texts, _, extra: extra("x", values))])
    assert str(caught.value) == (
        f"The reward function 'log' called log_extra('x', ...) with {len(values)} values for 2 completions: give one "
        "value per completion."
    )


def test_a_column_is_kept_as_it_was_when_it_was_logged():
    """A function may use its list for the next call."""
    kept = [1, 2]
    rewards = [
        logging_reward(lambda texts, _, extra: extra("x", kept)),
        Reward("clears", lambda completions, **_: kept.clear() or [0.0] * len(completions)),
    ]
    assert [x.extra for x in scored(rewards)] == [{"x": 1}, {"x": 2}]


def test_several_async_functions_wait_at_the_same_time_while_others_run():
    """Each of two async functions and a plain one waits for the other two to begin."""
    barrier = threading.Barrier(3, timeout=20)

    async def first(completions, **_):
        return await _in_a_thread(barrier.wait, completions)

    async def second(completions, **_):
        return await _in_a_thread(barrier.wait, completions)

    def plain(completions, **_):
        barrier.wait()
        return [1.0] * len(completions)

    found = scored([Reward("first", first), Reward("plain", plain), Reward("second", second)])
    assert [x.score for x in found] == [3.0, 3.0]
    assert list(found[0].rewards) == ["first", "plain", "second"]


async def _in_a_thread(wait, completions):
    import asyncio

    await asyncio.to_thread(wait)
    return [1.0] * len(completions)
