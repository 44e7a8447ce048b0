# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The room of fixed size and its loop: against uncached forwards, and against the ordinary loop of `generate`."""

import copy
from typing import Any

import pytest
import torch
from conftest import make_model
from oracles.token_tree import (
    CAPPED,
    HEADS,
    PROMPTS,
    REPLAYED,
    SHARED,
    SIBLINGS,
    SMALL,
    backbone,
    branches_by_loop,
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


# -------------------------------------------------------------------------------------------------------------- tree


@pytest.mark.parametrize("name", SHARED)
def test_hidden_states_are_those_of_separate_forwards(name: str) -> None:
    """Rows of other lengths; siblings, a kept one, siblings behind a further token, and a token alone."""
    model = backbone(name, CAPPED.get(name))
    rows = [list(row) for row in PROMPTS]
    assert static_unsupported_reason(model) == ""
    tree = StaticTree(model, len(rows), 24)
    expected = torch.stack([states(model, row)[-1] for row in rows])
    torch.testing.assert_close(tree.start(*left_padded(rows, 0)), expected, atol=1e-4, rtol=1e-4)
    siblings = torch.tensor(SIBLINGS)
    found = tree.branch(siblings)
    torch.testing.assert_close(found, branches_by_loop(model, rows, SIBLINGS), atol=1e-4, rtol=1e-4)
    choice = torch.tensor([0, 3, 1, 2])
    tree.keep(choice)
    rows = [[*row, some[i]] for row, some, i in zip(rows, SIBLINGS, choice.tolist(), strict=True)]
    after = torch.tensor([[50], [51], [52], [53]])
    found = tree.branch(siblings, after_N1=after)
    rows = [[*row, *token] for row, token in zip(rows, after.tolist(), strict=True)]
    torch.testing.assert_close(found, branches_by_loop(model, rows, SIBLINGS), atol=1e-4, rtol=1e-4)
    found = tree.append(after + 4)
    expected = torch.stack([states(model, [*row, 54 + i])[-1] for i, row in enumerate(rows)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert int(tree.length_1) == max(map(len, PROMPTS)) + 3


def test_a_room_that_was_full_is_used_again() -> None:
    """What other prompts left behind, even if it is longer, is not seen; NaN, which no mask can hide, neither."""
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*left_padded([row * 2 for row in PROMPTS], 0))
    for _ in range(3):
        tree.append(torch.full((4, 1), 7))
    assert tree.cache is not None
    for store in tree.cache.stores:
        store.fill_(torch.nan)
    tree.start(*left_padded(PROMPTS, 0))
    found = tree.branch(torch.tensor(SIBLINGS))
    torch.testing.assert_close(found, branches_by_loop(model, PROMPTS, SIBLINGS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REPLAYED)
def test_other_models_are_refused(name: str) -> None:
    model = backbone(name)
    assert static_unsupported_reason(model)
    with pytest.raises(ValueError, match="cannot share a cache"):
        StaticTree(model, 1, 8)


def test_attention_that_takes_more_is_refused() -> None:
    """Sinks beside the keys (no comparison in half precision is fine enough for them), a cap that is left out."""
    small = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "sliding_window": 64}
    config = GptOssConfig(**SMALL, **HEADS, **small, layer_types=["full_attention", "sliding_attention"])
    for dtype in (torch.float32, torch.bfloat16):
        assert "s_aux" in static_unsupported_reason(
            AutoModel.from_config(config, attn_implementation="eager", dtype=dtype).eval()
        )
    capped = backbone()
    capped.config.attn_logit_softcapping = 50.0
    assert "attn_implementation='eager'" in static_unsupported_reason(capped)


@pytest.mark.parametrize("fault", ["siblings see one another", "padding is seen", "no token of its own"])
def test_a_model_that_computes_something_else_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StaticTree._mask

    def wrong(self: Any, q: int, after: int, kind: str) -> torch.Tensor:
        mask, column = whole(self, q, after, kind), self.column_S
        if fault == "siblings see one another":
            return mask.masked_fill((column >= self.length_1) & (column < self.length_1 + q), 0.0)
        if fault == "padding is seen":
            return mask.masked_fill(column < self.length_1, 0.0)
        own = column == (self.length_1 + column[:q])[:, None]
        return mask.masked_fill(own, torch.finfo(mask.dtype).min)

    monkeypatch.setattr(StaticTree, "_mask", wrong)
    assert "computes something else" in static_unsupported_reason(backbone())


def test_the_attention_of_the_model_is_put_back() -> None:
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*left_padded(PROMPTS, 0))
    tree.branch(torch.tensor(SIBLINGS))
    assert model.config._attn_implementation == "sdpa" != STATIC
    with pytest.raises(IndexError):
        tree.branch(torch.full((4, 2), 10_000))
    assert model.config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------------------ replay


def test_a_replay_without_a_gpu_is_a_call() -> None:
    count = torch.zeros(1)
    step = Replay(lambda: count.add_(1), [count], torch.device("cpu"))
    step()
    step()
    assert count.item() == 2


class Sized:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_loops_are_kept_by_use_number_and_size() -> None:
    loops = LoopCache(most=2, idle=100)
    first = loops.get("a", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first
    second = loops.get("b", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first  # used: "b" is the one to go
    loops.get("c", lambda: Sized(10))
    assert loops.get("a", lambda: Sized(10)) is first
    assert loops.get("b", lambda: Sized(200)) is not second
    large = loops.get("b", lambda: Sized(0))
    loops.get("d", lambda: Sized(10))  # "b" is above what may lie idle
    assert loops.get("b", lambda: Sized(0)) is not large


def test_loops_stay_out_of_copies() -> None:
    model = make_model(60)
    cached_loops(model).get("a", lambda: Sized(1))
    assert not cached_loops(copy.deepcopy(model))._loops
    assert len(cached_loops(model)._loops) == 1
    release_static_caches(model)
    assert not cached_loops(model)._loops
