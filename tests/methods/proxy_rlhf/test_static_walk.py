# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The decision process in CUDA-graph decoding against the ordinary loop: tokens, counts and recorded decisions."""

import dataclasses
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from transformers import BitsAndBytesConfig
from transformers.generation import BaseStreamer

from trl_ext import ProxyModel
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.generation.observer import StreamerObserver
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding import static_walk as static
from trl_ext.methods.proxy_rlhf.decoding.batch import ProxyCompletions, complete
from trl_ext.methods.proxy_rlhf.decoding.per_row_rng import PerRowRNG
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.load import load_model


PROMPTS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17], [20, 21]]
K = 6


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def make_proxy(model: Any, bias: float = 0.0, **fields: Any) -> ProxyModel:
    torch.manual_seed(0)
    proxy = ProxyModel.for_model(model, DecisionProcess(**{"top_k": K} | fields), layer_sizes=[16]).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 1)
        proxy.actor[-1].bias.fill_(bias)
    return proxy


def answers(
    model: Any, proxy: Any, wanted: str, prompts: Any = PROMPTS, repeats: int = 2, **settings: Any
) -> ProxyCompletions:
    settings = {"max_new_tokens": 40, "eos": [1]} | settings
    seeds = list(range(len(prompts) * repeats))
    process = proxy.config.decision_process
    return complete(BackboneAndHead(model), proxy, process, prompts, seeds=seeds, cuda_graphs=wanted, **settings)


def check_equal(found: ProxyCompletions, expected: ProxyCompletions) -> None:
    assert found.ids == expected.ids
    assert found.ended == expected.ended
    for name in ("examined", "rejected", "forced", "asked"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.kl, expected.kl, equal_nan=True, atol=1e-4, rtol=1e-4)
    assert (found.decisions is None) == (expected.decisions is None)
    if found.decisions is None or expected.decisions is None:
        return
    for field in dataclasses.fields(expected.decisions):
        mine, its = (getattr(d, field.name) for d in (found.decisions, expected.decisions))
        if isinstance(its, torch.Tensor) and its.is_floating_point():
            torch.testing.assert_close(mine.float(), its.float(), atol=0.03, rtol=0.02)  # features are bfloat16
        elif isinstance(its, torch.Tensor):
            assert torch.equal(mine, its), field.name


@pytest.mark.parametrize("forced", ["first", "last"])
@pytest.mark.parametrize("feature", ["candidate", "context"])
@pytest.mark.parametrize("order", ["sampled", "descending"])
def test_tokens_and_decisions_equal_those_of_a_growing_cache(
    model: Any, order: str, feature: str, forced: str
) -> None:
    """Prompts of different lengths, two completions each; sampled, greedy and recorded decisions, and the KL."""
    proxy = make_proxy(model, bias=-1.0, order=order, feature=feature, forced=forced)
    for settings in ({}, {"greedy": True}, {"record": True}, {"record": True, "measure_every": 2}):
        expected = answers(model, proxy, "never", **settings)
        check_equal(answers(model, proxy, "always", **settings), expected)
    assert expected.forced.any() and expected.rejected.any()
    assert cached_loops(model)._loops


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.7, "max_candidates": 3}, {"top_p": 0.6}, {"min_p": 0.3}],
    ids=["a few of them", "top-p", "min-p"],
)
def test_truncated_candidates(model: Any, fields: dict) -> None:
    """With a single candidate, the proxy is not asked."""
    proxy = make_proxy(model, **fields)
    expected = answers(model, proxy, "never", record=True)
    check_equal(answers(model, proxy, "always", record=True), expected)
    if "max_candidates" not in fields:
        assert (expected.asked < torch.tensor([len(ids) for ids in expected.ids])).any()


def test_sequences_end_at_different_positions(model: Any) -> None:
    """After an end of sequence or at the maximum length, nothing is counted, recorded or returned."""
    proxy = make_proxy(model)
    free = answers(model, proxy, "never", eos=[])
    ends = [free.ids[0][2], free.ids[5][20]]
    settings: dict[str, Any] = {"eos": ends, "max_length": 20, "record": True}
    expected = answers(model, proxy, "never", **settings)
    assert len({len(ids) for ids in expected.ids}) > 2 and any(expected.ended) and not all(expected.ended)
    check_equal(answers(model, proxy, "always", **settings), expected)
    check_equal(
        answers(model, proxy, "always", **settings | {"record": False}), dataclasses.replace(expected, decisions=None)
    )


def test_more_positions_than_one_block_of_random_numbers(model: Any) -> None:
    """Random numbers are generated in blocks of 32 positions, from the generator of each row."""
    proxy = make_proxy(model)
    expected = answers(model, proxy, "never", max_new_tokens=70, eos=[])
    check_equal(answers(model, proxy, "always", max_new_tokens=70, eos=[]), expected)


def test_graph_is_reused_for_other_prompts_and_updated_weights(model: Any) -> None:
    proxy = make_proxy(model)
    before = answers(model, proxy, "always")
    [loop] = cached_loops(model)._loops.values()
    others = [[30, 31], [32], [33, 34, 35], [36]]
    check_equal(answers(model, proxy, "always", others), answers(model, proxy, "never", others))
    with torch.no_grad():  # an optimizer writes where the weights are
        proxy.actor[-1].weight.neg_()
    expected = answers(model, proxy, "never")
    check_equal(answers(model, proxy, "always"), expected)
    assert before.ids != expected.ids
    assert list(cached_loops(model)._loops.values()) == [loop]
    another = make_proxy(model, bias=2.0)
    check_equal(answers(model, another, "always"), answers(model, another, "never"))
    assert len(cached_loops(model)._loops) == 2


def test_generate_and_policies(model: Any, tokenizer: Any) -> None:
    proxy, found = make_proxy(model), {}
    settings = {"max_new_tokens": 8, "seed": 3, "tokenizer": tokenizer, "num_return_sequences": 2, "return_dict": True}
    for wanted in ("never", "always"):
        found[wanted] = proxy.generate(model, PROMPTS, cuda_graphs=wanted, **settings)
        torch.manual_seed(3)
        sampled = GenerationSettings(num_generations=2, max_completion_length=8, temperature=0.8, cuda_graphs=wanted)
        groups = proxy_policy(model, tokenizer, proxy).generate(PROMPTS, sampled)
        found[f"policy {wanted}"] = [[completion.ids for completion in group] for group in groups]
    assert torch.equal(found["always"].sequences, found["never"].sequences)
    assert torch.equal(found["always"].examined, found["never"].examined)
    assert found["policy always"] == found["policy never"]


def test_unsupported_settings_raise_with_always_and_fall_back_with_auto(
    model: Any, tokenizer: Any, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    penalized = make_proxy(model, repetition_penalty=1.3)
    with pytest.raises(ValueError, match=r"'always'.*repetition penalty"):
        answers(model, penalized, "always")
    check_equal(answers(model, penalized, "auto"), answers(model, penalized, "never"))
    proxy = make_proxy(model)
    with pytest.raises(ValueError, match=r"'always'.*stop strings"):
        proxy.generate(model, PROMPTS, tokenizer=tokenizer, stop_strings="the", max_new_tokens=4, cuda_graphs="always")
    monkeypatch.setattr(static, "LARGEST_FORWARD", 1.0)
    with pytest.raises(ValueError, match="8 rows of 6 candidates are too many"):
        answers(model, proxy, "always")
    monkeypatch.undo()
    small = load_model(tiny_model_dir, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ValueError, match="quantized"):
        answers(small, make_proxy(small), "always")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")
@pytest.mark.parametrize("feature", ["candidate", "context"])
def test_graph_gives_the_same_completions(model: Any, feature: str) -> None:
    model.cuda()
    proxy = make_proxy(model, feature=feature).cuda()
    for prompts in (PROMPTS, PROMPTS[::-1]):  # recorded, and replayed
        expected = answers(model, proxy, "never", prompts, record=True)
        check_equal(answers(model, proxy, "always", prompts, record=True), expected)


def test_counts_are_reset_between_batches(model: Any) -> None:
    """One graph is used for batch after batch, with the same tensors for the counts."""
    proxy = make_proxy(model)
    check_equal(answers(model, proxy, "always", batch_size=2), answers(model, proxy, "never"))


def test_falls_back_if_memory_for_the_static_cache_is_missing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random numbers are the same, although some of them were used before memory ran out."""
    proxy = make_proxy(model)
    expected = answers(model, proxy, "never", record=True)

    def full(self: Any, *args: Any) -> None:
        args[3].table(max(args[4]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(static.StaticWalk, "start", full)
    with pytest.raises(RuntimeError, match="Out of memory while generating 8 completions at once"):
        answers(model, proxy, "always")
    assert not cached_loops(model)._loops
    monkeypatch.setattr("trl_ext.methods.proxy_rlhf.decoding.batch._is_static", lambda *args: True)  # as on a GPU
    check_equal(answers(model, proxy, "auto", record=True), expected)
    assert not cached_loops(model)._loops


def test_other_weights_of_a_proxy_record_another_graph(model: Any) -> None:
    proxy = make_proxy(model)
    answers(model, proxy, "always")
    proxy.actor[0].weight = torch.nn.Parameter(-proxy.actor[0].weight)
    check_equal(answers(model, proxy, "always"), answers(model, proxy, "never"))
    assert len(cached_loops(model)._loops) == 2


class Shown(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.tolist())

    def end(self) -> None:
        pass


def test_streamer_receives_every_token(model: Any) -> None:
    proxy, shown = make_proxy(model), Shown()
    found = answers(model, proxy, "always", PROMPTS[:1], repeats=1, max_new_tokens=9, observer=StreamerObserver(shown))
    assert [token for [token] in shown.tokens] == found.ids[0]


def test_table_of_random_numbers_equals_single_calls() -> None:
    rng, table = PerRowRNG([3, 4], 5, torch.device("cpu")), PerRowRNG([3, 4], 5, torch.device("cpu")).table(70)
    assert table.shape[1] >= 70
    for t in range(70):
        order, uniform = rng.uniform()
        assert torch.equal(table[:, t, 0], order) and torch.equal(table[:, t, 1], uniform)
