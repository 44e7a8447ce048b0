# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Looks for the settings with which a training fits a card, in the order of what they cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .estimate import MemoryEstimate
from .planner import Planner


@dataclass(frozen=True)
class Change:
    """
    A change of settings that lowers memory.

    Args:
        settings (`dict[str, Any]`): The settings and their new values.
        cost (`str`): What it costs.
    """

    settings: dict[str, Any]
    cost: str

    @property
    def flags(self) -> str:
        """As flags of the command line."""
        return " ".join(f"--{name} {str(value).lower()}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Fit:
    """
    Settings with which a training fits, or those that need least.

    Args:
        changes (`list[Change]`): From the cheapest one.
        estimate ([`~trl_ext.memory.estimate.MemoryEstimate`]): With these changes.
        fits (`bool`): Whether they are enough.
    """

    changes: list[Change]
    estimate: MemoryEstimate
    fits: bool


def fit(planner: Planner, card_gib: float) -> Fit:
    """
    The nearest settings with which a training fits a card.

    Changes are tried from the cheapest one. One that saves less than 1% is left out, and so is at the end each that is
    no longer needed.

    Args:
        planner ([`~trl_ext.memory.planner.Planner`]): The training.
        card_gib (`float`): Memory of the card in GiB.
    """
    changes: list[Change] = []

    def needed(some: list[Change]) -> float:
        try:
            return planner.estimate(_merged(some)).needed_gib
        except ValueError:  # without an adapter that 4 bits need
            return math.inf

    least = planner.estimate().needed_gib
    for step in _STEPS:
        while least > card_gib and (change := step(planner, _merged(changes))) is not None:
            found = needed([*changes, change])
            if found > 0.99 * least:
                break
            changes, least = [*changes, change], found
    for change in list(changes):
        rest = [each for each in changes if each is not change]
        if least <= card_gib and needed(rest) <= card_gib:
            changes = rest
    changes = _joined(changes)
    estimate = planner.estimate(_merged(changes))
    return Fit(changes, estimate, estimate.needed_gib <= card_gib)


def largest_batch(planner: Planner, card_gib: float) -> int:
    """The most prompts of a step that fit; 0 if one is too many."""
    low, high = 0, 1
    setting = "per_device_train_batch_size"
    while high <= 4096 and planner.estimate({setting: high}).needed_gib <= card_gib:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = planner.estimate({setting: middle}).needed_gib <= card_gib
        low, high = (middle, high) if fits else (low, middle)
    return low


def _merged(changes: list[Change]) -> dict[str, Any]:
    return {name: value for change in changes for name, value in change.settings.items()}


def _joined(changes: list[Change]) -> list[Change]:
    """Repeated changes of the same settings as one."""
    kept: dict[tuple[str, ...], Change] = {}
    for change in changes:
        kept[tuple(change.settings)] = change
    return list(kept.values())


# ------------------------------------------------------------------------------------------------- what can be changed

# From flags as they are and changes so far to the next change; `None` if there is none.
Step = Callable[[Planner, dict[str, Any]], Change | None]


def _switch(name: str, value: Any, cost: str, unless: Callable[[Planner, Any], bool] | None = None) -> Step:
    """Sets a setting that has another value."""

    def step(planner: Planner, changes: dict[str, Any]) -> Change | None:
        flags = planner.changed(changes)
        if getattr(flags, name, value) == value or (unless is not None and unless(planner, flags)):
            return None
        return Change({name: value}, cost)

    return step


def _halved(name: str, least: int, cost: str, start: int = 0) -> Step:
    """Halves a number."""

    def step(planner: Planner, changes: dict[str, Any]) -> Change | None:
        value = int(getattr(planner.changed(changes), name, 0) or start)
        return Change({name: max(least, value // 2)}, cost) if value > least else None

    return step


def _smaller_batch(planner: Planner, changes: dict[str, Any]) -> Change | None:
    flags = planner.changed(changes)
    batch, accumulation = flags.per_device_train_batch_size, flags.gradient_accumulation_steps
    if batch <= 1:
        return None
    halves = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": accumulation * 2}
    return Change(halves, "the same steps in smaller parts; slower")


def _in_parts(planner: Planner, changes: dict[str, Any]) -> Change | None:
    flags, needs = planner.changed(changes), planner.needs(changes)
    if not hasattr(flags, "completions_per_forward"):
        return None
    size = flags.completions_per_forward or flags.per_device_train_batch_size * needs.trained
    if size <= 1:
        return None
    return Change({"completions_per_forward": size // 2}, "completions are read twice: about a third slower")


def _adapter(planner: Planner, changes: dict[str, Any]) -> Change | None:
    needs, flags = planner.needs(changes), planner.changed(changes)
    if flags.use_peft or not (needs.trains_language_model or needs.second):
        return None
    return Change({"use_peft": True}, "trains an adapter instead of all weights; a higher learning_rate, such as 1e-4")


def _shorter(planner: Planner, changes: dict[str, Any]) -> Change | None:
    flags = planner.changed(changes)
    if planner.prompt or planner.completion or flags.max_completion_length <= 64:
        return None
    halves = {"max_completion_length": flags.max_completion_length // 2}
    if flags.max_length:
        halves["max_length"] = flags.max_length // 2
    return Change(halves, "shorter texts: longer ones are cut or dropped")


def _trains_weights(planner: Planner, flags: Any) -> bool:
    """Whether the weights that `dtype` is of are trained, which bfloat16 is too coarse for."""
    return bool(planner.needs(vars(flags)).trains_language_model and not flags.use_peft)


def _cannot_quantize(planner: Planner, flags: Any) -> bool:
    needs = planner.needs(vars(flags))
    return bool(flags.load_in_8bit or (not flags.use_peft and (needs.trains_language_model or needs.second)))


_STEPS: list[Step] = [
    _switch("shared_prefix", "auto", "none: a prompt is read once for its completions"),
    _switch("dtype", "bfloat16", "none: these weights are not trained", unless=_trains_weights),
    _switch("cast_for_generation", False, "slower generation"),
    _halved("generation_batch_size", 16, "slower generation", start=128),
    _switch("gradient_checkpointing", True, "activations are computed twice: about a third slower"),
    _smaller_batch,
    _in_parts,
    _switch("optim", "paged_adamw_8bit", "optimizer states of 8 bits, on the CPU where the card is full"),
    _switch("activation_offloading", True, "activations wait in CPU memory; slower"),
    _adapter,
    _switch("dtype", "bfloat16", "none: these weights are not trained", unless=_trains_weights),
    _switch("load_in_4bit", True, "rounds the weights to 4 bits; slower", unless=_cannot_quantize),
    _halved("generation_batch_size", 1, "much slower generation", start=128),
    _halved("num_generations", 2, "fewer completions of a prompt to learn from"),
    _shorter,
]
