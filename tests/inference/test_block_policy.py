# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Completions that are put together from blocks: order, ends and the last block."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer

from trl_ext.data.completion import Completion
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.blocks import choose_block
from trl_ext.guides.guide_file import GuideSettings
from trl_ext.inference import block_policy as module
from trl_ext.inference.block_policy import block_policy


PROMPTS = [[7, 8, 9, 10, 11], [12, 13]]


@pytest.mark.parametrize("batch_size", [4, 64])
def test_blocks_are_kept_until_a_completion_ends(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    """
    Blocks of at most 3 tokens up to 7, of 4 each, of which the scorer prefers one that ends: what is kept is what was
    scored best in each round, completions stand next to those of their prompt, and those that have ended grow no more.
    """
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    model.generation_config.eos_token_id = ends = list(range(60, 66))  # a few of the tokens: some completions end
    grown: dict[tuple[int, ...], list[int]] = {}
    calls: list[int] = []
    generate = module.generate

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[3].max_completion_length)
        return generate(*args, **kwargs)

    def scorer(texts: Sequence[Sequence[int]], blocks: Sequence[Sequence[Sequence[int]]]) -> Any:
        assert all(len(group) == 4 for group in blocks)
        scores = torch.tensor([[2.0 * (block[-1] in ends) + sum(block) / 1e4 for block in group] for group in blocks])
        for text, group, best in zip(texts, blocks, scores.argmax(1).tolist(), strict=True):
            grown.setdefault(tuple(text), []).extend(group[best])
        return scores, torch.zeros_like(scores)

    monkeypatch.setattr(module, "generate", recorded)
    settings = GuideSettings(guide_blocks=4, guide_block_length=3, guide_block_choice="best")
    policy = block_policy(model, tokenizer, scorer, settings, batch_size=batch_size, name="blocks")
    torch.manual_seed(0)
    found = policy.generate(PROMPTS, GenerationSettings(num_generations=2, max_completion_length=7))
    assert [len(group) for group in found] == [2, 2]
    assert max(calls) == 3 and 1 in calls  # 3, 3 and the one that is left
    for prompt, group in zip(PROMPTS, found, strict=True):
        for completion in group:
            ids = completion.ids
            assert completion.ended == (ids[-1] in ends) and not any(token in ends for token in ids[:-1])
            assert len(ids) == 7 or completion.ended
            text = list(prompt)
            while len(text) < len(prompt) + len(ids):  # each round's best block of this text is the next of it
                rest = ids[len(text) - len(prompt) :]
                options = grown[tuple(text)]
                step = min(3, 7 - (len(text) - len(prompt)), len(rest))
                assert any(options[i : i + step] == rest[:step] for i in range(len(options)))
                text += rest[:step]
    everything = [completion for group in found for completion in group]
    assert any(completion.ended for completion in everything)
    assert len({tuple(completion.ids) for completion in everything}) == 4


def test_scores_of_tokens_add_up_along_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Worked by hand: beginnings A (token score 5) and B (1); B's continuation scores 9, A's 2. Sums of 7 and 10 keep B's
    text, though A was better after the first round.
    """
    made = iter([[[[7]], [[8]]], [[[9]], [[10]]]])  # A is continued by 9, B by 10

    def generate(*_: Any, **__: Any) -> Any:
        return [[Completion("", ids, False) for ids in group] for group in next(made)]

    monkeypatch.setattr(module, "generate", generate)
    scores = {7: 5.0, 8: 1.0, 9: 2.0, 10: 9.0}

    def scorer(texts: Sequence[Sequence[int]], blocks: Sequence[Sequence[Sequence[int]]]) -> Any:
        of_blocks = torch.tensor([[scores[block[0]] for block in group] for group in blocks])
        return torch.zeros_like(of_blocks), of_blocks

    tokenizer = make_tokenizer()
    settings = GuideSettings(guide_blocks=1, guide_block_length=1, guide_beams=2, guide_block_choice="best")
    policy = block_policy(make_model(len(tokenizer)), tokenizer, scorer, settings, batch_size=4, name="b")
    [[completion]] = policy.generate([[5]], GenerationSettings(num_generations=1, max_completion_length=2))
    assert completion.ids == [8, 10]


def test_settings_that_give_equal_blocks_are_refused() -> None:
    tokenizer = make_tokenizer()
    settings = GuideSettings(guide_blocks=4)
    policy = block_policy(make_model(len(tokenizer)), tokenizer, lambda *_: None, settings, batch_size=4, name="b")  # type: ignore[arg-type,return-value]
    for change in ({"temperature": 0.0}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="give the same block every time"):
            policy.generate(PROMPTS, GenerationSettings(num_generations=1, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("beams", "k", "drop"), [(1, 3, 0.0), (2, 2, 0.0), (3, 1, 0.5)])
def test_the_kl_of_the_best_blocks_is_below_its_bound(beams: int, k: int, drop: float) -> None:
    """
    Two rounds of blocks of one token, over all that can be sampled: three tokens of different probability, and scores
    for which the KL is large (the rarest tokens are the best).
    """
    tokens = {0: 0.7, 1: 0.25, 2: 0.05}
    settings = GuideSettings(
        guide_blocks=k, guide_beams=beams, guide_drop=drop, guide_block_choice="best", guide_block_length=1
    )
    q: dict[tuple[int, ...], float] = {}

    def after_round(kept: list[list[int]], number: int, probability: float) -> None:
        if number > 2:
            best = tuple(max(kept, key=sum))
            q[best] = q.get(best, 0.0) + probability
            return
        for sampled in itertools.product(tokens, repeat=len(kept) * k):
            texts = [[*kept[i // k], token] for i, token in enumerate(sampled)]
            found = module._keep([module._Text(ids, score=sum(ids)) for ids in texts], number, settings)
            p = math.prod(tokens[token] for token in sampled)
            after_round([text.ids for text in found], number + 1, probability * p)

    after_round([[]] * beams, 1, 1.0)
    kl = sum(p * math.log(p / math.prod(tokens[token] for token in text)) for text, p in q.items())
    bound = math.log(beams) + 2 * module.kl_of_round(settings)
    assert sum(q.values()) == pytest.approx(1)
    assert 0.2 * bound < kl <= bound


def test_what_a_sampled_choice_adds_to_the_kl_bounds_it() -> None:
    """One of two tokens is sampled by softmax of a score: the mean of log(2 p) over everything that can happen."""
    tokens, scores = {0: 0.8, 1: 0.2}, {0: 0.0, 1: 1.5}
    q, added = dict.fromkeys(tokens, 0.0), 0.0
    for pair in itertools.product(tokens, repeat=2):
        logits = torch.tensor([scores[token] for token in pair])
        for i, share in enumerate(logits.softmax(0).tolist()):
            uniform = share / 2 + (0.0 if i == 0 else 1 - share)  # in the middle of this choice
            chosen, gain = choose_block(logits, uniform)
            assert chosen == i
            p = tokens[pair[0]] * tokens[pair[1]] * share
            q[pair[i]] += p
            added += p * gain
    kl = sum(p * math.log(p / tokens[token]) for token, p in q.items())
    assert 0.02 < kl < added < math.log(2) - 0.5


@pytest.mark.parametrize(("beams", "drop", "counts"), [(5, 0.5, [3, 2, 1, 1]), (4, 0.0, [4, 4]), (6, 0.3, [5, 3, 3])])
def test_how_many_texts_are_kept(beams: int, drop: float, counts: list[int]) -> None:
    """Those that are left of the first number after dropping a share per round, rounded up; the best ones."""
    settings = GuideSettings(guide_blocks=2, guide_beams=beams, guide_drop=drop, guide_block_choice="best")
    texts = [module._Text([i], score=float(-i)) for i in range(2 * beams)]
    for number, count in enumerate(counts, 1):
        assert [text.ids[0] for text in module._keep(texts[::-1], number, settings)] == list(range(count))


def test_stop_strings_are_refused() -> None:
    """One of them may begin in a block and end in the next."""
    tokenizer = make_tokenizer()
    settings = GuideSettings(guide_blocks=2, guide_block_length=3)
    policy = block_policy(make_model(len(tokenizer)), tokenizer, None, settings, batch_size=4, name="blocks")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`stop_strings` may be split between two blocks"):
        policy.generate(PROMPTS, GenerationSettings(generation_kwargs={"stop_strings": ["the"]}))
