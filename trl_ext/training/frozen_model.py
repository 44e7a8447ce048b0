# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen language model of methods that train a model beside it: loading, placement, generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer

from trl_ext.generation.generate import usual_batch_size
from trl_ext.models.load import freeze, load_model, use_exact_4bit_on_cpu
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.properties import is_quantized
from trl_ext.models.sharding import gathered, shard

from .config import ExtConfig
from .copies import sampling_copy
from .model_loading import init_kwargs, refuse_loading_arguments


def load_frozen(
    model: str | PreTrainedModel, args: ExtConfig, quantization_config: BitsAndBytesConfig | None = None
) -> Any:
    """
    Load or take a language model, and freeze it.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A Hub id, a directory, or a model.
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Quantization of a model given by name.

    Raises:
        `ValueError`: `quantization_config` is given twice, or for a model that is loaded already.
    """
    if isinstance(model, str):
        model = load_model(model, **init_kwargs(args, quantization_config))
    else:
        refuse_loading_arguments(args, quantization_config)
    use_exact_4bit_on_cpu(model)
    return freeze(model)


def place_frozen(model: Any, trainer: Trainer, *, shared: bool = False) -> Any:
    """
    Shard a frozen model if the trained model is sharded; otherwise move it to the device.

    A quantized model, or one that is spread over several devices, stays where it is.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): From [`load_frozen`].
        trainer ([`~transformers.Trainer`]): The trainer of the other model.
        shared (`bool`, *optional*, defaults to `False`): Whether the trained model shares the weights of this one.

    Raises:
        `ValueError`: It does, under DeepSpeed or FSDP.
    """
    if model is None:
        return None
    if shared and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise ValueError(
            "A model that shares the weights of the frozen language model cannot be trained under DeepSpeed or FSDP: "
            "train one with weights of its own."
        )
    placed = is_quantized(model) or getattr(model, "hf_device_map", None)  # possibly over several devices
    return model if placed else shard(model, trainer)


@contextmanager
def sampling_from(model: Any, trainer: Trainer, *, shared: bool = False) -> Iterator[Any]:
    """
    Context with the frozen model, gathered for generation. The trained model, which may guide it, is gathered too.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): From [`place_frozen`].
        trainer ([`~transformers.Trainer`]): The trainer of the other model.
        shared (`bool`, *optional*, defaults to `False`): Whether the trained model shares the weights of this one.
    """
    args, accelerator = trainer.args, trainer.accelerator
    with (
        gathered(model, accelerator, gather=args.ds3_gather_for_generation) as policy,
        gathered(trainer.model_wrapped, accelerator),
        evaluation_mode(trainer.model),  # a guide keeps a KV cache, which is not possible with checkpointing
        torch.no_grad(),
        trainer.compute_loss_context_manager(),
    ):
        yield policy if shared else sampling_copy(policy, args)


def sampling_batch_size(trainer: Trainer) -> int:
    """Number of sequences that are generated at once."""
    return trainer.args.generation_batch_size or usual_batch_size(trainer.accelerator.device)
