# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads the models of a trainer as its config says."""

import logging
from typing import TYPE_CHECKING, Any

from transformers import BitsAndBytesConfig, PreTrainedModel

from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.dropout import disable_dropout
from trl_ext.models.load import load_model, use_exact_4bit_on_cpu
from trl_ext.models.properties import is_peft_model, is_quantized

from .config import ExtConfig


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


logger = logging.getLogger(__name__)


def init_kwargs(
    args: ExtConfig, quantization_config: BitsAndBytesConfig | None, setting: str = "model_init_kwargs"
) -> dict[str, Any]:
    """
    Keyword arguments of [`~trl_ext.models.load.load_model`] for a model of a trainer.

    Args:
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): The trainer's argument.
        setting (`str`, *optional*, defaults to `"model_init_kwargs"`): The field of `args` that has the user's keyword
            arguments.

    Raises:
        `ValueError`: `quantization_config` is given twice.
    """
    kwargs: dict[str, Any] = dict(getattr(args, setting) or {})
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ValueError(f"`quantization_config` is given both to the trainer and in `{setting}`.")
    kwargs.setdefault("quantization_config", quantization_config)
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    if args.distributed_state.distributed_type != "NO":
        kwargs["device_map"] = None  # each process places its own copy
    return kwargs


def refuse_loading_arguments(args: ExtConfig, quantization_config: BitsAndBytesConfig | None) -> None:
    """
    Report what is for loading a model and was given for one that is loaded already.

    Args:
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config. Its `model_init_kwargs` are a warning.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): The trainer's argument.

    Raises:
        `ValueError`: `quantization_config` is given.
    """
    if quantization_config is not None:
        raise ValueError(
            "`quantization_config` was given for a model that is loaded already. Pass the model as a name or path, or "
            "quantize it when you load it."
        )
    if args.model_init_kwargs is not None:
        logger.warning("`model_init_kwargs` is ignored: the model is loaded already.")


def load_policy(
    model: "str | PreTrainedModel | PeftModel",
    args: ExtConfig,
    quantization_config: BitsAndBytesConfig | None = None,
    peft_config: "PeftConfig | None" = None,
) -> Any:
    """
    Load or take the language model to be trained, and add an adapter.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A Hub id, a directory, or a model.
        args ([`~trl_ext.training.config.ExtConfig`]): The trainer's config.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Quantization of a model given by name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter to add.

    Raises:
        `ValueError`: `quantization_config` is given twice, or for a model that is already loaded; or see
            [`wrap_with_peft`].
    """
    kwargs: dict[str, Any] = {}
    if isinstance(model, str):
        init = init_kwargs(args, quantization_config)
        model = load_model(model, is_trainable=True, **init)
        if peft_config is not None and init.get("revision"):
            kwargs["revision"] = init["revision"]  # saved with the adapter, for whoever loads it
    else:
        refuse_loading_arguments(args, quantization_config)
        use_exact_4bit_on_cpu(model)
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3 and not is_quantized(model):
        kwargs["autocast_adapter_dtype"] = False  # ZeRO-3 gathers parameters of a single dtype
    model = wrap_with_peft(model, peft_config, **kwargs)
    if is_peft_model(model) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.disable_dropout:
        disable_dropout(model)
    return model
