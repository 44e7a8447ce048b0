# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The formula of memory against the count of every operation, on models built in memory."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config

from benchmarks.harness.models import _quantize
from benchmarks.harness.trainers import make_tokenizer
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.logprobs import lm_head, shared_prefix
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.logprobs.shared_prefix import Layout
from trl_ext.memory import estimate as formula
from trl_ext.memory.estimate import Sizes, estimate
from trl_ext.memory.inventory import Inventory
from trl_ext.memory.needs import Needs
from trl_ext.memory.shape_only import ShapeOnlyMode
from trl_ext.memory.tally import Tally
from trl_ext.models.adapters import wrap_with_peft


BF16 = torch.bfloat16
MIB = 2**20
COMMON = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
MODELS = {
    "Llama, grouped queries": LlamaConfig(
        **COMMON, intermediate_size=704, num_key_value_heads=2, vocab_size=2048, tie_word_embeddings=False
    ),
    "Qwen2, with biases": Qwen2Config(
        **COMMON, intermediate_size=1216, num_key_value_heads=1, vocab_size=4096, tie_word_embeddings=True
    ),
    "Gemma, large vocabulary": GemmaConfig(
        **COMMON, intermediate_size=1024, num_key_value_heads=1, head_dim=128, vocab_size=32000
    ),
}
LLAMA, QWEN, GEMMA = MODELS
LORA = LoraConfig(r=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
QUERY_LORA = LoraConfig(r=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture(autouse=True)
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is counted without arithmetic, with a GPU's form of shared rows."""
    monkeypatch.setattr(shared_prefix, "supported_layout", lambda model: Layout("cascade", "as on a GPU"))
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", 1 << 19)
    # Our head instead of TRL's, whose tiles are as large as these models.
    monkeypatch.setattr(formula, "_tile", lambda m, n, c, gpu, tile=formula._tile: tile(m, n, c, False))
    with warnings.catch_warnings(), ShapeOnlyMode():
        warnings.simplefilter("ignore")
        yield


def build(name: str, dtype: torch.dtype, bits: int, peft_config: LoraConfig | None, checkpointing: bool) -> Any:
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    if bits:
        _quantize(model)
    model = wrap_with_peft(model, peft_config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if peft_config is not None:
            model.enable_input_require_grads()
    return model.train()


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of the weights."""
    states = filter(None, (getattr(p, "quant_state", None) for p in model.parameters()))
    return sum(p.nbytes for p in model.parameters()) + sum(x.absmax.nbytes + x.state2.absmax.nbytes for x in states)


def peak(step: Callable[[], Any]) -> int:
    """Most bytes that a step holds at a time, beside what was there."""
    with Tally() as tally:
        step()
    return tally.peak


TRAININGS = [
    (LLAMA, torch.float32, 0, None, {"checkpointing": True}),
    (LLAMA, torch.float32, 0, None, {}),
    (LLAMA, BF16, 0, None, {"checkpointing": True, "shared_prefix": "never"}),
    (LLAMA, torch.float32, 0, LORA, {"checkpointing": True}),
    (LLAMA, BF16, 4, LORA, {"checkpointing": True}),
    (LLAMA, BF16, 4, LORA, {}),
    (QWEN, BF16, 0, LORA, {"checkpointing": True}),
    (QWEN, BF16, 0, QUERY_LORA, {}),
    (GEMMA, BF16, 0, None, {"checkpointing": True}),
    (GEMMA, BF16, 4, LORA, {"checkpointing": True}),
]


def _id(value: Any) -> str:
    if isinstance(value, LoraConfig):
        return f"LoRA on {len(value.target_modules) if isinstance(value.target_modules, set) else 'all'}"
    return str(value).replace("torch.", "")


@pytest.mark.parametrize(("name", "dtype", "bits", "peft_config", "settings"), TRAININGS, ids=_id)
def test_a_training_step_needs_what_the_formula_says(name, dtype, bits, peft_config, settings) -> None:
    """Within 6% of the count, weights and optimizer included."""
    sizes = Sizes(prompts=4, prompt=96, completion=96, **{"checkpointing": False, **settings})
    model = build(name, dtype, bits, peft_config, sizes.checkpointing)
    log_probs = LogProbs(model, 0, shared_prefix=sizes.shared_prefix)
    log_probs.verify = lambda model: None  # no arithmetic, no difference to find
    texts = [[5] * sizes.prompt] * sizes.prompts, [[[7] * sizes.completion] * 3] * sizes.prompts

    def step() -> None:
        with torch.autocast("cpu", BF16) if sizes.autocast else contextlib.nullcontext():
            tokens = log_probs(model, *texts)
            loss = -(tokens.sums() / tokens.lengths()).mean()
        loss.backward()

    states = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # AdamW's, in the dtype of the weights
    counted = peak(step) + bytes_of(model) + states
    found = estimate(Inventory.of(model, bits), Needs(3, generates=False), sizes)
    assert found.total_gib * formula.GIB == pytest.approx(counted, rel=0.06), found.phases
    without_weights = Inventory.from_config(MODELS[name], dtype=dtype, bits=bits, peft_config=peft_config)
    assert without_weights == Inventory.of(model, bits)


PARTS = [
    (LLAMA, torch.float32, 0, None, {"checkpointing": True}),
    (LLAMA, BF16, 4, LORA, {"checkpointing": True}),
    (QWEN, BF16, 0, LORA, {}),
    (GEMMA, BF16, 0, None, {"checkpointing": True, "shared_prefix": "never"}),
]


@pytest.mark.parametrize(("name", "dtype", "bits", "peft_config", "settings"), PARTS, ids=_id)
def test_parts_need_the_same_memory_whatever_their_number(name, dtype, bits, peft_config, settings) -> None:
    """8 completions in a forward pass, of 8, 16 and 64: the formula within 6%, and the last two within 2%."""
    model = build(name, dtype, bits, peft_config, settings.get("checkpointing", False))
    log_probs = LogProbs(model, 0, shared_prefix=settings.get("shared_prefix", "auto"), completions_per_forward=8)
    log_probs.verify = lambda model: None
    states = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    counted = {}
    for k in (8, 16, 64):
        sizes = Sizes(prompts=1, prompt=128, completion=128, per_forward=8, **{"checkpointing": False, **settings})

        def step(k: int = k) -> None:
            with torch.autocast("cpu", BF16):
                tokens = log_probs(model, [[5] * 128], [[[7] * 128] * k])
                loss = -(tokens.sums() / tokens.lengths()).mean()
            shares = tokens.parts.shares(loss) if tokens.parts else iter([loss])
            for _ in range(k // 8):
                with torch.autocast("cpu", BF16):
                    share = next(shares)
                share.backward()

        model.zero_grad()
        counted[k] = peak(step) + bytes_of(model) + states
        found = estimate(Inventory.of(model, bits), Needs(k, generates=False), sizes)
        assert found.total_gib * formula.GIB == pytest.approx(counted[k], rel=0.06), (k, found.phases)
    assert counted[64] == pytest.approx(counted[16], rel=0.02)


GENERATIONS = [
    (LLAMA, BF16, 0, None, {"rows": 16}, 4),
    (LLAMA, BF16, 0, None, {"rows": 16, "graphs": True}, 4),
    (LLAMA, BF16, 4, LORA, {"rows": 8}, 1),
    (QWEN, torch.float32, 0, None, {"rows": 16}, 2),
    (GEMMA, BF16, 0, None, {"rows": 16}, 4),
]


@pytest.mark.parametrize(("name", "dtype", "bits", "peft_config", "settings", "k"), GENERATIONS, ids=_id)
def test_generation_needs_what_the_formula_says(name, dtype, bits, peft_config, settings, k) -> None:
    """Within 12% of the count, weights included."""
    sizes = Sizes(**{"prompt": 192, "completion": 8, "graphs": False, **settings})
    model = build(name, dtype, bits, peft_config, False)
    tokenizer = make_tokenizer(MODELS[name].vocab_size - 1)
    graphs = "always" if sizes.graphs else "never"
    wanted = GenerationSettings(num_generations=k, max_completion_length=sizes.completion, cuda_graphs=graphs)
    prompts = [[5 + i] * sizes.prompt for i in range(sizes.rows // k)]

    def step() -> None:
        with torch.autocast("cpu", BF16), torch.no_grad():
            generate(model, tokenizer, prompts, wanted, batch_size=sizes.rows)

    if sizes.graphs:  # the cache is allocated by the first batch and there for the second
        step()

    inventory = Inventory.of(model, bits)
    parts = formula._generation(inventory, Needs(k), sizes)
    counted = peak(step) + bytes_of(model)
    if sizes.graphs:
        counted += int(parts["KV cache"])
    held = inventory.weights_bytes + inventory.adapter_bytes * inventory.trained * bool(peft_config)
    assert held + sum(parts.values()) == pytest.approx(counted, rel=0.12), parts
