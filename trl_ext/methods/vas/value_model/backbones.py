# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Backbones of value models: loading models without their head, and adapters on them."""

import copy
import itertools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from trl_ext.models.adapters import changes_base, is_factor, load_adapter, wrap_with_peft
from trl_ext.models.load import load_model, refuse_pickled, use_exact_4bit_on_cpu
from trl_ext.models.properties import backbone_of, base_of, is_peft_model, is_quantized
from trl_ext.upstream import get_config_model_id, replaces_adapters

from .policy_weights import without_other_adapters


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def headless(model: Any) -> PreTrainedModel:
    """
    The backbone of a language model or classifier, without its head. A model without a head is returned unchanged.

    Raises:
        `ValueError`: It has an adapter, whose parameter names would change, or it is an encoder-decoder.
    """
    backbone = backbone_of(base_of(model))
    if backbone.config.is_encoder_decoder:
        raise ValueError(
            f"{type(base_of(model)).__name__} is an encoder-decoder, which reads prompt and completion in two parts: "
            "value models need a decoder-only language model."
        )
    if is_peft_model(model):
        if backbone is base_of(model):
            return model
        raise ValueError(
            "The backbone of a value model has an adapter already. Merge it first (`model.merge_and_unload()`)."
        )
    return backbone


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


def add_adapter(model: PreTrainedModel, peft_config: "PeftConfig", *, name: str = "default") -> torch.nn.Module:
    """
    Add an adapter to a backbone, beside those of other models on its weights.

    Args:
        model ([`~transformers.PreTrainedModel`]): The backbone.
        peft_config ([`~peft.PeftConfig`]): The adapter. Its task type is ignored: it is that of a model with a head.
        name (`str`, *optional*, defaults to `"default"`): Name of the adapter. If it is taken, a number is added.

    Raises:
        `ValueError`: As for [`~trl_ext.models.adapters.wrap_with_peft`]; or the weights have an adapter of another
            type, which PEFT would replace.
    """
    peft_config = copy.copy(peft_config)
    peft_config.task_type = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second time")
        return wrap_with_peft(model, peft_config, adapter_name=_free_name(model, peft_config, name))


def _free_name(model: torch.nn.Module, peft_config: "PeftConfig", name: str) -> str:
    """A name for an adapter, beginning with `name`, that no other adapter on the weights has."""
    if replaces_adapters(model, peft_config):
        raise ValueError(
            f"The weights have an adapter of another type than {peft_config.peft_type.value}, which PEFT would "
            "replace: use the same type for the value model, or merge that adapter first (`merge_and_unload()`)."
        )
    taken = {part for path, _ in model.named_parameters() for part in path.split(".")}
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(each for each in names if each not in taken)


def refuse_change_of_base(peft_config: Any) -> None:
    """Raise a `ValueError` if an adapter, of a config or a saved one, would change the policy that it is put on."""
    if changes_base(peft_config):
        raise ValueError(
            "The initialization of the adapter (`init_lora_weights`) changes the weights that it is put on, which are "
            "those of the language model. Use another one, or a value model with weights of its own."
        )


def with_saved_adapter(
    base: PreTrainedModel, path: str, folder: str, *, name: str = "default", is_trainable: bool = False, **hub: Any
) -> "PeftModel":
    """
    Load a saved adapter onto a backbone.

    Args:
        base ([`~transformers.PreTrainedModel`]): The backbone.
        path (`str`): Directory or Hub id.
        folder (`str`): Folder of the adapter in it.
        name (`str`, *optional*, defaults to `"default"`): As for [`add_adapter`].
        is_trainable (`bool`, *optional*, defaults to `False`): Whether the adapter is trained further.
        hub: `revision`, `token`, `cache_dir`, `subfolder` (which contains `folder`).
    """
    from peft import PeftConfig

    refuse_pickled(str(Path(path) / folder))
    inside = "/".join(part for part in (hub.pop("subfolder", None), folder) if part)
    if Path(path).is_dir():
        path, hub = str(Path(path) / inside), {}
    else:
        hub["subfolder"] = inside
    name = _free_name(base, PeftConfig.from_pretrained(path, **hub), name)
    model = load_adapter(base, path, adapter_name=name, is_trainable=is_trainable, **hub)
    if is_quantized(base):  # as in training, see `wrap_with_peft`
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.is_floating_point() and not is_factor(name):
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def save_adapter(backbone: Any, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """
    Save an adapter, and no other on its weights, as one that is loaded without a name.

    Args:
        backbone ([`~peft.PeftModel`]): The backbone with its adapter.
        folder (`pathlib.Path`): The directory. It is created.
        state_dict (`dict[str, torch.Tensor]`, *optional*): Weights to save instead of the model's current ones.
    """
    name = backbone.active_adapter
    own = without_other_adapters(state_dict or backbone.state_dict(), backbone, name)
    backbone.save_pretrained(folder, state_dict=own)
    named = folder / name
    if named.is_dir():  # PEFT gives every adapter that is not called "default" a folder of its own
        for file in named.iterdir():
            file.replace(folder / file.name)
        named.rmdir()
