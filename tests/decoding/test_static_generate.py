# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding over a static KV cache against the ordinary loop of `generate`."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.token_tree import CANDIDATES, PROMPTS, backbone
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
)

from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import cached_loops, graph_key
from trl_ext.decoding.static_generate import (
    release_static_caches,
    static_generate,
    try_static_generate,
    unsupported_reason,
)
from trl_ext.decoding.static_tree import StaticTree, static_unsupported_reason
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.models.properties import base_of, cache_name, cache_of


PROMPT_IDS = [[15, 16, 17], [19], [11, 12, 13, 14, 15, 16, 17], [20, 21]]


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def completion_ids(
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
    expected = completion_ids(model, tokenizer, "never", **settings)
    assert completion_ids(model, tokenizer, "always", **settings) == expected
    assert cached_loops(model)._loops


@pytest.mark.parametrize("prompts", [[[15]], [[15], [16]], [[15], [16, 17, 18]]])
def test_prompts_of_one_token(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    expected = completion_ids(model, tokenizer, "never", prompts)
    assert completion_ids(model, tokenizer, "always", prompts) == expected


def both(model: Any, ids: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of `generate` with the ordinary loop, and with the loop over a static KV cache."""
    found = []
    for extra in ({}, {"custom_generate": static_generate}):
        torch.manual_seed(0)
        found.append(model.generate(ids, attention_mask=mask, **kwargs, **extra))
    return found[0], found[1]


def test_rows_end_at_their_own_tokens(model: Any, tokenizer: Any) -> None:
    """Two ends, in different rows and columns. What follows an end is padding."""
    ids, mask = left_padded(PROMPT_IDS, 0)
    width = ids.shape[1]
    free, _ = both(model, ids, mask, max_new_tokens=24, do_sample=False, eos_token_id=None)
    ends = [int(free[0, width + 2]), int(free[2, width + 5])]
    expected, found = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(found, expected)
    assert (found[0, width + 3 :] == 0).all()


def test_a_row_ends_after_the_first_check() -> None:
    """The longest row ends after more than `CHECK_EVERY` tokens, and sets the width."""
    model = make_model(60, initializer_range=0.3)
    ids, mask = left_padded(PROMPTS, 0)
    free, _ = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=None)
    ends = [int(free[0, ids.shape[1] + 3]), int(free[1, ids.shape[1] + 20])]
    expected, found = both(model, ids, mask, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(found, expected)
    assert (found[0, ids.shape[1] + 4 :] == 0).all()


def test_a_loop_serves_other_prompts_but_not_other_weights(model: Any, tokenizer: Any) -> None:
    completion_ids(model, tokenizer, "always", [[15, 16, 17], [19]])
    [loop] = cached_loops(model)._loops.values()
    others = [[20, 21, 22, 23, 24], [11, 12]]
    expected = completion_ids(model, tokenizer, "never", others)
    assert completion_ids(model, tokenizer, "always", others) == expected
    assert list(cached_loops(model)._loops.values()) == [loop]
    completion_ids(model, tokenizer, "always", others, top_k=3)
    assert len(cached_loops(model)._loops) == 2
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    expected = completion_ids(model, tokenizer, "never", others)
    assert completion_ids(model, tokenizer, "always", others) == expected
    assert len(cached_loops(model)._loops) == 3


def test_a_change_of_what_a_graph_records_changes_its_key(model: Any) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    base = base_of(adapted)
    layer = base.model.layers[0].mlp.up_proj
    states = [graph_key(adapted)]

    def changed() -> bool:
        states.append(graph_key(adapted))
        return states[-1] not in states[:-1]

    layer.scaling["default"] *= 2
    assert changed()
    layer.base_layer.weight = torch.nn.Parameter(layer.base_layer.weight.clone())
    assert changed()
    base.set_attn_implementation("eager")
    assert changed()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert changed()
    with torch.no_grad():
        layer.base_layer.weight.add_(1)  # an optimizer's step: in place
    assert not changed()


def test_memory_of_loops_is_freed_at_once(model: Any, tokenizer: Any) -> None:
    """Training needs it next, and the garbage collector for reference cycles may run much later."""
    completion_ids(model, tokenizer, "always")
    [loop] = map(weakref.ref, cached_loops(model)._loops.values())
    gc.disable()
    try:
        release_static_caches(model)
        assert loop() is None
    finally:
        gc.enable()


def test_calls_of_several_threads_run_one_after_another(model: Any) -> None:
    ids = [torch.tensor([[15 + i, 16, 17]]) for i in range(8)]
    common: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = [model.generate(x, **common) for x in ids]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: model.generate(x, custom_generate=static_generate, **common), ids))
    assert all(map(torch.equal, found, expected))


def test_dropout_is_off(tokenizer: Any) -> None:
    """A value model in training mode guides without dropout."""
    model = backbone("gpt2")
    expected = StaticTree(model, 4, 24).start(*left_padded(PROMPTS, 0))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    tree = StaticTree(model, 4, 24)
    torch.testing.assert_close(tree.start(*left_padded(PROMPTS, 0)), expected)
    candidates = torch.tensor(CANDIDATES)
    torch.testing.assert_close(tree.branch(candidates), tree.branch(candidates))
    assert model.training


def test_an_adapter_switched_off_is_another_loop(model: Any, tokenizer: Any) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    on = completion_ids(adapted, tokenizer, "always")
    assert on == completion_ids(adapted, tokenizer, "never")
    with adapted.disable_adapter():
        off = completion_ids(adapted, tokenizer, "always")
        assert off == completion_ids(adapted, tokenizer, "never") != on
    assert completion_ids(adapted, tokenizer, "always") == on
    assert len(cached_loops(base_of(adapted))._loops) == 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"repetition_penalty": 1.2}, "text so far"),
        ({"generation_kwargs": {"min_new_tokens": 3}}, "text so far"),
        ({"num_beams": 2, "num_generations": 1}, "does not support beam search"),
    ],
)
def test_unsupported_settings_are_refused_or_left_to_the_ordinary_loop(
    model: Any, tokenizer: Any, settings: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"'always', but .*{reason}"):
        completion_ids(model, tokenizer, "always", **settings)
    monkeypatch.setattr("trl_ext.generation.generate._static_generate", try_static_generate)  # as on a GPU
    expected = completion_ids(model, tokenizer, "never", **settings)
    assert completion_ids(model, tokenizer, "auto", **settings) == expected
    assert not cached_loops(model)._loops
    assert completion_ids(model, tokenizer, "auto") == completion_ids(model, tokenizer, "never")
    assert cached_loops(model)._loops


def test_without_memory_the_ordinary_loop_is_used(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for the self-test, which does not count as a failure of the model, or for the static KV cache."""
    expected = completion_ids(model, tokenizer, "never")

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trl_ext.generation.generate._static_generate", try_static_generate)
    for target in ("trl_ext.decoding.static_tree._static_probe_walk", "trl_ext.decoding.static_tree.StaticTree.start"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            assert completion_ids(model, tokenizer, "auto") == expected
            with pytest.raises(torch.OutOfMemoryError):
                completion_ids(model, tokenizer, "always")
        assert not cached_loops(model)._loops
        assert static_unsupported_reason(model.model) == ""


def test_a_model_is_sharded_only_if_its_processes_share_it(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = completion_ids(model, tokenizer, "never")
    monkeypatch.setattr("trl_ext.decoding.static_generate.synced_gpus_kwargs", lambda model: {"synced_gpus": False})
    assert completion_ids(model, tokenizer, "always") == expected
    monkeypatch.setattr("trl_ext.decoding.static_generate.synced_gpus_kwargs", lambda model: {"synced_gpus": True})
    # Every process has to call a sharded model as often as the others, so that it is not even verified.
    monkeypatch.setattr("trl_ext.decoding.static_generate.BackboneAndHead", lambda model: pytest.fail("a forward"))
    with pytest.raises(ValueError, match="sharded over several processes"):
        completion_ids(model, tokenizer, "always")


def test_mixed_precision_of_accelerate_is_not_ignored(model: Any, tokenizer: Any) -> None:
    model._original_forward = model.forward  # as `accelerator.prepare` leaves it
    with pytest.raises(ValueError, match="accelerate has wrapped its forward"):
        completion_ids(model, tokenizer, "always")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = completion_ids(model, tokenizer, "always")
    assert [len(group) for group in found] == [len(group) for group in completion_ids(model, tokenizer, "never")]


def test_unsupported_inputs_are_named(model: Any) -> None:
    ids = torch.tensor([[15, 16], [17, 18]])
    common: dict[str, Any] = {"max_new_tokens": 3, "custom_generate": static_generate, "pad_token_id": 0}
    prefilled = model(ids[:, :1], use_cache=True)
    for extra, reason in (
        ({"attention_mask": torch.tensor([[1, 1], [1, 0]])}, "not padded on the left"),
        ({"position_ids": torch.tensor([[1, 2], [0, 1]])}, "positions that were passed"),
        ({cache_name(model): cache_of(prefilled)}, "has tokens already"),
        ({"inputs_embeds": model.get_input_embeddings()(ids)}, "begins with token ids"),
        ({"num_beams": 2}, "beam"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.1)])}, "RepetitionPenalty"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.generate(ids, **common, **extra)
    mask, positions = torch.tensor([[1, 1], [0, 1]]), torch.tensor([[0, 1], [0, 0]])
    given = {"attention_mask": mask, "position_ids": positions, "logits_processor": [TemperatureLogitsWarper(0.5)]}
    free = {"do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **{**common, "custom_generate": None}, **given, **free)
    assert torch.equal(model.generate(ids, **common, **given, **free), expected)
    assert unsupported_reason(model, (), (), GenerationConfig()) == ""
    with pytest.raises(ValueError, match="cuda_graphs must be one of"):
        GenerationSettings(cuda_graphs="sometimes")


def test_sampling_of_transformers_has_the_same_distribution() -> None:
    """It samples by another rule, so the frequencies of the first token are compared with its probabilities."""
    model = make_model(12)
    ids = torch.tensor([[3, 4, 5]]).repeat(4000, 1)
    torch.manual_seed(0)
    found = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0, custom_generate=static_generate)
    with torch.no_grad():
        expected = model(ids[:1]).logits[0, -1].softmax(-1)
    frequencies = torch.bincount(found[:, -1], minlength=12) / len(ids)
    assert (frequencies - expected).abs().max() < 0.03


def test_settings_of_the_models_own_config_are_left_to_the_ordinary_loop(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where CUDA-graph decoding is tried by default."""
    from trl_ext.decoding import static_generate as module

    tiny_model.generation_config.no_repeat_ngram_size = 2
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=12)
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    tried = []
    monkeypatch.setattr(
        "trl_ext.generation.generate._static_generate",
        lambda *args: tried.append(1) or module.try_static_generate(*args[:4], settings, *args[5:]),
    )
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, settings)
    assert tried and [g[0].ids for g in found] == [g[0].ids for g in expected]


# --------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")
def test_a_graph_gives_the_tokens_of_the_ordinary_loop(model: Any, tokenizer: Any) -> None:
    model.cuda()
    for settings in ({"temperature": 0.0, "num_generations": 1}, {"temperature": 0.8, "top_p": 0.9}):
        expected = completion_ids(model, tokenizer, "never", **settings)
        recorded, replayed = (completion_ids(model, tokenizer, "always", **settings) for _ in range(2))
        assert recorded == replayed
        if not settings["temperature"]:  # a graph advances the RNG state of the GPU by other amounts
            assert recorded == expected
