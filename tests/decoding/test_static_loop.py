# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The room of fixed size over many steps, and its loop beside transformers' own sampling and generation configs."""

from typing import Any

import pytest
import torch
from conftest import make_model
from oracles.token_tree import CAPPED, PROMPTS, backbone, close

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import Replay
from trl_ext.decoding.static_generate import static_generate
from trl_ext.decoding.static_tree import StaticTree
from trl_ext.decoding.token_tree import Tree
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings


@pytest.mark.parametrize("name", ["llama", "mistral sliding", "gemma2"])
def test_many_steps_equal_the_ordinary_tree(name: str) -> None:
    model = backbone(name, CAPPED.get(name))
    ids, mask = left_padded(PROMPTS, 0)
    tree, room = Tree(model), StaticTree(model, len(PROMPTS), 64)
    assert close(room.start(ids, mask), tree.start(ids, mask)[:, -1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        siblings = torch.randint(3, 60, (len(PROMPTS), 5), generator=generator)
        assert close(room.branch(siblings), tree.branch(siblings))
        choice = torch.randint(5, (len(PROMPTS),), generator=generator)
        room.keep(choice)
        tree.keep(choice)
        token = torch.randint(3, 60, (len(PROMPTS), 1), generator=generator)
        assert close(room.append(token), tree.append(token)[:, -1])


def both(model: Any, ids: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What `generate` makes with its own loop and with ours."""
    found = []
    for extra in ({}, {"custom_generate": static_generate}):
        torch.manual_seed(0)
        found.append(model.generate(ids, attention_mask=mask, **kwargs, **extra))
    return found[0], found[1]


def test_rows_end_where_they_end() -> None:
    """A token that greedy decoding meets is made an end: padding follows it, and the longest row sets the width."""
    model = make_model(60, initializer_range=0.3)
    ids, mask = left_padded(PROMPTS, 0)
    free, _ = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=None)
    ends = [int(free[0, ids.shape[1] + 3]), int(free[1, ids.shape[1] + 20])]
    expected, found = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(found, expected)
    assert (found[0, ids.shape[1] + 4 :] == 0).all()


def test_sampling_of_transformers_has_the_same_distribution() -> None:
    """It draws by another rule, so the frequencies of the first token are compared with its probabilities."""
    model = make_model(12)
    ids = torch.tensor([[3, 4, 5]]).repeat(4000, 1)
    torch.manual_seed(0)
    found = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0, custom_generate=static_generate)
    with torch.no_grad():
        expected = model(ids[:1]).logits[0, -1].softmax(-1)
    frequencies = torch.bincount(found[:, -1], minlength=12) / len(ids)
    assert (frequencies - expected).abs().max() < 0.03


def test_what_a_models_own_config_adds_is_met_by_the_ordinary_loop(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where the loop is tried by itself: here it is asked for."""
    from trl_ext.decoding import static_generate as module

    tiny_model.generation_config.no_repeat_ngram_size = 2
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=12)
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    tried = []
    monkeypatch.setattr(
        "trl_ext.generation.generate._static_generate",
        lambda *args: tried.append(1) or module.generate_static(*args[:4], settings, *args[5:]),
    )
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    assert tried and [g[0].ids for g in found] == [g[0].ids for g in expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: elsewhere a replay is a call")
def test_a_recording_changes_nothing_and_replays_what_was_recorded() -> None:
    count = torch.zeros(1, device="cuda")
    drawn = torch.zeros(1, device="cuda")

    def step() -> None:
        count.add_(1)
        drawn.copy_(torch.rand(1, device="cuda"))

    torch.manual_seed(0)
    expected = [torch.rand(1, device="cuda").item() for _ in range(3)]
    torch.manual_seed(0)
    replay, found = Replay(step, [count, drawn], torch.device("cuda")), []
    for _ in range(3):
        replay()
        found.append(drawn.item())
    assert count.item() == 3
    assert len(set(found)) == 3 and found[0] == pytest.approx(expected[0])
