# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of guidance inside vLLM: those of the engine, and the weights of a request for value models."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from trl_ext.guides.kinds import EngineGuideKind, guide_kinds
from trl_ext.guides.weights import full_names, head_weights, parse_weights
from trl_ext.validation import SettingErrors, check_value, did_you_mean


logger = logging.getLogger("vllm.trl_ext")  # vLLM shows what its own loggers say

KEY = "trl_ext"  # in vLLM's `additional_config`
WEIGHT = "beta"  # in a request's `vllm_xargs`

_WHERE = f"`--additional-config '{{\"{KEY}\": {{...}}}}'` of vLLM"

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ServingSettings:
    """
    Value models inside an engine: the object `"trl_ext"` in vLLM's `--additional-config`.

    Parameters:
        value_model (`str` or `dict[str, str]`):
            Directory or Hub id of the value model; or several of them by name, by which weights call them.
        top_k (`int`, *optional*, defaults to `20`):
            Number of likeliest tokens that the values re-rank at each step (20 is that of VAS's reference code).
        value_cache_gib (`float`, *optional*, defaults to `2.0`):
            Memory, in GiB, for the KV cache of the value models, allocated at the start. It holds as many texts of the
            engine's longest length as fit, at most `--max-num-seqs`. 2 GiB hold 85 texts of 2,048 tokens for a value
            model of the size of Qwen2.5-0.5B.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the value models' backbones and tokenizers.

    Raises:
        `ValueError`: A setting is out of range or of the wrong type.
    """

    example: ClassVar[dict[str, Any]] = {"value_model": "outputs/value", "top_k": 20}

    value_model: str | dict[str, str] = field(
        metadata={"help": "Value model: directory or Hub id; or several by name."}
    )
    top_k: int = field(default=20, metadata={"help": "Number of likeliest tokens that the values re-rank."})
    value_cache_gib: float = field(default=2.0, metadata={"help": "Memory of the value models' KV cache, in GiB."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code of the value models."})

    def __post_init__(self) -> None:
        if not self.value_model:
            raise ValueError(f"`value_model` is empty. {_example(ServingSettings)}")
        if self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {self.top_k}: without candidates nothing is guided.")
        if not self.value_cache_gib > 0:
            raise ValueError(f"`value_cache_gib` must be above 0, got {self.value_cache_gib}.")

    @property
    def kinds(self) -> dict[str, EngineGuideKind]:
        """
        The value models as guides, by name; `""` for the only one without a name.

        Raises:
            `ValueError`: No installed method has value models.
        """
        known: Any = guide_kinds()
        if "value_model" not in known:
            raise ValueError("No installed package has guides of the kind 'value_model': reinstall trl-ext.")
        paths = self.value_model if isinstance(self.value_model, dict) else {"": self.value_model}
        make = functools.partial(known["value_model"], trust_remote_code=self.trust_remote_code)
        return {name: make(model=path) for name, path in paths.items()}


def read_settings(additional_config: Any, kind: type[Settings]) -> Settings:
    """
    The settings of guidance from vLLM's `additional_config`.

    Args:
        additional_config (`dict`): With a dictionary `"trl_ext"`, the fields of the settings.
        kind (`type`): Their class: a dataclass with an `example`, a dictionary of some of its fields.

    Raises:
        `ValueError`: There is none, or it has an unknown key, a value of the wrong type, or none for a field without a
            default.
    """
    given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
    if not isinstance(given, Mapping):
        what = "is missing" if given is None else f"must be an object, got {given!r}"
        raise ValueError(f"`{KEY}` in `--additional-config` of vLLM {what}. {_example(kind)}")
    known: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    fields = {each.name: each.type for each in known}
    problems, found = [], {}
    for key, value in given.items():
        if key not in fields:
            near = did_you_mean(str(key), fields, lambda each: f"'{each}'") or f"; there is {', '.join(fields)}"
            problems.append(f"unknown key '{key}'{near}")
            continue
        try:
            found[key] = check_value(key, value, fields[key])
        except ValueError as error:
            problems.append(str(error))
    required = [each.name for each in known if each.default is dataclasses.MISSING]
    problems += [f"`{name}` is missing. {_example(kind)}" for name in required if name not in given]
    if not problems:
        try:
            return kind(**found)
        except ValueError as error:
            problems.append(str(error))
    raise SettingErrors([f"{_WHERE}: {problem}" for problem in problems])


def _example(kind: Any) -> str:
    return f"Write, for example, --additional-config '{json.dumps({KEY: kind.example})}'."


def heads_of(settings: ServingSettings) -> list[str]:
    """
    Names that the weights of a request may have, from the configs of the value models.

    Raises:
        `ValueError` or `OSError`: There is no such value model.
    """
    return [head for name, kind in settings.kinds.items() for head in full_names(name, kind.saved_heads())]


@functools.lru_cache(maxsize=8)
def _heads_of_text(text: str) -> tuple[str, ...] | None:
    try:
        return tuple(heads_of(read_settings(json.loads(text), ServingSettings)))
    except OSError as error:  # of an engine on another machine
        logger.warning("The names of heads in requests are not checked before they reach the engine: %s", error)
        return None


def heads_of_config(additional_config: Any) -> tuple[str, ...] | None:
    """As [`heads_of`], for vLLM's `additional_config`, read once; `None` if the value models are not here."""
    return _heads_of_text(json.dumps({KEY: additional_config.get(KEY)}, sort_keys=True))


def given_weight(sampling_params: Any) -> Any:
    """What a request says about its weight; `None` if it says nothing."""
    return (getattr(sampling_params, "extra_args", None) or {}).get(WEIGHT)


def request_weights(sampling_params: Any, heads: Sequence[str] | None) -> tuple[float, ...] | None:
    """
    The weights of a request.

    Args:
        sampling_params (`vllm.SamplingParams`): With `extra_args["beta"]` (`vllm_xargs` over HTTP): a number if there
            is one head, else `"head=weight,head=weight"` or, from Python, a dictionary. Heads that are omitted have
            weight 0.
        heads (`Sequence[str]` or `None`): Names of the heads; `None` if they are not known, and not checked.

    Returns:
        `tuple[float, ...]` or `None`: A weight for each head; `None` for a request that is not guided.

    Raises:
        `ValueError`: The weights are not finite numbers of up to 10,000 in size, or name a head that does not exist.
    """
    given = given_weight(sampling_params)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float | str | Mapping):
        raise ValueError(
            f"`{WEIGHT}` must be a number or a text 'head=weight,head=weight', got {given!r}"
            + (f"; the heads are {', '.join(heads)}." if heads else ".")
        )
    if isinstance(given, str):
        given = parse_weights(given, WEIGHT)
    names = heads if heads is not None else list(given) if isinstance(given, Mapping) else ["value"]
    [row] = head_weights(given, names, WEIGHT).rows
    return tuple(row) if any(row) else None
