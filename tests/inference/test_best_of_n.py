# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Best-of-n against loops over the sampled completions and exact expectations, and its errors."""

import dataclasses
import math
import statistics

import pytest
import torch

from trl_ext.data.completion import Completion
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.best_of_n import best_of_n, best_of_n_policies, kl_bound
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.rewards.functions import Reward, RewardError


PROMPTS = ["the film", "a", "we liked"]
ROWS = [{"prompt": "a"}, {"prompt": "the"}]
SHORT = GenerationSettings(num_generations=1, max_completion_length=5)


def ids_sum(completion_ids, **_):
    return [float(sum(ids) % 17) for ids in completion_ids]


def length(completions, **_):
    return [float(len(text)) for text in completions]


SUM, LENGTH = Reward("sum", ids_sum), Reward("length", length)


def scripted(tokenizer, numbers):
    """A policy whose completions are one token each, taken from `numbers`, and the settings of each call of it."""
    calls = []

    def generate(prompt_ids, settings):
        calls.append(settings)
        k = settings.num_generations
        return [
            [Completion(text=str(x), ids=[x], ended=False) for x in numbers[p * k : (p + 1) * k]]
            for p in range(len(prompt_ids))
        ]

    return Policy(name="scripted", tokenizer=tokenizer, generate=generate), calls


def first_id(completion_ids, **_):
    return [float(ids[0]) for ids in completion_ids]


FIRST = Reward("first", first_id)


class TestBestOfN:
    def test_all_are_returned_best_first(self, tiny_model, tiny_tokenizer):
        found = best_of_n(
            tiny_model, PROMPTS, [SUM, LENGTH], 6, processing_class=tiny_tokenizer, reward_weights=[1.0, -0.5],
            settings=SHORT,
        )  # fmt: skip
        assert [len(row) for row in found] == [6, 6, 6]
        for row in found:
            scores = [sum(x.completion.ids) % 17 - 0.5 * len(x.text) for x in row]
            assert [x.score for x in row] == pytest.approx(scores)
            assert scores == sorted(scores, reverse=True)
            assert all(x.rewards == {"sum": sum(x.completion.ids) % 17, "length": len(x.text)} for x in row)

    def test_same_seed_same_completions_and_torchs_generator_is_restored(self, tiny_model, tiny_tokenizer):
        policy = model_policy(tiny_model, tiny_tokenizer)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first, again, other = (best_of_n(policy, PROMPTS, SUM, 4, settings=SHORT, seed=seed) for seed in (1, 1, 2))
        assert torch.rand(1) == expected
        assert first == again != other

    def test_a_directory_is_loaded(self, tiny_model_dir):
        [row] = best_of_n(tiny_model_dir, ["the film"], ids_sum, 3, settings=SHORT)
        assert len(row) == 3

    def test_completions_without_score_are_last_and_columns_reach_the_rewards(self, tiny_tokenizer):
        def above(completion_ids, least, **_):
            return [x[0] if x[0] >= y else None for x, y in zip(completion_ids, least, strict=True)]

        policy, _ = scripted(tiny_tokenizer, [7, 3, 9, 4, 8, 1])
        found = best_of_n(policy, ["a", "the"], above, 3, columns={"least": [5, 4]})
        assert [[x.completion.ids[0] for x in row] for row in found] == [[9, 7, 3], [8, 4, 1]]
        assert [math.isnan(x.score) for row in found for x in row] == [False, False, True] * 2

    def test_no_prompts(self, tiny_tokenizer):
        assert best_of_n(scripted(tiny_tokenizer, [])[0], [], FIRST, 3) == []

    def test_errors(self, tiny_model, tiny_tokenizer):
        policy, _ = scripted(tiny_tokenizer, [1])
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            best_of_n(policy, ["a"], FIRST, 0)
        for prompt, kind in (("The film", "text"), ([{"role": "user", "content": "a"}], "conversation")):
            with pytest.raises(ValueError, match=f"must be a list of prompts, got a single {kind}: put it in a list"):
                best_of_n(policy, prompt, FIRST, 2)
        with pytest.raises(ValueError, match="needs a reward"):
            best_of_n(policy, ["a"], [], 2)
        with pytest.raises(ValueError, match="'least' has 1 entries for 2 prompts"):
            best_of_n(policy, ["a", "the"], FIRST, 1, columns={"least": [5]})
        with pytest.raises(ValueError, match="`reward_weights` must be finite"):
            best_of_n(policy, ["a"], FIRST, 2, reward_weights=[float("nan")])
        with pytest.raises(ValueError, match="temperature 0"):
            best_of_n(policy, ["a"], FIRST, 2, settings=GenerationSettings(num_generations=1, temperature=0.0))
        with pytest.raises(ValueError, match="processing_class"):
            best_of_n(tiny_model, ["a"], FIRST, 2)
        with pytest.raises(RewardError, match="'broken' raised RuntimeError"):
            best_of_n(policy, ["a"], Reward("broken", lambda **_: (_ for _ in ()).throw(RuntimeError("x"))), 1)


class TestPolicies:
    def test_disjoint_groups_of_the_same_completions(self, tiny_tokenizer):
        numbers = [3, 8, 5, 1, 9, 2, 7, 7, 6, 0, 4, 2, 8, 1]
        policy, calls = scripted(tiny_tokenizer, numbers)
        policies = best_of_n_policies(policy, ROWS, [FIRST], [1, 3, 7])
        for of_n, n in zip(policies, (1, 3, 7), strict=True):
            sampled = of_n.generate([[1], [2]], SHORT)
            halves = (numbers[:7], numbers[7:])
            expected = [[max(half[i : i + n]) for i in range(0, 7 - n + 1, n)] for half in halves]
            assert [[x.ids[0] for x in row] for row in sampled] == expected
            assert (of_n.extras, of_n.series, of_n.logps) == ({"n": n}, "best-of-n", None)
        assert [settings.num_generations for settings in calls] == [7]

    def test_the_weights_decide_which_is_best(self, tiny_tokenizer):
        policy, _ = scripted(tiny_tokenizer, [3, 8, 5, 1])
        against = Reward("against", lambda completion_ids, **_: [-10.0 * ids[0] for ids in completion_ids])
        for weights, best in (([1.0, 0.0], [8, 5]), (None, [3, 1])):
            [of_2] = best_of_n_policies(policy, ROWS, [FIRST, against], [2], reward_weights=weights)
            assert [x.ids[0] for [x] in of_2.generate([[1], [2]], SHORT)] == best

    def test_mean_over_groups_is_the_exact_expectation(self, tiny_tokenizer):
        """For uniform samples of 0..9, the expected maximum of n is the sum over x of P(max > x)."""
        torch.manual_seed(0)
        numbers = torch.randint(10, (2 * 8192,)).tolist()
        policy, _ = scripted(tiny_tokenizer, numbers)
        for of_n, n in zip(best_of_n_policies(policy, ROWS, [FIRST], [2, 8, 8192]), (2, 8), strict=False):
            sampled = [x.ids[0] for row in of_n.generate([[1], [2]], SHORT) for x in row]
            assert len(sampled) == 2 * 8192 // n
            exact = sum(1 - ((x + 1) / 10) ** n for x in range(10))
            error = statistics.stdev(sampled) / len(sampled) ** 0.5
            assert statistics.mean(sampled) == pytest.approx(exact, abs=4 * error)

    def test_evaluation_reports_the_bound_and_no_kl(self, tiny_model, tiny_tokenizer):
        """The bound is log n - (n - 1) / n: 0 for n = 1 and 1.20 for n = 8."""
        base = model_policy(tiny_model, tiny_tokenizer, name="base")
        rows = [{"prompt": prompt} for prompt in PROMPTS]
        found = [
            evaluate(policy, rows, [SUM], settings=SHORT, base=base)
            for policy in best_of_n_policies(base, rows, [SUM], [1, 8])
        ]
        assert [x.metrics["kl_bound"] for x in found] == [0.0, pytest.approx(math.log(8) - 7 / 8)]
        assert all(x.metrics["kl"] is x.metrics["kl_se"] is None for x in found)
        assert found[1].notes["kl"] == "not measured; at most 1.20 nats"
        assert found[1].metrics["reward/sum"] > found[0].metrics["reward/sum"]
        assert found[1].metrics["perplexity"] > 1

    def test_each_completion_is_scored_once(self, tiny_model, tiny_tokenizer):
        """Three policies choose among the same 8 completions of 3 prompts; evaluation takes their scores from them."""
        seen = []

        def counted(completions, **kwargs):
            seen.extend(completions)
            return ids_sum(**kwargs)

        base = model_policy(tiny_model, tiny_tokenizer, name="base")
        rows, reward = [{"prompt": prompt} for prompt in PROMPTS], Reward("sum", counted)
        found = [
            evaluate(policy, rows, [reward], settings=SHORT, base=base)
            for policy in best_of_n_policies(base, rows, [reward], [1, 4, 8])
        ]
        assert len(seen) == 8 * len(rows)
        for evaluation in found:
            scores = [ids_sum([completion.ids for completion in group]) for group in evaluation.completions]
            assert evaluation.rewards["sum"] == scores
        [of_2] = best_of_n_policies(base, rows, [reward], [2])
        assert "reward/length" in evaluate(of_2, rows, [reward, LENGTH], settings=SHORT).metrics

    def test_distinct_2_uses_num_generations_completions_per_prompt(self, tiny_tokenizer):
        policy, _ = scripted(tiny_tokenizer, [5] * 16)
        [of_1] = best_of_n_policies(policy, ROWS, [FIRST], [1])
        twice = dataclasses.replace(of_1, generate=lambda *_: [[Completion("x y", [5, 6], False)] * 8] * 2)
        found = evaluate(twice, ROWS, [FIRST], settings=SHORT)
        assert found.metrics["distinct_2"] == 0.5  # one bigram in 2 completions, not in 16

    def test_other_rows_are_an_error(self, tiny_tokenizer):
        [of_2] = best_of_n_policies(scripted(tiny_tokenizer, [1] * 6)[0], ROWS, [FIRST], [2])
        with pytest.raises(ValueError, match="was made for 2 rows, but is asked for 3"):
            of_2.generate([[1], [2], [3]], SHORT)
        with pytest.raises(ValueError, match="needs a reward"):
            best_of_n_policies(scripted(tiny_tokenizer, [1])[0], ROWS, [], [2])


def test_the_bound_is_exact_for_equally_likely_completions():
    """
    The best of n of m equally likely completions with different scores.

    It is the j-th with probability (j / m)^n - ((j - 1) / m)^n.
    """
    m, n = 10**5, 5
    best = [(j / m) ** n - ((j - 1) / m) ** n for j in range(1, m + 1)]
    kl = sum(p * math.log(p * m) for p in best if p > 0)
    assert kl == pytest.approx(kl_bound(n), abs=1e-3)
    assert kl <= kl_bound(n)
    assert kl_bound(1) == 0.0
