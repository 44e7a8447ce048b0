# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of a model: in bfloat16 for generation, or frozen as a reference."""

import copy
from typing import Any

import torch

from trl_ext.models.load import freeze
from trl_ext.models.properties import base_of
from trl_ext.models.sharding import gathered_parameters

from .config import ExtConfig


# Attributes that fused language modeling heads (ours and TRL's) and accelerate set on an instance.
PATCHES = ("forward", "_original_forward", "_trl_ext_head")


def sampling_copy(model: Any, args: ExtConfig) -> Any:
    """The model to generate with: a bfloat16 copy if `cast_for_generation` asks for one, otherwise `model` itself."""
    if args.cast_for_generation and args.bf16 and next(model.parameters()).dtype == torch.float32:
        return freeze(independent_copy(model).to(torch.bfloat16))
    return model


def independent_copy(model: Any) -> Any:
    """
    A deep copy that computes with its own weights.

    The fused head and accelerate's autocast replace `forward` on the instance by functions that refer to the original
    model, so a plain deep copy would compute with the original weights. The copy is made without these functions.
    """
    patched = [module for module in {id(m): m for m in (model, base_of(model))}.values() if "forward" in vars(module)]
    saved = [{k: vars(module).pop(k) for k in PATCHES if k in vars(module)} for module in patched]
    try:
        with gathered_parameters(model):
            return copy.deepcopy(model)
    finally:
        for module, attributes in zip(patched, saved, strict=True):
            vars(module).update(attributes)
