# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Backbones of value models: loading models without their head, and adapters on them."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from trl_ext.models.adapters import changes_base, is_factor, wrap_with_peft
from trl_ext.models.load import load_model, refuse_pickled, use_exact_4bit_on_cpu
from trl_ext.models.properties import backbone_of, base_of, is_peft_model, is_quantized
from trl_ext.upstream import get_config_model_id


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def headless(model: Any) -> PreTrainedModel:
    """
    The backbone of a language model or classifier, without its head. A model without a head is returned unchanged.

    Raises:
        `ValueError`: It has an adapter, whose parameter names would change.
    """
    if is_peft_model(model):
        if backbone_of(model) is base_of(model):
            return model
        raise ValueError(
            "The backbone of a value model has an adapter already. Merge it first (`model.merge_and_unload()`)."
        )
    return backbone_of(model)  # type: ignore[return-value]


def load_backbone(
    backbone: str | PreTrainedModel,
    *,
    quantization_config: BitsAndBytesConfig | None = None,
    peft_config: "PeftConfig | None" = None,
    **init_kwargs: Any,
) -> tuple[Any, str]:
    """
    Load a model without its head.

    Args:
        backbone (`str` or [`~transformers.PreTrainedModel`]): Hub id, directory or model. The weights of a model
            object are used, not copied.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a backbone given by name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapter to add.
        init_kwargs: Passed to `from_pretrained`.

    Returns:
        The backbone, and the Hub id or directory it was loaded from (`""` if unknown).

    Raises:
        `ValueError`: A model object was given with `quantization_config`, or has both a head and an adapter.
    """
    if isinstance(backbone, str):
        name = backbone
        model: Any = load_model(backbone, head="none", quantization_config=quantization_config, **init_kwargs)
    elif quantization_config is not None:
        raise ValueError("`quantization_config` was given for a backbone that is loaded already.")
    else:
        name = get_config_model_id(backbone.config) or ""
        model = headless(backbone)
    use_exact_4bit_on_cpu(model)
    return (model if peft_config is None else add_adapter(model, peft_config)), name


def add_adapter(model: PreTrainedModel, peft_config: "PeftConfig") -> torch.nn.Module:
    """Add an adapter to a backbone. The task type of `peft_config` is ignored: it is that of a model with a head."""
    peft_config = copy.copy(peft_config)
    peft_config.task_type = None
    return wrap_with_peft(model, peft_config)


def refuse_change_of_base(peft_config: Any) -> None:
    """Raise a `ValueError` if an adapter, of a config or a saved one, would change the policy that it is put on."""
    if changes_base(peft_config):
        raise ValueError(
            "The initialization of the adapter (`init_lora_weights`) changes the weights that it is put on, which are "
            "those of the language model. Use another one, or a value model with weights of its own."
        )


def with_saved_adapter(
    base: PreTrainedModel, path: str, folder: str, *, is_trainable: bool = False, **hub: Any
) -> "PeftModel":
    """
    Load a saved adapter onto a backbone.

    Args:
        base ([`~transformers.PreTrainedModel`]): The backbone.
        path (`str`): Directory or Hub id.
        folder (`str`): Folder of the adapter in it.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether the adapter is trained further.
        hub: `revision`, `token`, `cache_dir`, `subfolder` (which contains `folder`).
    """
    from peft import PeftModel

    refuse_pickled(str(Path(path) / folder))
    inside = "/".join(part for part in (hub.pop("subfolder", None), folder) if part)
    if Path(path).is_dir():
        model = PeftModel.from_pretrained(base, str(Path(path) / inside), is_trainable=is_trainable)
    else:
        model = PeftModel.from_pretrained(base, path, subfolder=inside, is_trainable=is_trainable, **hub)
    if is_quantized(base):  # as in training, see `wrap_with_peft`
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.is_floating_point() and not is_factor(name):
                parameter.data = parameter.data.to(torch.bfloat16)
    return model
