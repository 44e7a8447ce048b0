# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward functions in the forms that TRL's GRPO accepts: callables, names, import paths and sequence classifiers.

A reward function is called with keyword arguments, each a list with one entry per completion: `prompts`, `completions`
(text, or lists of messages if the dataset is conversational), `completion_ids` and the dataset's other columns. It
returns one number per completion, or `None` if it does not apply.
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

# TRL's own reward functions, which need no import path. If TRL has a function that makes one, the arguments to call it
# with.
_BUILT_IN: dict[str, dict[str, Any] | None] = {
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "think_format_reward": None,
    "get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256},
    "get_repetition_penalty_reward": {},
    "get_cosine_scaled_reward": {},
}


class RewardError(ValueError):
    """A reward function raised, or did not return one number per completion. The message names the function."""


@dataclass(frozen=True)
class Reward:
    """
    A named reward function.

    Args:
        name (`str`):
            Name in logs, tables and columns.
        func (`Callable`):
            The function. See the docstring of this module for its arguments and result.
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
        Call the function.

        Args:
            prompts (`Sequence`): The prompt of each completion.
            completions (`Sequence`): The completions: text or lists of messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): Their token ids.
            columns: Other columns of the dataset, with one entry per completion, and further arguments.

        Returns:
            `list[float | None]`: The reward of each completion.

        Raises:
            `RewardError`: The function raised, or returned something other than a finite number, NaN or `None` for
                a completion.
        """
        try:
            output = self.func(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            if inspect.isawaitable(output):
                output = _wait(output)
        except Exception as error:
            raise RewardError(
                f"The reward function '{self.name}' raised {type(error).__name__}: {error} (called with "
                f"{len(prompts)} completions and the columns {sorted(columns)})."
            ) from error
        return self._checked(output, len(prompts))

    def _checked(self, output: Any, expected: int) -> list[float | None]:
        if hasattr(output, "tolist"):  # a tensor or an array
            output = output.tolist()
        if not isinstance(output, (list, tuple)):
            raise RewardError(
                f"The reward function '{self.name}' returned {output!r}, but must return a list with one number per "
                "completion."
            )
        if len(output) != expected:
            raise RewardError(
                f"The reward function '{self.name}' returned {len(output)} rewards for {expected} completions."
            )
        return [self._number(value, i) for i, value in enumerate(output)]

    def _number(self, value: Any, i: int) -> float | None:
        if value is None:
            return None
        if hasattr(value, "item"):  # a numpy number or a tensor of one element
            value = value.item()
        if not isinstance(value, (int, float)):
            raise RewardError(
                f"The reward function '{self.name}' returned {value!r} for completion {i}, but must return a number, "
                "or None if it does not apply."
            )
        if abs(value) > sys.float_info.max:  # infinite, or an integer that is too large for a float
            text = "an integer that is too large" if isinstance(value, int) else value
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
    Load reward functions in any form that a user may pass.

    Args:
        specs (`str` or [`~transformers.PreTrainedModel`] or `Callable` or `list` of these):
            A callable; a sequence classifier with one label, as an object, a directory or a Hub id; the name of one
            of TRL's functions (`"think_format_reward"`, ...); or the import path of a function
            (`"package.module.function"` or `"package.module:function"`; the current directory is searched too).
        processing_classes ([`~transformers.PreTrainedTokenizerBase`] or `list`, *optional*):
            The classifiers' tokenizers, aligned with `specs`; `None` for functions. By default they are loaded.
        device (`torch.device` or `str`, *optional*):
            Device of the classifiers. By default one that is passed as an object stays on its device, and one that is
            loaded is moved to the accelerator if there is one.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in one call of a classifier.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code of classifiers from the Hub.

    Returns:
        `list[Reward]`: In the order of `specs`. If names are equal, the later ones are numbered (`"reward_2"`).

    Raises:
        `ValueError`: A name or import path is unknown, a classifier has several labels, or lengths differ.
        `OSError`: A classifier's directory or Hub id cannot be loaded.
    """
    specs = [specs] if isinstance(specs, str) or callable(specs) else list(specs)
    if not isinstance(processing_classes, (list, tuple)):
        processing_classes = [processing_classes] * len(specs)
    if len(processing_classes) != len(specs):
        raise ValueError(
            f"{len(processing_classes)} reward processing classes for {len(specs)} reward functions: pass one for "
            "each, or None for those that are not classifiers."
        )
    rewards: list[Reward] = []
    for spec, tokenizer in zip(specs, processing_classes, strict=True):
        func: Any = _resolve(spec) if isinstance(spec, str) else spec
        name = _name(spec)
        if isinstance(func, (str, nn.Module)):
            func = ClassifierReward.load(func, tokenizer, device, batch_size, trust_remote_code)
        elif not callable(func):
            raise ValueError(f"{spec!r} is not a reward function: it cannot be called.")
        taken = {reward.name for reward in rewards}
        candidates = [name, *(f"{name}_{i}" for i in range(2, len(specs) + 2))]
        rewards.append(Reward(name=next(c for c in candidates if c not in taken), func=func))
    return rewards


def _resolve(spec: str) -> Any:
    """The function that a name or import path refers to; `spec` itself if it is a classifier's Hub id or directory."""
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
        f"Unknown reward function '{spec}': it is not one of TRL's ({', '.join(_BUILT_IN)}), an existing directory, "
        "an import path ('package.module.function') or a Hub id ('organisation/model')."
    )


def _import(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if os.getcwd() not in sys.path:  # for a file in the current directory, as in `trl grpo`
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise  # the module exists, but it imports one that does not
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
    """Result of an async reward function, run in a new thread: the event loop of a notebook is already running."""

    async def result() -> Any:
        return await awaitable

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, result()).result()
