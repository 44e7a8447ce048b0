# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Switches off everything that is random in the forward pass of a model in training mode."""

import dis
import inspect
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import nn


# Numbers by which the layers of transformers apply dropout as a function (`attention_dropout`, `layerdrop`,
# `attn_pdrop`, `drop_prob`, ...), and the noise that mixtures of experts add to the input of a router.
_RATE = re.compile(r"drop|jitter_noise|jitter_eps")


def disable_dropout(model: nn.Module) -> None:
    """
    Switches dropout off, and what has the same effect: layers that are left out, and noise on the input of routers.

    TRL's function of this kind changes modules of class `nn.Dropout` only. Most models of transformers call dropout as
    a function, with a rate that is a number on one of their modules, or in their config (Falcon, Persimmon): only then
    is the config changed, and a model that is saved has the change. Adapters of PEFT have a rate for each name.

    Args:
        model (`torch.nn.Module`): The model, possibly with an adapter.
    """
    for module in model.modules():
        names = [name for name in vars(module) if _RATE.search(name) or (name == "p" and _is_dropout(module))]
        _set_to_zero(module, names)
        _set_to_zero(getattr(module, "config", None), [n for n in _read_from_config(module) if _RATE.search(n)])


def _is_dropout(module: nn.Module) -> bool:
    return "Dropout" in type(module).__name__


def _set_to_zero(owner: Any, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(owner, name, None)
        if type(value) in (int, float):
            setattr(owner, name, 0.0)
        elif type(value) is dict and all(type(rate) in (int, float) for rate in value.values()):
            value.update(dict.fromkeys(value, 0.0))


def _read_from_config(module: nn.Module) -> list[str]:
    """Names that the forward of `module` reads as `self.config.<name>`."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    steps = [] if code is None else list(dis.get_instructions(code))
    return [str(step.argval) for owner, step in pairwise(steps) if owner.argval == "config" != step.argval]
