# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Deep copies of models whose forward was replaced on the instance."""

import copy
from typing import Any

from .properties import base_of
from .sharding import gathered_parameters


# Attributes that fused language modeling heads (ours and TRL's) and accelerate set on an instance.
PATCHES = ("forward", "_original_forward", "_trl_ext_head", "__deepcopy__")


def independent_copy(model: Any, memo: dict[int, Any] | None = None) -> Any:
    """
    A deep copy that computes with its own weights.

    The fused head and accelerate's autocast replace `forward` on the instance by functions that refer to the original
    model, so a plain deep copy would compute with the original weights. The copy is made without these functions.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        memo (`dict`, *optional*): What `copy.deepcopy` has copied so far.
    """
    patched = list({id(module): module for module in (model, base_of(model))}.values())
    saved = [{k: vars(module).pop(k) for k in PATCHES if k in vars(module)} for module in patched]
    try:
        with gathered_parameters(model):
            return copy.deepcopy(model, memo)
    finally:
        for module, attributes in zip(patched, saved, strict=True):
            vars(module).update(attributes)
