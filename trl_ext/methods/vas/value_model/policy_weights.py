# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The weights of a language model that value models share: which of them are an adapter's, and which it saves."""

from typing import Any
from weakref import WeakSet

import torch

from trl_ext.upstream import adapter_layers


# Where PEFT's layers keep the layer that they replace: those of adapters, and those of `modules_to_save`.
REPLACED = ("base_layer.", "original_module.")
# Beginning of the names of value models' adapters on a language model, which its own adapters do not have.
VALUE_ADAPTER = "trl_ext_value"
_HOOKED: "WeakSet[torch.nn.Module]" = WeakSet()


def without_other_adapters(state_dict: dict[str, Any], model: torch.nn.Module, adapter: str) -> dict[str, Any]:
    """
    The weights in a state dict of `model` without those of adapters that other models have put on its weights.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The weights, by their names in `model`.
        model (`torch.nn.Module`): The model.
        adapter (`str`): Name of the adapter whose weights are kept.
    """
    layers = set(map(id, adapter_layers(model)))
    prefixes = tuple(f"{name}." for name, layer in model.named_modules() if id(layer) in layers)
    return {key: value for key, value in state_dict.items() if _owner(key, prefixes) in ("", adapter)}


def _owner(key: str, prefixes: tuple[str, ...]) -> str:
    """Name of the adapter that a weight belongs to; `""` if it is the model's own."""
    layer = max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default="")  # the innermost
    if not layer or key.removeprefix(layer).startswith(REPLACED):
        return ""
    parts = key.removeprefix(layer).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def save_without_adapters(policy: torch.nn.Module) -> None:
    """
    Make `state_dict` and `save_pretrained` of a language model leave out adapters of value models on its weights.

    PEFT replaces layers of the language model. Without adapters of its own, its weights would be saved under other
    names, and loaded again as new, random ones.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
    """
    if policy not in _HOOKED:  # one hook for any number of value models
        policy.register_state_dict_post_hook(_as_before)
        _HOOKED.add(policy)


def _as_before(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    layers = {
        f"{prefix}{name}.": f"{prefix}{name}.{kept}"
        for name, layer in module.named_modules()
        for kept in REPLACED
        if isinstance(getattr(layer, kept[:-1], None), torch.nn.Module)
    }
    prefixes = tuple(layers)
    owners = {key: _owner(key, prefixes) for key in state_dict}
    own = {owner for owner in owners.values() if owner and not owner.startswith(VALUE_ADAPTER)}
    for key, owner in owners.items():
        if owner.startswith(VALUE_ADAPTER):
            del state_dict[key]
        elif not own and not prefix:  # as part of another model, it keeps the names of that model's layers
            layer = next((layer for layer in prefixes if key.startswith(layers[layer])), None)
            if layer is not None:
                state_dict[layer + key.removeprefix(layers[layer])] = state_dict.pop(key)
