# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Contexts in which torch's random number generators start from a seed or a state, and are restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trl_ext.devices import generators, set_generator_states


@contextmanager
def seeded(seed: int, step: int, process: int) -> Iterator[None]:
    """
    Context in which torch's generators start from a seed made of (seed, step, process).

    Completions that are sampled inside depend only on the model and these numbers, so a resumed run equals an
    uninterrupted one.

    Args:
        seed (`int`): The seed of the run.
        step (`int`): The step.
        process (`int`): The index of the process.
    """
    with fork_rng((seed * 1_000_003 + step) * 4_099 + process):
        yield


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Context in which torch's generators, on the CPU and the current accelerator, start from `seed`."""
    with torch.random.fork_rng(**generators()):
        torch.manual_seed(seed)
        yield


@contextmanager
def replayed(states: list[torch.Tensor]) -> Iterator[None]:
    """Context in which torch's generators start from what [`~trl_ext.devices.generator_states`] returned."""
    with torch.random.fork_rng(**generators()):
        set_generator_states(states)
        yield
