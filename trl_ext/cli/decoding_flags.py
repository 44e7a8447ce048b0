# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The flags of every installed method's decoding, beside those of a command."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.inference.policy import Decoding, Policy
from trl_ext.method import discover


def decoding_classes(others: Iterable[type]) -> list[type]:
    """
    The [`~trl_ext.inference.policy.Decoding`] classes of all installed methods.

    One that cannot be used (it does not import, is no dataclass, or has a field of a name that is taken) is named on
    stderr and left out: a plug-in must not take a command down.

    Args:
        others (`Iterable[type]`): Dataclasses whose fields are flags already.
    """
    taken = {field.name: cls.__name__ for cls in others for field in dataclasses.fields(cls)}
    taken |= dict.fromkeys(("config", "help"), "the command line")
    classes = []
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


def asked_for(decodings: Iterable[Any]) -> list[Decoding]:
    """
    Those that the user set, checked.

    Raises:
        `ValueError`: Settings that a decoding refuses, or of one whose main field is not set.
    """
    active = []
    for decoding in decodings:
        if decoding.active:
            decoding.check()
            active.append(decoding)
            continue
        # What the class itself makes of its defaults. By `repr` too: NaN is not equal to itself.
        names, untouched = [field.name for field in dataclasses.fields(decoding)], type(decoding)()
        pairs = {name: (getattr(decoding, name), getattr(untouched, name)) for name in names}
        given = [name for name, (value, default) in pairs.items() if value != default and repr(value) != repr(default)]
        if given:
            main = names[0]
            raise ValueError(f"`{given[0]}` does nothing without `{main}`: set that too, or leave it out.")
    return active


def settings_of(decodings: Iterable[Decoding]) -> dict[str, Any]:
    """The fields of decodings, as a report writes them."""
    return {name: value for decoding in decodings for name, value in dataclasses.asdict(decoding).items()}  # type: ignore[call-overload]


def policies(
    decodings: Iterable[Decoding],
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    batch_size: int,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Policy]:
    """The policies of all decodings on one model, loaded decoding by decoding; `None` for those that bring theirs."""
    for decoding in decodings:
        yield from decoding.policies(model, tokenizer, name=name, batch_size=batch_size, progress=progress)
