# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
The formula against the recorded count of an 8B in 4 bits (`benchmarks/results/memory.md`), for all methods.

The batches of that count have completions of 64 to 192 tokens, 128 on average, which the formula takes.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.harness.models import SHAPES, lora_config
from benchmarks.harness.results import read_results
from benchmarks.memory.card_count import _CHUNKS, countable
from trl_ext.logprobs import lm_head
from trl_ext.memory import estimate as formula
from trl_ext.memory.estimate import GIB, Sizes, estimate
from trl_ext.memory.inventory import Inventory
from trl_ext.methods.proxy_rlhf.memory import needs as proxy_needs
from trl_ext.methods.psle.memory import needs as psle_needs
from trl_ext.methods.rrhf.memory import needs as rrhf_needs
from trl_ext.methods.vas.memory import needs as vas_needs


SIZES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
NO_REWARDS = {"reward_funcs": None, "reward_model_name_or_path": None, "beta": 0.0}


def inventory(name: str, **settings: Any) -> Inventory:
    shape = SHAPES[name]
    sizes = {each: getattr(shape, each) for each in SIZES}
    config = LlamaConfig(**sizes, tie_word_embeddings=shape.tie_word_embeddings)
    return Inventory.from_config(config, dtype=torch.bfloat16, **settings)


@pytest.fixture(scope="module")
def models() -> dict[str, Inventory]:
    of_layers = lora_config(16)
    of_layers.task_type = None
    return {
        "adapted": inventory("llama-8b", bits=4, peft_config=lora_config(16)),
        "frozen": inventory("llama-8b", bits=4, trained=False),
        "value": inventory("llama-1b", peft_config=of_layers, head=False),
    }


def estimated(kind: str, batch: int, switches: dict[str, Any], models: dict[str, Inventory]) -> float:
    """GiB by the formula of what a case of the count does."""
    shared = switches.get("shared_prefix", "auto").replace("dense", "always")
    sizes = {"autocast": False, "graphs": False, "shared_prefix": shared, "prompt": 256, "completion": 128}
    sizes["checkpointing"] = switches.get("gradient_checkpointing", True)
    last = {"prompt": 368, "completion": 16}  # the last of a completion's tokens
    if kind in ("rank", "imitate"):
        sizes["per_forward"] = switches.get("completions_per_forward", 0)
        function, k = (rrhf_needs, switches.get("completions", 6)) if kind == "rank" else (psle_needs, 1)
        args = SimpleNamespace(num_generations=k, sft_target="weighted", ranking_reference="none", **NO_REWARDS)
        found = estimate(models["adapted"], function(args), Sizes(prompts=batch, **sizes)).phases
        return max(sum(parts.values()) for name, parts in found.items() if name != "generation") / GIB
    if kind == "sample":
        args = SimpleNamespace(num_generations=1, sft_target="weighted", **NO_REWARDS)
        needed = Sizes(prompts=1, rows=2 * batch, **sizes | last)
        return sum(estimate(models["adapted"], psle_needs(args), needed).phases["generation"].values()) / GIB
    if kind == "value":
        args = SimpleNamespace(
            num_generations=6,
            heads=None,
            action_rank=256,
            num_iterations=1,
            keep_samples=True,
            value_form="state",
            value_head="mean",
            value_model_name_or_path="1B",
            **NO_REWARDS,
        )
        beside = {"language model": models["frozen"].weights_bytes}
        needed = Sizes(prompts=batch, **sizes)
        return estimate(models["frozen"], vas_needs(args), needed, second=models["value"], others=beside).total_gib
    args = SimpleNamespace(
        num_generations=1, feature="candidate", initial_accept_rate=0.5, advantage_estimator="gae", top_k=20,
        proxy_layer_sizes=None, num_mini_batches=4, first_candidates=0,
    )  # fmt: skip
    return estimate(models["frozen"], proxy_needs(args), Sizes(prompts=batch, rows=batch, **sizes | last)).total_gib


def test_an_8b_needs_what_was_counted(models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 7%: the largest difference is that of separate rows, which are padded to the longest one."""
    monkeypatch.setattr(lm_head, *_CHUNKS)
    monkeypatch.setattr(formula, "_tile", lambda m, n, c, gpu, tile=formula._tile: tile(m, n, c, False))
    results = read_results("card_count")  # the newest of each case
    counted = {case["name"]: case["metrics"]["peak"] / GIB for result in results for case in result["cases"]}
    # No training guides; the cases of `completions_per_forward` are compared as soon as they are counted.
    compared = [case for case in countable() if case.kind != "guide" and case.name in counted]
    assert len(compared) >= 17
    for case in compared:
        found = estimated(case.kind, case.batch, case.switches, models)
        assert found == pytest.approx(counted[case.name], rel=0.07), case.name
