# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Undocumented API of TRL, transformers, torch, PEFT, vLLM and argparse that this package uses: the one file that a
release of theirs can break.

Each entry gives the reason for its use: imported symbols, functions around private attributes, and in `HOOKS` the
private names that our subclasses override or call. `tests/test_upstream.py` has one contract for each: it exists,
takes the parameters that we pass, and behaves as expected. A lint rule forbids such imports elsewhere, and
`tests/test_architecture.py` such attributes.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Every operation of a block of code, to count what its tensors occupy or to leave out its arithmetic.
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

# The attention that ours falls back to for rows that share no prompt, and its mask.
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl.models import (
    get_act_offloading_ctx_manager,  # activations in CPU memory between forward and backward
    prepare_deepspeed,  # a frozen model under DeepSpeed
)
from trl.models.utils import (
    add_hooks,  # DeepSpeed's on a model under ZeRO-3, which gather and partition weights
    remove_hooks,
)

# The base of every TRL trainer and config: model card, paper citation, TRL's defaults (logging, bf16, checkpointing).
from trl.trainer.base_config import _BaseConfig as BaseConfig
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
from trl.trainer.utils import (
    add_fused_lm_head,  # per-token log-probabilities without (tokens, vocabulary) logits
    create_model_from_path,  # architecture, dtype and device map from a path, as every TRL trainer does
    get_comet_experiment_url,  # the run's page, for the model card
    get_config_model_id,
    get_trackio_space_url,
    global_then_local_main_first,  # one tokenisation per cache, not per process
    print_prompt_completions_sample,  # the table of completions that GRPO users know
)


class CompleteGenerationConfig(GenerationConfig):
    """
    A generation config that `generate` does not complete with settings of the model's own, such as a hidden top-k.

    `generate` fills in every setting that is `None`, and for some (suppressed tokens, an n-gram limit) only `None`
    means off. It passes the model's own settings with these two arguments, which nothing else uses together.
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> dict[str, Any]:
        if defaults_only and allow_custom_entries:
            return {}
        return super().update(defaults_only, allow_custom_entries, **kwargs)  # type: ignore[no-any-return]


def vllm_generation() -> type:
    """TRL's engine and client of vLLM, imported only when needed, as the import of vLLM takes seconds."""
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration


def watch_vllm_hidden_states(watcher: Callable[[torch.Tensor], None]) -> None:
    """
    Calls `watcher` with the hidden states from which a model of vLLM is about to compute logits, in this process.

    Every model computes its logits by this layer, right before they are sampled from. vLLM hands hidden states to
    nobody else: its own way writes those of finished requests to files.

    Args:
        watcher (`Callable`): Called with a tensor of shape `(rows, hidden size)`.
    """
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    forward = LogitsProcessor.forward

    def watched(self: Any, lm_head: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        watcher(hidden_states)
        return forward(self, lm_head, hidden_states, *args, **kwargs)

    LogitsProcessor.forward = watched


def vllm_config_of_caller() -> Any:
    """
    The config of the vLLM engine from whose code this function is called, or `None`.

    vLLM asks a logits processor's class about the settings of a request, and does not pass it the engine's.
    """

    def config_of(caller: Any) -> Any:
        config = getattr(caller, "vllm_config", None)
        return config if hasattr(config, "additional_config") else None

    return _of_callers(config_of)


def vllm_model_of_caller() -> Any:
    """
    The model of vLLM's that computes logits by calling this function, or `None`.

    vLLM hands a logits processor no model. Each has `compute_logits`, and `embed_input_ids` for embeddings of tokens.
    """

    def model_of(caller: Any) -> Any:
        return caller if hasattr(caller, "compute_logits") and hasattr(caller, "embed_input_ids") else None

    return _of_callers(model_of)


def _of_callers(find: Callable[[Any], Any]) -> Any:
    """What is found in the nearest object whose method is calling, or `None`."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        found = find(frame.f_locals.get("self"))
        if found is not None:
            return found
        frame = frame.f_back
    return None


# Private names of a library's class that our subclasses define or call, and why.
HOOKS: dict[str, tuple[str, ...]] = {
    "transformers.PreTrainedModel": (
        "_init_weights",  # value heads and proxies start from their own distribution
        "_no_split_modules",  # layers that a device map keeps on one device
        "_keep_in_fp32_modules",  # heads that a half-precision load leaves in float32
        "_keep_in_fp32_modules_strict",
        "_supports_attention_backend",  # a wrapper supports what its backbone supports
        "_supports_flash_attn",
        "_supports_flex_attn",
        "_supports_sdpa",
    ),
    "transformers.Trainer": (
        "_get_output_dir",  # where the checkpoint that is about to be written will be
        "_get_eval_sampler",  # rows whose lengths are in columns of ours
        "_get_train_sampler",  # the order of rows that a rollout schedule needs
        "_load_best_model",  # parts of a model (a head, an adapter) are not a whole state dict
        "_load_from_checkpoint",
        "_push_from_checkpoint",  # a folder in a checkpoint belongs on the Hub too
        "_save_checkpoint",  # rollouts and counts belong to a checkpoint
        "_set_signature_columns_if_needed",  # columns of tokenized rows that the collator takes
    ),
    "transformers.TrainingArguments": (
        "_VALID_DICT_FIELDS",  # settings that the command line takes as JSON
    ),
    "trl.BaseTrainer": (
        "_name",  # the model card's name of the method, its tags and its paper
        "_paper",
        "_send_telemetry",  # usage statistics are left to users
        "_tag_names",
    ),
}

# Variable-length flash attention as torch itself calls it: the public function returns no log-sum-exp, by which two
# calls are merged, and its backward pass takes no merged one.
flash_attention_forward = torch.ops.aten._flash_attention_forward
flash_attention_backward = torch.ops.aten._flash_attention_backward


def parser_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser in their order, of ours and of `accelerate launch`: argparse has no public list."""
    return parser._actions


def add_accelerate_flags(parser: argparse.ArgumentParser) -> None:
    """
    Add the flags of `accelerate launch` to a parser, with their types and choices. TRL's passes them on unchecked.

    A flag that is not given has no value. The parser's own flags are not replaced, and the flags that select the
    program to run are left out.
    """
    from accelerate.commands.launch import launch_command_parser

    taken = {name for action in parser._actions for name in (action.dest, *action.option_strings)}
    for action in launch_command_parser()._actions:
        names = [action.dest, *action.option_strings]
        if action.option_strings and taken.isdisjoint(names) and action.dest not in ("module", "no_python"):
            action.default = argparse.SUPPRESS
            parser._add_action(action)


def accelerate_launch_options(options: dict[str, Any], words: list[str]) -> argparse.Namespace:
    """
    The options of `accelerate launch`, parsed from options that are set already and further words.

    accelerate notes in `nondefault` which options were given; its config file replaces the others.
    """
    from accelerate.commands.launch import launch_command_parser

    given = argparse.Namespace(**options, nondefault=set(options))
    return launch_command_parser().parse_args(words, given)  # type: ignore[no-any-return]


def accelerate_launch_command(options: argparse.Namespace) -> None:
    """Run `accelerate launch` with these options."""
    from accelerate.commands import launch

    launch.launch_command(options)


def default_accelerate_config() -> str:
    """The file that `accelerate config` has written, which every launch reads; `""` if there is none."""
    from accelerate.commands.config import config_args

    path: str = config_args.default_config_file
    return path if os.path.isfile(path) else ""


def attention_implementation(config: PretrainedConfig) -> str:
    """Name of the attention that a model with this config computes ("sdpa", "eager", ...): only a setter is public."""
    return config._attn_implementation


@contextmanager
def attention_switched(config: PretrainedConfig, name: str) -> Iterator[None]:
    """
    Uses another registered attention inside this context, for layers that read `config` in their forward pass.

    `set_attn_implementation` also checks and rebuilds; it is too slow for every token.
    """
    kept = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = kept


def supports_attention_backend(model: PreTrainedModel) -> bool:
    """Whether the layers of `model` call an attention that was registered under a name of ours."""
    return bool(model._supports_attention_backend)


def mark_initialized(module: nn.Module) -> None:
    """Keeps the weights of `module` when a model around it is initialized."""
    module._is_hf_initialized = True  # type: ignore[assignment]


def load_balancing_loss_function(model: PreTrainedModel) -> Any:
    """
    The load balancing loss of a mixture of experts, or `None`: each model's module has its own name for the same one.

    The mask that it takes may hold any weights of tokens. Doge's takes other arguments, and is left out.
    """
    modules = (sys.modules.get(cls.__module__) for cls in type(model).__mro__)  # FSDP2 puts a class in front
    function = next(filter(None, (getattr(module, "load_balancing_loss_func", None) for module in modules)), None)
    names = [] if function is None else list(inspect.signature(function).parameters)
    return function if names == ["gate_logits", "num_experts", "top_k", "attention_mask"] else None


def adapter_layers(module: nn.Module) -> list[Any]:
    """PEFT's layers inside `module`: those of adapters, and those that replace a whole layer (`modules_to_save`)."""
    return [layer for layer in module.modules() if hasattr(layer, "_disable_adapters")]


def adapter_states(layers: list[Any]) -> list[tuple[bool, Any]]:
    """For each of PEFT's layers, whether its adapters are switched off, and those that are active."""
    return [(layer._disable_adapters, layer._active_adapter) for layer in layers]


def set_adapter_states(layers: list[Any], states: list[tuple[bool, Any]]) -> None:
    """
    Sets what [`adapter_states`] returns.

    PEFT's own switches also set `requires_grad` of the adapters, which would take them out of training.
    """
    for layer, (off, active) in zip(layers, states, strict=True):
        layer._disable_adapters, layer._active_adapter = off, active


def replaces_adapters(model: nn.Module, peft_config: Any) -> bool:
    """Whether PEFT would replace adapters that `model` has: those of another type than the adapter to be added."""
    from peft import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_config.peft_type)
    kind = getattr(tuner, "tuner_layer_cls", BaseTunerLayer)
    return any(isinstance(layer, BaseTunerLayer) and not isinstance(layer, kind) for layer in model.modules())


def weight_versions(weights: list[torch.Tensor]) -> list[int]:
    """
    Version counters of weights, which updates in place raise, except those of `weight.data`.

    Tensors made in inference mode have no counter, and raise a `RuntimeError`.
    """
    return [weight._version for weight in weights]


def parameter_tables(module: nn.Module) -> list[dict[str, Any]]:
    """The parameters of each module inside `module`, in the dictionaries in which they may be replaced by others."""
    return [part._parameters for part in module.modules() if part._parameters]


def onednn_computes(dtype: torch.dtype) -> bool:
    """
    Whether oneDNN, with which torch multiplies matrices on the CPU, takes those of a half-precision dtype.

    Unlike `torch.cpu.get_capabilities`, it follows `ONEDNN_MAX_CPU_ISA`.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return bool(ops._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported())


def operation_name(operation: Any) -> str:
    """The name of an operation that a dispatch mode is called with, without its overload: `"aten::mm"`."""
    return operation._schema.name  # type: ignore[no-any-return]


def storage_id(storage: torch.UntypedStorage) -> int:
    """A number that two Python objects for the same memory share; `data_ptr` is 0 for all that are empty."""
    return storage._cdata


def initialize_fsdp2(model: nn.Module) -> None:
    """Makes `model` the root of its FSDP2 modules, as its first forward pass would."""
    model._get_fsdp_state()._lazy_init()  # type: ignore[operator]


def fsdp2_parameter_groups(module: nn.Module) -> list[Any]:
    """
    The groups of parameters that an FSDP2 module gathers together.

    `set_reshard_after_forward` sets what a group does after a forward pass; nothing public returns what it did before.
    """
    state: Any = module._get_fsdp_state()  # type: ignore[operator]
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]  # before torch 2.13


__all__ = [
    "HOOKS",
    "BaseConfig",
    "BaseTrainer",
    "CompleteGenerationConfig",
    "FakeTensorMode",
    "TorchDispatchMode",
    "accelerate_launch_command",
    "accelerate_launch_options",
    "adapter_layers",
    "adapter_states",
    "add_accelerate_flags",
    "add_fused_lm_head",
    "add_hooks",
    "attention_implementation",
    "attention_switched",
    "create_model_from_path",
    "default_accelerate_config",
    "flash_attention_backward",
    "flash_attention_forward",
    "fsdp2_parameter_groups",
    "get_act_offloading_ctx_manager",
    "get_comet_experiment_url",
    "get_config_model_id",
    "get_trackio_space_url",
    "global_then_local_main_first",
    "initialize_fsdp2",
    "load_balancing_loss_function",
    "mark_initialized",
    "onednn_computes",
    "operation_name",
    "parameter_tables",
    "parser_actions",
    "prepare_deepspeed",
    "print_prompt_completions_sample",
    "remove_hooks",
    "replaces_adapters",
    "sdpa_attention_forward",
    "sdpa_mask",
    "set_adapter_states",
    "storage_id",
    "supports_attention_backend",
    "tree_leaves",
    "tree_map_only",
    "vllm_config_of_caller",
    "vllm_generation",
    "vllm_model_of_caller",
    "watch_vllm_hidden_states",
    "weight_versions",
]
