# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A language model that training draws from and never changes: loaded, put where it can sample, sampled from."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer

from trl_ext.generation.generate import usual_batch_size
from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.load import freeze, is_peft_model, is_quantized, load_model, use_exact_4bit_on_cpu
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.sharding import gathered, shard
from trl_ext.upstream import disable_dropout_in_model

from .config import ExtConfig
from .copies import sampling_copy


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


logger = logging.getLogger(__name__)


def init_kwargs(args: ExtConfig, given: Any, quantization_config: BitsAndBytesConfig | None) -> dict[str, Any]:
    """
    Keyword arguments to load a model with in training, as the settings and the launch say.

    Args:
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        given (`dict`, *optional*): What the user gave.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): What the trainer was given.

    Raises:
        `ValueError`: `quantization_config` is given twice.
    """
    kwargs: dict[str, Any] = dict(given or {})
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ValueError("`quantization_config` is given both to the trainer and in the keyword arguments of a model.")
    kwargs.setdefault("quantization_config", quantization_config)
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if args.distributed_state.distributed_type != "NO":
        kwargs["device_map"] = None  # each process places its own copy
    return kwargs


def load_frozen(
    model: str | PreTrainedModel, args: ExtConfig, quantization_config: BitsAndBytesConfig | None = None
) -> Any:
    """
    A language model without gradients, from a name or a model.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Hub id, directory or model.
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a name.
    """
    if isinstance(model, str):
        model = load_model(model, **init_kwargs(args, args.model_init_kwargs, quantization_config))
    use_exact_4bit_on_cpu(model)
    return freeze(model)


def place_frozen(model: Any, trainer: Trainer, *, shared: bool = False) -> Any:
    """
    The model where it can sample: in pieces if the trained one is, else whole on each process.

    A quantised model, or one that is on several devices, stays where it is.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): From [`load_frozen`].
        trainer ([`~transformers.Trainer`]): Whose model is trained.
        shared (`bool`, *optional*, defaults to `False`): Whether what is trained stands on this model's own weights.

    Raises:
        `ValueError`: It does, under DeepSpeed or FSDP.
    """
    if model is None:
        return None
    if shared and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise ValueError(
            "What stands on the language model's own weights cannot be trained under DeepSpeed or FSDP: train a model "
            "of its own."
        )
    placed = is_quantized(model) or getattr(model, "hf_device_map", None)  # over several devices, possibly
    return model if placed else shard(model, trainer)


@contextmanager
def sampling_from(model: Any, trainer: Trainer, *, shared: bool = False) -> Iterator[Any]:
    """
    The frozen model, ready to draw from; the trained one, which may guide it, whole and in evaluation mode.

    Args:
        model, trainer, shared: As for [`place_frozen`].
    """
    args, accelerator = trainer.args, trainer.accelerator
    with (
        gathered(model, accelerator, gather=args.ds3_gather_for_generation) as policy,
        gathered(trainer.model_wrapped, accelerator, checkpointing=args.gradient_checkpointing_kwargs),
        evaluation_mode(trainer.model),  # what guides keeps a cache, which checkpointing in training does not allow
        torch.no_grad(),
        trainer.compute_loss_context_manager(),
    ):
        yield policy if shared else sampling_copy(policy, args)


def sampling_batch_size(trainer: Trainer) -> int:
    """Sequences to draw at once."""
    return trainer.args.generation_batch_size or usual_batch_size(trainer.accelerator.device)


def load_policy(
    model: "str | PreTrainedModel | PeftModel",
    args: "ExtConfig",
    quantization_config: BitsAndBytesConfig | None = None,
    peft_config: "PeftConfig | None" = None,
) -> Any:
    """
    The model that a trainer trains, from what its constructor was given.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A name or path, or a model.
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a name or path.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter to add.

    Raises:
        `ValueError`: `quantization_config` is given twice or for a model that is loaded already; or see
            [`wrap_with_peft`].
    """
    if isinstance(model, str):
        init_kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
        if quantization_config is not None and "quantization_config" in init_kwargs:
            raise ValueError("`quantization_config` is given both to the trainer and in `model_init_kwargs`.")
        init_kwargs.setdefault("quantization_config", quantization_config)
        init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        if args.distributed_state.distributed_type != "NO":
            init_kwargs["device_map"] = None  # each process places its own copy
        model = load_model(model, is_trainable=True, **init_kwargs)
    else:
        if quantization_config is not None:
            raise ValueError(
                "`quantization_config` was given for a model that is loaded already. Pass the model as a name or "
                "path, or quantise it when you load it."
            )
        if args.model_init_kwargs is not None:
            logger.warning("`model_init_kwargs` is ignored: the model is loaded already.")
        use_exact_4bit_on_cpu(model)
    kwargs = {}
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3 and not is_quantized(model):
        kwargs["autocast_adapter_dtype"] = False  # ZeRO-3 gathers parameters of one dtype only
    model = wrap_with_peft(model, peft_config, **kwargs)
    if is_peft_model(model) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout_in_model(model)
    return model
