# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Reward functions, as TRL's GRPO takes them: callables, names, dotted paths and sequence classifiers.

A reward function is called with keyword arguments, all of them lists with one entry a completion: `prompts`,
`completions` (strings, or lists of messages where the data is conversational), `completion_ids` and the data set's
other columns. It returns one number a completion, or `None` where it does not apply.
"""

import asyncio
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from trl_ext.upstream import get_config_model_id

from .classifiers import ClassifierReward


RewardFunc: TypeAlias = str | PreTrainedModel | Callable[..., Any]

# Names that need no import path: TRL's own reward functions. Those that TRL makes from settings get its settings.
_BUILT_IN: dict[str, dict[str, Any] | None] = {
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "think_format_reward": None,
    "get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256},
    "get_repetition_penalty_reward": {},
    "get_cosine_scaled_reward": {},
}


class RewardError(ValueError):
    """A reward function failed or did not return one number a completion. The message names it, and the completion."""


@dataclass(frozen=True)
class Reward:
    """
    A named reward function.

    Args:
        name (`str`):
            How logs, tables and columns call it.
        func (`Callable`):
            The function, called as the module's first lines say.
    """

    name: str
    func: Callable[..., Any]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Rewards of the completions: `list[float | None]`, as long as `completions`.

        Raises:
            `RewardError`: The function raises, or returns something else than a finite number, NaN or `None` for
                each completion.
        """
        try:
            output = self.func(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            if inspect.isawaitable(output):
                output = _wait(output)
        except Exception as error:
            raise RewardError(
                f"The reward function '{self.name}' raised {type(error).__name__}: {error} (it was given "
                f"{len(prompts)} completions and the columns {sorted(columns)})."
            ) from error
        return self._checked(output, len(prompts))

    def _checked(self, output: Any, expected: int) -> list[float | None]:
        if hasattr(output, "tolist"):  # a tensor or an array
            output = output.tolist()
        if not isinstance(output, (list, tuple)):
            raise RewardError(
                f"The reward function '{self.name}' returned {output!r} where a list with one number a completion was "
                "expected."
            )
        if len(output) != expected:
            raise RewardError(
                f"The reward function '{self.name}' returned {len(output)} rewards for {expected} completions."
            )
        return [self._number(value, i) for i, value in enumerate(output)]

    def _number(self, value: Any, i: int) -> float | None:
        if value is None:
            return None
        if hasattr(value, "item"):  # a number of numpy's, a tensor of one element
            value = value.item()
        if not isinstance(value, (int, float)):
            raise RewardError(
                f"The reward function '{self.name}' returned {value!r} for completion {i}, where a number was "
                "expected, or None if it does not apply."
            )
        if abs(value) > sys.float_info.max:  # an integer may be too large for a float as well
            text = "too large an integer" if isinstance(value, int) else value
            raise RewardError(f"The reward function '{self.name}' returned {text} for completion {i}.")
        return float(value)


def load_rewards(
    specs: RewardFunc | Sequence[RewardFunc],
    processing_classes: Any = None,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    trust_remote_code: bool = False,
) -> list[Reward]:
    """
    Makes reward functions from what a user writes.

    Args:
        specs (`str` or [`~transformers.PreTrainedModel`] or `Callable` or `list` of these):
            A callable; a sequence classifier with one label, as an object, a directory or a hub id; the name of one
            of TRL's functions (`"think_format_reward"`, ...); or a path to a function (`"package.module.function"` or
            `"package.module:function"`; the current directory is searched too).
        processing_classes ([`~transformers.PreTrainedTokenizerBase`] or `list`, *optional*):
            The classifiers' tokenizers, aligned with `specs` and `None` for the others; loaded where they are missing.
        device (`torch.device` or `str`, *optional*):
            Where classifiers are put. By default one given as an object stays where it is, and one that is loaded
            goes to the accelerator if there is one.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in one call of a classifier.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether a classifier from the hub may bring its own code.

    Returns:
        `list[Reward]`: In the order of `specs`; of equal names the later ones are numbered (`"reward_2"`).

    Raises:
        `ValueError`: A name is unknown, a path leads nowhere, a classifier has several labels, or lengths differ.
        `OSError`: A classifier's directory or hub id cannot be loaded.
    """
    specs = [specs] if isinstance(specs, str) or callable(specs) else list(specs)
    if not isinstance(processing_classes, (list, tuple)):
        processing_classes = [processing_classes] * len(specs)
    if len(processing_classes) != len(specs):
        raise ValueError(
            f"{len(processing_classes)} reward processing classes for {len(specs)} reward functions: give one each, "
            "None for those that are no classifiers."
        )
    rewards: list[Reward] = []
    for spec, tokenizer in zip(specs, processing_classes, strict=True):
        func: Any = _resolve(spec) if isinstance(spec, str) else spec
        name = _name(spec)
        if isinstance(func, (str, nn.Module)):
            func = ClassifierReward.load(func, tokenizer, device, batch_size, trust_remote_code)
        elif not callable(func):
            raise ValueError(f"{spec!r} is no reward function: it cannot be called.")
        taken = {reward.name for reward in rewards}
        candidates = [name, *(f"{name}_{i}" for i in range(2, len(specs) + 2))]
        rewards.append(Reward(name=next(c for c in candidates if c not in taken), func=func))
    return rewards


def _resolve(spec: str) -> Any:
    """The function that a name or path stands for; a string if it is a classifier's id or directory."""
    if spec in _BUILT_IN:
        func, settings = getattr(importlib.import_module("trl.rewards"), spec), _BUILT_IN[spec]
        return func if settings is None else func(**settings)
    if os.path.isdir(spec):
        return spec
    if ":" in spec or ("." in spec and "/" not in spec and os.sep not in spec):
        return _import(spec)
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return spec
    raise ValueError(
        f"Unknown reward function '{spec}': it is none of TRL's ({', '.join(_BUILT_IN)}), no existing directory, no "
        "path to a function ('package.module.function') and no hub id ('organisation/model')."
    )


def _import(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if os.getcwd() not in sys.path:  # as `trl grpo` does: a file of functions in the current directory
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, something that it imports is not
        raise ValueError(f"Cannot load the reward function '{spec}': there is no module '{module_name}'.") from error
    func = getattr(module, attribute, None)
    if not callable(func):
        raise ValueError(
            f"Cannot load the reward function '{spec}': module '{module_name}' has no function '{attribute}'."
        )
    return func


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        is_path = spec not in _BUILT_IN and (os.path.isdir(spec) or "/" in spec)
        return os.path.basename(os.path.abspath(spec)) if is_path else spec.replace(":", ".").rpartition(".")[2]
    if isinstance(spec, nn.Module):
        path = get_config_model_id(spec.config).rstrip("/")
        return path.rpartition("/")[2] or type(spec).__name__
    while isinstance(spec, functools.partial):
        spec = spec.func
    return getattr(spec, "__name__", type(spec).__name__)


def _wait(awaitable: Awaitable[Any]) -> Any:
    """Result of an async reward function; in a thread of its own, as a notebook's event loop is running already."""

    async def result() -> Any:
        return await awaitable

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, result()).result()
