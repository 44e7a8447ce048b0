# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The decision process in the loop of fixed shapes against the ordinary walk: the same chance, the same answers."""

from typing import Any

import pytest
import torch
from conftest import make_model

from trl_ext import ProxyModel
from trl_ext.frozen_model import FrozenModel
from trl_ext.proxy_rlhf.answers import Answers, answer
from trl_ext.proxy_rlhf.candidates import Dice, Process
from trl_ext.proxy_rlhf.static import WIDEST, static_walk_fault
from trl_ext.replay import loops_of


PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8]]
PROCESSES = [
    Process(top_k=7),
    Process(top_k=7, order="descending", forced="last"),
    Process(top_k=5, feature="context", max_candidates=3),
    Process(top_k=9, top_p=0.7, temperature=0.7),
]


@pytest.fixture
def model() -> Any:
    return make_model(60, initializer_range=0.3)


def make_proxy(model: Any, process: Process) -> Any:
    torch.manual_seed(0)
    proxy = ProxyModel.for_model(model, process, layer_sizes=[16]).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 1)
    return proxy


def answers(model: Any, proxy: Any, process: Process, wanted: str, **kwargs: Any) -> Answers:
    settings = {"seeds": list(range(6)), "max_new_tokens": 30, "eos": [1, 2, 11], "cuda_graphs": wanted}
    return answer(FrozenModel(model), proxy, process, PROMPTS, **settings | kwargs)


def assert_alike(found: Answers, expected: Answers) -> None:
    assert found.ids == expected.ids and found.ended == expected.ended
    for name in ("examined", "rejected", "forced", "asked"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.allclose(found.kl, expected.kl, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.order}-{p.feature}-{p.top_p}")
@pytest.mark.parametrize("rooms", [None, [9, 30, 11]], ids=["", "limits"])
def test_the_same_answers(model: Any, process: Process, rooms: Any) -> None:
    proxy = make_proxy(model, process)
    expected = answers(model, proxy, process, "never", rooms=rooms)
    assert len(set(map(len, expected.ids))) > 1  # rows end at different places
    for _ in range(2):  # a loop that is used again
        assert_alike(answers(model, proxy, process, "always", rooms=rooms), expected)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.order}-{p.feature}-{p.top_p}")
def test_the_same_decisions(model: Any, process: Process) -> None:
    proxy = make_proxy(model, process)
    settings = {"record": True, "measure_every": 4 if process.exact else 0}
    expected, found = (answers(model, proxy, process, wanted, **settings) for wanted in ("never", "always"))
    assert_alike(found, expected)
    assert found.decisions is not None and expected.decisions is not None
    assert len(found.decisions) == len(expected.decisions) > 50
    for name in ("accepted", "response"):
        assert torch.equal(getattr(found.decisions, name), getattr(expected.decisions, name)), name
    for name, limit in (("features", 5e-2), ("logps", 1e-2), ("kl", 1e-2)):
        assert torch.allclose(getattr(found.decisions, name).float(), getattr(expected.decisions, name).float(),
                              atol=limit), name  # fmt: skip


def test_greedy_decisions(model: Any) -> None:
    process = PROCESSES[1]
    proxy = make_proxy(model, process)
    expected = answers(model, proxy, process, "never", greedy=True)
    assert_alike(answers(model, proxy, process, "always", greedy=True), expected)


def test_batches_do_not_matter(model: Any) -> None:
    process = PROCESSES[0]
    proxy = make_proxy(model, process)
    expected = answers(model, proxy, process, "never")
    assert_alike(answers(model, proxy, process, "always", batch_size=2), expected)


def test_a_proxy_that_was_trained_further(model: Any) -> None:
    """Weights change where they are; another proxy has a loop of its own."""
    process = PROCESSES[0]
    proxy = make_proxy(model, process)
    before = answers(model, proxy, process, "always").ids
    with torch.no_grad():
        proxy.actor[-1].weight.mul_(-3)
    expected = answers(model, proxy, process, "never")
    assert expected.ids != before
    assert_alike(answers(model, proxy, process, "always"), expected)
    other = make_proxy(model, process)
    assert answers(model, other, process, "always").ids == before
    assert len(loops_of(model)._loops) == 2


def test_streaming_sees_every_token(model: Any) -> None:
    process = PROCESSES[0]
    proxy, shown = make_proxy(model, process), []
    llm = FrozenModel(model)
    found = answer(llm, proxy, process, PROMPTS[:1], seeds=[0], max_new_tokens=9, cuda_graphs="always",
                   show=shown.append)  # fmt: skip
    assert [token for [token] in shown] == found.ids[0]


def test_a_table_of_chance_is_what_is_rolled() -> None:
    rolled, table = Dice([3, 4], 5, torch.device("cpu")), Dice([3, 4], 5, torch.device("cpu")).table(70)
    assert table.shape[1] >= 70
    for t in range(70):
        order, chance = rolled.roll()
        assert torch.equal(table[:, t, 0], order) and torch.equal(table[:, t, 1], chance)


def test_what_it_cannot_do_is_said(model: Any) -> None:
    llm, process = FrozenModel(model), Process(top_k=7)
    proxy = make_proxy(model, process)
    assert not static_walk_fault(llm, process, 4)
    rows = int(WIDEST)  # times the weights of a tiny model
    assert "too many for one forward" in static_walk_fault(llm, process, rows)
    with pytest.raises(ValueError, match=r"'always', but .* repetition penalty"):
        answers(model, proxy, Process(top_k=7, repetition_penalty=1.3), "always")
    with pytest.raises(ValueError, match="stop strings"):
        answers(model, proxy, process, "always", stop=lambda *_: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: f"{p.order}-{p.feature}")
def test_a_graph_gives_the_same_answers(model: Any, process: Process) -> None:
    model = model.cuda()
    proxy = make_proxy(make_model(60, initializer_range=0.3), process).cuda()
    expected = answers(model, proxy, process, "never", record=True)
    assert_alike(answers(model, proxy, process, "always", record=True), expected)
