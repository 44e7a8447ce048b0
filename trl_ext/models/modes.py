# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation mode for a block of code, with every module's mode restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    No dropout and no gradient checkpointing inside; every module's own mode is put back at the end.

    Transformers' layers recompute only while they are in training mode, so leaving it is all it takes to have a cache.
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
    """As [`evaluation_mode`], for what happens at every token: a look at one flag where a model is in it already."""
    if not model.training:
        yield
        return
    with evaluation_mode(model):
        yield
