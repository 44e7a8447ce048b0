# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The value model: what it computes, how it is made, and that it comes back from disk as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from trl_ext import ValueConfig, ValueModel
from trl_ext.models.tokenizers import vocabulary_difference
from trl_ext.vocabulary import vocabulary_digest


IDS = torch.tensor([[5, 9, 3, 7, 4, 11], [6, 8, 2, 10, 12, 3]])
LORA = {"r": 4, "target_modules": "all-linear"}


def shake(model: ValueModel) -> ValueModel:
    """Random weights for head and adapter, which start at zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model.head.weight.normal_(std=0.3)
        model.head.bias.normal_()
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2)
    return model


def test_heads_start_at_zero_and_values_have_their_shapes() -> None:
    one, two = ValueModel.from_backbone(make_model(64)), ValueModel.from_backbone(make_model(64), ["a", "b"])
    assert one(IDS).values.shape == (2, 6) and two(IDS).values.shape == (2, 6, 2)
    assert (one(IDS).values == 0).all() and (two(IDS).values == 0).all()
    assert (one.head_names, two.head_names) == (("reward",), ("a", "b"))
    assert two.value_of(torch.zeros(3, 4, 64)).shape == (3, 4, 2)


def test_value_is_the_head_on_the_hidden_state() -> None:
    base = make_model(64)
    model = shake(ValueModel.from_backbone(base))
    hidden = base.model(input_ids=IDS).last_hidden_state
    expected = hidden @ model.head.weight[0] + model.head.bias
    output = model(IDS)
    torch.testing.assert_close(output.values, expected)
    torch.testing.assert_close(output.last_hidden_state, hidden)
    torch.testing.assert_close(model.value_of(hidden)[..., 0], expected)


def gpt2() -> Any:
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [lambda: make_model(64), gpt2], ids=["llama", "gpt2"])
def test_padding_and_cache_do_not_change_values(make: Any) -> None:
    model = shake(ValueModel.from_backbone(make()))
    row = IDS[:1, :4]
    expected = model(row).values[0]
    for left, right in ((2, 0), (0, 2)):
        ids = torch.nn.functional.pad(row, (left, right), value=63)
        mask = torch.nn.functional.pad(torch.ones_like(row), (left, right))
        values = model(ids, attention_mask=mask).values[0, left : left + 4]
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    ids, mask = torch.nn.functional.pad(row, (2, 0), value=63), torch.tensor([[0, 0, 1, 1, 1, 1]])
    begun = model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
    rest = model(ids[:, 4:], attention_mask=mask, past_key_values=begun.past_key_values)
    torch.testing.assert_close(rest.values[0], expected[2:], rtol=1e-4, atol=1e-4)
    assert rest.past_key_values is not None and model(row).past_key_values is None


@pytest.mark.parametrize("labels", [0, 1])
def test_head_of_the_backbone_is_removed(labels: int) -> None:
    source = make_model(64, num_labels=labels)
    model = ValueModel.from_backbone(source)
    assert model.backbone is source.model
    assert not any("lm_head" in name or "score" in name for name, _ in model.named_parameters())


def test_head_is_float32_in_any_dtype_and_under_autocast(tmp_path: Path) -> None:
    model = shake(ValueModel.from_backbone(make_model(64).to(torch.bfloat16)))
    assert model.head.weight.dtype == torch.float32 and model(IDS).values.dtype == torch.float32
    exact = shake(ValueModel.from_backbone(make_model(64)))
    with torch.autocast("cpu", torch.bfloat16):
        output = exact(IDS)
    torch.testing.assert_close(output.values, exact.value_of(output.last_hidden_state)[..., 0])
    exact.save_pretrained(tmp_path / "v")
    loaded = ValueModel.from_pretrained(tmp_path / "v", dtype=torch.bfloat16)
    assert (loaded.head.weight.dtype, loaded.get_input_embeddings().weight.dtype) == (torch.float32, torch.bfloat16)


# ---------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("form", ["full", "lora", "shared"])
def test_saving_and_loading(tmp_path: Path, tiny_model_dir: str, form: str) -> None:
    heads, lora = ["kind", "short"], LoraConfig(**LORA, task_type="CAUSAL_LM")
    if form == "shared":
        policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        model = ValueModel.on_policy(policy, heads, peft_config=lora)
    else:
        model = ValueModel.from_backbone(tiny_model_dir, heads, peft_config=lora if form == "lora" else None)
    shake(model).config.reward_mean, model.config.lam = [1.5, -2.0], 0.5
    model.config.record_tokenizer(make_tokenizer())
    expected = model(IDS).values
    model.save_pretrained(tmp_path / "value")
    files = {path.name for path in (tmp_path / "value").rglob("*")}
    assert not [name for name in files if name.endswith(".bin")]
    assert ("adapter_model.safetensors" in files) == (form != "full")
    for cls in (ValueModel, AutoModel):
        found = cls.from_pretrained(tmp_path / "value")
        assert isinstance(found, ValueModel) and not found.training
        torch.testing.assert_close(found(IDS).values, expected)
        assert found.head_names == ("kind", "short")
        assert (found.config.reward_mean, found.config.reward_std) == ([1.5, -2.0], [1.0, 1.0])
        assert (found.config.lam, found.config.vocabulary) == (0.5, vocabulary_digest(make_tokenizer()))
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "value"), ValueConfig)
    again = tmp_path / "again"
    found.save_pretrained(again)
    torch.testing.assert_close(ValueModel.from_pretrained(again)(IDS).values, expected)


def test_saved_adapter_is_loaded_onto_a_policy_and_trained_further(tmp_path: Path, tiny_model_dir: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    before = policy(IDS).logits
    model = shake(ValueModel.from_backbone(tiny_model_dir, peft_config=LoraConfig(**LORA)))
    expected = model(IDS).values
    model.save_pretrained(tmp_path / "value")
    found = ValueModel.from_pretrained(tmp_path / "value", backbone=policy)
    torch.testing.assert_close(found(IDS).values, expected)
    torch.testing.assert_close(policy(IDS).logits, before)
    assert found.get_input_embeddings().weight.data_ptr() == policy.get_input_embeddings().weight.data_ptr()
    assert not [name for name, p in found.named_parameters() if p.requires_grad]
    further = ValueModel.from_pretrained(tmp_path / "value", is_trainable=True)
    trainable = {name for name, p in further.named_parameters() if p.requires_grad}
    assert "head.weight" in trainable and all("lora" in name for name in trainable - {"head.weight", "head.bias"})


def test_other_models_and_missing_backbones_are_rejected(tmp_path: Path, tiny_model_dir: str) -> None:
    with pytest.raises(ValueError, match=r"type 'llama', not a value model.*from_backbone"):
        ValueModel.from_pretrained(tiny_model_dir)
    ValueModel.from_backbone(make_model(64)).save_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match="backbone of its own"):
        ValueModel.from_pretrained(tmp_path / "full", backbone=make_model(64))
    ValueModel.from_backbone(make_model(64), peft_config=LoraConfig(**LORA)).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="backbone=model"):
        ValueModel.from_pretrained(tmp_path / "lora")


@pytest.mark.parametrize("has_card", [False, True])
def test_what_is_pushed(monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    """
    The adapter and the code for `generate`, too: `push_to_hub` saves to a folder and uploads what it finds there, one
    folder deep. A repository without a card gets one first.
    """
    from huggingface_hub import ModelCard

    import trl_ext.methods.vas.value_model.model as module

    seen: list[str] = []
    cards: list[tuple[str, str]] = []

    class Api:
        def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def create_commit(self, operations: list[Any], **kwargs: Any) -> None:
            seen.extend(operation.path_in_repo for operation in operations)

    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda *a, **k: Api())
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: ModelCard("---\n---\n"))
    monkeypatch.setattr(module, "create_repo", Api().create_repo)
    monkeypatch.setattr(module, "file_exists", lambda repo_id, name, **_: has_card and name == "README.md")
    monkeypatch.setattr(
        ModelCard, "push_to_hub", lambda self, repo_id, **_: cards.append((repo_id, self.text)), raising=True
    )
    ValueModel.from_backbone(make_model(64), peft_config=LoraConfig(**LORA)).push_to_hub("somebody/value")
    assert {"config.json", "model.safetensors", "adapter/adapter_model.safetensors"} <= set(seen)
    assert "custom_generate/generate.py" in seen
    assert [repo for repo, text in cards if "custom_generate='somebody/value'" in text] == ["somebody/value"] * (
        not has_card
    )


# ------------------------------------------------------------------------------------------ adapters and quantisation


def test_new_adapter_does_not_change_values() -> None:
    base = make_model(64)
    hidden = base.model(input_ids=IDS).last_hidden_state
    model = ValueModel.from_backbone(base, peft_config=LoraConfig(**LORA))
    torch.testing.assert_close(model(IDS).last_hidden_state, hidden)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_is_not_put_on_the_policy(init: str) -> None:
    with pytest.raises(
        ValueError, match="changes the weights that it is put on, which are those of the language model"
    ):
        ValueModel.on_policy(make_model(64), peft_config=LoraConfig(**LORA | {"init_lora_weights": init}))


def test_adapter_on_the_policy_does_not_change_the_policy(tiny_model_dir: str) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    before = policy(IDS).logits
    weights = {name: p.clone() for name, p in policy.named_parameters()}
    model = shake(ValueModel.on_policy(policy, peft_config=LoraConfig(**LORA)))
    assert torch.equal(policy(IDS).logits, before)
    own = model(IDS).last_hidden_state
    assert (own - policy.model(input_ids=IDS).last_hidden_state).abs().max() > 0.1
    with model.hold_adapter():
        torch.testing.assert_close(policy.model(input_ids=IDS).last_hidden_state, own)
        model(IDS)
        torch.testing.assert_close(policy.model(input_ids=IDS).last_hidden_state, own)
    with pytest.raises(IndexError):
        model(torch.tensor([[10**6]]))  # a forward that fails leaves the adapter off, too
    assert torch.equal(policy(IDS).logits, before)
    model(IDS).values.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
    for name, parameter in policy.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, weights[name.replace("base_layer.", "")]) and parameter.grad is None


def test_four_bits(tmp_path: Path, tiny_model_dir: str) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    exact = shake(ValueModel.from_backbone(tiny_model_dir))
    exact.save_pretrained(tmp_path / "full")
    for model in (
        shake(ValueModel.from_backbone(tiny_model_dir, quantization_config=four)),
        ValueModel.from_pretrained(tmp_path / "full", quantization_config=four),
    ):
        kinds = {type(module).__name__ for module in model.backbone.modules()}
        assert "Linear4bit" in kinds and type(model.head) is torch.nn.Linear
        assert model.head.weight.dtype == torch.float32
        difference = (model(IDS).values - exact(IDS).values).abs().mean()
        assert difference < 0.5 * exact(IDS).values.std()
    lora = ValueModel.from_backbone(tiny_model_dir, quantization_config=four, peft_config=LoraConfig(**LORA))
    expected = shake(lora)(IDS).values
    lora.save_pretrained(tmp_path / "lora")
    found = ValueModel.from_pretrained(tmp_path / "lora", quantization_config=four)
    torch.testing.assert_close(found(IDS).values, expected, rtol=1e-2, atol=1e-2)


def test_backbone_with_head_and_adapter_is_rejected(tmp_path: Path) -> None:
    wrapped = get_peft_model(make_model(64), LoraConfig(**LORA))
    with pytest.raises(ValueError, match="merge_and_unload"):
        ValueModel.from_backbone(wrapped)
    base = make_model(64)
    base.save_pretrained(tmp_path / "base")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(**LORA))
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Merge it"):
        ValueModel.from_backbone(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="loaded already"):
        ValueModel.from_backbone(base, quantization_config=object())  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- config


def test_config_is_plain_json(tmp_path: Path) -> None:
    ValueModel.from_backbone(make_model(64), ["a", "b"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "trl_ext_value"
    assert config["heads"] == ["a", "b"] and config["reward_std"] == [1.0, 1.0]
    assert config["backbone_config"]["model_type"] == "llama"
    assert ValueConfig.from_pretrained(tmp_path).get_text_config().vocab_size == 64


def test_duplicate_head_names_are_rejected() -> None:
    with pytest.raises(ValueError, match="different names"):
        ValueModel.from_backbone(make_model(64), ["a", "a"])


def test_vocabulary_digest_differs_between_vocabularies() -> None:
    tokenizer = make_tokenizer()
    assert vocabulary_digest(tokenizer) == vocabulary_digest(make_tokenizer(chat=True))
    tokenizer.add_tokens(["new"])
    assert vocabulary_digest(tokenizer) != vocabulary_digest(make_tokenizer())


def test_vocabularies_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide compares them for each batch. After tokens were added, they are compared again."""
    tokenizer, other = make_tokenizer(), make_tokenizer()
    calls: list[Any] = []
    read = type(tokenizer).get_vocab
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: calls.append(self) or read(self))
    for _ in range(3):
        assert vocabulary_digest(tokenizer) == vocabulary_digest(other)
        assert vocabulary_difference(tokenizer, other) is None
    assert len(calls) == 4
    other.add_tokens(["new"])
    assert vocabulary_digest(tokenizer) != vocabulary_digest(other)
    assert vocabulary_difference(tokenizer, other) is None  # one of them may have more tokens
    tokenizer.add_tokens(["old"])
    assert vocabulary_difference(tokenizer, other) == (len(tokenizer) - 1, "old", "new")
