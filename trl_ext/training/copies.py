# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of a model in training: to sample with, to compare with."""

import copy
from typing import Any

import torch

from trl_ext.models.load import base_of, freeze
from trl_ext.models.sharding import gathered_parameters

from .config import ExtConfig


# What fused heads (ours, TRL's) and accelerate leave on an instance.
PATCHES = ("forward", "_original_forward", "_trl_ext_head")


def sampling_copy(model: Any, args: ExtConfig) -> Any:
    """The model to sample with in training: a bfloat16 copy if `cast_for_generation` says so, else `model` itself."""
    if args.cast_for_generation and args.bf16 and next(model.parameters()).dtype == torch.float32:
        return freeze(independent_copy(model).to(torch.bfloat16))
    return model


def independent_copy(model: Any) -> Any:
    """
    A deep copy that computes with its own weights.

    The fused head and accelerate's autocast replace `forward` on the instance, and what they put there refers to the
    model they were put on: a plain deep copy would go on computing with that one's weights. The copy has neither.
    """
    patched = [module for module in {id(m): m for m in (model, base_of(model))}.values() if "forward" in vars(module)]
    saved = [{k: vars(module).pop(k) for k in PATCHES if k in vars(module)} for module in patched]
    try:
        with gathered_parameters(model):
            return copy.deepcopy(model)
    finally:
        for module, attributes in zip(patched, saved, strict=True):
            vars(module).update(attributes)
