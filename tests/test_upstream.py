# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One contract per symbol of `trl_ext/upstream.py`: it exists, takes the arguments that we pass, and behaves as expected.

When a new release of TRL or transformers turns one of these red, the line in `upstream.py` is what has to change.
"""

import argparse
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import HANGS, make_model, make_tokenizer
from datasets import Dataset
from peft import LoHaConfig, LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from trl_ext import upstream


ROOT = Path(__file__).resolve().parent.parent
IDS = torch.arange(8, 28).view(2, 10)

CONTRACTS = {}


def contract(function):
    """Marks the contract of the symbol that it is named after."""
    CONTRACTS[function.__name__.removeprefix("test_")] = function
    return function


def takes(function, *positional, **keywords):
    """Fails if `function` cannot be called so."""
    inspect.signature(function).bind(*positional, **keywords)


def test_every_symbol_has_a_contract():
    assert set(upstream.__all__) == set(CONTRACTS)
    assert all(hasattr(upstream, name) for name in upstream.__all__)


@contract
def test_BaseConfig(tmp_path):
    assert issubclass(upstream.BaseConfig, TrainingArguments)
    assert isinstance(upstream.BaseConfig._VALID_DICT_FIELDS, list)
    fields = {field.name: field.default for field in dataclasses.fields(upstream.BaseConfig)}
    assert fields["bf16"] is None  # what ExtConfig looks for before it decides for the CPU
    assert "use_cpu" in fields
    args = upstream.BaseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert args.bf16 is False


@contract
def test_BaseTrainer(tmp_path):
    trainer = upstream.BaseTrainer
    for name in ("_tag_names", "_name", "_paper", "loss_is_scaled_for_ga"):
        assert hasattr(trainer, name)
    takes(trainer._send_telemetry, None)
    takes(trainer.create_model_card, None, model_name="x")
    takes(trainer._save_checkpoint, None, None, None)
    takes(trainer.get_batch_samples, None, iter(()), 2, torch.device("cpu"))
    takes(trainer._set_signature_columns_if_needed, None)
    takes(trainer.evaluate, None, None, None, "eval")
    takes(trainer.prediction_step, None, None, {}, True, ignore_keys=None)
    takes(trainer.compute_loss, None, None, {}, return_outputs=False, num_items_in_batch=None)
    takes(trainer.training_step, None, None, {}, None)
    takes(trainer.log, None, {}, None)
    takes(trainer._get_output_dir, None, trial=None)
    card = _a_trainer(tmp_path)
    card.create_model_card(model_name="name")
    text = (tmp_path / "README.md").read_text()
    assert "A title of a paper" in text
    assert "@article{key}" in text
    assert "Method" in text


def _a_trainer(folder):
    class MethodTrainer(upstream.BaseTrainer):
        _tag_names = ("trl", "method")
        _name = "Method"
        _paper = {"title": "A title of a paper", "id": "0000.00000", "citation": "@article{key}"}  # noqa: RUF012

        def _send_telemetry(self):
            pass

    args = upstream.BaseConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none")
    dataset = Dataset.from_dict({"input_ids": IDS.tolist()})
    return MethodTrainer(
        model=make_model(64),
        args=args,
        data_collator=None,
        train_dataset=dataset,
        eval_dataset=None,
        processing_class=make_tokenizer(),
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
    )


@contract
def test_add_fused_lm_head():
    model = make_model(64)
    expected = model(input_ids=IDS).logits.log_softmax(dim=-1)
    upstream.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    labels = IDS.roll(-1, dims=1)
    labels[:, :4] = -100
    output = model(input_ids=IDS, shift_labels=labels, fused_lm_head=True)
    mask = labels != -100
    found = expected.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    torch.testing.assert_close(output.log_probs, found * mask, rtol=1e-4, atol=1e-5)
    assert output.entropy.shape == output.is_top1.shape == IDS.shape
    torch.testing.assert_close(model(input_ids=IDS).logits.log_softmax(dim=-1), expected)


@contract
def test_create_model_from_path(tiny_model_dir, tiny_reward_dir):
    create = upstream.create_model_from_path
    model = create(tiny_model_dir, trust_remote_code=False)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert create(tiny_model_dir, dtype="bfloat16", device_map=None).dtype == torch.bfloat16
    classifier = create(tiny_reward_dir, AutoModelForSequenceClassification, num_labels=1)
    assert classifier.config.num_labels == 1


@contract
def test_load_balancing_loss_function():
    """Its mask holds weights of tokens, so that one token of weight 2 is two tokens."""
    config = MixtralConfig(vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1)
    with torch.device("meta"):
        loss = upstream.load_balancing_loss_function(MixtralForCausalLM(config))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    weighted = loss((logits,), 4, 2, torch.tensor([[2, 1, 0]]))
    torch.testing.assert_close(weighted, loss((logits[[0, 0, 1]],), 4, 2, None))
    assert upstream.load_balancing_loss_function(make_model(8)) is None


@contract
def test_get_act_offloading_ctx_manager():
    takes(upstream.get_act_offloading_ctx_manager, model=make_model(64))
    if torch.accelerator.is_available():  # it has nothing to offload from otherwise, and says so with an exception
        with upstream.get_act_offloading_ctx_manager(model=make_model(64)) as manager:
            assert manager is not None


@contract
def test_get_config_model_id(tiny_model_dir):
    model = upstream.create_model_from_path(tiny_model_dir)
    assert upstream.get_config_model_id(model.config) == tiny_model_dir


@contract
def test_global_then_local_main_first():
    with upstream.global_then_local_main_first():
        pass


@contract
def test_prepare_deepspeed():
    takes(upstream.prepare_deepspeed, make_model(64), Accelerator(cpu=True))


@contract
def test_print_prompt_completions_sample(capsys):
    rewards = {"good": [1.0, 0.5], "score": [1.5, 0.25]}
    upstream.print_prompt_completions_sample(["the film", "so"], ["was nice", "dull"], rewards, None, 12, 2)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("the film", "was nice", "dull", "good", "12"))


@contract
def test_sdpa_attention_forward():
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups, module.training = True, 1, False
    output, weights = upstream.sdpa_attention_forward(module, query, key, value, None, scaling=0.5, dropout=0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    assert weights is None


@contract
def test_sdpa_mask():
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("contract", upstream.sdpa_attention_forward)
    AttentionMaskInterface.register("contract", upstream.sdpa_mask)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 10])
    model = make_model(64)
    expected = model(input_ids=IDS, attention_mask=mask).logits
    model.set_attn_implementation("contract")
    found = model(input_ids=IDS, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def deepspeed_engine(layers, **offload):
    """As much of a ZeRO-3 engine around `layers` as the hooks need."""
    offload = SimpleNamespace(module=layers, **offload)
    return SimpleNamespace(optimizer=SimpleNamespace(parameter_offload=offload)), offload


@contract
def test_remove_hooks():
    layers, removed = torch.nn.Linear(1, 1), []
    layers.ds_external_parameters = list
    for parameter in layers.parameters():
        parameter.ds_active_sub_modules = {1}
    hook = SimpleNamespace(remove=lambda: removed.append("removed"))
    engine, offload = deepspeed_engine(layers, forward_hooks=[hook], backward_hooks=[hook])
    upstream.remove_hooks(engine)
    assert removed == ["removed"] * 2 and offload.forward_hooks == offload.backward_hooks == []
    assert not any(parameter.ds_active_sub_modules for parameter in layers.parameters())
    upstream.remove_hooks(layers)  # a frozen model, which has no optimizer


@contract
def test_add_hooks():
    layers, registered = torch.nn.Linear(1, 1), []
    engine, _ = deepspeed_engine(layers, _register_deepspeed_module=registered.append)
    upstream.add_hooks(engine)
    assert registered == [layers]
    upstream.add_hooks(layers)


@contract
def test_HOOKS():
    """Each private name is one of the library's class, so that what we define is called, and with what we take."""
    owners = {
        "transformers.PreTrainedModel": PreTrainedModel,
        "transformers.Trainer": Trainer,
        "transformers.TrainingArguments": TrainingArguments,
        "trl.BaseTrainer": upstream.BaseTrainer,
    }
    assert set(upstream.HOOKS) == set(owners)
    missing = [(owner, name) for owner in owners for name in upstream.HOOKS[owner] if not hasattr(owners[owner], name)]
    assert not missing
    takes(PreTrainedModel._init_weights, None, None)
    takes(Trainer._get_train_sampler, None, None)
    takes(Trainer._load_from_checkpoint, None, "folder", None)
    takes(Trainer._load_best_model, None)
    takes(Trainer._push_from_checkpoint, None, "folder")


@contract
def test_get_comet_experiment_url():
    assert upstream.get_comet_experiment_url() is None  # no run is tracked


@contract
def test_get_trackio_space_url():
    assert upstream.get_trackio_space_url() is None


@contract
def test_onednn_computes(monkeypatch):
    """It knows nothing of instructions that `torch.cpu.get_capabilities` does not find."""
    found = {dtype: upstream.onednn_computes(dtype) for dtype in (torch.bfloat16, torch.float16)}
    assert set(found.values()) <= {True, False}
    capabilities = torch.cpu.get_capabilities()  # public since torch 2.11
    if capabilities["architecture"] == "x86_64":
        assert {"avx2", "avx512_bf16", "avx512_fp16"} <= set(capabilities)
        assert found[torch.float16] <= capabilities["avx512_fp16"]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not upstream.onednn_computes(torch.bfloat16)


@contract
def test_parser_actions():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--first", type=int, choices=(1, 2))
    [action] = upstream.parser_actions(parser)
    assert (action.dest, action.type, action.choices, action.default) == ("first", int, (1, 2), None)


@contract
def test_add_accelerate_flags():
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--debug", default="ours")
    upstream.add_accelerate_flags(parser)
    assert vars(parser.parse_args([])) == {"debug": "ours"}
    given = vars(parser.parse_args(["--num-processes", "2", "--multi_gpu"]))
    assert {name: given[name] for name in ("num_processes", "multi_gpu")} == {"num_processes": 2, "multi_gpu": True}
    with pytest.raises(argparse.ArgumentError, match="invalid choice"):
        parser.parse_args(["--mixed_precision", "half"])
    assert not {"module", "no_python", "training_script"} & {action.dest for action in upstream.parser_actions(parser)}


@contract
def test_accelerate_launch_options():
    options = upstream.accelerate_launch_options({"num_processes": 2}, ["--module", "a.b", "--num_processes", "3"])
    assert (options.num_processes, options.module, options.training_script) == (2, True, "a.b")
    assert options.training_script_args == ["--num_processes", "3"]
    assert options.nondefault >= {"num_processes", "module"}
    for name in ("config_file", "cpu", "mixed_precision", "multi_gpu", "num_machines", "use_deepspeed"):
        assert hasattr(options, name)


@contract
def test_accelerate_launch_command(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nfrom pathlib import Path\nPath(sys.argv[1]).touch()\n")
    words = [str(tmp_path / "script.py"), str(tmp_path / "done")]
    options = upstream.accelerate_launch_options({"num_processes": 1, "num_machines": 1, "cpu": True}, words)
    upstream.accelerate_launch_command(options)
    assert (tmp_path / "done").exists()


@contract
def test_default_accelerate_config(monkeypatch, tmp_path):
    from accelerate.commands.config import config_args

    for path, found in ((tmp_path / "none.yaml", False), (Path(__file__), True)):
        monkeypatch.setattr(config_args, "default_config_file", str(path))
        assert upstream.default_accelerate_config() == (str(path) if found else "")


@contract
def test_attention_implementation():
    model = make_model(64)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert upstream.attention_implementation(model.config) == name


@contract
def test_attention_switched():
    """A registered attention is called inside the context and only there, even after an error."""
    from transformers import AttentionInterface, AttentionMaskInterface

    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return upstream.sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", upstream.sdpa_mask)
    model = make_model(64)
    with pytest.raises(KeyError), upstream.attention_switched(model.config, "counted"):
        model(input_ids=IDS)
        raise KeyError
    assert len(calls) == model.config.num_hidden_layers
    model(input_ids=IDS)
    assert len(calls) == model.config.num_hidden_layers


@contract
def test_supports_attention_backend():
    assert upstream.supports_attention_backend(make_model(64))


@contract
def test_mark_initialized():
    """`post_init` leaves the weights of a marked module as they are, and initializes those of another."""

    class Around(PreTrainedModel):
        config_class = LlamaConfig

        def __init__(self, config, marked):
            super().__init__(config)
            self.inner = torch.nn.Linear(2, 2)
            torch.nn.init.constant_(self.inner.weight, 7.0)
            if marked:
                upstream.mark_initialized(self.inner)
            self.post_init()

        def _init_weights(self, module):
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.weight)

    assert (Around(LlamaConfig(), True).inner.weight == 7.0).all()
    assert (Around(LlamaConfig(), False).inner.weight == 0.0).all()


@contract
def test_adapter_layers():
    """Layers of LoRA, whole layers beside the base model's, and nothing else."""
    model = make_model(64)
    assert upstream.adapter_layers(model) == []
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    kinds = {type(layer).__name__ for layer in upstream.adapter_layers(get_peft_model(model, config))}
    assert kinds == {"Linear", "ModulesToSaveWrapper"}


@contract
def test_adapter_states():
    peft = get_peft_model(make_model(64), LoraConfig(r=2, target_modules=["q_proj"]))
    layers = upstream.adapter_layers(peft)
    assert upstream.adapter_states(layers) == [(False, ["default"])] * len(layers)
    with peft.disable_adapter():
        assert upstream.adapter_states(layers) == [(True, ["default"])] * len(layers)


@contract
def test_set_adapter_states():
    """The adapter is left out of the forward pass and stays trainable; no active one means the base model."""
    model = make_model(64)
    expected = model(input_ids=IDS).logits
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    peft = get_peft_model(model, config)
    trainable = [p.requires_grad for p in peft.parameters()]
    layers = upstream.adapter_layers(peft)
    with torch.no_grad():
        next(p for n, p in peft.named_parameters() if "modules_to_save" in n).add_(1)
    on = upstream.adapter_states(layers)
    for off in ((True, ["default"]), (False, [])):
        upstream.set_adapter_states(layers, [off] * len(layers))
        torch.testing.assert_close(peft(input_ids=IDS).logits, expected)
    assert [p.requires_grad for p in peft.parameters()] == trainable
    upstream.set_adapter_states(layers, on)
    assert not torch.allclose(peft(input_ids=IDS).logits, expected)


@contract
def test_replaces_adapters():
    """PEFT puts a second adapter of the same type beside the first, and one of another type in its place."""
    lora, other = LoraConfig(target_modules=["q_proj"]), LoHaConfig(target_modules=["q_proj"])
    model = make_model(64)
    assert not upstream.replaces_adapters(model, lora) and not upstream.replaces_adapters(model, other)
    get_peft_model(model, lora)
    before = upstream.adapter_layers(model)
    assert not upstream.replaces_adapters(model, lora) and upstream.replaces_adapters(model, other)
    get_peft_model(model, lora, adapter_name="second")
    assert upstream.adapter_layers(model) == before
    get_peft_model(model, other, adapter_name="third")
    assert upstream.adapter_layers(model) != before


@contract
def test_CompleteGenerationConfig():
    """Settings of the model's own config are not filled in; global defaults and keyword arguments are."""
    model = make_model(64)
    own = model.generation_config
    own.no_repeat_ngram_size, own.suppress_tokens, own.forced_eos_token_id = 2, [5], 3
    own.cache_implementation, own.custom_entry = "static", 1
    config, rest = model._prepare_generation_config(upstream.CompleteGenerationConfig(top_p=0.5), top_k=7, other=1)
    assert config.no_repeat_ngram_size in (None, 0) and config.suppress_tokens is None
    assert config.forced_eos_token_id is None and config.cache_implementation is None
    assert not hasattr(config, "custom_entry")
    assert (config.top_p, config.top_k, config.num_beams, rest) == (0.5, 7, 1, {"other": 1})
    filled, _ = model._prepare_generation_config(type(own)())
    assert filled.suppress_tokens == [5]  # what would happen otherwise


@contract
def test_parameter_tables():
    """A parameter that is replaced by another is seen in its table."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    [table] = upstream.parameter_tables(module)
    module[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert table["weight"] is module[0].weight and set(table) == {"weight", "bias"}


@contract
def test_weight_versions():
    """An update in place raises them, except one of `data`; tensors of inference mode have none."""
    weight = torch.nn.Parameter(torch.zeros(2))
    seen = [upstream.weight_versions([weight])]
    torch.optim.SGD([weight], lr=1.0).step()  # no gradient, no update
    assert upstream.weight_versions([weight]) == seen[0]
    with torch.no_grad():
        weight.add_(1)
    assert upstream.weight_versions([weight]) != seen[0]
    seen.append(upstream.weight_versions([weight]))
    weight.data.add_(1)
    assert upstream.weight_versions([weight]) == seen[1]
    with torch.inference_mode():
        other = torch.zeros(2)
    with pytest.raises(RuntimeError, match="version counter"):
        upstream.weight_versions([other])


@contract
def test_initialize_fsdp2():
    assert_fsdp2_has("_lazy_init")


@contract
def test_fsdp2_parameter_groups():
    """`tests/models/test_sharding.py` runs both on two processes; here, what they read is still there."""
    assert_fsdp2_has("_fsdp_param_group", "post_forward_mesh_info")  # from torch 2.13 on in the plural


def assert_fsdp2_has(*names):
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group, _fsdp_state

    assert hasattr(FSDPModule, "_get_fsdp_state")
    source = inspect.getsource(_fsdp_state) + inspect.getsource(_fsdp_param_group)
    assert [name for name in names if name not in source] == []


@contract
def test_flash_attention_forward():
    schema = str(torch.ops.aten._flash_attention_forward.default._schema)
    for part in ("cum_seq_q", "max_q", "dropout_p", "is_causal", "return_debug_mask", "scale"):
        assert part in schema


@contract
def test_flash_attention_backward():
    schema = str(torch.ops.aten._flash_attention_backward.default._schema)
    for part in ("logsumexp", "cum_seq_q", "max_q", "dropout_p", "is_causal", "rng_state", "scale"):
        assert part in schema


@contract
def test_TorchDispatchMode():
    """It sees every operation, those of the backward pass too."""
    seen = []

    class Names(upstream.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(upstream.operation_name(func))
            return func(*args, **kwargs or {})

    weight = torch.nn.Parameter(torch.ones(2))
    with Names():
        (weight * weight).sum().backward()
    assert {"aten::mul", "aten::sum"} <= set(seen) and seen.count("aten::mul") > 1


@contract
def test_operation_name():
    assert upstream.operation_name(torch.ops.aten.mm.default) == "aten::mm"


@contract
def test_storage_id():
    one = torch.zeros(4)
    ids = [upstream.storage_id(x.untyped_storage()) for x in (one, one[2:], torch.zeros(4))]
    assert ids[0] == ids[1] != ids[2]


@contract
def test_FakeTensorMode():
    """The shape, strides and dtype of a result, without computing it."""
    with upstream.FakeTensorMode() as mode:
        found = torch.mm(*(mode.from_tensor(torch.ones(2, 2, dtype=torch.bfloat16)) for _ in range(2)))
    assert found.shape == (2, 2) and found.dtype == torch.bfloat16


@contract
def test_tree_leaves():
    assert upstream.tree_leaves(([1, {"a": 2}], 3)) == [1, 2, 3]


@contract
def test_tree_map_only():
    assert upstream.tree_map_only(int, lambda x: x + 1, ([1, "a"], {"b": 2})) == ([2, "a"], {"b": 3})


# --------------------------------------------------------------------------------------------------------- lint rule


@pytest.mark.parametrize(
    "line",
    [
        "from trl.trainer.utils import pad",
        "from trl.models import prepare_fsdp",
        "import trl.experimental.online_dpo",
        "from trl.experimental import cpo",
        "from trl.data_utils import extract_prompt",
        "from transformers.trainer import Trainer",
        "from transformers.masking_utils import sdpa_mask",
        "from transformers.models.llama.modeling_llama import LlamaAttention",
    ],
)
def test_the_lint_rule_catches_private_imports(tmp_path, line):
    assert "TID251" in lint(f"{line}\n", "trl_ext/methods/rrhf/trainer.py")
    assert "TID251" not in lint(f"{line}\n", "trl_ext/upstream.py")


def test_the_lint_rule_leaves_public_imports_alone():
    public = "from transformers import Trainer\nfrom trl import DPOTrainer, extract_prompt\n"
    assert "TID251" not in lint(public, "trl_ext/data/schema.py")


def lint(code, name):
    """The findings of ruff for `code` in a file `name`, under the project's settings."""
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", "--select", "TID251"]
    command += ["--output-format", "concise", "--stdin-filename", name, "-"]
    result = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False, timeout=HANGS)
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


@contract
def test_vllm_generation():
    engine = upstream.vllm_generation()
    names = """
        model accelerator processing_class mode server_base_url server_host server_port group_port server_timeout
        tensor_parallel_size gpu_memory_utilization max_model_length max_num_seqs enable_sleep_mode model_impl
        trust_remote_code repetition_penalty temperature top_p top_k min_p max_completion_length logprobs
        generation_kwargs
    """
    settings = dict.fromkeys(names.split())
    takes(engine.__init__, None, **settings)
    takes(engine.sync_weights, None)
    takes(engine.generate, None, prompts=[], images=None, num_generations=1)
    assert "self.vllm_client.generate(" in inspect.getsource(engine.generate)


@contract
def test_watch_vllm_hidden_states(monkeypatch):
    """The layer's arguments, in a mock of its module; and in vLLM itself, where it is installed."""
    module, seen = SimpleNamespace(), []

    class LogitsProcessor:
        def forward(self, lm_head, hidden_states, embedding_bias=None, skip_gather=False):
            return lm_head(hidden_states), embedding_bias, skip_gather

    module.LogitsProcessor = LogitsProcessor
    name = "vllm.model_executor.layers.logits_processor"
    if "vllm" not in sys.modules:
        for parent in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
            monkeypatch.setitem(sys.modules, parent, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, name, module)
    upstream.watch_vllm_hidden_states(seen.append)
    layer = LogitsProcessor()
    assert layer.forward(torch.neg, IDS, skip_gather=True)[1:] == (None, True)
    layer.forward(torch.neg, hidden_states=IDS + 1)
    assert [found.tolist() for found in seen] == [IDS.tolist(), (IDS + 1).tolist()]


def test_vllms_layer_takes_hidden_states():
    layer = pytest.importorskip("vllm.model_executor.layers.logits_processor").LogitsProcessor
    assert list(inspect.signature(layer.forward).parameters)[:3] == ["self", "lm_head", "hidden_states"]


@contract
def test_vllm_config_of_caller():
    """The nearest caller that is a method of an object with the engine's config."""

    class Frontend:
        def __init__(self, config):
            self.vllm_config = config

        def ask(self):
            return (lambda: upstream.vllm_config_of_caller())()

    config = SimpleNamespace(additional_config={})
    assert Frontend(config).ask() is config
    assert Frontend(SimpleNamespace()).ask() is None
    assert upstream.vllm_config_of_caller() is None


@contract
def test_vllm_model_of_caller():
    """The nearest caller that is a method of a model of vLLM's, through the layer that it calls."""

    class Layer:
        def forward(self):
            return upstream.vllm_model_of_caller()

    class Model:
        def embed_input_ids(self, ids):
            return ids

        def compute_logits(self):
            return Layer().forward()

    model = Model()
    assert model.compute_logits() is model
    assert Layer().forward() is None and upstream.vllm_model_of_caller() is None


def test_vllms_models_embed_tokens_and_compute_logits():
    interfaces = pytest.importorskip("vllm.model_executor.models.interfaces_base")
    assert list(inspect.signature(interfaces.VllmModel.embed_input_ids).parameters) == ["self", "input_ids"]
    assert hasattr(interfaces.VllmModelForTextGeneration, "compute_logits")


def test_vllms_frontend_has_the_engines_config():
    source = inspect.getsource(pytest.importorskip("vllm.v1.engine.input_processor").InputProcessor)
    assert "self.vllm_config = vllm_config" in source and "params.verify(" in source
