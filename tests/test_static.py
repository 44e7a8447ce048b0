# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The room of fixed size and its loop: against uncached forwards, and against the ordinary loop of `generate`."""

import copy
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from test_tree import PROMPTS, REPLAYED, SHARED, SIBLINGS, backbone, padded, siblings_by_loop, states
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from trl_ext.generation_settings import GenerationSettings
from trl_ext.models import base_of
from trl_ext.replay import Loops, Replay, loops_of
from trl_ext.sampling import generate
from trl_ext.static_generate import forget_loops, static_generate
from trl_ext.static_support import static_fault
from trl_ext.static_tree import STATIC, StaticTree


# -------------------------------------------------------------------------------------------------------------- tree


@pytest.mark.parametrize("name", SHARED)
def test_hidden_states_are_those_of_separate_forwards(name: str) -> None:
    """Rows of other lengths; siblings, a kept one, siblings behind a further token, and a token alone."""
    model = backbone(name)
    rows = [list(row) for row in PROMPTS]
    assert static_fault(model) == ""
    tree = StaticTree(model, len(rows), 24)
    expected = torch.stack([states(model, row)[-1] for row in rows])
    torch.testing.assert_close(tree.start(*padded(rows)), expected, atol=1e-4, rtol=1e-4)
    siblings = torch.tensor(SIBLINGS)
    found = tree.branch(siblings)
    torch.testing.assert_close(found, siblings_by_loop(model, rows, SIBLINGS), atol=1e-4, rtol=1e-4)
    choice = torch.tensor([0, 3, 1, 2])
    tree.keep(choice)
    rows = [[*row, some[i]] for row, some, i in zip(rows, SIBLINGS, choice.tolist(), strict=True)]
    after = torch.tensor([[50], [51], [52], [53]])
    found = tree.branch(siblings, after_N1=after)
    rows = [[*row, *token] for row, token in zip(rows, after.tolist(), strict=True)]
    torch.testing.assert_close(found, siblings_by_loop(model, rows, SIBLINGS), atol=1e-4, rtol=1e-4)
    found = tree.append(after + 4)
    expected = torch.stack([states(model, [*row, 54 + i])[-1] for i, row in enumerate(rows)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert int(tree.length_1) == max(map(len, PROMPTS)) + 3


def test_a_room_that_was_full_is_used_again() -> None:
    """What other prompts left behind, even if it is longer, is not seen; NaN, which no mask can hide, neither."""
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*padded([row * 2 for row in PROMPTS]))
    for _ in range(3):
        tree.append(torch.full((4, 1), 7))
    assert tree.room is not None
    for store in tree.room.stores:
        store.fill_(torch.nan)
    tree.start(*padded(PROMPTS))
    found = tree.branch(torch.tensor(SIBLINGS))
    torch.testing.assert_close(found, siblings_by_loop(model, PROMPTS, SIBLINGS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REPLAYED)
def test_other_models_are_refused(name: str) -> None:
    model = backbone(name)
    assert static_fault(model)
    with pytest.raises(ValueError, match="cannot share a cache"):
        StaticTree(model, 1, 8)


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
    assert "computes something else" in static_fault(backbone())


def test_the_attention_of_the_model_is_put_back() -> None:
    model = backbone()
    tree = StaticTree(model, 4, 24)
    tree.start(*padded(PROMPTS))
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
    loops = Loops(most=2, idle=100)
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
    loops_of(model).get("a", lambda: Sized(1))
    assert not loops_of(copy.deepcopy(model))._loops
    assert len(loops_of(model)._loops) == 1
    forget_loops(model)
    assert not loops_of(model)._loops


# ---------------------------------------------------------------------------------------------------------- generate


PROMPT_IDS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17], [20, 21]]


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def drawn(
    model: Any, tokenizer: Any, wanted: str, prompts: Any = PROMPT_IDS, **settings: Any
) -> list[list[list[int]]]:
    made = GenerationSettings(cuda_graphs=wanted, **{"max_completion_length": 20} | settings)
    torch.manual_seed(3)
    found = generate(model, tokenizer, prompts, made)
    return [[completion.ids for completion in group] for group in found]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0, "num_generations": 1},
        {},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8, "min_p": 0.05, "num_generations": 2},
    ],
    ids=["greedy", "sampled", "top-k", "top-p and min-p"],
)
def test_the_tokens_are_those_of_the_ordinary_loop(model: Any, tokenizer: Any, settings: dict) -> None:
    expected = drawn(model, tokenizer, "never", **settings)
    assert drawn(model, tokenizer, "always", **settings) == expected
    assert loops_of(model)._loops


@pytest.mark.parametrize("prompts", [[[15]], [[15], [16]], [[15], [16, 17, 18]]])
def test_prompts_of_one_token(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    expected = drawn(model, tokenizer, "never", prompts)
    assert drawn(model, tokenizer, "always", prompts) == expected


def test_rows_end_at_their_own_tokens(model: Any, tokenizer: Any) -> None:
    """Several ends, met at different places, some after the loop has looked; what follows an end is padding."""
    ids, mask = padded(PROMPT_IDS)
    free = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None)
    width = ids.shape[1]
    ends = [int(free[0, width + 2]), int(free[2, width + 5])]
    common = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    expected = model.generate(input_ids=ids, attention_mask=mask, **common)
    found = model.generate(input_ids=ids, attention_mask=mask, custom_generate=static_generate, **common)
    assert torch.equal(found, expected)
    assert (found[0, width + 3 :] == 0).all()


def test_a_loop_serves_other_prompts_and_is_made_anew_for_other_weights(model: Any, tokenizer: Any) -> None:
    drawn(model, tokenizer, "always", [[15, 16, 17], [19]])
    [loop] = loops_of(model)._loops.values()
    others = [[20, 21, 22, 23, 24], [11, 12]]
    expected = drawn(model, tokenizer, "never", others)
    assert drawn(model, tokenizer, "always", others) == expected
    assert list(loops_of(model)._loops.values()) == [loop]
    drawn(model, tokenizer, "always", others, top_k=3)
    assert len(loops_of(model)._loops) == 2
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    expected = drawn(model, tokenizer, "never", others)
    assert drawn(model, tokenizer, "always", others) == expected


def test_an_adapter_switched_off_is_another_loop(model: Any, tokenizer: Any) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    on = drawn(adapted, tokenizer, "always")
    assert on == drawn(adapted, tokenizer, "never")
    with adapted.disable_adapter():
        off = drawn(adapted, tokenizer, "always")
        assert off == drawn(adapted, tokenizer, "never") != on
    assert drawn(adapted, tokenizer, "always") == on
    assert len(loops_of(base_of(adapted))._loops) == 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"repetition_penalty": 1.2}, "text so far"),
        ({"generation_kwargs": {"min_new_tokens": 3}}, "text so far"),
        ({"num_beams": 2, "num_generations": 1}, "no beam search"),
    ],
)
def test_what_it_cannot_do_is_refused_or_left_to_the_ordinary_loop(
    model: Any, tokenizer: Any, settings: dict, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        drawn(model, tokenizer, "always", **settings)
    assert drawn(model, tokenizer, "auto", **settings) == drawn(model, tokenizer, "never", **settings)


def test_generate_says_why_it_cannot(model: Any) -> None:
    ids = torch.tensor([[15, 16]])
    common: dict[str, Any] = {"max_new_tokens": 3, "custom_generate": static_generate, "pad_token_id": 0}
    for extra, reason in (
        ({"num_beams": 2}, "beam"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.1)])}, "RepetitionPenalty"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.generate(ids, **common, **extra)
    assert model.generate(ids, logits_processor=[TemperatureLogitsWarper(0.5)], **common).shape[1] <= 5
    with pytest.raises(ValueError, match="cuda_graphs must be one of"):
        GenerationSettings(cuda_graphs="sometimes")


# --------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")
def test_a_graph_gives_the_tokens_of_the_ordinary_loop(model: Any, tokenizer: Any) -> None:
    model.cuda()
    for settings in ({"temperature": 0.0, "num_generations": 1}, {"temperature": 0.8, "top_p": 0.9}):
        expected = drawn(model, tokenizer, "never", **settings)
        for _ in range(2):  # recorded, and replayed
            found = drawn(model, tokenizer, "always", **settings)
            if not settings["temperature"]:
                assert found == expected
