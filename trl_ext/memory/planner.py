# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Estimates of a training from its flags, without weights: only the configs of its models are read."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from trl import ModelConfig

from trl_ext.method import Method
from trl_ext.models.adapters import peft_config_from
from trl_ext.models.load import saved_config
from trl_ext.validation import as_mapping, true_false_or_auto

from .estimate import MemoryEstimate, Sizes, estimate
from .inventory import Inventory
from .needs import Needs, needs_of


class Planner:
    """
    Estimates what a training occupies on a GPU with the settings that the command line would train with.

    Args:
        method ([`~trl_ext.method.Method`]): The method.
        flags (`argparse.Namespace`): Its settings, with those of TRL's `ModelConfig` and the names of rewards.
        prompt, completion (`int`, *optional*, defaults to `0`): Longest ones in tokens; by default as in [`Sizes`].

    Attributes:
        not_counted (`list[str]`): What else takes memory, such as reward models whose config cannot be read.

    Raises:
        `OSError`: The config of a model that is trained cannot be read.
        `ValueError`: The settings contradict each other.
    """

    def __init__(self, method: Method, flags: Namespace, prompt: int = 0, completion: int = 0) -> None:
        self.method, self.prompt, self.completion = method, prompt, completion
        self.flags = Namespace(**vars(flags))
        given = true_false_or_auto("bf16", self.flags.bf16)  # the command line has it as text
        # The default on a GPU, also where this runs without one.
        self.flags.bf16 = not self.flags.fp16 if given in (None, "auto") else given
        self.flags.use_cpu = False
        self._configs: dict[str, Any] = {}
        self._inventories: dict[str, Inventory] = {}
        self.not_counted: list[str] = []
        if getattr(self.flags, "use_vllm", False):
            self.not_counted.append("vLLM, which takes `vllm_gpu_memory_utilization` of a card that it shares")
        self.rewards = self._rewards()

    def changed(self, changes: dict[str, Any]) -> Namespace:
        """The flags with some changes."""
        return Namespace(**vars(self.flags) | changes)

    def needs(self, changes: dict[str, Any] | None = None) -> Needs:
        """What the method needs with these flags."""
        return needs_of(self.method, self.changed(changes or {}))

    def sizes(self, changes: dict[str, Any] | None = None) -> Sizes:
        """The sizes with these flags."""
        return Sizes.of(self.changed(changes or {}), self.prompt, self.completion)

    def estimate(self, changes: dict[str, Any] | None = None) -> MemoryEstimate:
        """What the training occupies with some changes of the flags."""
        flags, needs = self.changed(changes or {}), self.needs(changes)
        language_model = self.model(flags.model_name_or_path, flags, trained=needs.trains_language_model)
        second = self.model(needs.second, flags, trained=True, is_second=True) if needs.second else None
        return estimate(language_model, needs, self.sizes(changes), second=second, others=self.rewards)

    def model(self, name: str, flags: Namespace, *, trained: bool, is_second: bool = False) -> Inventory:
        """The sizes of a model as it would be loaded."""
        settings = _model_settings(flags)
        if settings.load_in_4bit and settings.load_in_8bit:
            raise ValueError("`load_in_4bit` and `load_in_8bit` exclude each other; set one of them.")
        bits = 4 if settings.load_in_4bit else 8 if settings.load_in_8bit else 0
        peft_config = peft_config_from(settings) if trained else None
        if bits and trained and peft_config is None:
            raise ValueError(
                f"A model in {bits} bits cannot be trained without an adapter: set --use_peft true, or "
                f"--load_in_{bits}bit false."
            )
        if is_second and peft_config is not None:
            peft_config.task_type = None  # it has no head
        config = self._config(name, flags)
        dtype = _dtype(config, flags, bits, "value_model_init_kwargs" if is_second else "model_init_kwargs")
        key = f"{name} {dtype} {bits} {trained} {peft_config and peft_config.to_dict()}"
        if key not in self._inventories:
            self._inventories[key] = Inventory.from_config(
                config,
                dtype=dtype,
                bits=bits,
                peft_config=peft_config,
                trained=trained,
                head=not is_second,
                trust_remote_code=flags.trust_remote_code,
            )
        return self._inventories[key]

    def _config(self, name: str, flags: Namespace) -> Any:
        if name not in self._configs:
            self._configs[name] = read_config("model", name, flags.trust_remote_code, flags.model_revision)
        return self._configs[name]

    def _rewards(self) -> dict[str, float]:
        """Bytes of the reward models that the flags name."""
        flags, held = self.flags, 0.0
        for name in filter(None, [flags.reward_model_name_or_path, *(flags.reward_funcs or [])]):
            if "://" in name or not ("/" in name or Path(name).is_dir()):
                continue  # a server, or a function
            try:
                config = read_config("reward model", name, flags.trust_remote_code)
            except OSError as error:
                self.not_counted.append(f"the reward model {name!r} ({str(error).splitlines()[0]})")
                continue
            options = as_mapping("reward_model_init_kwargs", flags.reward_model_init_kwargs) or {}
            bits = 4 if options.get("load_in_4bit") else 8 if options.get("load_in_8bit") else 0
            held += Inventory.from_config(
                config,
                dtype=_dtype(config, flags, bits, "reward_model_init_kwargs"),
                bits=bits,
                trained=False,
                head=False,  # that of a reward model is a row for each label
                trust_remote_code=flags.trust_remote_code,
            ).weights_bytes
        return {"reward model": held}


def read_config(what: str, name: str, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """
    The config of a model: of a folder, of a file `config.json`, or of an id on the Hub. No weights are read.

    Raises:
        `OSError`: There is no such model, or the Hub cannot be reached.
    """
    if Path(name).is_file():
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    try:
        hub: dict[str, Any] = {} if revision in (None, "main") else {"revision": revision}
        return saved_config(what, name, trust_remote_code=trust_remote_code, **hub)
    except OSError as error:
        if Path(name).exists():
            raise
        raise OSError(
            f"Cannot read the config of the {what} {name!r}: there is no such folder or file, and the Hub has no such "
            "model or cannot be reached. Only the config is needed: pass the path of a config.json."
        ) from error


def _model_settings(flags: Namespace) -> ModelConfig:
    names = ModelConfig.__dataclass_fields__
    return ModelConfig(**{name: getattr(flags, name) for name in names})


def _dtype(config: Any, flags: Namespace, bits: int, setting: str) -> torch.dtype:
    """The dtype of weights that are not quantized, as `load_model` has it."""
    given = (as_mapping(setting, getattr(flags, setting, None)) or {}).get("dtype")
    if given is None:
        usual = {"model_init_kwargs": "auto" if bits else flags.dtype, "reward_model_init_kwargs": "auto"}
        given = usual.get(setting)
    if given in (None, "auto") and bits:
        return torch.bfloat16
    if given == "auto":
        return getattr(config, "dtype", None) or torch.float32
    return getattr(torch, str(given or "float32").removeprefix("torch."))  # type: ignore[no-any-return]
