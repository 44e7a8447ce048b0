# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Reward functions in the forms that TRL's GRPO accepts (callables, names, import paths, sequence classifiers), and
servers of reward models.

A reward function is called as by GRPO, with keyword arguments. Lists with one entry per completion: `prompts`,
`completions` (text, or lists of messages if the dataset is conversational), `completion_ids` and the dataset's other
columns. `trainer_state`; `log_metric(name, value)`, whose mean is logged; `log_extra(column, values)` with one value
per completion of the call, for the table of completions. It returns one number per completion, or `None` if it does
not apply.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trl_ext.data.schema import extra_columns

from .async_calls import wait_for
from .reward_model import RewardModel, is_address
from .settings import RewardSettings


if TYPE_CHECKING:  # a function in Python needs neither; reward models import them
    import torch
    from transformers import PreTrainedTokenizerBase

RewardFunc: TypeAlias = str | Callable[..., Any]  # a reward model, PreTrainedModel, can be called too

# TRL's own reward functions, which need no import path. If TRL has a function that makes one, the arguments to call it
# with.
_BUILT_IN: dict[str, dict[str, Any] | None] = {
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "think_format_reward": None,
    "get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256},
    "get_repetition_penalty_reward": {},
}
# Those that are names of TRL's too, but need an argument that only the user knows.
_NEEDS_ARGUMENTS = {"get_cosine_scaled_reward": "max_len"}
# What TRL's functions need beside TRL.
_NEEDS_PACKAGE = {"accuracy_reward": "math_verify", "reasoning_accuracy_reward": "math_verify"}
_ARGUMENTS = ("prompts", "completions", "completion_ids")
# Further arguments that GRPO passes, which a function need not take.
_OPTIONAL_ARGUMENTS = ("trainer_state", "log_metric", "log_extra")


def _form_of(completions: Sequence[Any]) -> str:
    """What completions are, for an error of a function that took them for something else."""
    if completions and isinstance(completions[0], list):
        return " Completions are lists of messages here, as the prompts are: the text is `completion[-1]['content']`."
    return " Completions are texts here, as the prompts are." if completions else ""


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
        batch_size (`int`, *optional*, defaults to `64`):
            Completions in one call. `0`: all of them.
    """

    name: str
    func: Callable[..., Any]
    batch_size: int = 64

    @property
    def model(self) -> RewardModel | None:
        """The reward model, here or on a server; `None` for a function."""
        return self.func if isinstance(self.func, RewardModel) else None

    @property
    def processing_class(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of a reward model; `None` for a function."""
        return None if self.model is None else self.model.tokenizer

    @property
    def required_columns(self) -> list[str]:
        """Columns of the dataset without which the function cannot be called."""
        try:
            parameters = inspect.signature(self.func).parameters.values()
        except (TypeError, ValueError):  # a function in C
            return []
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = [each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
        return [name for name in needed if name not in _ARGUMENTS + _OPTIONAL_ARGUMENTS]

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
            output = self.func(
                prompts=prompts, completions=completions, completion_ids=completion_ids, **self._accepted(columns)
            )
            if inspect.isawaitable(output):
                output = wait_for(output)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(
                f"The reward function '{self.name}' raised {type(error).__name__}: {error} (called with "
                f"{len(prompts)} completions and the columns {sorted(set(columns) - set(_OPTIONAL_ARGUMENTS))})."
                f"{_form_of(completions) if isinstance(error, AttributeError | TypeError) else ''}"
            ) from error
        return self._checked(output, len(prompts))

    def _accepted(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The arguments without those of GRPO's that the function does not take."""
        try:
            parameters = inspect.signature(self.func).parameters.values()
        except (TypeError, ValueError):  # a function in C
            return columns
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return columns
        taken = {parameter.name for parameter in parameters}
        return {name: x for name, x in columns.items() if name in taken or name not in _OPTIONAL_ARGUMENTS}

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
    settings: RewardSettings | None = None,
    policy_tokenizer: "PreTrainedTokenizerBase | None" = None,
    device: "torch.device | str | None" = None,
    trust_remote_code: bool = False,
) -> list[Reward]:
    """
    Load reward functions in any form that a user may pass.

    Args:
        specs (`str` or [`~transformers.PreTrainedModel`] or `Callable` or `list` of these):
            A callable; a sequence classifier, as an object, a directory or a Hub id; the address of a reward server
            (`"http://host:5000/get_reward"`, see [`~trl_ext.rewards.servers.ServerReward`]); the name of one of TRL's
            functions (`"think_format_reward"`, ...); or the import path of a function (`"package.module.function"` or
            `"package.module:function"`; the current directory is searched too), or its file
            (`"folder/my_rewards.py:function"`).
        processing_classes ([`~transformers.PreTrainedTokenizerBase`] or `list`, *optional*):
            The tokenizers of reward models and servers, one per entry of `specs`; `None` for functions. By default
            each model's own is loaded.
        settings ([`~trl_ext.rewards.settings.RewardSettings`], *optional*):
            How they are loaded and called. A config or the arguments of a command are settings too.
        policy_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model that generates. Its chat template renders conversations for servers that take text
            and for which `processing_classes` has no tokenizer.
        device (`torch.device` or `str`, *optional*):
            Device of the classifiers. By default one that is passed as an object stays on its device, and one that is
            loaded is moved to the accelerator if there is one.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code of classifiers from the Hub.

    Returns:
        `list[Reward]`: In the order of `specs`. If names are equal, the later ones are numbered (`"reward_2"`).

    Raises:
        `ValueError`: A name or import path is unknown, a classifier has several labels and `reward_head` names none,
            or lengths differ.
        `ImportError`: One of TRL's functions needs a package that is not installed.
        `OSError`: A classifier's directory or Hub id cannot be loaded.
        `ConnectionError`: A reward server cannot be reached.
    """
    settings = RewardSettings() if settings is None else settings
    settings.check_reward_settings()
    specs = [specs] if isinstance(specs, str) or callable(specs) else list(specs)
    names = _names(specs)
    tokenizers, heads = _one_each(processing_classes, names), settings.heads_of(names)
    rewards = []
    for spec, name, tokenizer, head in zip(specs, names, tokenizers, heads, strict=True):
        func: Any = resolved(spec) if isinstance(spec, str) else spec
        if isinstance(func, str) and is_address(func):
            from .servers import ServerReward

            func = ServerReward(func, settings, head=head, tokenizer=tokenizer or policy_tokenizer)
        elif isinstance(func, str) or _is_torch_module(func):
            from .classifiers import ClassifierReward

            func = ClassifierReward.load(
                func, tokenizer, settings, head=head, device=device, trust_remote_code=trust_remote_code
            )
        elif not callable(func):
            raise ValueError(f"{spec!r} is not a reward function: it cannot be called.")
        batches = func.calls_at_once if isinstance(func, RewardModel) else 1
        rewards.append(Reward(name, func, settings.reward_batch_size * batches))
    _check_used(settings, rewards, specs)
    return rewards


def _check_used(settings: RewardSettings, rewards: Sequence[Reward], specs: Sequence[Any]) -> None:
    """Raise a `ValueError` for a setting that none of the rewards uses."""
    served = [reward.model.is_served for reward in rewards if reward.model is not None]
    loaded = [
        isinstance(spec, str) and reward.model is not None and not reward.model.is_served
        for reward, spec in zip(rewards, specs, strict=True)
    ]
    for name, is_used, wanted in (
        ("reward_head", bool(served), "model"),
        ("reward_pairs", not all(served), "model on this machine"),
        ("reward_model_init_kwargs", any(loaded), "model that is given by name"),
        ("reward_server_kwargs", any(served), "server"),
    ):
        if getattr(settings, name) and not is_used:
            raise ValueError(f"`{name}` has no effect: no reward is a {wanted}. Remove it.")


def check_reward_columns(rewards: Sequence[Reward], columns: Collection[str]) -> None:
    """
    Find a missing column now rather than after the first completions are generated.

    Args:
        rewards (`Sequence[Reward]`): The reward functions.
        columns (`Collection[str]`): Columns of the dataset.

    Raises:
        `ValueError`: A function has a parameter without default that is no column. The message names both.
    """
    passed = sorted(extra_columns([dict.fromkeys(columns)]))
    for reward in rewards:
        for name in reward.required_columns:
            if name not in passed:
                raise ValueError(
                    f"The reward function '{reward.name}' needs the column {name!r}, which the dataset lacks. Besides "
                    f"prompts and completions, reward functions get {', '.join(map(repr, passed)) or 'no column'}."
                )


def check_reward_prompts(rewards: Sequence[Reward], prompt: Any) -> None:
    """
    Find a reward model that cannot read the prompts now rather than after the first completions are generated.

    Args:
        rewards (`Sequence[Reward]`): The reward functions.
        prompt (`str` or `list[dict]`): The prompt of a row.

    Raises:
        `ValueError`: The prompt is conversational and a reward model's tokenizer has no chat template.
    """
    for reward in rewards:
        if reward.model is not None and isinstance(prompt, list):
            try:
                reward.model.check_conversation(prompt, [{"role": "assistant", "content": ""}])
            except ValueError as error:
                raise ValueError(f"The reward model '{reward.name}' cannot be used: {error}") from None


def _is_torch_module(value: Any) -> bool:
    """Whether a value is a torch module: whoever has made one has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _one_each(processing_classes: Any, names: Sequence[str]) -> list[Any]:
    """One tokenizer or `None` per reward, as in TRL: a tokenizer reads one vocabulary, so it is not shared."""
    if processing_classes is None:
        return [None] * len(names)
    if not isinstance(processing_classes, list | tuple):
        processing_classes = [processing_classes]
    if len(processing_classes) != len(names):
        raise ValueError(
            f"The number of `reward_processing_classes` ({len(processing_classes)}) must match the number of reward "
            f"functions ({len(names)}: {', '.join(names)}): pass a list with a tokenizer for each reward model and "
            "None for each function, or nothing, to load each model's own."
        )
    return list(processing_classes)


def resolved(spec: str) -> Any:
    """
    The function that a name or path refers to; `spec` itself if it is a classifier or the address of a server.

    Args:
        spec (`str`): A reward as [`load_rewards`] takes it.

    Raises:
        `ValueError` or `ImportError`: See [`load_rewards`].
    """
    if spec in _NEEDS_ARGUMENTS:
        raise ValueError(
            f"TRL's reward function '{spec}' needs an argument, `{_NEEDS_ARGUMENTS[spec]}`: define `my_reward = "
            f"trl.rewards.{spec}({_NEEDS_ARGUMENTS[spec]}=...)` in a file my_rewards.py, and name it "
            "'my_rewards.my_reward'."
        )
    if spec in _BUILT_IN:
        package = _NEEDS_PACKAGE.get(spec)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ImportError(f"TRL's reward function '{spec}' needs a package: pip install {package}")
        func, settings = getattr(importlib.import_module("trl.rewards"), spec), _BUILT_IN[spec]
        return func if settings is None else func(**settings)
    if os.path.isdir(spec) or is_address(spec):
        return spec
    if ":" in spec or ("." in spec and "/" not in spec and os.sep not in spec):
        return import_function(spec)
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return spec
    raise ValueError(
        f"Unknown reward function '{spec}': it is not one of TRL's ({', '.join(_BUILT_IN)}), an existing directory, "
        "an import path ('package.module.function'), a Hub id ('organisation/model') or the address of a server "
        "('http://host:5000/get_reward')."
    )


def import_function(spec: str, kind: str = "reward function") -> Any:
    """
    The function of an import path (`"package.module.function"`, `"package.module:function"`), or of a file
    (`"folder/my_rewards.py:function"`).

    Args:
        spec (`str`): The path.
        kind (`str`, *optional*, defaults to `"reward function"`): What the function is, for errors.

    Raises:
        `ValueError`: There is no such module, file or function.
    """
    module_name, _, attribute = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if module_name.endswith(".py"):
        module = _import_file(spec, Path(module_name), kind)
    else:
        if os.getcwd() not in sys.path:  # for a file in the current directory, as in `trl grpo`
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and not (module_name + ".").startswith(error.name + "."):
                raise  # the module exists, but it imports one that does not
            raise ValueError(f"Cannot load the {kind} '{spec}': there is no module '{module_name}'.") from error
    func = getattr(module, attribute, None)
    if not callable(func):
        raise ValueError(f"Cannot load the {kind} '{spec}': module '{module_name}' has no function '{attribute}'.")
    return func


def _import_file(spec: str, path: Path, kind: str) -> Any:
    """The module in a file, which is run once; it may import its neighbours."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"Cannot load the {kind} '{spec}': there is no file '{path}'.")
    for module in list(sys.modules.values()):  # it is imported under another name, or was named before
        if getattr(module, "__file__", None) == str(path):
            return module
    found = importlib.util.spec_from_file_location(path.stem, path)
    if path.stem in sys.modules or found is None or found.loader is None:
        raise ValueError(
            f"Cannot load the {kind} '{spec}': another module is called '{path.stem}'. Rename the file '{path}'."
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _names(specs: Sequence[Any]) -> list[str]:
    """A name for each reward in logs, tables and columns; later ones of the same name are numbered."""
    names: list[str] = []
    for spec in specs:
        name = _name(spec)
        candidates = [name, *(f"{name}_{i}" for i in range(2, len(specs) + 2))]
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        file, _, function = spec.rpartition(":")
        if file.endswith(".py"):
            return function
        is_path = spec not in _BUILT_IN and (os.path.isdir(spec) or "/" in spec)
        return os.path.basename(os.path.abspath(spec)) if is_path else spec.replace(":", ".").rpartition(".")[2]
    if _is_torch_module(spec):
        from trl_ext.upstream import get_config_model_id

        path = get_config_model_id(spec.config).rstrip("/")
        return path.rpartition("/")[2] or type(spec).__name__
    while isinstance(spec, functools.partial):
        spec = spec.func
    return getattr(spec, "__name__", type(spec).__name__)
