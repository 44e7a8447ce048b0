# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Modes of a model for a block of code, restored afterwards: evaluation, no checkpointing; no gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import nn


P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    Switches dropout and gradient checkpointing off inside, and restores the mode of every module at the end.

    Layers of transformers use gradient checkpointing in training mode only, so that no cache is lost to it inside.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """As [`evaluation_mode`], for every token: checks only one flag if the model is in evaluation mode already."""
    if not model.training:
        yield
        return
    with evaluation_mode(model):
        yield


@contextmanager
def checkpointing_disabled(model: nn.Module) -> Iterator[None]:
    """
    Inside this context layers keep their activations, and their caches, also in training mode.

    It sets the layers' own flags. transformers' methods for that were renamed in 5.24, where the old ones warn.
    """
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """
    Decorates a function that keeps tensors for later calls, such as a KV cache: they can be written to in any mode.

    Tensors that are made under `torch.inference_mode()` cannot be written to outside of it.
    """
    return torch.inference_mode(False)(torch.no_grad()(function))  # leaving inference mode switches gradients on
