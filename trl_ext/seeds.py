# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Random number generators started from a seed, and restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, step: int, process: int) -> Iterator[None]:
    """
    Inside this context torch's generators start from (seed, step, process); afterwards they go on as before.

    A round of samples then depends on nothing but the model and these numbers, which is what makes a resumed run equal
    to an uninterrupted one.
    """
    with chance((seed * 1_000_003 + step) * 4_099 + process):
        yield


@contextmanager
def chance(number: int) -> Iterator[None]:
    """Inside this context torch's generators start from `number`; afterwards they go on as before."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = [] if accelerator is None else [torch.accelerator.current_device_index()]
    with torch.random.fork_rng(devices=devices, device_type=accelerator.type if accelerator else "cuda"):
        torch.manual_seed(number)
        yield
