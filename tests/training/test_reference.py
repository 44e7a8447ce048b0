# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The KL term's reference model: equal weights give a KL of exactly 0, with any attention of either model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.logprobs import COMPLETIONS as GROUPS
from oracles.logprobs import PROMPTS as QUESTIONS
from oracles.logprobs import Wrapper, flash_backward, flash_forward, flat, sums_by_loop
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import BitsAndBytesConfig

import trl_ext.logprobs.prefix_attention as cascade
import trl_ext.logprobs.shared_prefix as rows
from trl_ext import RRHFConfig
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.logprobs.shared_prefix import Layout
from trl_ext.method import discover
from trl_ext.models.load import load_model
from trl_ext.models.properties import is_quantized
from trl_ext.training.reference import Reference


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
COMPLETIONS = [[[20, 21, 22], [23]], [[24, 25], [26, 27, 28]]]


def stand_in_trainer(model):
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, generation_batch_size=4)
    return SimpleNamespace(accelerator=Accelerator(cpu=True), model=model, model_wrapped=model, args=args)


@pytest.mark.parametrize("attention", ["sdpa", CASCADE])
def test_a_copy_is_at_no_distance_and_another_model_is_where_loops_say(monkeypatch, attention):
    monkeypatch.setattr(cascade, "flash_forward", flash_forward)
    monkeypatch.setattr(cascade, "flash_backward", flash_backward)
    model = make_model(64)
    copied, other = Reference(model), Reference(model, make_model(64, seed=3))  # made before the attention is set
    if attention == CASCADE:
        monkeypatch.setattr(rows, "supported_layout", lambda base: Layout("cascade", "a mock"))
    log_probs = LogProbs(model, 0, shared_prefix="always")
    trainer = stand_in_trainer(model)
    for group in copied.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS):
        assert group == pytest.approx([0.0, 0.0], abs=1e-4)
    assert log_probs.layout.form == ("cascade" if attention == CASCADE else "dense")
    ratios = other.log_ratios(trainer, log_probs, PROMPTS, COMPLETIONS)
    models = make_model(64), make_model(64, seed=3)
    for prompt, completions, found in zip(PROMPTS, COMPLETIONS, ratios, strict=True):
        for completion, ratio in zip(completions, found, strict=True):
            sums = []
            for each in models:
                logits = each(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
                sums.append(sum(logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)))
            assert ratio == pytest.approx(sums[0] - sums[1], abs=1e-3)


def test_the_cascade_casts_under_autocast_and_makes_no_square_mask(monkeypatch):
    seen = []

    def remember(q, k, v, span, scale):
        seen.append((q.dtype, k.dtype, v.dtype))
        return flash_forward(q.float(), k.float(), v.float(), span, scale)

    masks = []
    original = cascade.cascade_attention_forward

    def attention(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return original(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(cascade, "flash_forward", remember)
    monkeypatch.setattr(rows, "supported_layout", lambda base: Layout("cascade", "a mock"))
    cascade.AttentionInterface.register(CASCADE, attention)
    try:
        model = make_model(64)
        log_probs = LogProbs(model, 0, shared_prefix="always")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            tokens = log_probs(model, PROMPTS, COMPLETIONS)
    finally:
        cascade.AttentionInterface.register(CASCADE, original)
    assert tokens.form == "cascade"
    assert set(seen) == {(torch.bfloat16,) * 3}
    assert max(mask.numel() for mask in masks[-2:]) == 1


def test_the_model_itself_is_no_reference():
    model = make_model(64)
    with pytest.raises(ValueError, match="same object"):
        Reference(model, model)
    policy = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # changes `model`
    with pytest.raises(ValueError, match="`ref_model` has weights that are trained with `model`"):
        Reference(policy, model)
    assert Reference(policy, make_model(64)).model is not None


def test_saved_weights_belong_to_one_model(tmp_path):
    file = tmp_path / "reference.safetensors"
    saved, other = Reference(make_model(64)), Reference(make_model(64, seed=3))
    saved.save(file)
    other.load(file)
    assert all(map(torch.equal, other.model.parameters(), saved.model.parameters()))
    with pytest.raises(ValueError, match="weights of another model"):
        Reference(make_model(48)).load(file)
    with pytest.raises(OSError, match="does not exist"):
        other.load(tmp_path / "missing.safetensors")


# ------------------------------------------------------------------------------------------------- forms of ref_model


def named_trainer(method, folder, model, **kwargs):
    """A trainer with a KL term that generates completions in training."""
    settings = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    settings |= {"beta": 0.1, "max_completion_length": 4, "num_generations": 2, **kwargs.pop("args", {})}
    settings |= {"psle": {"principles": ["good"]}, "rrhf": {}}[method]
    made = discover().methods[method].method
    return made.trainer_class()(
        model,
        args=made.config_class()(**settings),
        train_dataset=Dataset.from_list([{"prompt": "the film"}]),
        reward_funcs=letter_reward,
        **kwargs,
    )


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    """A saved model with other weights than `tiny_model_dir`'s."""
    folder = tmp_path_factory.mktemp("reference") / "other"
    make_model(len(make_tokenizer(chat=True)), seed=9).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["rrhf", "psle"])
@pytest.mark.parametrize("form", ["a name", "a model", "none"])
def test_forms_of_the_reference(method, form, tmp_path, tiny_model_dir, other_dir):
    other = load_model(other_dir)
    given = {"a name": other_dir, "a model": other, "none": None}[form]
    run = named_trainer(method, tmp_path, tiny_model_dir, ref_model=given)
    expected = load_model(tiny_model_dir) if given is None else other
    reference = run.reference.model
    assert reference is not run.model
    assert (reference is given) == (form == "a model")
    for mine, theirs in zip(reference.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad
    run.train()
    assert run.state.global_step
    assert all(map(torch.equal, reference.parameters(), expected.parameters()))


@pytest.mark.parametrize("method", ["rrhf", "psle"])
def test_a_reference_by_name_is_loaded_as_the_policy_is(method, tmp_path, tiny_model_dir, other_dir, monkeypatch):
    seen = {}

    def remember(name, **kwargs):
        seen[name] = kwargs
        return load_model(name, **kwargs)

    monkeypatch.setattr("trl_ext.training.reference.load_model", remember)
    loading = {"trust_remote_code": True, "model_init_kwargs": {"attn_implementation": "eager", "revision": "v2"}}
    run = named_trainer(method, tmp_path, tiny_model_dir, ref_model=other_dir, args=loading)
    assert seen[other_dir]["trust_remote_code"] is True
    assert seen[other_dir]["dtype"] == torch.float32  # the policy's
    assert "revision" not in seen[other_dir]  # of the policy's repository
    assert run.reference.model.config._attn_implementation == "eager"
    half = {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False}
    run = named_trainer(method, tmp_path, tiny_model_dir, ref_model=tiny_model_dir, args=half)
    assert run.reference.model.dtype == torch.bfloat16
    assert seen[tiny_model_dir]["trust_remote_code"] is False
    loading["trust_remote_code"] = False
    named_trainer(method, tmp_path, tiny_model_dir, ref_model=tiny_model_dir, args=loading)
    assert seen[tiny_model_dir]["revision"] == "v2"  # the same one


def test_a_reference_by_name_follows_a_policy_that_was_given(tmp_path, tiny_model_dir, other_dir):
    """In its dtype, so that the two differ by training and not by rounding."""
    tokenizer = make_tokenizer(chat=True)
    model = load_model(tiny_model_dir, dtype=torch.bfloat16)
    run = named_trainer("rrhf", tmp_path, model, ref_model=other_dir, processing_class=tokenizer)
    assert run.reference.model.dtype == torch.bfloat16


def test_a_policy_in_four_bits_is_compared_with_a_name_in_four_bits(tmp_path, tiny_model_dir, other_dir):
    tokenizer = make_tokenizer(chat=True)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    given = {"quantization_config": four_bits, "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    run = named_trainer("rrhf", tmp_path, tiny_model_dir, ref_model=other_dir, **given)
    assert is_quantized(run.reference.model)
    run.train()
    mine = load_model(tiny_model_dir, quantization_config=four_bits)  # of a policy that the user loaded, too
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    run = named_trainer("rrhf", tmp_path, mine, ref_model=other_dir, peft_config=adapter, processing_class=tokenizer)
    assert is_quantized(run.reference.model)


@pytest.mark.parametrize("method", ["rrhf", "psle"])
def test_a_reference_that_is_none_is_named(method, tmp_path, tiny_model_dir, tiny_reward_dir):
    with pytest.raises(OSError, match=r"There is no model at '\./no-such-model'"):
        named_trainer(method, tmp_path, tiny_model_dir, ref_model="./no-such-model")
    with pytest.raises(ValueError, match="holds a sequence classifier"):
        named_trainer(method, tmp_path, tiny_model_dir, ref_model=tiny_reward_dir)
    with pytest.raises(TypeError, match=r"`ref_model` must be a model, or its directory or Hub id, got `PosixPath`"):
        named_trainer(method, tmp_path, tiny_model_dir, ref_model=tmp_path)
    config = RRHFConfig(str(tmp_path), report_to="none")
    with pytest.raises(TypeError, match=r"`ref_model` is a config: pass it as `args=...`"):  # also without a KL term
        named_trainer(method, tmp_path, tiny_model_dir, ref_model=config, args={"beta": 0.0})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_as_many_completions_at_once_on_any_device(device, monkeypatch):
    """Generation uses twice as many on a GPU; a forward pass over complete texts needs more memory."""
    sizes = []

    def count(model, prompts, completions, *, batch_size, **_):
        sizes.append(batch_size)
        return [[torch.zeros(len(ids)) for ids in group] for group in completions]

    monkeypatch.setattr("trl_ext.training.reference.completion_logps", count)
    model = make_model(64)
    reference = Reference(model)
    trainer = placed_trainer(model)
    trainer.accelerator.device = torch.device(device)
    for asked, found in ((0, 64), (4, 4), (1, 2)):  # those of one prompt go together
        trainer.args.generation_batch_size = asked
        sizes.clear()
        reference.log_ratios(trainer, LogProbs(model, 0), PROMPTS, COMPLETIONS)
        assert sizes == [found, found]


# ---------------------------------------------------------------------------------------------- after some training

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def placed_trainer(model, **flags):
    accelerator = SimpleNamespace(
        unwrap_model=lambda m: getattr(m, "module", m), prepare_model=lambda m, evaluation_mode: m
    )
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, generation_batch_size=4)
    flags = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False} | flags
    return SimpleNamespace(model=model, model_wrapped=Wrapper(model), accelerator=accelerator, args=args, **flags)


def log_ratios(reference, model):
    trainer = placed_trainer(model)
    reference.place(trainer)
    ratios = reference.log_ratios(trainer, LogProbs(model, 0), QUESTIONS, GROUPS)
    assert [len(group) for group in ratios] == [len(group) for group in GROUPS]
    return torch.tensor(flat(ratios))


def move(model, scale=0.02):
    """Change the weights of a model, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def ratios_by_loop(model, reference):
    expected = sums_by_loop(model, QUESTIONS, GROUPS) - sums_by_loop(reference, QUESTIONS, GROUPS)
    assert expected.abs().max() > 0.1
    return expected.float()


@pytest.mark.parametrize("given", [False, True], ids=["a copy", "a model of one's own"])
def test_full_fine_tuning_is_compared_with_a_model_that_stays(given):
    model, start = make_model(64), make_model(64, seed=5 if given else 0)
    LogProbs(model, 0)  # its fused head must not come along with the copy
    reference = Reference(model, make_model(64, seed=5) if given else None)
    assert not any(p.requires_grad for p in reference.model.parameters())
    move(model)
    torch.testing.assert_close(log_ratios(reference, model), ratios_by_loop(model, start), rtol=1e-3, atol=1e-3)


PLACES = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "lora": LoraConfig(**PLACES),
    "trained lora": LoraConfig(**PLACES, init_lora_weights=False),
    "dora": LoraConfig(**PLACES, use_dora=True, init_lora_weights=False),
    "pissa": LoraConfig(**PLACES, init_lora_weights="pissa"),
    "pissa by fast svd": LoraConfig(**PLACES, init_lora_weights="pissa_niter_4"),
    "olora": LoraConfig(**PLACES, init_lora_weights="olora"),
    "orthogonal": LoraConfig(**PLACES, init_lora_weights="orthogonal"),
    "gaussian": LoraConfig(**PLACES, init_lora_weights="gaussian"),
    "lora and whole modules": LoraConfig(**PLACES, modules_to_save=["norm"]),
    "lora and some tokens": LoraConfig(**PLACES, trainable_token_indices=[20, 21, 24]),
    "lora on parameters": LoraConfig(
        target_modules=[], target_parameters=["q_proj.weight"], task_type="CAUSAL_LM", init_lora_weights=False
    ),
    "adalora": AdaLoraConfig(**PLACES, total_step=10, init_lora_weights=False),
    "vera": VeraConfig(**PLACES, init_weights=False),
    "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "oft": OFTConfig(**PLACES, oft_block_size=8, init_weights=False),
    "boft": BOFTConfig(**PLACES, boft_block_size=8, init_weights=False),
    "miss": MissConfig(**PLACES, r=8, init_weights=False),
    "loha": LoHaConfig(**PLACES, init_weights=False),
    "lokr": LoKrConfig(**PLACES, init_weights=False),
    "norms": LNTuningConfig(target_modules=["norm"], task_type="CAUSAL_LM"),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_compared_with_itself_as_it_was_when_training_began(kind):
    """The base is another model if the adapter was trained before or if its initialization changes the base."""
    torch.manual_seed(0)
    model = get_peft_model(make_model(64), ADAPTERS[kind]).eval()
    start, reference = copy.deepcopy(model), Reference(model)
    assert reference.model is None
    assert log_ratios(reference, model).abs().max() < 1e-5
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    move(model, scale=0.3)
    moved = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    ratios = log_ratios(reference, model)
    assert all(torch.equal(parameter, moved[name]) for name, parameter in model.named_parameters())
    torch.testing.assert_close(ratios, ratios_by_loop(model, start), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_mode_of_a_model_with_an_adapter_is_restored(checkpointing):
    model = get_peft_model(make_model(64), LoraConfig(**LORA))
    model.train(checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable()
    assert log_ratios(Reference(model), model).abs().max() < 1e-5
    assert model.training == checkpointing
    assert model.is_gradient_checkpointing == checkpointing


def test_the_reference_of_several_adapters_is_the_one_that_is_trained():
    """As TRL leaves them, with a second adapter "ref", which is not read."""
    model = get_peft_model(make_model(64), LoraConfig(**LORA)).eval()
    model.add_adapter("ref", LoraConfig(**LORA))
    model.set_adapter("default")
    start, reference = copy.deepcopy(model), Reference(model)
    assert log_ratios(reference, model).abs().max() < 1e-5
    move(model, scale=0.3)
    torch.testing.assert_close(log_ratios(reference, model), ratios_by_loop(model, start), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_a_sharded_policy_has_a_sharded_reference(monkeypatch, backend):
    monkeypatch.setattr("trl_ext.training.reference.shard", lambda model, trainer: ("sharded", model))
    reference = Reference(make_model(64))
    frozen = reference.model
    reference.place(placed_trainer(make_model(64), **{f"is_{backend}_enabled": True}))
    assert reference.model == ("sharded", frozen)


# ---------------------------------------------------------------------------------------------------- in a trainer

STEPS = {"max_steps": 3, "save_steps": 1, "logging_steps": 1, "learning_rate": 0.05, "beta": 0.01, "resample_steps": 1}


def kls(run):
    return [entry["kl"] for entry in run.state.log_history if "kl" in entry]


def trained_adapter(folder, base):
    """A PEFT model whose adapter was trained before, loaded to be trained further."""
    model = get_peft_model(load_model(base), LoraConfig(**LORA))
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(load_model(base), folder, is_trainable=True)


@pytest.mark.parametrize("method", ["rrhf", "psle"])
@pytest.mark.parametrize("policy", ["whole", "pissa", "trained before", "path"])
def test_the_kl_begins_at_0_and_a_resumed_run_measures_the_same(method, policy, tmp_path, tiny_model_dir):
    def make(folder):
        if policy in ("trained before", "path"):
            model = trained_adapter(tmp_path / "adapter", tiny_model_dir)
            model = str(tmp_path / "adapter") if policy == "path" else model
            return named_trainer(method, folder, model, args=STEPS, processing_class=make_tokenizer(chat=True))
        adapter = LoraConfig(**PLACES, init_lora_weights="pissa") if policy == "pissa" else None
        return named_trainer(method, folder, tiny_model_dir, args=STEPS, peft_config=adapter)

    run = make(tmp_path / "run")
    torch.manual_seed(1)
    run.train()
    assert abs(kls(run)[0]) < 1e-3
    assert abs(kls(run)[-1]) > 0.01
    again = make(tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert kls(again)[-1] == pytest.approx(kls(run)[-1], rel=1e-4)


@pytest.mark.parametrize("adapter", [None, LoraConfig(**PLACES, use_dora=True)], ids=["whole", "dora"])
def test_the_reference_of_psle_is_the_model_after_the_warm_up(adapter, tmp_path, tiny_model_dir):
    answers = Dataset.from_list([{"prompt": "the film", "completion": " was good"}] * 4)

    def make(folder):
        args = STEPS | {"sft_epochs": 1.0, "sft_learning_rate": 0.05, "num_iterations": 3}
        return named_trainer(
            "psle", folder, tiny_model_dir, args=args, sft_dataset=answers, peft_config=copy.deepcopy(adapter)
        )

    run = make(tmp_path / "run")
    before = copy.deepcopy(run.model)
    run.train()
    assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), run.model.parameters(), strict=True))
    assert abs(kls(run)[0]) < 1e-3
    assert abs(kls(run)[-1]) > 0.01
    again = make(tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert kls(again)[-1] == pytest.approx(kls(run)[-1], rel=1e-4)
    (tmp_path / "run" / "warm_up" / "reference.safetensors").unlink()
    with pytest.raises(OSError, match=r"reference\.safetensors does not exist"):
        make(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


@pytest.mark.parametrize("method", ["rrhf", "psle"])
@pytest.mark.parametrize("given", [False, True], ids=["a copy", "a model of one's own"])
def test_the_heads_of_policy_and_reference_are_float32(method, given, tmp_path, tiny_model_dir):
    args = STEPS | {"cast_lm_head_to_fp32": True, "model_init_kwargs": {"dtype": "bfloat16"}, "max_steps": 1}
    ref_model = load_model(tiny_model_dir, dtype=torch.bfloat16) if given else None
    run = named_trainer(method, tmp_path, tiny_model_dir, args=args, ref_model=ref_model)
    for model in (run.model, run.reference.model):
        assert (model.lm_head.weight.dtype, model.dtype) == (torch.float32, torch.bfloat16)
    run.train()
    assert abs(kls(run)[0]) < 1e-3
