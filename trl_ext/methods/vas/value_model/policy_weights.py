# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The weights of a language model that value models share, as the language model saves them."""

from typing import Any
from weakref import WeakSet

import torch


# Where PEFT's layers keep the layer that they replace: those of adapters, and those of `modules_to_save`.
_REPLACED = ("base_layer", "original_module")
_HOOKED: "WeakSet[torch.nn.Module]" = WeakSet()


def save_without_adapters(policy: torch.nn.Module) -> None:
    """
    Make `state_dict` and `save_pretrained` of a language model leave out adapters that others have put on its weights.

    PEFT replaces layers of the language model, whose own weights would be saved under other names, and loaded again as
    new, random ones.
    """
    if policy not in _HOOKED:  # one hook for any number of value models
        policy.register_state_dict_post_hook(_as_before)
        _HOOKED.add(policy)


def _as_before(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    if prefix:  # part of another model, such as one that trains an adapter of its own
        return
    layers = {
        f"{name}.": f"{name}.{kept}."
        for name, layer in module.named_modules()
        for kept in _REPLACED
        if isinstance(getattr(layer, kept, None), torch.nn.Module)
    }
    for key in list(state_dict):
        for layer, kept in layers.items():
            if key.startswith(layer):
                value = state_dict.pop(key)
                if key.startswith(kept):
                    state_dict[layer + key.removeprefix(kept)] = value
                break
