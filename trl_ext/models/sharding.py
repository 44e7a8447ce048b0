# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Models in pieces on several processes (FSDP2, ZeRO-3): whole for as long as something draws from them.

While a model is in pieces, each forward is a meeting of all processes: one that makes a forward more than the others
waits for them for ever.
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
from torch.distributed.tensor import DTensor


if TYPE_CHECKING:
    from transformers import Trainer

_gathered: list[nn.Module] = []  # models in a context of `gathered`


def check_launch(trainer: "Trainer") -> None:
    """
    Check that processes work together as the launcher was asked for: several launches end in another way, silently.

    Raises:
        `ValueError`: They do not, or in a way that trainers of ours cannot.
    """
    args, kind = trainer.args, trainer.accelerator.distributed_type
    if args.n_gpu > 1:
        raise ValueError(
            "Several GPUs are visible to one process, which `nn.DataParallel` cannot train here. Use `accelerate "
            "launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    launched = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
    if launched > 1 and trainer.accelerator.num_processes == 1:
        raise ValueError(
            f"{launched} processes were launched, and each would train by itself: something has set accelerate up for "
            "one process before the trainer's config was made. Make the config first, or do not launch."
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, and accelerate has set up {kind.value} instead: it has FSDP on accelerators only. "
            "Launch without it here (`--accelerate_config multi_gpu`, or `--num_processes` alone)."
        )
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError("FSDP version 1 is not supported. Set `fsdp_version: 2` (`--accelerate_config fsdp2`).")
    if getattr(args, "cast_for_generation", False):
        raise ValueError(
            "`cast_for_generation` copies the model, which DeepSpeed and FSDP have in pieces; unset it. With "
            "`mixed_precision: bf16` they compute with weights in bfloat16 as it is."
        )


def shard(model: Any, trainer: "Trainer") -> Any:
    """
    A model that is not trained, in pieces if the trained one is; otherwise as it is, on the device.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, frozen and not quantised.
        trainer ([`~transformers.Trainer`]): Whose model is trained.
    """
    from trl_ext.upstream import prepare_deepspeed

    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, accelerator)
    if not trainer.is_fsdp_enabled:
        return model.to(accelerator.device)
    from accelerate.utils import fsdp2_prepare_model

    # As accelerate shards what is trained: layer by layer, with weights that only the first process may have read. The
    # plugin remembers the layers of the first model that it meets, which are not those of the trained one.
    plugin = accelerator.state.fsdp_plugin
    kept = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.auto_wrap_policy = getattr(kept[0], "func", kept[0])
    plugin.transformer_cls_names_to_wrap = None
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = kept


@contextmanager
def gathered(
    model: Any, accelerator: Accelerator, *, gather: bool = True, checkpointing: dict[str, Any] | None = None
) -> Iterator[Any]:
    """
    The model without its distributed wrapper, and with all of its weights on every process.

    Args:
        model (`torch.nn.Module`): What `accelerator` or [`shard`] made of a model.
        accelerator ([`~accelerate.Accelerator`]): It.
        gather (`bool`, *optional*, defaults to `True`): Whether its weights are brought together. Without, a model in
            pieces stays so.
        checkpointing (`dict`, *optional*): `gradient_checkpointing_kwargs`, for after the context.
    """
    from trl_ext.upstream import unwrap_model_for_generation

    by_deepspeed = gather and any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    with unwrap_model_for_generation(
        model, accelerator, gather_deepspeed3_params=by_deepspeed, gradient_checkpointing_kwargs=checkpointing
    ) as unwrapped:
        if not gather:
            yield unwrapped
            return
        with _unsharded(unwrapped):
            _gathered.append(unwrapped)
            try:
                yield unwrapped
            finally:
                _gathered.pop()


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Inside this context the modules that FSDP2 has in pieces are whole, also after a forward."""
    from trl_ext.upstream import fsdp2_parameter_groups, initialize_fsdp2

    kept = []
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if isinstance(model, FSDPModule):
        # Whichever module computes first takes itself for the outermost; parts of a model may be called in between.
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
    """Inside this context the weights of a model that ZeRO-3 has loaded in pieces, and not wrapped yet, are here."""
    parameters = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of the model are elsewhere, so that its forwards have to be as many on every process."""
    if any(model is other for other in _gathered):
        return False
    # Which of its parameters ZeRO-3 has here now depends on what it has computed last.
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())


def synced_gpus_kwargs(model: nn.Module) -> dict[str, bool]:
    """What `generate` is to be told: transformers takes models that are whole for a while for sharded ones."""
    return {"synced_gpus": is_sharded(model)} if torch.distributed.is_initialized() else {}


def catch_up_calls(model: nn.Module, calls: int) -> range:
    """
    As many numbers as this process has called a sharded model less often than the one that called it most.

    Each process has to ask, and then to call the model for each of them; of a model that is whole there are none.

    Args:
        model (`torch.nn.Module`): The model.
        calls (`int`): How often this process has called it.
    """
    if not is_sharded(model):
        return range(0)
    most = torch.tensor(calls, device=next(model.parameters()).device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return range(int(most) - calls)
