# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What observers see of guidance: values of candidates, and probabilities before and after it."""

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import make_value

from trl_ext.generation.generate import generate
from trl_ext.generation.observer import Observer, Step
from trl_ext.generation.token_guidance import SavedGuidance, TokenGuidance
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.guide_file import GuideSettings
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.inference.guide_decoding import policy_with_guides
from trl_ext.methods.vas.policies import guided_policy


PROMPTS = [[5, 6, 7], [9, 10], [11, 12, 13, 14, 15, 16]]
SAMPLED = GenerationSettings(num_generations=1, max_completion_length=5)
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


class Seen(Observer):
    """Keeps the tokens of each completion, and what guides did there."""

    def __init__(self, top: int | None = 20, seeds: tuple[int, ...] = (1, 2, 3)) -> None:
        self.top_candidates, self.seeds = top, seeds
        self.tokens: list[list[int]] = [[] for _ in seeds]
        self.guidance: list[list[TokenGuidance]] = [[] for _ in seeds]

    def see(self, step: Step) -> Collection[int]:
        for place, row in enumerate(step.rows):
            self.tokens[row].append(step.tokens[place])
            if step.guidance is not None:
                self.guidance[row].append(step.guidance[place])
        return ()


def values_1_to_4(context: Any, candidates_Nk: torch.Tensor) -> torch.Tensor:
    """Values 1, 3, 2, 0 of the tokens 0 to 3."""
    return torch.tensor([1.0, 3.0, 2.0, 0.0])[candidates_Nk]


def step(processor: GuidedLogitsProcessor, chosen: int, top: int = 20) -> TokenGuidance:
    processor.saved = SavedGuidance(top)
    processor(torch.tensor([[1]]), LOGITS)
    [found] = processor.saved.of(torch.tensor([chosen]))
    return found


def test_worked_numbers_among_candidates_only() -> None:
    """softmax(log pi + beta V) over the tokens 0 and 1: 0.5 e^(0.5 x 1) : 0.25 e^(0.5 x 3) = 0.8244 : 1.1204."""
    found = step(GuidedLogitsProcessor(values_1_to_4, 0.5, top_k=2, candidates_only=True), 1)
    assert [each.token for each in found.candidates] == [1, 0]  # the likeliest with guidance first
    assert [each.before for each in found.candidates] == pytest.approx([0.25, 0.5])
    assert [each.after for each in found.candidates] == pytest.approx([0.5761, 0.4239], abs=1e-4)
    assert [each.values for each in found.candidates] == [(3.0,), (1.0,)]
    assert found.chosen == found.candidates[0] and (found.heads, found.weights) == (("score",), (0.5,))


def test_worked_numbers_where_other_tokens_keep_their_logits() -> None:
    """
    The values 1 and 3 minus their mean, times 0.5: 0.5 e^-0.5 = 0.3033, 0.25 e^0.5 = 0.4122, the others 0.25; divided
    by the sum 0.9655. Among the candidates it is the same distribution as above: 0.8244 : 1.1204.
    """
    found = step(GuidedLogitsProcessor(values_1_to_4, 0.5, top_k=2), 3)
    after = {each.token: each.after for each in found.candidates}
    assert after == pytest.approx({0: 0.3141, 1: 0.4269}, abs=1e-4)
    assert after[0] / after[1] == pytest.approx(0.8244 / 1.1204, abs=1e-4)
    assert found.chosen.values == ()  # it was not scored
    assert (found.chosen.before, found.chosen.after) == pytest.approx((0.125, 0.125 / 0.9655), abs=1e-4)


def test_a_weight_of_the_other_sign_prefers_the_other_token() -> None:
    found = step(GuidedLogitsProcessor(values_1_to_4, -0.5, top_k=2), 0)
    assert [each.token for each in found.candidates] == [0, 1]
    assert found.chosen.after > found.chosen.before


def test_fewer_candidates_are_listed_and_the_chosen_one_keeps_its_value() -> None:
    found = step(GuidedLogitsProcessor(values_1_to_4, 1.0, top_k=4), 3, top=2)
    assert [each.token for each in found.candidates] == [1, 0]
    assert found.chosen.values == (0.0,)
    assert step(GuidedLogitsProcessor(values_1_to_4, 1.0, top_k=4), 3, top=0).candidates == []


def test_guides_are_asked_at_weight_0_too() -> None:
    """An unguided completion has values, and equal probabilities before and after."""
    found = step(GuidedLogitsProcessor(values_1_to_4, 0.0, top_k=3), 1)
    assert found.chosen.values == (3.0,)
    assert all(each.before == pytest.approx(each.after) for each in found.candidates)


def test_tokens_that_a_guide_does_not_know_and_impossible_ones() -> None:
    """Logits of minus infinity are no candidates; a guide of two tokens knows nothing of the others."""
    processor = GuidedLogitsProcessor({"a": values_1_to_4, "b": values_1_to_4}, {"a": 1.0}, top_k=4)
    processor.guides[1].vocabulary = 2
    processor.saved = SavedGuidance(20)
    logits = LOGITS.clone()
    logits[0, 2] = -math.inf
    processor(torch.tensor([[1]]), logits)
    [found] = processor.saved.of(torch.tensor([3]))
    assert {each.token: each.values for each in found.candidates} == {0: (1, 1), 1: (3, 3), 3: (0, None)}
    assert found.chosen.values == (0.0, None) and found.heads == ("a", "b")
    processor.saved.top = 2  # those are not listed in place of candidates
    assert [each.token for each in processor.saved.of(torch.tensor([3]))[0].candidates] == [1, 0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


@pytest.mark.parametrize("form", ["state", "action", "policy"])
def test_vas_at_each_token_of_a_batch(model: Any, tokenizer: Any, form: str) -> None:
    """
    Values and probabilities are those of the complete text, read again: log pi + 2 V over the 6 likeliest tokens, as
    softmax, is the distribution after guidance among the candidates. Completions are those that nobody watches.
    """
    value = make_value(form, model, heads=("first", "second"))
    policy = guided_policy(model, tokenizer, value, {"first": 2.0}, 6, batch_size=2)
    seen, unseen = Seen(), Seen(None)
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    policy.generate(PROMPTS, SAMPLED, observer=unseen)
    assert seen.tokens == unseen.tokens and not any(unseen.guidance)
    with torch.no_grad():
        for prompt, tokens, guidance in zip(PROMPTS, seen.tokens, seen.guidance, strict=True):
            for t, (token, found) in enumerate(zip(tokens, guidance, strict=True)):
                ids = torch.tensor([prompt + tokens[:t]])
                logits_V = model(ids).logits[0, -1]
                top_k, candidates_k = logits_V.topk(6)
                given = {each.token: each for each in found.candidates}
                assert sorted(given) == sorted(candidates_k.tolist())
                values_k = torch.tensor([given[c].values[0] for c in candidates_k.tolist()])
                if form == "state":
                    texts = torch.cat([ids.expand(6, -1), candidates_k[:, None]], 1)
                    assert values_k.tolist() == pytest.approx(value(texts).values[:, -1, 0].tolist(), abs=1e-4)
                after_k = torch.tensor([given[c].after for c in candidates_k.tolist()])
                expected_k = (top_k + 2.0 * values_k).softmax(0)
                assert (after_k / after_k.sum()).tolist() == pytest.approx(expected_k.tolist(), abs=1e-4)
                before_k = logits_V.softmax(0)[candidates_k]
                assert [given[c].before for c in candidates_k.tolist()] == pytest.approx(before_k.tolist(), abs=1e-4)
                assert found.chosen.token == token
                assert found.chosen.values == (given[token].values if token in given else ())


@pytest.mark.parametrize("wide", [16, 0])
def test_tokens_between_guided_ones_have_no_candidates(
    model: Any, tokenizer: Any, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `guide_every` 2, in one forward pass over all rows or over those that are guided."""
    monkeypatch.setattr("trl_ext.guides.logits_processor.WIDE_FORWARD", {"cpu": wide})
    guides = {"f": lambda context, candidates: (candidates % 3).float()}
    settings = GuideSettings(guide_top_k=4, guide_every=2)
    policy = policy_with_guides(model, tokenizer, guides, 1.0, settings, batch_size=3)  # type: ignore[arg-type]
    seen = Seen()
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    for row in seen.guidance:
        assert [len(each.candidates) for each in row] == [4, 0, 4, 0, 4][: len(row)]
        for each in row:
            assert all(c.values == (float(c.token % 3),) for c in each.candidates)
            if not each.candidates:
                assert each.chosen.values == () and each.chosen.before == pytest.approx(each.chosen.after)


def test_rows_that_a_schedule_guides_alone(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row by its own coin, read in a forward pass of the guided ones: values are of the right rows."""
    monkeypatch.setattr("trl_ext.guides.logits_processor.WIDE_FORWARD", {"cpu": 0})
    sums = {"sum": lambda context, candidates: (candidates + context.ids_NS[:, -1:]).float()}
    settings = GuideSettings(guide_top_k=4, guide_when={"random": 0.5})
    policy = policy_with_guides(model, tokenizer, sums, 0.1, settings, batch_size=3)  # type: ignore[arg-type]
    seen, counts = Seen(), set()
    policy.generate(PROMPTS, SAMPLED, observer=seen)
    for prompt, tokens, row in zip(PROMPTS, seen.tokens, seen.guidance, strict=True):
        for t, each in enumerate(row):
            last = (prompt + tokens)[len(prompt) + t - 1]
            counts.add(len(each.candidates))
            assert all(c.values == (float(c.token + last),) for c in each.candidates)
    assert counts == {0, 4}


def test_nothing_guides(model: Any, tokenizer: Any) -> None:
    seen = Seen()
    generate(model, tokenizer, PROMPTS, SAMPLED, observer=seen)
    assert all(seen.tokens) and not any(seen.guidance)


def test_two_processors_that_guide_are_refused(model: Any, tokenizer: Any) -> None:
    def two(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[GuidedLogitsProcessor]:
        return [GuidedLogitsProcessor(values_1_to_4), GuidedLogitsProcessor(values_1_to_4)]

    with pytest.raises(ValueError, match="join their guides in one"):
        generate(model, tokenizer, PROMPTS, SAMPLED, processors=two, observer=Seen())
