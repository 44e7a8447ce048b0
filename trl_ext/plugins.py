# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Entry points of installed packages: what they name, and those that cannot be used, with the reason.

Methods are found so (see [`trl_ext.method`]), and whatever else a package can add.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar


OWN_PACKAGE = "trl-ext"

T = TypeVar("T")


class FromPackage:
    """What an entry point of a package names."""

    package: str
    version: str

    @property
    def source(self) -> str:
        """Package and version, as shown to people."""
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Plugin(FromPackage, Generic[T]):
    """What a usable entry point names, and the package that declares it."""

    value: T
    package: str
    version: str


@dataclass(frozen=True)
class Broken(FromPackage):
    """An entry point that cannot be used, with the reason."""

    name: str
    package: str
    version: str
    error: str


def canonical(word: str) -> str:
    """The declared form of a name that a user typed with hyphens or capitals."""
    return word.strip().lower().replace("-", "_")


def load_plugins(
    group: str, kind: type[T], noun: str, own: Mapping[str, T] | None = None
) -> tuple[dict[str, Plugin[T]], list[Broken]]:
    """
    Load what the entry points of a group name, in every installed package.

    If two packages declare the same name, that of this package is kept, or else that of the first package in
    alphabetical order, which does not depend on `sys.path`.

    Args:
        group (`str`): Name of the group of entry points.
        kind (`type`): Class of what they name, which has an attribute `name`. It is a public name of `trl_ext`.
        noun (`str`): What it is called in messages.
        own (`Mapping[str, T]`, *optional*): Names that this package has without entry points.

    Returns:
        `tuple[dict[str, Plugin], list[Broken]]`: By name, those of this package first, then by package and name; and
        the entry points whose package cannot be imported, or which name something else.
    """
    found: dict[str, Plugin[T]] = {name: Plugin(value, OWN_PACKAGE, "") for name, value in (own or {}).items()}
    broken = []
    for entry in sorted(entry_points(group=group), key=_rank):
        package, version = _owner(entry)
        try:
            value = _load(entry, kind, noun)
            name: str = value.name  # type: ignore[attr-defined]
            if name in found:
                raise ValueError(f"the name {name!r} is taken by {found[name].source.strip()}, which is kept")
        # SystemExit too: a module that calls sys.exit() on import must not end the command
        except (Exception, SystemExit) as error:
            broken.append(Broken(entry.name, package, version, _describe(error)))
        else:
            found[name] = Plugin(value, package, version)
    return found, broken


def _load(entry: EntryPoint, kind: type[T], noun: str) -> T:
    value: Any = entry.load()
    if not isinstance(value, kind):
        raise TypeError(f"{entry.value!r} must be a trl_ext.{kind.__name__}, but is a {type(value).__name__}")
    name = value.name  # type: ignore[attr-defined]
    if canonical(entry.name) != name:
        raise ValueError(f"entry point {entry.name!r} names a {noun} that calls itself {name!r}")
    return value


def _rank(entry: EntryPoint) -> tuple[bool, str, str]:
    package, _ = _owner(entry)
    return package != OWN_PACKAGE, package, entry.name


def _owner(entry: EntryPoint) -> tuple[str, str]:
    # An `EntryPoint` made by hand belongs to no distribution.
    if entry.dist is None:
        return entry.value.partition(":")[0].partition(".")[0], ""
    return re.sub(r"[-_.]+", "-", entry.dist.name).lower(), entry.dist.version


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
