# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Prepares a model for training: adds an adapter if one is asked for, on a quantized base as well."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from .properties import is_peft_model, is_quantized


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


# Factors of about 1, or as large as a row of weights (DoRA's magnitude): an update by a usual learning rate is smaller
# than the distance of two such numbers in bfloat16, so that they would never move. Not IA3's, with which PEFT's layers
# return float32 where no autocast expects it.
_FACTORS = ("lora_magnitude_vector", "vera_lambda")

# Initializations of LoRA that move a part of the base weights into the adapter.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Models with layers that PEFT 0.21 refuses to put an adapter on.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")

# Adapters whose forward pass takes a task or a type for each token.
_OWN_INPUTS = ("MULTITASK_PROMPT_TUNING", "CPT", "POLY")


def peft_config_from(model_args: ModelConfig) -> "PeftConfig | None":
    """
    The adapter that the flags of [`~trl.ModelConfig`] ask for, or `None`.

    Without `lora_target_modules` and `lora_target_parameters` it is on all linear layers except the output head, which
    QLoRA (arXiv 2305.14314, section 4) needed to reach full fine-tuning. PEFT's own choice is two projections of the
    attention for most models. The name of one module is a name, as several are; PEFT would take it for a pattern.

    Args:
        model_args ([`~trl.ModelConfig`]): The flags.
    """
    targets: Any = model_args.lora_target_modules
    if targets is None and not model_args.lora_target_parameters:
        targets = "all-linear"
    elif isinstance(targets, str) and targets.isidentifier():
        targets = [targets]
    model_args = copy.copy(model_args)
    model_args.lora_target_modules = targets
    return get_peft_config(model_args)


def _leave_out_refused(model: PreTrainedModel, peft_config: "PeftConfig") -> "PeftConfig":
    """
    The adapter without layers that PEFT refuses, if it is on "all-linear", which does not name them.

    Kernels of Mamba read the weight of `out_proj` themselves, so that an adapter on it has no effect.
    """
    refused = {name.rpartition(".")[2] for name, _ in model.named_modules()} & {"out_proj"}
    targets, excluded = (getattr(peft_config, name, None) for name in ("target_modules", "exclude_modules"))
    if not refused or targets != "all-linear" or model.config.model_type not in _MAMBA or isinstance(excluded, str):
        return peft_config
    peft_config = copy.copy(peft_config)
    peft_config.exclude_modules = {*(excluded or ()), *refused}  # type: ignore[attr-defined]
    return peft_config


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Context for calls of PEFT, which in 0.21 reads an attribute that transformers 5.24 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load_adapter(model: PreTrainedModel, name_or_path: str, **kwargs: Any) -> "PeftModel":
    """
    Puts a saved adapter on a model.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        name_or_path (`str`): Hub id or directory of the adapter.
        kwargs: Further arguments of [`~peft.PeftModel.from_pretrained`].
    """
    from peft import PeftModel

    with _without_deprecations():
        return PeftModel.from_pretrained(model, name_or_path, **kwargs)


def wrap_with_peft(model: PreTrainedModel, peft_config: "PeftConfig | None", **kwargs: Any) -> torch.nn.Module:
    """
    Adds the adapter of `peft_config` to `model`. Without one, checks that `model` can be trained as it is.

    Trainable parameters on a quantized base are cast to bfloat16, as TRL does for QLoRA (see [`cast_adapter`]).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        peft_config ([`~peft.PeftConfig`] or `None`): The adapter.
        kwargs: Further arguments of [`~peft.get_peft_model`].

    Raises:
        `TypeError`: `peft_config` is not a [`~peft.PeftConfig`].
        `ValueError`: `model` already has an adapter, the adapter is on the output head or takes more than token ids,
            or a quantized model would be trained without one.
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
        with _without_deprecations():
            model = get_peft_model(model, _leave_out_refused(model, peft_config), **kwargs)
    elif is_quantized(model) and not is_peft_model(model):
        raise ValueError(
            "A quantized model cannot be trained without an adapter: pass `peft_config` "
            "(`--use_peft` on the command line)."
        )
    if is_peft_model(model) and hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError(
            "The adapter targets the output head, but log-probabilities are computed from the head's own weight: the "
            "adapter would never be trained. Remove the head from `target_modules`."
        )
    kind = str(model.active_peft_config.peft_type.value) if is_peft_model(model) else ""
    if kind in _OWN_INPUTS:
        raise ValueError(
            f"The adapter is of type {kind}, which takes more than token ids or has a "
            "loss of its own. Use LoRA, another adapter of weights, or prompt tuning."
        )
    cast_adapter(model)
    return model


def cast_adapter(model: torch.nn.Module) -> None:
    """
    Casts trainable parameters on a quantized base to bfloat16, except for factors of whole channels.

    Call it again whenever weights were loaded into the adapter: PEFT makes them float32.
    """
    if is_quantized(model):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not is_factor(name):
                parameter.data = parameter.data.to(torch.bfloat16)


def is_factor(name: str) -> bool:
    """Whether a parameter of an adapter multiplies whole channels, and has to be float32 to be trained."""
    return any(part in name for part in _FACTORS)


def changes_base(peft_config: Any) -> bool:
    """
    Whether the initialization of an adapter changes the weights that it is put on (PiSSA, OLoRA, CorDA, LoftQ, ...).

    The model with the adapter switched off is then not its base model.

    Args:
        peft_config ([`~peft.PeftConfig`] or `dict`): The config of the adapter, or as it was saved.
    """
    config = peft_config if isinstance(peft_config, dict) else vars(peft_config)
    return str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE)


def check_trainable(model: torch.nn.Module) -> None:
    """
    Checks that training can change something.

    Raises:
        `ValueError`: All parameters are frozen, as those of an adapter are that was loaded for inference.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    name = type(model).__name__
    if is_peft_model(model) or getattr(model, "saves_parts", False):
        remedy = (
            f"An adapter is loaded for inference by default: load it with `{name}.from_pretrained(..., "
            "is_trainable=True)`, or pass the path instead of the model."
        )
    else:
        remedy = "Call `model.requires_grad_(True)` before, or train an adapter: pass `peft_config` (`--use_peft`)."
    raise ValueError(f"There is nothing to train: all parameters of the `{name}` are frozen. {remedy}")
