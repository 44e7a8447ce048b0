# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Flags of guide files and of the decodings of installed methods, which guide a frozen model while it generates."""

import dataclasses
import sys
from collections.abc import Collection, Iterable
from typing import Any

from trl_ext.inference.guide_decoding import GuideDecoding
from trl_ext.inference.policy import Decoding, served_at_once
from trl_ext.method import discover


def decoding_classes(others: Iterable[type]) -> list[type]:
    """
    The [`~trl_ext.inference.policy.Decoding`] classes of guide files and of all installed methods.

    One that cannot be used (it does not import, is not a dataclass, or has a field whose name is taken) is reported on
    stderr and skipped, so that a plug-in cannot break a command.

    Args:
        others (`Iterable[type]`):
            Dataclasses whose fields are flags already.
    """
    taken = {field.name: cls.__name__ for cls in others for field in dataclasses.fields(cls)}
    taken |= dict.fromkeys(("config", "help"), "the command line")
    taken |= {field.name: GuideDecoding.__name__ for field in dataclasses.fields(GuideDecoding)}
    classes: list[type] = [GuideDecoding]
    for found in discover().methods.values():
        try:
            cls = found.method.decoding_class()
            if cls is None:
                continue
            _check_class(cls, taken)
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(
                f"trl-ext: {found.source}: the decoding of {found.method.name} is not usable: {reason}",
                file=sys.stderr,
            )
        else:
            taken |= {field.name: cls.__name__ for field in dataclasses.fields(cls)}
            classes.append(cls)
    return classes


def _check_class(cls: type, taken: dict[str, str]) -> None:
    if not dataclasses.is_dataclass(cls) or not all(hasattr(cls, name) for name in ("active", "check", "policies")):
        raise TypeError(f"{cls.__name__} must be a dataclass with `active`, `check` and `policies`")
    for field in dataclasses.fields(cls):
        if field.name in taken:
            raise ValueError(f"its field `{field.name}` is already a flag of {taken[field.name]}")
        if field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"its field `{field.name}` has no default")


def active_decodings(decodings: Iterable[Any], given: Collection[str]) -> list[Decoding]:
    """
    The decodings that the user has set, checked.

    Args:
        decodings (`Iterable[Decoding]`): One of each class, from the flags.
        given (`Collection[str]`): Names of the flags that were given, also with their default value.

    Raises:
        `ValueError`: A decoding rejects its settings, or a flag was given without one that it needs.
    """
    active, decodings = [], list(decodings)
    for decoding in decodings:
        names = [field.name for field in dataclasses.fields(decoding)]
        for name in names[1:]:
            needed = getattr(decoding, "needs", {}).get(name, names[:1])
            missing = [each for each in needed if not getattr(decoding, each)]
            if name in given and missing:
                in_files = any(name in getattr(other, "in_files", ()) for other in decodings if other.active)
                advice = "write it in the guide file instead" if in_files else "set that too, or remove it"
                raise ValueError(f"`{name}` has no effect without `{missing[0]}`: {advice}.")
        if decoding.active:
            decoding.check()
            active.append(decoding)
    return active


# Settings of a model that is loaded here. What guides has its own.
_OF_LOADED_MODELS = (
    "model_revision",
    "dtype",
    "attn_implementation",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "cuda_graphs",
)


def check_beside_server(decodings: Iterable[Decoding], *settings: Any) -> None:
    """
    Raise a `ValueError` for what is about a loaded model, where a server's model generates.

    Args:
        decodings (`Iterable[Decoding]`): The active decodings. None of them may guide a loaded model.
        settings: Dataclasses of the command. Fields about loading the model must have their defaults.
    """
    decodings = list(decodings)
    fields = [(each, part) for part in settings for each in dataclasses.fields(part)]
    for field, part in fields if served_at_once(decodings) else ():
        if field.name in _OF_LOADED_MODELS and getattr(part, field.name) != field.default:
            raise ValueError(
                f"`{field.name}` is about a model that is loaded here, and a server's model generates: remove it."
            )
    for decoding in decodings if served_at_once(decodings) else ():
        if not served_at_once([decoding]):
            flag = dataclasses.fields(decoding)[0].name  # type: ignore[arg-type]
            raise ValueError(
                f"`{flag}` guides a model that is loaded here, and a server's model generates: remove `{flag}`; or "
                "remove the flag that names the server, and pass --model_name_or_path."
            )


def settings_of(decodings: Iterable[Decoding]) -> dict[str, Any]:
    """The fields of decodings, as a report writes them."""
    return {name: value for decoding in decodings for name, value in dataclasses.asdict(decoding).items()}  # type: ignore[call-overload]
