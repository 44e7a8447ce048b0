# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Rounds of completions: their scores, which completions are dropped, and resuming."""

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator, PartialState

from trl_ext.data.completion import Completion
from trl_ext.rewards.functions import Reward, RewardError
from trl_ext.seeds import seeded
from trl_ext.training.config import ExtConfig
from trl_ext.training.meters import Meters
from trl_ext.training.rollouts import (
    Rollout,
    Round,
    load_rollouts,
    measure_round,
    save_rollouts,
    score_round,
    show_tables,
)


ROWS = [
    {"row_index": 7, "prompt": "the film", "prompt_ids": [1, 2], "topic": "a"},
    {"row_index": 3, "prompt": "so", "prompt_ids": [4], "topic": "b"},
]
COMPLETIONS = [
    [Completion(" good", [5, 6], True), Completion(" bad bad", [7, 8, 9], False)],
    [Completion(" good good", [5, 5, 6], True), Completion(" dull", [9], True)],
]


def good(completions, **_):
    return [float(text.count("good")) for text in completions]


def length(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def only_if_dull(completions, **_):
    return [1.0 if "dull" in text else None for text in completions]


def reward(function):
    return Reward(function.__name__, function)


# ------------------------------------------------------------------------------------------------------------ scores


def test_each_row_gets_its_completions_and_scores():
    sampled = score_round(ROWS, COMPLETIONS, [reward(good)], None)
    assert sampled.rollouts == {
        7: Rollout([[5, 6], [7, 8, 9]], [1.0, 0.0]),
        3: Rollout([[5, 5, 6], [9]], [2.0, 0.0]),
    }
    assert sampled.table == {
        "prompt": ["the film", "the film", "so", "so"],
        "completion": [" good", " bad bad", " good good", " dull"],
        "good": [1.0, 0.0, 2.0, 0.0],
        "score": [1.0, 0.0, 2.0, 0.0],
    }
    assert sampled.ended == [True, False, True, True]
    assert sampled.lengths == [2, 3, 3, 1]


def test_rewards_are_weighted():
    sampled = score_round(ROWS, COMPLETIONS, [reward(good), reward(length)], [2.0, -1.0])
    assert sampled.table["score"] == [2 * 1 - 2, -3.0, 2 * 2 - 3, -1.0]
    assert [sampled.table[name] for name in ("good", "length")] == [[1.0, 0.0, 2.0, 0.0], [2.0, 3.0, 3.0, 1.0]]


def test_what_no_reward_can_score_is_left_out():
    sampled = score_round(ROWS, COMPLETIONS, [reward(only_if_dull)], None)
    assert sampled.rollouts == {7: Rollout([], []), 3: Rollout([[9]], [1.0])}
    both = score_round(ROWS, COMPLETIONS, [reward(only_if_dull), reward(good)], None)
    assert both.rollouts[3].scores == [2.0, 1.0]  # a reward that does not apply counts nothing


@pytest.mark.parametrize("cost", [float("inf"), -float("inf")])
def test_an_infinite_score_is_left_out(cost):
    """A completion that the reference cannot write costs infinitely much; only the first of each row has a score."""
    sampled = score_round(ROWS, COMPLETIONS, [reward(good)], None, penalty=lambda *_: [[0.5, cost], [0.25, cost]])
    assert sampled.rollouts == {7: Rollout([[5, 6]], [1 - 0.5]), 3: Rollout([[5, 5, 6]], [2 - 0.25])}
    assert sampled.table["score"] == [0.5, -cost, 1.75, -cost]


def test_a_penalty_is_subtracted():
    def penalty(prompts, completions):
        assert prompts == [[1, 2], [4]]
        return [[0.1 * len(ids) for ids in group] for group in completions]

    sampled = score_round(ROWS, COMPLETIONS, [reward(good)], None, penalty=penalty)
    assert sampled.table["score"] == pytest.approx([1 - 0.2, -0.3, 2 - 0.3, -0.1])
    assert sampled.rollouts[7].scores == pytest.approx([0.8, -0.3])
    assert sampled.table["good"] == [1.0, 0.0, 2.0, 0.0]  # the reward itself, without the penalty


def test_a_completion_longer_than_max_length_is_left_out():
    """Truncated after scoring, it would not be the text that was scored."""
    sampled = score_round(ROWS, COMPLETIONS, [reward(good)], None, max_length=3)
    assert sampled.rollouts[7] == Rollout([], [])
    assert sampled.rollouts[3] == Rollout([[9]], [0.0])


def test_a_completion_longer_than_max_length_is_cut_before_it_is_scored(tiny_tokenizer):
    [ids] = tiny_tokenizer(["good film good plot"])["input_ids"]
    row = ROWS[0] | {"prompt_ids": [1, 2]}
    completions = [[Completion("good film good plot", ids, True)]]
    sampled = score_round([row], completions, [reward(good)], None, max_length=2 + 2, tokenizer=tiny_tokenizer)
    assert sampled.rollouts[7] == Rollout([ids[:2]], [1.0]) and sampled.ended == [False] and sampled.lengths == [2]
    assert sampled.table["completion"] == [tiny_tokenizer.decode(ids[:2])]


def test_the_data_sets_own_completions_can_join():
    rows = [
        ROWS[0] | {"completions": [" good good good"], "completion_ids": [[5, 5, 5, 6]], "ended": [True]},
        ROWS[1] | {"completions": [" bad"], "completion_ids": [[7, 6]], "ended": [True]},
    ]
    sampled = score_round(rows, COMPLETIONS, [reward(good)], None, keep_dataset_completions=True)
    assert sampled.rollouts[7] == Rollout([[5, 6], [7, 8, 9], [5, 5, 5, 6]], [1.0, 0.0, 3.0])
    assert sampled.rollouts[3] == Rollout([[5, 5, 6], [9], [7, 6]], [2.0, 0.0, 0.0])
    assert sampled.lengths == [2, 3, 4, 3, 1, 2]
    assert sampled.is_sampled == [True, True, False, True, True, False]
    meters = Meters()
    measure_round(sampled, [reward(good)], meters)  # what is measured is what the model wrote
    assert meters.pop(Accelerator(cpu=True))["completions/mean_length"] == 9 / 4
    alone = score_round(rows, COMPLETIONS, [reward(good)], None)
    assert len(alone.rollouts[7].scores) == 2


def test_conversations_are_scored_as_messages():
    seen = {}

    def remember(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    user = [{"role": "user", "content": "question"}]
    rows = [{"row_index": 0, "prompt": user, "prompt_ids": [1]}]
    own = {"completions": [[{"role": "assistant", "content": "bad"}]], "completion_ids": [[3]], "ended": [True]}
    score_round(
        [rows[0] | own], [[Completion("good", [2], True)]], [reward(remember)], None, keep_dataset_completions=True
    )
    assert seen["prompts"] == [user, user]
    assert seen["completions"] == [[{"role": "assistant", "content": text}] for text in ("good", "bad")]


def test_rewards_get_the_other_columns_and_the_trainers_state():
    seen = {}

    def remember(prompts, completions, **columns):
        seen.update(columns)
        return [0.0] * len(prompts)

    state = SimpleNamespace(global_step=3)
    score_round(ROWS, COMPLETIONS, [reward(remember)], None, trainer_state=state)
    assert seen["topic"] == ["a", "a", "b", "b"]
    assert seen["trainer_state"] is state
    assert seen["completion_ids"] == [[5, 6], [7, 8, 9], [5, 5, 6], [9]]
    assert not {"row_index", "prompt_ids", "scores"} & set(seen)


@pytest.mark.parametrize("function", [lambda **_: [1.0], lambda **_: None, lambda **_: 1 / 0])
def test_a_reward_that_fails_is_named(function):
    with pytest.raises(RewardError, match="'broken'"):
        score_round(ROWS, COMPLETIONS, [Reward("broken", function)], None)


# ----------------------------------------------------------------------------------------------------------- logging


class OneProcess:
    num_processes = 1
    device = torch.device("cpu")

    @staticmethod
    def reduce(table, reduction):
        return table


def test_metrics_have_grpos_names_and_these_values():
    rewards = [reward(good), reward(length)]
    meters = Meters()
    measure_round(score_round(ROWS, COMPLETIONS, rewards, None), rewards, meters)
    assert meters.pop(OneProcess()) == pytest.approx(
        {
            "rewards/good/mean": 0.75,
            "rewards/good/std": (11 / 12) ** 0.5,  # 1, 0, 2, 0
            "rewards/length/mean": 9 / 4,
            "rewards/length/std": (11 / 12) ** 0.5,  # 2, 3, 3, 1
            "reward": 3.0,
            "reward_std": (0 + 8**0.5) / 2,  # scores 3, 3 of one prompt and 5, 1 of the other
            "completions/mean_length": 9 / 4,
            "completions/min_length": 1.0,
            "completions/max_length": 3.0,
            "completions/mean_terminated_length": 2.0,
            "completions/clipped_ratio": 0.25,
        }
    )


def test_rewards_with_names_of_the_tables_columns():
    rewards = [Reward("score", good), Reward("completion", length)]
    plain = [Reward("a", good), Reward("b", length)]
    found, expected = Meters(), Meters()
    sampled = score_round(ROWS, COMPLETIONS, rewards, [2.0, -1.0])
    measure_round(sampled, rewards, found)
    other = score_round(ROWS, COMPLETIONS, plain, [2.0, -1.0])
    measure_round(other, plain, expected)
    names = {"a": "score", "b": "completion"}
    table = {f"rewards/{names[name]}" if name in names else name: values for name, values in other.table.items()}
    assert sampled.table == table
    found, expected = found.pop(OneProcess()), expected.pop(OneProcess())
    for name, its in names.items():
        assert found[f"rewards/{its}/mean"] == expected[f"rewards/{name}/mean"]
    assert found["reward"] == expected["reward"]


def test_rewards_that_do_not_apply_do_not_enter_the_mean():
    rewards = [reward(only_if_dull)]
    meters = Meters()
    measure_round(score_round(ROWS, COMPLETIONS, rewards, None), rewards, meters)
    metrics = meters.pop(OneProcess())
    assert (metrics["rewards/only_if_dull/mean"], metrics["reward"]) == (1.0, 1.0)
    assert "reward_std" not in metrics  # a group of one has no spread


def test_completions_are_printed_and_kept(tmp_path, capsys):
    args = ExtConfig(output_dir=str(tmp_path), report_to="none", num_completions_to_print=2)
    tables = [
        score_round([row], [some], [reward(good)], None).table for row, some in zip(ROWS, COMPLETIONS, strict=True)
    ]
    show_tables(tables, PartialState(), args, step=12, mode="train")
    shown = capsys.readouterr().out
    assert "bad bad" in shown or "good" in shown
    assert "12" in shown
    table = pd.read_parquet(tmp_path / "completions" / "train_completions_00012.parquet")
    assert table["completion"].tolist() == [" good", " bad bad", " good good", " dull"]
    assert set(table.columns) == {"step", "prompt", "completion", "good", "score"}
    assert table["step"].unique().tolist() == [12]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_completions_go_to_trackers_that_take_tables(tmp_path, monkeypatch, name):
    sent = []
    tracker = ModuleType(name)
    tracker.run, tracker.log, tracker.Table = object(), sent.append, lambda dataframe: list(dataframe.columns)
    monkeypatch.setitem(sys.modules, name, tracker)
    args = ExtConfig(output_dir=str(tmp_path), report_to="none")
    args.report_to = [name]
    table = {"prompt": ["p"], "completion": ["c"], "score": [1.0]}
    show_tables([table], PartialState(), args, step=3, mode="train")
    assert sent == [{"train_completions": ["step", "prompt", "completion", "score"]}]


# ----------------------------------------------------------------------------------------------------------- storage


def test_rollouts_come_back_as_they_were(tmp_path):
    rollouts = {7: Rollout([[5, 6], [7]], [0.1, -2.5]), 3: Rollout([], [])}
    path = tmp_path / "checkpoint-4" / "rollouts_0.json"  # a folder that is not there yet
    save_rollouts(path, rollouts, epoch=2, pending=5)
    assert load_rollouts(path) == (rollouts, {"epoch": 2, "pending": 5})
    assert [file.name for file in path.parent.iterdir()] == ["rollouts_0.json"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "rollouts_0.json"
    save_rollouts(path, {1: Rollout([[2]], [3.0])}, epoch=0, pending=0)

    def full_disk(self, text, **_):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_rollouts(path, {1: Rollout([[9]], [9.0])}, epoch=1, pending=0)
    assert load_rollouts(path) == ({1: Rollout([[2]], [3.0])}, {"epoch": 0, "pending": 0})


def test_the_file_is_plain_json(tmp_path):
    save_rollouts(tmp_path / "r.json", {1: Rollout([[2, 3]], [0.5])}, epoch=0, pending=1)
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "epoch": 0,
        "pending": 1,
        "rollouts": {"1": {"ids": [[2, 3]], "scores": [0.5]}},
    }


def test_a_round_is_rollouts_at_least():
    assert Round({1: Rollout([[2]], [0.0])}).table == {}


# ------------------------------------------------------------------------------------------------------ random state


def sample(*numbers):
    with seeded(*numbers):
        return torch.rand(4).tolist()


def test_samples_depend_on_seed_step_and_process_alone():
    first = sample(42, 3, 0)
    torch.rand(17)
    assert sample(42, 3, 0) == first
    numbers = list(itertools.product((0, 1, 42), (-1, 0, 1, 2), (0, 1, 7)))
    assert len({tuple(sample(*each)) for each in numbers}) == len(numbers)


def test_the_generator_goes_on_as_before():
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()
    torch.manual_seed(0)
    sample(42, 3, 0)
    assert torch.rand(3).tolist() == expected


def test_the_generator_goes_on_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="sampling failed"), seeded(42, 3, 0):
        torch.rand(5)
        raise ValueError("sampling failed")
    assert torch.rand(3).tolist() == expected
