# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a method needs of a device, as it declares in its own folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_ext.method import Method, discover, import_class


@dataclass(frozen=True)
class Needs:
    """
    Models and sequences of a method, from its settings. [`~trl_ext.method.Method`] names a function that returns it.

    Args:
        completions (`int`): Completions that are generated for a prompt, in all of its forms.
        generated (`int`, *optional*, defaults to `0`):
            Completions that are generated for one text. `0`: all of the prompt's. Fewer where it has several forms.
        trained (`int`, *optional*, defaults to `0`):
            Completions of a prompt in a training step. `0`: those that are generated. More where those of earlier
            rounds are kept.
        generates (`bool`, *optional*, defaults to `True`): Whether training can generate completions.
        log_probs (`bool`, *optional*, defaults to `True`):
            Whether a step computes log-probabilities, for which it needs the head of the language model.
        second (`str`, *optional*, defaults to `""`):
            Name of a model that is trained, without its head, instead of the language model. The language model is
            then in memory only if completions are generated.
        trains_language_model (`bool`, *optional*, defaults to `True`):
            Whether the language model, or an adapter on it, is trained.
        own (`Callable`, *optional*):
            `(hidden size, vocabulary) -> parameters` in float32 that are trained beside the models, such as a head.
        update (`Callable`, *optional*):
            `(inventory, sizes, completions of a prompt) -> bytes` of an update that trains `own` alone, without
            gradients in a language model.
        reference (`bool`, *optional*, defaults to `False`):
            Whether there is a reference model: a frozen copy, or with an adapter a copy of its weights.
        candidates (`int`, *optional*, defaults to `0`):
            Tokens that generation reads beside each other after each text.
        kept (`float`, *optional*, defaults to `0.0`):
            Hidden states that are kept for each generated token until a round has been trained on.
    """

    completions: int
    generated: int = 0
    trained: int = 0
    generates: bool = True
    log_probs: bool = True
    second: str = ""
    trains_language_model: bool = True
    own: Callable[[int, int], int] | None = None
    update: Callable[[Any, Any, int], float] | None = None
    reference: bool = False
    candidates: int = 0
    kept: float = 0.0

    def __post_init__(self) -> None:
        for name in ("generated", "trained"):
            if not getattr(self, name):
                object.__setattr__(self, name, self.completions)

    @property
    def holds_language_model(self) -> bool:
        """Whether the language model is in memory."""
        return self.generates or not self.second


def usual_needs(args: Any) -> Needs:
    """The needs of a method that declares none: the language model is trained on its completions."""
    return Needs(
        completions=max(1, int(getattr(args, "num_generations", 1) or 1)),
        reference=bool(getattr(args, "beta", 0.0)),
    )


def needs_of(method: Method, args: Any) -> Needs:
    """
    The needs of a method with some settings.

    Args:
        method ([`~trl_ext.method.Method`]): The method.
        args: Its config, or an object with the same attributes.
    """
    function: Any = import_class(method.memory) if method.memory else usual_needs
    needs: Needs = function(args)
    return needs


def needs_of_config(args: Any) -> Needs:
    """The needs of the method whose config this is, or a subclass of it; those of [`usual_needs`] for any other."""
    method = discover().of_class(type(args))
    return needs_of(method, args) if method else usual_needs(args)


def generates_from(args: Any) -> bool:
    """Whether training generates completions: on a command line, whether rewards are named; unknown in a config."""
    names = ("reward_funcs", "reward_model_name_or_path")
    return any(getattr(args, name, True) for name in names)
