# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The model that a trainer trains: whole, or an adapter on it, on a quantised base as well."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from .models import is_peft_model, is_quantized, load_model, use_exact_4bit_on_cpu
from .upstream import disable_dropout_in_model


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from .config import ExtConfig


logger = logging.getLogger(__name__)


def wrap_with_peft(model: PreTrainedModel, peft_config: "PeftConfig | None", **kwargs: Any) -> torch.nn.Module:
    """
    Add the adapter of `peft_config` to `model`; without one, check that `model` can be trained as it is.

    Trainable parameters on a quantised base are cast to bfloat16, as TRL does for QLoRA.

    Raises:
        `TypeError`: `peft_config` is not a [`~peft.PeftConfig`].
        `ValueError`: `model` already has an adapter, the adapter is on the output head or adds tokens to the input, or
            a quantised model would be trained without one.
    """
    if peft_config is not None:
        from peft import PeftConfig, get_peft_model

        if not isinstance(peft_config, PeftConfig):
            raise TypeError(f"`peft_config` must be a `peft.PeftConfig`, got `{type(peft_config).__name__}`.")
        if is_peft_model(model):
            raise ValueError(
                "`peft_config` was given for a model that already has an adapter. Merge it first "
                "(`model.merge_and_unload()`), or leave `peft_config` out to train the adapter that is there."
            )
        model = get_peft_model(model, peft_config, **kwargs)
    elif is_quantized(model) and not is_peft_model(model):
        raise ValueError(
            "A quantised model cannot be trained without an adapter: pass `peft_config` "
            "(`--use_peft` on the command line)."
        )
    if is_peft_model(model) and hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError(
            "The adapter targets the output head, whose weight is read directly when log-probabilities are computed: "
            "it would never be trained. Remove the head from `target_modules`."
        )
    if is_peft_model(model) and _adds_tokens(model):
        raise ValueError(
            "The adapter puts virtual tokens in front of every row, so that positions and labels no longer match. Use "
            "LoRA, another adapter of weights, or prefix tuning."
        )
    cast_adapter(model)
    return model


def cast_adapter(model: torch.nn.Module) -> None:
    """
    Cast what is trained on a quantised base to bfloat16.

    To be called whenever weights were loaded into the adapter, too: PEFT makes them float32 then.
    """
    if is_quantized(model):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def _adds_tokens(model: Any) -> bool:
    config = model.active_peft_config
    return config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"


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
        args ([`~trl_ext.config.ExtConfig`]): The trainer's config.
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
