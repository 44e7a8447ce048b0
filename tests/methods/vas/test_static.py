# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Guided CUDA-graph decoding against `generate`, for every form of a value model."""

from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import PROMPTS, K, make_value, randomize
from peft import LoraConfig

from trl_ext import ValueAugmentedLogitsProcessor, ValueModel
from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.decoding.static_generate import static_generate
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.decoding.value_guide import ValueGuide
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.methods.vas.value_model.distribution import Statistic
from trl_ext.models.backbone_and_head import BackboneAndHead


FORMS = ["state", "action", "policy"]
HEADS = ("a", "b")


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def policy(tokenizer: Any) -> Any:
    return make_model(len(tokenizer))


def value_model(form: str, policy: Any, heads: tuple[str, ...] = ("reward",), seed: int = 7) -> ValueModel:
    """A value model of one of the forms, or with an adapter on the policy."""
    if form != "adapter":
        return make_value(form, policy, heads, seed)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return randomize(ValueModel.on_policy(policy, heads, peft_config=lora), seed)


def tokens(policy: Any, value: Any, beta: Any, *, static: bool, prompts: Any = PROMPTS, **kwargs: Any) -> torch.Tensor:
    """Greedy tokens of `generate` with guidance."""
    ids, mask = left_padded(prompts, 0)
    processor = ValueAugmentedLogitsProcessor(value, beta, kwargs.pop("top_k", K), attention_mask=mask)
    common = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 12} | kwargs
    if static:
        common["custom_generate"] = static_generate
    output = policy.generate(input_ids=ids, attention_mask=mask, logits_processor=[processor], **common)
    return output[:, ids.shape[1] :]


@pytest.mark.parametrize("heads", [("reward",), HEADS], ids=["one head", "two heads"])
@pytest.mark.parametrize("form", [*FORMS, "adapter"])
def test_tokens_equal_those_of_generate(policy: Any, form: str, heads: tuple[str, ...]) -> None:
    """Rows of different lengths, weights per row and head, and the complete vocabulary as candidates."""
    value = value_model(form, policy, heads)
    unguided = tokens(policy, value, dict.fromkeys(heads, 0.0), static=False)
    per_row = [{head: (-1) ** i * (i + j) / 2 for j, head in enumerate(heads, 1)} for i in range(len(PROMPTS))]
    for beta in (dict.fromkeys(heads, 2.0), per_row):
        for top_k in (K, policy.config.vocab_size):
            expected = tokens(policy, value, beta, static=False, top_k=top_k)
            assert not torch.equal(expected, unguided)
            assert torch.equal(tokens(policy, value, beta, static=True, top_k=top_k), expected)


def test_zero_weight_is_no_guidance(policy: Any) -> None:
    value = value_model("state", policy)
    assert torch.equal(tokens(policy, value, 0.0, static=True), tokens(policy, value, 0.0, static=False))


def test_weights_and_prompts_are_inputs_of_a_graph(policy: Any) -> None:
    """Other weights and prompts use the same graph; other value models and another k need another."""
    value, other = value_model("state", policy), value_model("state", policy, seed=8)
    tokens(policy, value, 1.0, static=True)
    [loop] = cached_loops(policy)._loops.values()
    for beta, prompts in ((-2.0, PROMPTS), (3.0, [[30, 31], [32], [33, 34, 35], [36]])):
        expected = tokens(policy, value, beta, static=False, prompts=prompts)
        assert torch.equal(tokens(policy, value, beta, static=True, prompts=prompts), expected)
    assert list(cached_loops(policy)._loops.values()) == [loop]
    for changed, top_k in ((other, K), (value, K + 1)):
        expected = tokens(policy, changed, 2.0, static=False, top_k=top_k)
        assert torch.equal(tokens(policy, changed, 2.0, static=True, top_k=top_k), expected)
    assert len(cached_loops(policy)._loops) == 3


def test_updated_head_weights_are_used(policy: Any) -> None:
    value = value_model("state", policy)
    before = tokens(policy, value, 2.0, static=True)
    with torch.no_grad():
        value.head.weight.neg_()
    expected = tokens(policy, value, 2.0, static=False)
    assert torch.equal(tokens(policy, value, 2.0, static=True), expected)
    assert not torch.equal(expected, before)


def test_each_statistic_of_a_distribution_has_its_own_graph(policy: Any) -> None:
    value = ValueModel.from_backbone(make_model(policy.config.vocab_size, seed=5), num_atoms=7)
    value.config.low, value.config.high = [-2.0], [6.0]
    value = randomize(value, 7)
    found = set()
    for text in ("mean", "quantile=0.1", "log_mean_exp=3"):
        value.statistic = Statistic.read(text)
        expected = tokens(policy, value, 4.0, static=False)
        assert torch.equal(tokens(policy, value, 4.0, static=True), expected)
        found.add(str(expected.tolist()))
    assert len(found) == len(cached_loops(policy)._loops) == 3


def test_forms_combined(policy: Any) -> None:
    models = {form: value_model(form, policy, seed=i) for i, form in enumerate(FORMS)}
    beta = {"state": 1.0, "action": -2.0, "policy": 0.5}
    expected = tokens(policy, models, beta, static=False)
    assert torch.equal(tokens(policy, models, beta, static=True), expected)
    for form in FORMS:  # each form changes the tokens
        assert not torch.equal(tokens(policy, models, beta | {form: 0.0}, static=True), expected)


def test_end_of_sequence(policy: Any) -> None:
    value = value_model("state", policy)
    free = tokens(policy, value, 2.0, static=False)
    ends = [int(free[0, 2]), int(free[2, 5])]
    expected = tokens(policy, value, 2.0, static=False, eos_token_id=ends, max_new_tokens=40)
    assert torch.equal(tokens(policy, value, 2.0, static=True, eos_token_id=ends, max_new_tokens=40), expected)


@pytest.mark.parametrize("form", FORMS)
def test_sampling_with_the_same_seed(policy: Any, tokenizer: Any, form: str) -> None:
    """Several completions per prompt, with tokens outside the candidates, as guided policies sample on a GPU."""
    value, found = value_model(form, policy), {}
    for wanted in ("never", "always"):
        guided = guided_policy(policy, tokenizer, value, 2.0, K)
        settings = GenerationSettings(num_generations=3, max_completion_length=20, temperature=1.5, cuda_graphs=wanted)
        torch.manual_seed(3)
        found[wanted] = [[c.ids for c in group] for group in guided.generate(PROMPTS, settings)]
    assert found["always"] == found["never"]


def test_value_model_with_another_vocabulary_is_rejected(policy: Any, tokenizer: Any) -> None:
    other = ValueModel.from_backbone(make_model(policy.config.vocab_size + 3)).eval()
    with pytest.raises(ValueError, match="CUDA-graph decoding is not available"):
        tokens(policy, other, 2.0, static=True)


def test_value_model_on_another_device_is_not_supported(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = ValueAugmentedLogitsProcessor(value_model("state", policy), 2.0, K, pad_token_id=0)
    assert processor.static_unsupported_reason(BackboneAndHead(policy)) == ""
    monkeypatch.setattr(ValueGuide, "device", torch.device("meta"))
    assert "another device" in processor.static_unsupported_reason(BackboneAndHead(policy))


@pytest.mark.parametrize("form", FORMS)
def test_other_weights_of_a_value_model_record_another_graph(policy: Any, form: str) -> None:
    value = value_model(form, policy)
    processor = ValueAugmentedLogitsProcessor(value, 2.0, K, pad_token_id=0)
    keys = [processor.static_key()]
    with torch.no_grad():
        value.head.weight.add_(1)
    assert processor.static_key() == keys[0]
    heads = [value.head] if form == "state" else [value.head, value.action.query, value.action.actions]
    layers = [] if form == "policy" else [value.backbone.layers[0].mlp.up_proj]
    for module in heads + layers:
        module.weight = torch.nn.Parameter(module.weight.clone())
        keys.append(processor.static_key())
    assert len(set(keys)) == len(keys)


def test_unsupported_settings_raise_with_always_and_fall_back_with_auto(policy: Any, tokenizer: Any) -> None:
    value = value_model("state", policy)

    def run(wanted: str) -> Any:
        def guides(ids: torch.Tensor, mask: torch.Tensor) -> list[Any]:
            return [ValueAugmentedLogitsProcessor(value, 2.0, K, attention_mask=mask)]

        settings = GenerationSettings(
            num_generations=1, max_completion_length=5, repetition_penalty=1.3, cuda_graphs=wanted
        )
        torch.manual_seed(3)
        return [[c.ids for c in group] for group in generate(policy, tokenizer, PROMPTS, settings, processors=guides)]

    with pytest.raises(ValueError, match="'always'"):
        run("always")
    assert run("auto") == run("never")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")
@pytest.mark.parametrize("form", FORMS)
def test_graph_gives_the_tokens_of_generate(policy: Any, form: str) -> None:
    policy.cuda()
    value = value_model(form, policy).cuda()
    ids, mask = (x.cuda() for x in left_padded(PROMPTS, 0))
    common = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 12}
    for beta in (2.0, -2.0):  # recorded, and replayed with another weight
        made = [ValueAugmentedLogitsProcessor(value, beta, K, attention_mask=mask) for _ in range(2)]
        expected = policy.generate(input_ids=ids, attention_mask=mask, logits_processor=[made[0]], **common)
        common_static = common | {"custom_generate": static_generate}
        found = policy.generate(input_ids=ids, attention_mask=mask, logits_processor=[made[1]], **common_static)
        assert torch.equal(found, expected)
