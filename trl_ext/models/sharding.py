# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
FSDP2 and ZeRO-3: checks the launch, shards frozen models, and gathers sharded parameters while the model generates.

Each forward pass of a sharded model communicates with all processes. A process that makes one more than the others
waits for them forever.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from .modes import checkpointing_disabled


if TYPE_CHECKING:
    from transformers import Trainer

_gathered: list[nn.Module] = []  # models in a context of `gathered`


def check_launch(trainer: "Trainer") -> None:
    """
    Checks that accelerate has set up the launch that was asked for: it silently replaces some of them by another.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer.

    Raises:
        `ValueError`: It has set up something else, or something that the trainers of this package do not support.
    """
    args, kind = trainer.args, trainer.accelerator.distributed_type
    if args.n_gpu > 1:
        raise ValueError(
            "Several GPUs are visible to one process, and `nn.DataParallel` is not supported. Use `accelerate "
            "launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    launched = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
    if launched > 1 and trainer.accelerator.num_processes == 1:
        raise ValueError(
            f"{launched} processes were launched, and each would train by itself: accelerate was set up for one "
            "process before the trainer's config was created. Create the config first, or do not use a launcher."
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, and accelerate has set up {kind.value} instead: it supports FSDP on accelerators "
            "only. Launch without FSDP here (`--accelerate_config multi_gpu`, or `--num_processes` only)."
        )
    if trainer.is_deepspeed_enabled and getattr(args, "completions_per_forward", 0):
        raise ValueError(
            "`completions_per_forward` has several backward passes in a step, and DeepSpeed takes its optimizer step "
            "in the first of them. Launch with FSDP instead (`--accelerate_config fsdp2`), or set it to 0."
        )
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError("FSDP version 1 is not supported. Set `fsdp_version: 2` (`--accelerate_config fsdp2`).")
    if getattr(args, "cast_for_generation", False):
        raise ValueError(
            "`cast_for_generation` copies the model, which is sharded under DeepSpeed and FSDP. Unset it: with "
            "`mixed_precision: bf16` they compute with weights in bfloat16 anyway."
        )


def shard(model: Any, trainer: "Trainer") -> Any:
    """
    Shards a frozen model in the same way as the trained one, or moves it to the device if that is not sharded.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, frozen and not quantized.
        trainer ([`~transformers.Trainer`]): The trainer of the other model.
    """
    from trl_ext.upstream import prepare_deepspeed

    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, accelerator)
    if not trainer.is_fsdp_enabled:
        return model.to(accelerator.device)
    from accelerate.utils import fsdp2_prepare_model

    # As accelerate shards the trained model: layer by layer, with weights that possibly only the first process has
    # read. The plugin remembers the layers of the first model that it meets, which would not be those of the trained
    # one.
    plugin = accelerator.state.fsdp_plugin
    kept = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.auto_wrap_policy = getattr(kept[0], "func", kept[0])
    plugin.transformer_cls_names_to_wrap = None
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = kept


@contextmanager
def gathered(model: Any, accelerator: Accelerator, *, gather: bool = True) -> Iterator[Any]:
    """
    Inside this context the model has no distributed wrapper and no activation checkpointing, and every process has all
    of its weights.

    Args:
        model (`torch.nn.Module`): The model as `accelerator` or [`shard`] prepared it.
        accelerator ([`~accelerate.Accelerator`]): The accelerator.
        gather (`bool`, *optional*, defaults to `True`): Whether the weights are gathered. Otherwise a sharded model
            stays sharded.
    """
    unwrapped = accelerator.unwrap_model(model)
    with checkpointing_disabled(unwrapped):
        if not gather:
            yield unwrapped
            return
        with _zero3_gathered(model), _unsharded(unwrapped):
            _gathered.append(unwrapped)
            try:
                yield unwrapped
            finally:
                _gathered.pop()


@contextmanager
def _zero3_gathered(model: nn.Module) -> Iterator[None]:
    """Inside this context parameters that DeepSpeed ZeRO-3 has partitioned are gathered."""
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        yield
        return
    import deepspeed

    from trl_ext.upstream import add_hooks, remove_hooks

    with deepspeed.zero.GatheredParameters(model.parameters()):
        remove_hooks(model)
        try:
            yield
        finally:
            add_hooks(model)


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Inside this context the parameters of FSDP2 modules are gathered, and stay so after a forward pass."""
    from trl_ext.upstream import fsdp2_parameter_groups, initialize_fsdp2

    kept = []
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if isinstance(model, FSDPModule):
        # The first module that computes becomes the root, and parts of a model may be called on their own.
        initialize_fsdp2(model)
    try:
        for module in modules:
            for group in fsdp2_parameter_groups(module):
                kept.append((group, group.post_forward_mesh_info))
                group.post_forward_mesh_info = None
            module.unshard()
        yield
    finally:
        for group, mesh_info in kept:
            group.post_forward_mesh_info = mesh_info
        for module in modules:
            module.reshard()


@contextmanager
def gathered_parameters(model: nn.Module) -> Iterator[None]:
    """Inside this context the parameters are gathered of a model that ZeRO-3 sharded at loading and did not wrap."""
    parameters = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def copy_of(parameter: nn.Parameter) -> torch.Tensor:
    """The values of a parameter: all of them, or under FSDP2 those of this process, as a `DTensor`."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@torch.no_grad()
def assign(parameter: nn.Parameter, values: torch.Tensor) -> None:
    """
    Sets the values of a parameter, wherever they are. Every process has to call it.

    Args:
        parameter (`torch.nn.Parameter`): The parameter.
        values (`torch.Tensor`): All of its values, or from [`copy_of`].
    """
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(values)
        return
    if isinstance(parameter, DTensor) and not isinstance(values, DTensor):
        if values.is_meta:  # only the first process has read the weights, and sends them
            values = torch.empty_like(values, device=parameter.device)
        values = distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.data.copy_(values)


def reshard(model: nn.Module) -> None:
    """Shards the parameters of FSDP2 modules again, so that the next forward pass sees what was assigned."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether the model is sharded and not gathered, so that every process has to make as many forward passes."""
    if any(model is other for other in _gathered):
        return False
    # Parameters of ZeRO-3 count whether they are gathered at the moment or not: that depends on the last computation.
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())


def synced_gpus_kwargs(model: nn.Module) -> dict[str, bool]:
    """The argument `synced_gpus` of `generate`: by itself transformers also synchronizes models that are gathered."""
    return {"synced_gpus": is_sharded(model)} if torch.distributed.is_initialized() else {}


def catch_up_calls(model: nn.Module, calls: int) -> range:
    """
    Calls of a sharded model that this process has to add, so that all processes make as many.

    Every process has to call this function, and then the model once for each number of the range.

    Args:
        model (`torch.nn.Module`): The model.
        calls (`int`): Calls of the model by this process so far.

    Returns:
        `range`: Empty for a model that is not sharded, and on the process with the most calls.
    """
    if not is_sharded(model):
        return range(0)
    most = torch.tensor(calls, device=next(model.parameters()).device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return range(int(most) - calls)
