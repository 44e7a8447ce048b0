# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What observers see of a proxy: probabilities of candidates before and after it, and of their acceptance."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer

from trl_ext import ProxyModel
from trl_ext.generation.observer import Observer, Step
from trl_ext.generation.token_guidance import TokenGuidance
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.policies import proxy_policy


PROMPTS = [[5, 6, 7], [9, 10], [11, 12, 13, 14, 15, 16]]
SAMPLED = GenerationSettings(num_generations=1, max_completion_length=4)


class Seen(Observer):
    """Keeps the tokens of each completion, and what the proxy did there."""

    def __init__(self, top: int | None = 20) -> None:
        self.top_candidates, self.seeds = top, [1, 2, 3]
        self.tokens: list[list[int]] = [[] for _ in PROMPTS]
        self.guidance: list[list[TokenGuidance]] = [[] for _ in PROMPTS]

    def see(self, step: Step) -> Collection[int]:
        for place, row in enumerate(step.rows):
            self.tokens[row].append(step.tokens[place])
            if step.guidance is not None:
                self.guidance[row].append(step.guidance[place])
        return ()


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, ProxyModel]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model, tokenizer, ProxyModel.for_model(model).eval()


@pytest.mark.parametrize("order", ["sampled", "descending"])
@pytest.mark.parametrize("forced", ["first", "last"])
def test_probabilities_are_those_of_the_policy(models: Any, order: str, forced: str) -> None:
    """
    `after` is what the policy's own log-probabilities give for each candidate, and sums to 1 over all of them;
    `before` is the language model's softmax. Completions are those that nobody watches.
    """
    model, tokenizer, proxy = models
    process = DecisionProcess(order=order, forced=forced, top_k=5)
    policy = proxy_policy(model, tokenizer, proxy, process, batch_size=2)
    seen, unseen = Seen(), Seen(None)
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    policy.generate(PROMPTS, SAMPLED, observer=unseen)
    assert policy.shows_guidance and seen.tokens == unseen.tokens and not any(unseen.guidance)
    assert policy.logps is not None
    for prompt, tokens, guidance in zip(PROMPTS, seen.tokens, seen.guidance, strict=True):
        for t, (token, found) in enumerate(zip(tokens, guidance, strict=True)):
            assert len(found.candidates) == 5 and found.heads == ("accepted",)
            assert sum(each.after for each in found.candidates) == pytest.approx(1.0, abs=1e-4)
            so_far = prompt + tokens[:t]
            with torch.no_grad():
                before_V = model(torch.tensor([so_far])).logits[0, -1].softmax(-1)
            [logps] = policy.logps([so_far], [[[each.token] for each in found.candidates]])
            for each, (log_q,) in zip(found.candidates, logps, strict=True):
                assert each.after == pytest.approx(log_q.exp().item(), abs=1e-4)
                assert each.before == pytest.approx(before_V[each.token].item(), abs=1e-4)
                assert each.values[0] is not None and 0 < each.values[0] < 1
            assert found.chosen in found.candidates and found.chosen.token == token


def test_the_likelier_decision(models: Any) -> None:
    """Greedy decisions in descending order leave one token, which is chosen: the first that is accepted."""
    policy = proxy_policy(*models, DecisionProcess(order="descending", top_k=5), greedy=True)
    seen = Seen()
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    for row in seen.guidance:
        assert all(each.chosen.after == pytest.approx(1.0, abs=1e-4) for each in row)


def test_where_probabilities_cannot_be_computed(models: Any) -> None:
    policy = proxy_policy(*models, DecisionProcess(order="sampled", top_k=5, max_candidates=2))
    seen = Seen()
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    assert not policy.shows_guidance and all(seen.tokens) and not any(seen.guidance)
