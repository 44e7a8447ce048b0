# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation mode for a block of code, with every module's mode restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
