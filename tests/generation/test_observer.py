# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Observers see every token of every completion, by the numbers of their prompts, and end those that they name."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer

from trl_ext import ProxyModel
from trl_ext.decoding.token_sampling import sample_columns
from trl_ext.generation.generate import generate
from trl_ext.generation.observer import Observer, Step, TokenLogprobs
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy


PROMPTS = [[5, 6, 7], [9, 10], [11, 12, 13, 14, 15, 16], [20]]  # sorted by length when they are generated
GREEDY = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=6)
SAMPLED = GenerationSettings(num_generations=1, max_completion_length=6)


class Written(Observer):
    """Keeps all tokens; ends completion i after `ends[i]` tokens."""

    def __init__(self, n: int, ends: dict[int, int] | None = None) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self.logprobs: list[list[TokenLogprobs]] = [[] for _ in range(n)]
        self.ended = [False] * n
        self.ends = ends or {}

    def see(self, step: Step) -> Collection[int]:
        for place, row in enumerate(step.rows):
            assert not self.ended[row]
            self.tokens[row].append(step.tokens[place])
            self.ended[row] = step.ended[place]
            if step.logprobs is not None:
                self.logprobs[row].append(step.logprobs[place])
        return [row for row in step.rows if len(self.tokens[row]) == self.ends.get(row)]


@pytest.fixture(scope="module", params=["model", "proxy"])
def policy(request: pytest.FixtureRequest) -> Policy:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    if request.param == "model":
        return model_policy(model, tokenizer, batch_size=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return proxy_policy(model, tokenizer, ProxyModel.for_model(model).eval(), batch_size=3)


def test_it_sees_all_tokens(policy: Policy) -> None:
    """Batches of 3, so that the numbers of the rows are not those within a batch."""
    written = Written(len(PROMPTS))
    found = policy.generate(PROMPTS, GREEDY, observer=written)
    assert written.tokens == [group[0].ids for group in found]
    assert found == policy.generate(PROMPTS, GREEDY)
    assert policy.observable


def test_it_ends_completions(policy: Policy) -> None:
    expected = [group[0].ids for group in policy.generate(PROMPTS, GREEDY)]
    written = Written(len(PROMPTS), {1: 2, 3: 1, 0: 6})
    policy.generate(PROMPTS, GREEDY, observer=written)
    assert written.tokens == [expected[0], expected[1][:2], expected[2], expected[3][:1]]
    all_ended = Written(len(PROMPTS), dict.fromkeys(range(4), 1))
    policy.generate(PROMPTS, GREEDY, observer=all_ended)
    assert all_ended.tokens == [ids[:1] for ids in expected]


def test_seeds_hold_in_any_batch(policy: Policy) -> None:
    together = Written(len(PROMPTS))
    together.seeds = [1, 2, 3, 4]
    policy.generate(PROMPTS, SAMPLED, observer=together)
    for i, prompt in enumerate(PROMPTS):
        alone = Written(1)
        alone.seeds = [i + 1]
        policy.generate([prompt], SAMPLED, observer=alone)
        assert alone.tokens[0] == together.tokens[i]
    others = Written(len(PROMPTS))
    others.seeds = [5, 6, 7, 8]
    policy.generate(PROMPTS, SAMPLED, observer=others)
    assert all(a != b for a, b in zip(others.tokens, together.tokens, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_log_probabilities_are_those_at_temperature_1(temperature: float) -> None:
    """One forward pass over prompt and completion, log-softmax, and the k largest of each row."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    written = Written(len(PROMPTS))
    written.top_logprobs = 3
    settings = GenerationSettings(num_generations=1, temperature=temperature, max_completion_length=4)
    generate(model, tokenizer, PROMPTS, settings, batch_size=4, observer=written)
    for prompt, tokens, logprobs in zip(PROMPTS, written.tokens, written.logprobs, strict=True):
        with torch.no_grad():
            logps_TV = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for logps_V, token, given in zip(logps_TV, tokens, logprobs, strict=True):
            assert given.logprob == pytest.approx(logps_V[token].item(), abs=1e-4)
            values, ids = logps_V.topk(3)
            assert [i for i, _ in given.top] == ids.tolist()
            assert [p for _, p in given.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_columns_of_given_random_numbers() -> None:
    """Weights 1, 2, 1: the sums are 1, 3, 4, so that 0.2 and 0.3 of 4 fall into different columns."""
    weights = torch.tensor([[1.0, 2.0, 1.0]]).expand(4, -1)
    numbers = torch.tensor([[0.2], [0.3], [0.74], [0.76]])
    assert sample_columns(weights, numbers)[:, 0].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GenerationSettings(num_generations=2), "num_generations to 1"),
        (GenerationSettings(num_generations=1, num_beams=2), "beam search"),
    ],
)
def test_what_cannot_be_observed(policy: Policy, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.generate(PROMPTS, settings, observer=Written(4))


def test_seeds_need_our_own_sampling() -> None:
    tokenizer = make_tokenizer()
    policy = model_policy(make_model(len(tokenizer)), tokenizer)
    seeded = Written(4)
    seeded.seeds = [1, 2, 3, 4]
    settings = GenerationSettings(num_generations=1, generation_kwargs={"typical_p": 0.9})
    with pytest.raises(ValueError, match="generation_kwargs"):
        policy.generate(PROMPTS, settings, observer=seeded)
