# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Half completions and the rewards of their continuations."""

import torch
from conftest import letter_reward, make_model, make_tokenizer

from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.calibration import HalfCompletion, first_halves, roll_out
from trl_ext.rewards.functions import load_rewards


def test_first_halves_take_one_completion_of_each_row_first():
    rows = [{"prompt_ids": [1, 2]}, {"prompt_ids": [3]}]
    groups = [[[5, 6, 7], [8, 9]], [[4], [10, 11, 12, 13]]]
    states = first_halves(rows, groups, 10)
    assert states == [HalfCompletion(rows[0], [5]), HalfCompletion(rows[0], [8]), HalfCompletion(rows[1], [10, 11])]
    assert states[2].prefix == [3, 10, 11]
    assert first_halves(rows, groups, 1) == states[:1]
    assert first_halves([], [], 3) == []


def test_complete_texts_are_scored_and_respect_the_maximum_length():
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    rows = [{"prompt": "the film", "prompt_ids": tokenizer("the film").input_ids, "topic": "x"}]
    start = tokenizer(" good story").input_ids
    seen = []

    def reward(prompts, completions, completion_ids, topic, **_):
        seen.append((prompts, completions, completion_ids, topic))
        return letter_reward(completions)

    states = [HalfCompletion(rows[0], start), HalfCompletion(rows[0], start[:1])]
    settings = GenerationSettings(num_generations=3, max_completion_length=5)
    torch.manual_seed(0)
    groups = roll_out(model, tokenizer, states, settings, load_rewards(reward), None, batch_size=4)
    prompts, completions, ids, topic = seen[0]
    assert prompts == ["the film"] * 6 and topic == ["x"] * 6
    assert [scored.score for group in groups for scored in group] == letter_reward(completions)
    assert [[scored.completion.ids for scored in group] for group in groups] == [ids[:3], ids[3:]]
    assert all(row[:2] == start for row in ids[:3]) and all(row[:1] == start[:1] for row in ids[3:])
    assert all(len(row) == 5 or row[-1] == tokenizer.eos_token_id for row in ids)
    assert completions[0] == tokenizer.decode(ids[0], skip_special_tokens=True)
