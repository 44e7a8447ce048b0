# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loading of models, 4-bit layers on the CPU, adapters, and errors that name the remedy."""

import copy
import json
import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import IA3Config, LoraConfig, MultitaskPromptTuningConfig, PeftModel, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from trl import ModelConfig

import trl_ext.models.load as models
from trl_ext.models.adapters import is_factor, peft_config_from, wrap_with_peft
from trl_ext.models.load import (
    adapter_base,
    adapter_disabled,
    freeze,
    load_model,
    quantization_config_from,
    saved_config,
)
from trl_ext.models.properties import base_of, is_peft_model, is_quantized
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.functions import load_rewards
from trl_ext.training.config import ExtConfig
from trl_ext.training.model_loading import load_policy


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
IDS = torch.arange(8, 28).view(2, 10)


def settings(tmp_path, **changes):
    return ExtConfig(output_dir=str(tmp_path), report_to="none", **changes)


# ------------------------------------------------------------------------------------------------------- 4-bit on CPU


@pytest.fixture
def load_qlora(tiny_model_dir):

    def load(**changes):
        model = load_model(tiny_model_dir, quantization_config=BitsAndBytesConfig(**NF4 | changes))
        torch.manual_seed(0)
        return wrap_with_peft(model, LoraConfig(**LORA))

    return load


def lora_gradients(model):
    model.train()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    lora = [p for name, p in model.named_parameters() if "lora" in name]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in lora])


def evaluate(model):
    """A forward pass in evaluation mode and generation, after which bitsandbytes repacks layers."""
    model.eval()
    with torch.no_grad():
        model(input_ids=IDS)
        model.generate(input_ids=IDS, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_4bit_gradients_are_the_same_after_an_evaluation(load_qlora, compute):
    model = load_qlora(bnb_4bit_compute_dtype=compute)
    before = lora_gradients(model)
    assert before.norm() > 0
    evaluate(model)
    assert lora_gradients(model).equal(before)


def test_without_the_fix_layers_are_packed(load_qlora, monkeypatch):
    """The test above says little on a CPU without AVX512-BF16, for which bitsandbytes packs no layer."""
    from bitsandbytes.nn import modules

    packed = []
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", lambda *weights: packed.append(weights) or weights)
    evaluate(load_qlora())
    assert not packed
    monkeypatch.setattr(models, "use_exact_4bit_on_cpu", lambda model: None)
    evaluate(load_qlora())
    assert packed


def test_4bit_layers_of_a_model_loaded_by_the_user_are_differentiable(tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=BitsAndBytesConfig(**NF4))
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True  # as on a CPU that it packs for
    policy = load_policy(model, settings(tmp_path), peft_config=LoraConfig(**LORA))
    flags = [m.support_avx512bf16_for_cpu for m in policy.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(flags) == 14  # seven linear maps in each of two layers
    assert not any(flags)


def test_4bit_model_is_what_was_asked_for(load_qlora):
    model = load_qlora()
    assert is_quantized(model)
    assert not is_quantized(make_model(64))
    linear = base_of(model).model.layers[0].mlp.up_proj
    state = linear.weight.quant_state
    assert (state.quant_type, state.nested, linear.compute_dtype) == ("nf4", True, torch.bfloat16)
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.bfloat16}
    assert base_of(model).model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, "auto", "float32", "float16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_quantized_has_the_compute_dtype(tiny_model_dir, bits, dtype):
    """Embeddings and head of an 8B model are 2 GiB in bfloat16, and 4 in float32."""
    config = BitsAndBytesConfig(**NF4) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    kwargs = {} if dtype is None else {"dtype": dtype}
    model = load_model(tiny_model_dir, quantization_config=config, **kwargs)
    expected = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    assert {p.dtype for n, p in model.named_parameters() if "embed" in n or "head" in n or "norm" in n} == {expected}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "v_proj"], use_dora=True),
        VeraConfig(target_modules=["q_proj"], r=8),
    ],
    ids=["dora", "vera"],
)
def test_factors_on_a_quantized_base_are_float32_and_trained(tiny_model_dir, tmp_path, config):
    """Numbers near 1 are 1 / 128 apart in bfloat16: small updates would be lost (trl #7268)."""
    four_bits = BitsAndBytesConfig(**NF4)
    model = load_policy(tiny_model_dir, settings(tmp_path), four_bits, copy.deepcopy(config))
    model = model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    factors = {name: p for name, p in trained.items() if is_factor(name)}
    before = {name: p.detach().clone() for name, p in factors.items()}
    assert {p.dtype for p in factors.values()} == {torch.float32}
    assert {p.dtype for name, p in trained.items() if name not in factors} <= {torch.bfloat16}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4)
    for _ in range(3):
        log_probs = model(input_ids=IDS, labels=IDS)
        log_probs.loss.backward()
        optimizer.step()
    assert all((p != before[name]).float().mean() > 0.9 for name, p in factors.items() if p.grad.abs().max() > 0)
    assert any(p.grad.abs().max() > 0 for p in factors.values())


def test_quantization_of_the_command_line():
    assert quantization_config_from(ModelConfig()) is None
    config = quantization_config_from(ModelConfig(load_in_4bit=True, dtype="float32"))
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config_from(ModelConfig(load_in_8bit=True)).load_in_8bit
    fp4 = ModelConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage="bfloat16")
    assert quantization_config_from(fp4).bnb_4bit_quant_type == "fp4"
    assert quantization_config_from(fp4).bnb_4bit_quant_storage == torch.bfloat16


def test_4bit_and_8bit_exclude_each_other():
    arguments = ModelConfig()
    arguments.load_in_4bit = arguments.load_in_8bit = True
    with pytest.raises(ValueError, match="exclude each other"):
        quantization_config_from(arguments)


def test_a_quantized_model_needs_an_adapter(tiny_model_dir):
    model = make_model(64)
    model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="pass `peft_config`"):
        wrap_with_peft(model, None)


# ------------------------------------------------------------------------------------------------------------ loading


def test_load_model_gives_float32_unless_asked(tiny_model_dir):
    assert load_model(tiny_model_dir).dtype == torch.float32
    assert load_model(tiny_model_dir, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(tiny_model_dir, attn_implementation="eager").config._attn_implementation == "eager"


def test_load_a_classifier(tiny_reward_dir):
    model = load_model(tiny_reward_dir, head="sequence_classification")
    assert model.config.num_labels == 1
    assert model(input_ids=IDS).logits.shape == (2, 1)


def test_another_kind_of_model_is_refused(tiny_model_dir, tiny_reward_dir, tmp_path):
    """Before its weights are loaded: later it would fail with another error, or not at all."""
    with pytest.raises(ValueError, match=r"a sequence classifier \(LlamaForSequenceClassification\)"):
        load_model(tiny_reward_dir)
    assert load_model(tiny_reward_dir, head="none").config.hidden_size  # as the trunk of something
    with pytest.raises(ValueError, match=r"a language model \(LlamaForCausalLM\), which has no score"):
        load_model(tiny_model_dir, head="sequence_classification")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "trl_ext_value"}))
    for head in ("causal_lm", "sequence_classification"):
        with pytest.raises(ValueError, match="which guides a language model and is not one"):
            load_model(str(tmp_path), head=head)


@pytest.mark.parametrize(
    ("head", "saved", "message"),
    [
        (
            "causal_lm",
            {"num_labels": 1},
            r"'org/some-model' holds a sequence classifier \(LlamaForSequenceClassification",
        ),
        ("sequence_classification", {}, r"'org/some-model' holds a language model \(LlamaForCausalLM\), which has no"),
    ],
)
def test_another_kind_of_model_on_the_hub_is_refused(monkeypatch, head, saved, message):
    """Its config is read after loading, and states the kind of the model."""

    def from_the_hub(name, *_, **__):
        assert name == "org/some-model"
        model = make_model(80, **saved)
        model.config.architectures = [type(model).__name__]
        return model

    monkeypatch.setattr("trl_ext.models.load.create_model_from_path", from_the_hub)
    with pytest.raises(ValueError, match=message):
        load_model("org/some-model", head=head)
    other = {"causal_lm": "sequence_classification", "sequence_classification": "causal_lm"}[head]
    assert load_model("org/some-model", head=other).config.architectures  # what it is


def test_the_adapter_of_a_reward_has_its_score_head(tiny_model_dir, tmp_path):
    """Its base may be a language model, which has no score head and is refused without the adapter."""
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    adapted = get_peft_model(scorer, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "reward")
    loaded = load_model(str(tmp_path / "reward"), head="sequence_classification")
    adapted.config.pad_token_id = loaded.config.pad_token_id = 0
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, adapted.eval()(input_ids=IDS).logits)
    make_tokenizer(chat=True).save_pretrained(tmp_path / "reward")
    (reward,) = load_rewards(str(tmp_path / "reward"))
    assert len(reward(["the film"], [" was good"])) == 1


@pytest.mark.parametrize("load", ["ValueModel", "ProxyModel"])
@pytest.mark.parametrize("name", ["./no/such", "nosuch"])
def test_a_model_that_cannot_be_loaded_is_named(load, name):
    import trl_ext

    with pytest.raises(OSError, match=rf"Cannot load the \w+( model)? '{name}', which is no local directory"):
        getattr(trl_ext, load).from_pretrained(name)


def test_unknown_head(tiny_model_dir):
    with pytest.raises(
        ValueError, match="'causal_lm', 'sequence_classification', 'token_classification', got 'value'"
    ):
        load_model(tiny_model_dir, head="value")


@pytest.fixture
def adapter_dir(tiny_model_dir, tmp_path):
    torch.manual_seed(1)
    get_peft_model(load_model(tiny_model_dir), LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_an_adapter_directory_loads_with_its_base(adapter_dir, tiny_model_dir):
    assert adapter_base(adapter_dir) == tiny_model_dir
    assert adapter_base(tiny_model_dir) is None
    model, base = load_model(adapter_dir), load_model(tiny_model_dir)
    assert isinstance(model, PeftModel)
    assert not any(p.requires_grad for p in model.parameters())
    trainable = load_model(adapter_dir, is_trainable=True)
    assert all("lora" in name for name, p in trainable.named_parameters() if p.requires_grad)
    assert any(p.requires_grad for p in trainable.parameters())
    assert (model(input_ids=IDS).logits - base(input_ids=IDS).logits).abs().max() > 0.01
    with adapter_disabled(model):
        torch.testing.assert_close(model(input_ids=IDS).logits, base(input_ids=IDS).logits)
    assert (model(input_ids=IDS).logits - base(input_ids=IDS).logits).abs().max() > 0.01


def test_an_adapter_causes_no_future_warnings(adapter_dir, recwarn):
    """PEFT 0.21 reads an attribute that transformers 5.24 has renamed, wherever a model gets an adapter."""
    wrap_with_peft(make_model(64), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    load_model(adapter_dir)
    assert [str(each.message) for each in recwarn if each.category is FutureWarning] == []


def test_an_adapter_directory_has_its_bases_tokenizer(adapter_dir, tiny_model_dir):
    assert load_tokenizer(adapter_dir).get_vocab() == load_tokenizer(tiny_model_dir).get_vocab()


def test_an_adapter_whose_base_is_gone(adapter_dir):
    file = Path(adapter_dir) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(
        OSError, match=r"trained on the model at '/gone/base', which is not there.*adapter_config\.json"
    ):
        load_model(adapter_dir)


def test_an_adapter_whose_base_has_no_name(adapter_dir):
    file = Path(adapter_dir) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(OSError, match=r"saved without the name of its base model.*adapter_config\.json"):
        load_model(adapter_dir)


def test_an_adapter_whose_base_has_a_relative_path(tiny_model_dir, tmp_path, monkeypatch):
    """It is found from any directory, as long as both stay where they were in relation to one another."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    model = get_peft_model(load_model("models/base"), LoraConfig(**LORA))
    model.save_pretrained("runs/adapter")
    assert json.loads(Path("runs/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "models/base"
    monkeypatch.chdir("runs")
    assert adapter_base("adapter") == str(tmp_path / "models" / "base")
    torch.testing.assert_close(load_model("adapter")(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert load_tokenizer("adapter").get_vocab()


def test_models_and_adapters_in_folders_of_a_directory(adapter_dir, tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "all" / "full")
    shutil.copytree(adapter_dir, tmp_path / "all" / "lora")
    directory = str(tmp_path / "all")
    model = load_model(directory, subfolder="full")
    torch.testing.assert_close(model(input_ids=IDS).logits, load_model(tiny_model_dir)(input_ids=IDS).logits)
    assert isinstance(load_model(directory, subfolder="lora"), PeftModel)
    assert load_tokenizer(directory, subfolder="full").get_vocab() == load_tokenizer(tiny_model_dir).get_vocab()
    with pytest.raises(OSError, match="no folder 'none' in"):
        load_model(directory, subfolder="none")


@pytest.fixture
def hub(monkeypatch, adapter_dir):
    """An adapter `org/lora` on the Hub, and its base; the arguments with which they are loaded."""
    from peft import PeftModel
    from transformers import AutoConfig, LlamaForCausalLM

    config = json.loads((Path(adapter_dir) / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    config_file = Path(adapter_dir) / "on_the_hub.json"
    config_file.write_text(json.dumps(config | {"base_model_name_or_path": "org/base", "revision": "v1"}))
    calls = {}

    def find(name, **kwargs):
        calls[f"adapter of {name}"] = kwargs
        return str(config_file) if name == "org/lora" else None

    def record(owner, what, path):
        original = owner.from_pretrained

        def from_pretrained(*args, **kwargs):
            calls[what] = {key: kwargs.pop(key) for key in HUB if key in kwargs}
            args = tuple(path if isinstance(arg, str) else arg for arg in args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, "from_pretrained", from_pretrained)

    monkeypatch.setattr(models, "find_adapter_config_file", find)
    record(AutoConfig, "config", base)
    record(LlamaForCausalLM, "base", base)
    record(PeftModel, "adapter", adapter_dir)
    return calls


HUB = ("token", "cache_dir", "revision", "subfolder")


def test_an_adapter_on_the_hub(hub):
    model = load_model("org/lora", revision="v7", subfolder="last", token="a token", cache_dir="cache")
    assert isinstance(model, PeftModel)
    user = {"token": "a token", "cache_dir": "cache"}
    assert hub["adapter of org/lora"] == hub["adapter"] == {**user, "revision": "v7", "subfolder": "last"}
    assert hub["base"] == hub["config"] == {**user, "revision": "v1"}


def test_a_model_of_a_revision_has_the_class_of_that_revision(hub):
    load_model("org/model", revision="v2", token="a token")
    assert hub["config"] == hub["base"] == {"revision": "v2", "token": "a token"}


def test_the_revision_of_the_base_is_saved_with_an_adapter(tiny_model_dir, tmp_path):
    args = settings(tmp_path, model_init_kwargs={"revision": "v3"})
    model = load_policy(tiny_model_dir, args, peft_config=LoraConfig(**LORA))
    assert model.peft_config["default"].revision == "v3"


@pytest.mark.parametrize("path", ["/no/such/model", "./no-such-model", "~/no-such-model", "runs/no/such-model"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_path_that_does_not_exist(load, path):
    with pytest.raises(OSError, match=f"no model at '{path}': the directory does not exist"):
        load(path)


def test_home_directories_are_found(monkeypatch, tiny_model_dir):
    monkeypatch.setenv("HOME", str(Path(tiny_model_dir).parent))
    path = f"~/{Path(tiny_model_dir).name}"
    assert load_model(path).config.vocab_size == len(load_tokenizer(path))


@pytest.mark.parametrize("load", [load_model, partial(saved_config, "value model")])
def test_a_directory_without_a_model(load, tmp_path):
    with pytest.raises(
        OSError, match=f"no model in '{tmp_path}': it holds neither config.json nor adapter_config.json"
    ):
        load(str(tmp_path))


# ----------------------------------------------------------------------------------------------------------- adapters


def test_is_peft_model_and_base_of():
    model = make_model(64)
    wrapped = get_peft_model(model, LoraConfig(**LORA))
    assert not is_peft_model(model)
    assert base_of(model) is model
    assert is_peft_model(wrapped)
    assert base_of(wrapped) is model


def test_peft_config_on_a_wrapped_model():
    wrapped = get_peft_model(make_model(64), LoraConfig(**LORA))
    with pytest.raises(ValueError, match="already has an adapter"):
        wrap_with_peft(wrapped, LoraConfig(**LORA))
    assert wrap_with_peft(wrapped, None) is wrapped


def test_peft_config_of_another_type():
    with pytest.raises(TypeError, match=r"must be a `peft.PeftConfig`, got `dict`"):
        wrap_with_peft(make_model(64), LORA)


@pytest.mark.parametrize(
    ("flags", "targets"),
    [
        ({}, "all-linear"),
        ({"lora_target_modules": ["q_proj"]}, {"q_proj"}),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
        ({"lora_target_modules": [r".*layers\.0.*_proj"]}, r".*layers\.0.*_proj"),
        ({"lora_target_parameters": ["experts.down_proj"]}, None),
    ],
)
def test_the_layers_that_the_flags_of_an_adapter_ask_for(flags, targets):
    assert peft_config_from(ModelConfig(use_peft=True, **flags)).target_modules == targets


def test_the_adapter_of_the_command_is_on_all_linear_layers_but_the_head():
    """The seven projections of a Llama layer; PEFT's own choice is two of them."""
    model = wrap_with_peft(make_model(64), peft_config_from(ModelConfig(use_peft=True)))
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert peft_config_from(ModelConfig()) is None


def test_the_adapter_of_the_command_leaves_out_what_peft_refuses():
    """PEFT refuses `out_proj` of Mamba, also among all linear layers, where nobody named it."""
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=64)
    asked = peft_config_from(ModelConfig(use_peft=True))
    model = wrap_with_peft(AutoModelForCausalLM.from_config(config), asked)
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"in_proj", "x_proj", "dt_proj"}
    assert (asked.target_modules, asked.exclude_modules) == ("all-linear", None)  # the caller's own is not changed
    named = LoraConfig(task_type="CAUSAL_LM", target_modules=["out_proj"])
    with pytest.raises(ValueError, match="Module 'out_proj' is incompatible with Mamba"):
        wrap_with_peft(AutoModelForCausalLM.from_config(config), named)


@pytest.mark.parametrize("wrap", [wrap_with_peft, lambda m, c: wrap_with_peft(get_peft_model(m, c), None)])
def test_an_adapter_on_the_head_is_refused(wrap):
    with pytest.raises(ValueError, match="targets the output head"):
        wrap(make_model(64), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))


def test_an_adapter_that_reads_more_than_token_ids_is_refused():
    config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2)
    with pytest.raises(ValueError, match="of type MULTITASK_PROMPT_TUNING, which takes more than token ids"):
        wrap_with_peft(make_model(64), config)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA),
        LoraConfig(**LORA, use_dora=True),
        LoraConfig(target_modules="all-linear"),
        LoraConfig(**LORA, modules_to_save=["lm_head"]),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ],
)
def test_adapters_of_weights_are_accepted(config):
    model = wrap_with_peft(make_model(64), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in model.parameters()) / 2


# --------------------------------------------------------------------------------------------------------- load_policy


def test_load_policy_by_name(tiny_model_dir, tmp_path):
    args = settings(tmp_path, model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"})
    model = load_policy(tiny_model_dir, args)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert all(p.requires_grad for p in model.parameters())


def test_load_policy_takes_an_adapter_to_train_it_further(adapter_dir, tmp_path):
    model = load_policy(adapter_dir, settings(tmp_path))
    assert {"lora" in name for name, p in model.named_parameters() if p.requires_grad} == {True}


def test_quantization_is_configured_once(tiny_model_dir, tmp_path):
    args = settings(tmp_path, model_init_kwargs={"quantization_config": {"load_in_8bit": True}})
    with pytest.raises(ValueError, match="both to the trainer and in `model_init_kwargs`"):
        load_policy(tiny_model_dir, args, quantization_config=BitsAndBytesConfig(**NF4))
    with pytest.raises(ValueError, match="for a model that is loaded already"):
        load_policy(make_model(64), settings(tmp_path), quantization_config=BitsAndBytesConfig(**NF4))


def test_ignored_init_kwargs_of_a_loaded_model_are_logged(tmp_path, caplog):
    model = make_model(64)
    with caplog.at_level(logging.WARNING, logger="trl_ext.training.model_loading"):
        assert load_policy(model, settings(tmp_path, model_init_kwargs={"dtype": "bfloat16"})) is model
    assert "`model_init_kwargs` is ignored" in caplog.text
    assert model.dtype == torch.float32


@pytest.mark.parametrize("disable", [True, False])
def test_dropout(tmp_path, disable):
    model = load_policy(
        make_model(64), settings(tmp_path, disable_dropout=disable), peft_config=LoraConfig(**LORA, lora_dropout=0.5)
    )
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == ({0} if disable else {0.5})


@pytest.mark.parametrize("checkpointing", [True, False])
def test_inputs_require_gradients_where_checkpointing_needs_them(tmp_path, checkpointing):
    args = settings(tmp_path, gradient_checkpointing=checkpointing)
    model = load_policy(make_model(64), args, peft_config=LoraConfig(**LORA))
    assert model.get_input_embeddings()(IDS).requires_grad == checkpointing


# --------------------------------------------------------------------------------------------------------------- rest


def test_freeze():
    model = make_model(64).train()
    assert freeze(model) is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
