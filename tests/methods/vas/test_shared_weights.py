# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Several models on the same weights: value models on a policy, its own adapters, copies, and merged adapters."""

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from oracles.guided_decoding import PROMPTS, K, guided_logits, make_value, randomize, run_generate
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trl_ext import ValueModel, VASConfig, VASTrainer
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.policies import VASDecoding


IDS = torch.tensor([[5, 9, 3, 7, 11, 4], [8, 2, 6, 10, 12, 13]])
VOCABULARY = 64


def lora(*modules: str) -> LoraConfig:
    return LoraConfig(r=4, target_modules=list(modules or ("q_proj", "v_proj")))


def values(model: ValueModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).values


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def on_policy(policy: Any, seed: int = 7, *modules: str) -> ValueModel:
    return randomize_adapter(ValueModel.on_policy(policy, peft_config=lora(*modules)), seed)


def randomize_adapter(model: ValueModel, seed: int) -> ValueModel:
    """Weights for the model's own adapter only: the others on its weights keep theirs."""
    name = model.backbone.active_adapter
    others = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n and f".{name}." not in n}
    randomize(model, seed)
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if n in others:
                parameter.copy_(others[n])
    return model


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Any]:
    """A base model, and two value models trained as adapters on it, of other layers, with their values."""
    make_model(VOCABULARY).save_pretrained(tmp_path / "base")
    found: dict[str, Any] = {"base": str(tmp_path / "base"), "alone": {}}
    for seed, (name, modules) in enumerate({"kind": ("q_proj", "v_proj"), "short": ("v_proj", "up_proj")}.items()):
        model = ValueModel.from_backbone(found["base"], [name], peft_config=lora(*modules))
        randomize(model, seed).save_pretrained(tmp_path / name)
        found[name], found["alone"][name] = str(tmp_path / name), values(model)
    found["keys"] = load_file(tmp_path / "kind" / "adapter" / "adapter_model.safetensors").keys()
    return found


def test_two_value_models_on_one_policy(saved: dict[str, Any], tmp_path: Path) -> None:
    """Each has the values that it has alone, also when saved again; the policy is the base model."""
    policy = AutoModelForCausalLM.from_pretrained(saved["base"]).eval()
    expected = logits(policy)
    made = {name: ValueModel.from_pretrained(saved[name], backbone=policy) for name in ("kind", "short")}
    for _ in range(2):
        for name, model in made.items():
            torch.testing.assert_close(values(model), saved["alone"][name])
            torch.testing.assert_close(logits(policy), expected)
    made["short"].save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again" / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    torch.testing.assert_close(values(ValueModel.from_pretrained(tmp_path / "again")), saved["alone"]["short"])
    made["short"].load_adapter_and_head(saved["short"])
    torch.testing.assert_close(values(made["kind"]), saved["alone"]["kind"])


def test_flags_share_the_weights_of_the_policy(saved: dict[str, Any], tiny_tokenizer: Any) -> None:
    """Two value models, and a policy with an adapter of its own: one copy of the base model in memory."""
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(saved["base"]), lora()).eval()
    decoding = VASDecoding([saved["kind"], saved["short"]], beta=["kind=1,short=1"])
    models, _ = decoding.load_value_models(policy)
    assert isinstance(models, dict)
    for name, model in models.items():
        assert model.get_input_embeddings() is policy.get_input_embeddings()
        torch.testing.assert_close(values(model), saved["alone"][name])


@pytest.mark.parametrize("kind", ["peft", "injected"])
def test_policy_with_an_adapter(saved: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """
    The value model does without the policy's adapter, as it does alone; the policy keeps its own, whatever the caller
    switches between the calls.
    """
    policy = AutoModelForCausalLM.from_pretrained(saved["base"]).eval()
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = logits(policy)
    if kind == "peft":
        policy = get_peft_model(policy, config)
        policy.add_adapter("other", config)
        policy.set_adapter("default")
    else:  # without PEFT's wrapper, as transformers and diffusers do
        inject_adapter_in_model(config, policy)
    expected = logits(policy)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    model = ValueModel.from_pretrained(saved["kind"], backbone=policy)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trainable
    policy.eval()
    model.save_pretrained(tmp_path / "value")
    assert load_file(tmp_path / "value" / "adapter" / "adapter_model.safetensors").keys() == saved["keys"]
    if kind == "peft":
        policy.save_pretrained(tmp_path / "policy")
        assert not [
            key for key in load_file(tmp_path / "policy" / "adapter_model.safetensors") if ".trl_ext_value." in key
        ]
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved["base"]), tmp_path / "policy")
        torch.testing.assert_close(logits(alone.eval()), expected)

    def check(expected: torch.Tensor) -> None:
        torch.testing.assert_close(logits(policy), expected)
        torch.testing.assert_close(values(model), saved["alone"]["kind"])
        torch.testing.assert_close(logits(policy), expected)

    check(expected)
    if kind == "peft":
        policy.set_adapter("other")
        check(logits(policy))
        assert not torch.allclose(logits(policy), expected)
        with policy.disable_adapter():
            check(base)
        policy.delete_adapter("other")
        policy.set_adapter("default")
        check(expected)


def test_policy_that_gets_an_adapter_later(saved: dict[str, Any], tmp_path: Path) -> None:
    """PEFT calls it "default", which is no value model's; it is trained, saved and loaded as without value models."""
    policy = AutoModelForCausalLM.from_pretrained(saved["base"]).eval()
    model = ValueModel.from_pretrained(saved["kind"], backbone=policy)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    policy = get_peft_model(policy, config).eval()
    expected = logits(policy)
    torch.testing.assert_close(values(model), saved["alone"]["kind"])
    torch.testing.assert_close(logits(policy), expected)
    assert any("default" in name and p.requires_grad for name, p in policy.named_parameters())
    policy.save_pretrained(tmp_path / "policy")
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved["base"]), tmp_path / "policy").eval()
    torch.testing.assert_close(logits(alone), expected)


def test_value_models_that_are_gone_take_their_adapters_with_them(saved: dict[str, Any]) -> None:
    """A program that loads one after the other on the same policy keeps the memory of none."""
    policy = AutoModelForCausalLM.from_pretrained(saved["base"]).eval()
    expected, sizes = logits(policy), []
    for name in ("kind", "short", "kind"):
        model = ValueModel.from_pretrained(saved[name], backbone=policy)
        torch.testing.assert_close(values(model), saved["alone"][name])
        del model
        gc.collect()
        sizes.append(sum(parameter.numel() for parameter in policy.parameters()))
        torch.testing.assert_close(logits(policy), expected)
    assert len(set(sizes)) == 1


def test_the_garbage_collector_may_come_in_a_loop_over_the_weights() -> None:
    """Nothing is taken out of the policy's layers until the next value model is put on."""
    policy = make_model(VOCABULARY)
    expected, own, models = logits(policy), len(list(policy.parameters())), [on_policy(policy)]
    for _ in policy.named_parameters():
        if models:
            models.clear()
            gc.collect()
    left = [parameter for name, parameter in policy.named_parameters() if "trl_ext_value" in name]
    assert left and all(parameter.numel() == 0 and not parameter.requires_grad for parameter in left)
    torch.testing.assert_close(logits(policy), expected)
    second = on_policy(policy)
    assert (
        len({name.rpartition(".trl_ext_value")[2] for name, _ in policy.named_parameters() if "_value" in name}) == 1
    )
    assert len(list(policy.parameters())) == own + len(left) and second is not None
    torch.testing.assert_close(logits(policy), expected)


def test_forward_that_fails_leaves_the_policy_alone() -> None:
    policy = make_model(VOCABULARY)
    expected, model = logits(policy), on_policy(policy)
    with pytest.raises(IndexError):
        model(torch.tensor([[VOCABULARY + 5]]))
    torch.testing.assert_close(logits(policy), expected)
    with pytest.raises(RuntimeError, match="stop"), model.hold_adapter():
        raise RuntimeError("stop")
    torch.testing.assert_close(logits(policy), expected)


def test_adapters_of_two_types_are_refused() -> None:
    """PEFT would replace the layers of the first."""
    policy = get_peft_model(make_model(VOCABULARY), LoHaConfig(target_modules=["q_proj"], init_weights=False)).eval()
    expected = logits(policy)
    with pytest.raises(ValueError, match=r"an adapter of another type than LORA.*use the same type.*merge_and_unload"):
        ValueModel.on_policy(policy, peft_config=lora())
    torch.testing.assert_close(logits(policy), expected)


def test_merged_adapters() -> None:
    """Merged weights are refused until they are separate again, or for good if the adapter is gone with them."""
    policy = get_peft_model(make_model(VOCABULARY), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model = on_policy(policy.eval())
    expected = values(model)
    policy.merge_adapter()
    with pytest.raises(ValueError, match=r"The adapter 'default' is merged into the weights .*unmerge_adapter"):
        values(model)
    policy.unmerge_adapter()
    torch.testing.assert_close(values(model), expected, rtol=1e-4, atol=1e-4)
    policy.merge_and_unload()
    with pytest.raises(ValueError, match=r"adapter was removed from the weights .*merge_and_unload"):
        values(model)
    merged = make_model(VOCABULARY)
    own = ValueModel.from_backbone(merged, peft_config=lora())
    expected = values(randomize(own))
    own.backbone = own.backbone.merge_and_unload()  # a model of its own
    torch.testing.assert_close(values(own), expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("kind", ["adapter", "policy"])
def test_copies_compute_with_their_own_weights(kind: str) -> None:
    """A change of either leaves the other alone."""
    policy = make_model(VOCABULARY)
    model = on_policy(policy) if kind == "adapter" else make_value("policy", policy)
    expected, found = values(model), copy.deepcopy(model)
    torch.testing.assert_close(values(found), expected, equal_nan=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if kind == "adapter" and "lora" in name:
                parameter.zero_()
            elif kind == "policy":
                parameter.add_(0.1)
    torch.testing.assert_close(values(found), expected, equal_nan=True)
    assert not torch.allclose(values(model), expected, equal_nan=True)


def test_a_copy_reads_the_hidden_states_of_its_own_policy() -> None:
    """A copy of policy and value model together guides; a copy of the value model alone has no policy to read."""
    policy = make_model(VOCABULARY)
    model = make_value("policy", policy)
    processor = ValueAugmentedLogitsProcessor(model, 3.0, K)
    expected = run_generate(policy, processor, PROMPTS)
    both = copy.deepcopy({"policy": policy, "processor": processor})
    assert run_generate(both["policy"], both["processor"], PROMPTS) == expected
    with pytest.raises(ValueError, match="works only while the language model that it was loaded with"):
        run_generate(policy, ValueAugmentedLogitsProcessor(copy.deepcopy(model), 3.0, K), PROMPTS)
    with torch.no_grad():
        copy.deepcopy(policy)(IDS)  # a copy of the policy passes nothing on
        with pytest.raises(ValueError, match="last forward pass"):
            processor(IDS, torch.zeros(2, VOCABULARY))


# ------------------------------------------------------------------------------------------------------------ together


def test_value_models_of_all_forms_guide_together() -> None:
    """The forward pass of one that shares the weights is not taken for that of the policy, in either order."""
    policy = make_model(VOCABULARY)
    made = {"adapter": on_policy(policy), "head": make_value("policy", policy), "own": make_value("state", policy)}
    guides = [(model, 0, 1.5) for model in made.values()]
    for names in (list(made), list(made)[::-1]):
        processor = ValueAugmentedLogitsProcessor({n: made[n] for n in names}, dict.fromkeys(names, 1.5), K)
        with torch.no_grad():
            scores = policy(IDS).logits[:, -1]
            found = processor(IDS, scores)
            for row, ids in zip(found, IDS.tolist(), strict=True):
                torch.testing.assert_close(row, guided_logits(policy, guides, ids), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------ training


def trainer(folder: Path, policy: Any, tokenizer: Any, **kwargs: Any) -> VASTrainer:
    rows = [{"prompt": "the film", "completions": [" good", " bad story"], "scores": [1.0, 0.0]}] * 4
    args = VASConfig(
        str(folder), report_to="none", max_steps=2, disable_tqdm=True, save_strategy="no", learning_rate=1e-2
    )
    return VASTrainer(policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **kwargs)


def test_two_trainers_on_one_policy(tmp_path: Path) -> None:
    """Made one after the other before either trains: each trains its own adapter, and no other."""
    tokenizer = make_tokenizer()
    policy = make_model(len(tokenizer))
    made = [trainer(tmp_path / str(i), policy, tokenizer, peft_config=lora()) for i in range(2)]
    names = [each.model.backbone.active_adapter for each in made]
    for each, name in zip(made, names, strict=True):
        before = {n: p.detach().clone() for n, p in policy.named_parameters()}
        each.train()
        changed = {n for n, p in policy.named_parameters() if not torch.equal(before[n], p)}
        assert changed and all(f".{name}." in n for n in changed)


def test_value_model_object_on_a_policy_that_samples(tmp_path: Path) -> None:
    """The trainer freezes the policy, but not the adapter on it that it was given to train."""
    tokenizer = make_tokenizer()
    policy = make_model(len(tokenizer))
    model = ValueModel.on_policy(policy, peft_config=lora())
    made = trainer(
        tmp_path, policy, tokenizer, value_model=model, reward_funcs=lambda completions, **_: [1.0] * len(completions)
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made.train()
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert any("lora" in n for n in changed) and all("lora" in n or "head" in n for n in changed)


def test_a_value_model_whose_backbone_is_the_policy_is_refused(tmp_path: Path) -> None:
    """Training would change the policy."""
    tokenizer = make_tokenizer()
    policy = make_model(len(tokenizer))
    with pytest.raises(ValueError, match=r"backbone is the language model itself.*on_policy.*a second copy"):
        trainer(tmp_path, policy, tokenizer, value_model=ValueModel.from_backbone(policy))
