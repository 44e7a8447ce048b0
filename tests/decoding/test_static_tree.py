# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates on a static KV cache against uncached forward passes without padding, and the replay of a step."""

import copy
from typing import Any

import pytest
import torch
from conftest import make_model
from oracles.token_tree import (
    CANDIDATES,
    CAPPED,
    HEADS,
    PROMPTS,
    RECOMPUTED,
    SHARED,
    SMALL,
    backbone,
    branches_by_loop,
    close,
    states,
)
from transformers import (
    AutoModel,
    GptOssConfig,
)

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import LoopCache, Replay, cached_loops
from trl_ext.decoding.static_generate import release_static_caches
from trl_ext.decoding.static_tree import STATIC, StaticTree, static_unsupported_reason
from trl_ext.decoding.token_tree import Tree


# -------------------------------------------------------------------------------------------------------------- tree


@pytest.mark.parametrize("name", SHARED)
def test_hidden_states_are_those_of_separate_forwards(name: str) -> None:
    """Rows of different lengths: candidates, a kept one, candidates after another token, and a token. By a loop."""
    model = backbone(name, CAPPED.get(name))
    rows = [list(row) for row in PROMPTS]
    assert static_unsupported_reason(model) == ""
    tree = StaticTree(model, len(rows), 24)
    expected = torch.stack([states(model, row)[-1] for row in rows])
    torch.testing.assert_close(tree.start(*left_padded(rows, 0)), expected, atol=1e-4, rtol=1e-4)
    candidates = torch.tensor(CANDIDATES)
    found = tree.branch(candidates)
    torch.testing.assert_close(found, branches_by_loop(model, rows, CANDIDATES), atol=1e-4, rtol=1e-4)
    choice = torch.tensor([0, 3, 1, 2])
    tree.keep(choice)
    rows = [[*row, some[i]] for row, some, i in zip(rows, CANDIDATES, choice.tolist(), strict=True)]
    after = torch.tensor([[50], [51], [52], [53]])
    found = tree.branch(candidates, after_NT=after)
    rows = [[*row, *token] for row, token in zip(rows, after.tolist(), strict=True)]
    torch.testing.assert_close(found, branches_by_loop(model, rows, CANDIDATES), atol=1e-4, rtol=1e-4)
    found = tree.append(after + 4)
    expected = torch.stack([states(model, [*row, 54 + i])[-1] for i, row in enumerate(rows)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert int(tree.length_1) == max(map(len, PROMPTS)) + 3


def test_a_full_cache_is_used_again() -> None:
    """Entries of longer previous prompts are not seen, not even NaN, which no mask could hide."""
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*left_padded([row * 2 for row in PROMPTS], 0))
    for _ in range(3):
        tree.append(torch.full((4, 1), 7))
    assert tree.cache is not None
    for store in tree.cache.stores:
        store.fill_(torch.nan)
    tree.start(*left_padded(PROMPTS, 0))
    found = tree.branch(torch.tensor(CANDIDATES))
    torch.testing.assert_close(found, branches_by_loop(model, PROMPTS, CANDIDATES), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_other_models_are_refused(name: str) -> None:
    model = backbone(name)
    assert static_unsupported_reason(model)
    with pytest.raises(ValueError, match="cannot share a cache"):
        StaticTree(model, 1, 8)


def test_attention_with_sinks_or_a_cap_is_refused() -> None:
    """Attention sinks, whose effect is below rounding in half precision, and a cap on scores that SDPA leaves out."""
    small = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "sliding_window": 64}
    config = GptOssConfig(**SMALL, **HEADS, **small, layer_types=["full_attention", "sliding_attention"])
    for dtype in (torch.float32, torch.bfloat16):
        assert "s_aux" in static_unsupported_reason(
            AutoModel.from_config(config, attn_implementation="eager", dtype=dtype).eval()
        )
    capped = backbone()
    capped.config.attn_logit_softcapping = 50.0
    assert "attn_implementation='eager'" in static_unsupported_reason(capped)


@pytest.mark.parametrize("error", ["candidates see one another", "padding is seen", "no token of its own"])
def test_a_wrong_mask_is_detected(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = StaticTree._mask

    def wrong(self: Any, q: int, after: int, kind: str) -> torch.Tensor:
        mask, column = right(self, q, after, kind), self.column_S
        if error == "candidates see one another":
            return mask.masked_fill((column >= self.length_1) & (column < self.length_1 + q), 0.0)
        if error == "padding is seen":
            return mask.masked_fill(column < self.length_1, 0.0)
        own = column == (self.length_1 + column[:q])[:, None]
        return mask.masked_fill(own, torch.finfo(mask.dtype).min)

    monkeypatch.setattr(StaticTree, "_mask", wrong)
    assert "computes something else" in static_unsupported_reason(backbone())


@pytest.mark.parametrize("name", ["llama", "mistral sliding", "gemma2"])
def test_many_steps_equal_the_ordinary_tree(name: str) -> None:
    model = backbone(name, CAPPED.get(name))
    ids, mask = left_padded(PROMPTS, 0)
    tree, static = Tree(model), StaticTree(model, len(PROMPTS), 64)
    assert close(static.start(ids, mask), tree.start(ids, mask)[:, -1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        candidates = torch.randint(3, 60, (len(PROMPTS), 5), generator=generator)
        assert close(static.branch(candidates), tree.branch(candidates))
        choice = torch.randint(5, (len(PROMPTS),), generator=generator)
        static.keep(choice)
        tree.keep(choice)
        token = torch.randint(3, 60, (len(PROMPTS), 1), generator=generator)
        assert close(static.append(token), tree.append(token)[:, -1])


def test_the_attention_of_the_model_is_restored() -> None:
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*left_padded(PROMPTS, 0))
    tree.branch(torch.tensor(CANDIDATES))
    assert model.config._attn_implementation == "sdpa" != STATIC
    with pytest.raises(IndexError):
        tree.branch(torch.full((4, 2), 10_000))
    assert model.config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------------------ replay


def test_without_a_gpu_a_replay_calls_the_step() -> None:
    count = torch.zeros(1)
    step = Replay(lambda: count.add_(1), [count], torch.device("cpu"))
    step()
    step()
    assert count.item() == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records a CUDA graph")
def test_recording_leaves_state_and_rng_unchanged() -> None:
    count = torch.zeros(1, device="cuda")
    sampled = torch.zeros(1, device="cuda")

    def step() -> None:
        count.add_(1)
        sampled.copy_(torch.rand(1, device="cuda"))

    torch.manual_seed(0)
    expected = [torch.rand(1, device="cuda").item() for _ in range(3)]
    torch.manual_seed(0)
    replay, found = Replay(step, [count, sampled], torch.device("cuda")), []
    for _ in range(3):
        replay()
        found.append(sampled.item())
    assert count.item() == 3
    assert len(set(found)) == 3 and found[0] == pytest.approx(expected[0])


class Sized:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_the_loops_last_used_are_kept_up_to_a_number_and_a_size() -> None:
    loops = LoopCache(most=2, idle=100)
    first = loops.get("a", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first
    second = loops.get("b", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first  # used last, so that "b" is dropped next
    loops.get("c", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first
    assert loops.get("b", lambda: Sized(200)) is not second
    large = loops.get("b", lambda: Sized(0))
    loops.get("d", lambda: Sized(10))  # "b" is larger than unused loops may be
    assert loops.get("b", lambda: Sized(0)) is not large


def test_a_copy_of_a_model_has_no_loops() -> None:
    model = make_model(60)
    cached_loops(model).get("a", lambda: Sized(1))
    assert not cached_loops(copy.deepcopy(model))._loops
    assert len(cached_loops(model)._loops) == 1
    release_static_caches(model)
    assert not cached_loops(model)._loops
