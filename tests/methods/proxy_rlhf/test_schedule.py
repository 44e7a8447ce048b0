# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""A proxy that is asked about some tokens only: against a loop over complete texts, exact KL, limits and settings."""

import itertools
import math
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guide_schedule import is_guided

from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.batch import complete
from trl_ext.methods.proxy_rlhf.decoding.per_row_rng import PerRowRNG
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.proxy_rlhf.policies import ProxyDecoding, proxy_logps, proxy_policy
from trl_ext.models.backbone_and_head import BackboneAndHead


PROMPTS = [[5, 9, 11, 3], [7, 2], [30, 31, 32, 33, 34, 35], [8]]
EOS, LENGTH = 1, 8


def make_proxy(model: Any, process: DecisionProcess) -> ProxyModel:
    """A proxy with random weights, which is sure of some decisions."""
    torch.manual_seed(4)
    proxy = ProxyModel.for_model(model, process).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 3 / proxy.config.layer_sizes[-1] ** 0.5)
    return proxy


@torch.no_grad()
def oracle(
    model: Any, proxy: Any, process: DecisionProcess, schedule: GuideSchedule, prompt: list[int], seed: int,
    *, greedy: bool = False,
) -> tuple[list[int], int]:  # fmt: skip
    """One completion by complete forward passes, and at how many tokens the proxy decided something."""
    tokenizer, size = make_tokenizer(), model.config.vocab_size
    rng = PerRowRNG([seed], process.top_k, torch.device("cpu"))
    ids, guided_tokens = list(prompt), 0
    for _ in range(LENGTH):
        order, uniform = (x[0].tolist() for x in rng.uniform())
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        values, tokens = logits.topk(process.top_k)
        weights = values.softmax(0).tolist()
        arrivals = [-math.log1p(-u) / w for u, w in zip(order, weights, strict=True)]
        by_arrival = sorted(range(process.top_k), key=lambda i: arrivals[i])
        asked = is_guided(schedule, prompt, ids[len(prompt) :], logits.tolist()[:size], tokenizer)
        sampled = process.order == "sampled" or (not asked and not greedy)
        columns = by_arrival if sampled else list(range(process.top_k))
        if process.max_candidates and asked:
            columns = columns[: process.max_candidates]
        taken = columns[0] if process.forced == "first" or not asked else columns[-1]
        decided = False
        for place, column in enumerate(columns if asked else []):
            if process.forced == "last" and place == len(columns) - 1:
                break
            after = model.model(torch.tensor([[*ids, int(tokens[column])]])).last_hidden_state[0, -1]
            before = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            embedded = model.get_input_embeddings().weight[int(tokens[column])]
            feature = after if process.feature == "candidate" else torch.cat([before, embedded])
            p = torch.sigmoid(proxy.accept_logits(feature[None])[0]).item()
            unsure = bool(schedule.confidence) and max(p, 1 - p) <= schedule.confidence
            decided = decided or not unsure
            if unsure or (p >= 0.5 if greedy else uniform[place] < p):
                taken = column
                break
        guided_tokens += decided
        ids.append(int(tokens[taken]))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :], guided_tokens


SCHEDULES = [
    GuideSchedule(2), GuideSchedule(3, entropy=4.5), GuideSchedule(entropy=4.58), GuideSchedule(confidence=0.8),
    GuideSchedule(random=0.5, seed=2), GuideSchedule("word"), GuideSchedule("sentence", confidence=0.6),
]  # fmt: skip
PROCESSES = [
    DecisionProcess(top_k=6, order=order, feature=feature, forced=forced, max_candidates=most)
    for order, feature, forced, most in [
        ("sampled", "candidate", "first", 0), ("descending", "candidate", "last", 0),
        ("sampled", "context", "last", 0), ("descending", "context", "first", 3),
    ]
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.order}-{p.feature}-{p.forced}")
def test_completions_equal_those_of_the_oracle(process: DecisionProcess, schedule: GuideSchedule) -> None:
    """In batches, alone, with few candidates in the first forward pass, and with CUDA-graph decoding."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    proxy, llm, seeds = make_proxy(model, process), BackboneAndHead(model), list(range(2 * len(PROMPTS)))
    expected = [oracle(model, proxy, process, schedule, PROMPTS[i // 2], i) for i in seeds]
    common: dict[str, Any] = {"seeds": seeds, "max_new_tokens": LENGTH, "eos": [EOS], "tokenizer": tokenizer}
    for first, batch_size, graphs in [
        (0, 64, "never"),
        (2, 64, "never"),
        (1, 3, "never"),
        (0, 1, "never"),
        (0, 64, "always"),
    ]:
        found = complete(
            llm, proxy, process, PROMPTS, batch_size=batch_size, first_candidates=first, cuda_graphs=graphs,
            schedule=schedule, **common,
        )  # fmt: skip
        assert found.ids == [ids for ids, _ in expected]
        assert found.asked.tolist() == [guided for _, guided in expected]
    assert 0 < int(found.asked.sum()) < sum(map(len, found.ids))
    always = complete(llm, proxy, process, PROMPTS, **common)
    assert found.ids != always.ids


@pytest.mark.parametrize("graphs", ["never", "always"])
def test_limits_of_every(graphs: str) -> None:
    """Every token is what there is without a schedule; every 100th of 8 is the first."""
    tokenizer = make_tokenizer()
    model, process = make_model(len(tokenizer)), DecisionProcess(top_k=6)
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    common: dict[str, Any] = {"seeds": [3, 4, 5, 6], "max_new_tokens": LENGTH, "cuda_graphs": graphs}
    plain = complete(llm, proxy, process, PROMPTS, **common)
    every = complete(llm, proxy, process, PROMPTS, schedule=GuideSchedule(1), **common)
    assert (every.ids, every.asked.tolist()) == (plain.ids, plain.asked.tolist())
    first = complete(llm, proxy, process, PROMPTS, schedule=GuideSchedule(100), **common)
    assert first.asked.tolist() == [1] * 4
    assert [ids[0] for ids in first.ids] == [ids[0] for ids in plain.ids]
    assert first.ids != plain.ids


def test_greedy_decisions_in_descending_order_are_deterministic() -> None:
    tokenizer = make_tokenizer()
    model, process = make_model(len(tokenizer)), DecisionProcess(top_k=6, order="descending")
    proxy, llm, schedule = make_proxy(model, process), BackboneAndHead(model), GuideSchedule(2)
    expected = [oracle(model, proxy, process, schedule, prompt, 0, greedy=True)[0] for prompt in PROMPTS]
    for graphs in ("never", "always"):
        found = complete(
            llm, proxy, process, PROMPTS, seeds=[0, 1, 2, 3], max_new_tokens=LENGTH, eos=[EOS], greedy=True,
            schedule=schedule, cuda_graphs=graphs,
        )  # fmt: skip
        assert found.ids == expected


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.order}-{p.feature}-{p.forced}")
def test_log_probabilities_are_those_of_enumeration(process: DecisionProcess, schedule: GuideSchedule) -> None:
    """Completions of two tokens: their probabilities sum to 1, and are the shares of 4,000 samples."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    proxy, llm, prompt = make_proxy(model, process), BackboneAndHead(model), PROMPTS[1]
    texts = [list(pair) for pair in itertools.product(range(len(tokenizer)), repeat=2)]
    first = proxy_logps(llm, proxy, process, [prompt], [[[a] for a in range(len(tokenizer))]], pad_token_id=0,
                        schedule=schedule, tokenizer=tokenizer)[0]  # fmt: skip
    likely = [a for a in range(len(tokenizer)) if first[a][0] > -torch.inf]
    texts = [[a, b] for a in likely for b in range(len(tokenizer))]
    logps = proxy_logps(
        llm, proxy, process, [prompt], [texts], pad_token_id=0, batch_size=512, schedule=schedule, tokenizer=tokenizer
    )[0]
    q = torch.stack([of_tokens.double().sum() for of_tokens in logps]).exp()
    assert float(q.sum()) == pytest.approx(1, abs=1e-4)
    found = complete(
        llm, proxy, process, [prompt], seeds=list(range(4000)), max_new_tokens=2, batch_size=4000, schedule=schedule,
        tokenizer=tokenizer,
    )  # fmt: skip
    counts = torch.zeros(len(texts), dtype=torch.double)
    places = {tuple(text): i for i, text in enumerate(texts)}
    for ids in found.ids:
        counts[places[tuple(ids)]] += 1
    error = (q * (1 - q) / 4000).sqrt()
    assert bool(((counts / 4000 - q).abs() < 5 * error + 1e-3).all())


def test_plain_tokens_have_the_probability_of_the_candidates() -> None:
    """A worked case: with every third token, the second and third are softmax over the top 6 alone."""
    tokenizer = make_tokenizer()
    model, process = make_model(len(tokenizer)), DecisionProcess(top_k=6, order="descending")
    proxy, llm = make_proxy(model, process), BackboneAndHead(model)
    prompt, answer = PROMPTS[0], []
    with torch.no_grad():
        for _ in range(3):
            answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].topk(2).indices[1]))
        expected = [
            model(torch.tensor([prompt + answer[:t]])).logits[0, -1].topk(6).values.log_softmax(0)[1] for t in (1, 2)
        ]
    [[found]] = proxy_logps(llm, proxy, process, [prompt], [[answer]], pad_token_id=0, schedule=GuideSchedule(3))
    assert found[1:].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)
    [[all_guided]] = proxy_logps(llm, proxy, process, [prompt], [[answer]], pad_token_id=0)
    assert float(found[0]) == pytest.approx(float(all_guided[0]), abs=1e-6)
    assert abs(float(found[1] - all_guided[1])) > 0.01


def test_a_policy_counts_its_guided_tokens() -> None:
    tokenizer = make_tokenizer()
    model, process = make_model(len(tokenizer)), DecisionProcess(top_k=6)
    proxy = make_proxy(model, process)
    assert proxy_policy(model, tokenizer, proxy, process).guided is None
    policy = proxy_policy(model, tokenizer, proxy, process, schedule=GuideSchedule(4))
    settings = GenerationSettings(num_generations=2, max_completion_length=10)
    groups = policy.generate(PROMPTS, settings)
    lengths = [len(completion.ids) for group in groups for completion in group]
    assert policy.guided is not None
    assert (policy.guided.guided, policy.guided.total) == (sum(-(-n // 4) for n in lengths), sum(lengths))


def test_flags() -> None:
    decoding = ProxyDecoding(proxy_name_or_path=["p"], proxy_every="word", proxy_when='{"confidence": 0.7}')
    assert decoding.schedule == GuideSchedule("word", confidence=0.7)
    for wrong, message in (
        ({"proxy_every": "0"}, "`proxy_every` must be a whole number"),
        ({"proxy_when": {"margin": 1}}, "`proxy_when` has the condition 'margin': a proxy has no values"),
    ):
        with pytest.raises(ValueError, match=message):
            ProxyDecoding(proxy_name_or_path=["p"], **wrong).check()
