# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Weights of named things, which may differ from row to row of a batch.

N rows, H names.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch


def parse_weights(text: str, field: str = "weights") -> float | dict[str, float]:
    """
    `"2"` as a number, `"helpful=2,concise=0.5"` as a dictionary.

    Args:
        text (`str`): What the user wrote.
        field (`str`, *optional*, defaults to `"weights"`): What errors call it.

    Raises:
        `ValueError`: It is neither.
    """
    parts = [part.partition("=") for part in text.split(",")]
    try:
        if len(parts) == 1 and not parts[0][1]:
            return float(text)
        named = {name.strip(): float(number) for name, equals, number in parts if equals and name.strip()}
    except ValueError:
        named = {}
    if len(named) < len(parts):
        raise ValueError(f"`{field}` must be a number, or name=number,name=number with different names; got {text!r}.")
    return named


class RowWeights:
    """
    A weight a name, for all rows alike or for each.

    Args:
        given (`float`, `dict[str, float]`, or a sequence of those):
            A number is the weight of the only name there is; names that a dictionary leaves out weigh 0. One for all
            rows, or a list of one a row or a prompt (the rows of a prompt standing next to one another).
        names (`Sequence[str]`): The names.
        aliases (`dict[str, str]`, *optional*): Further names, for some of them.
        field (`str`, *optional*, defaults to `"weights"`): What errors call it.

    Raises:
        `ValueError`: A weight is no finite number, a name is not there, or a number was given where there are several
            names.
        `TypeError`: It is none of these.
    """

    def __init__(
        self,
        given: Any,
        names: Sequence[str],
        *,
        aliases: Mapping[str, str] | None = None,
        field: str = "weights",
    ) -> None:
        self.names, self.aliases, self.field = list(names), dict(aliases or {}), field
        if isinstance(given, torch.Tensor):
            given = given.tolist()
        each = isinstance(given, Sequence) and not isinstance(given, str)
        rows = list(given) if each else [given]
        if not rows:
            raise ValueError(f"`{field}` is an empty list: give one weight a row, or one for all.")
        self.rows = [self._row(row, f" of row {i}" if each else "") for i, row in enumerate(rows)]
        self._made: dict[Any, torch.Tensor] = {}

    def _row(self, given: Any, where: str) -> list[float]:
        if isinstance(given, Real):
            if len(self.names) > 1:
                raise ValueError(
                    f"`{self.field}`{where} is one number for {', '.join(self.names)}: say which, as in "
                    f"{self.names[0]}={float(given):g} on the command line and "
                    f"{{{self.names[0]!r}: {float(given):g}}} in Python."
                )
            given = {self.names[0]: given}
        if not isinstance(given, Mapping):
            raise TypeError(f"`{self.field}`{where} must be a number or a dictionary, got {type(given).__name__}.")
        found = dict.fromkeys(self.names, 0.0)
        for name, weight in given.items():
            known = self.aliases.get(name, name)
            if known not in found:
                raise ValueError(
                    f"`{self.field}`{where} has a weight for {name!r}, which does not exist; there is "
                    f"{', '.join(map(repr, self.names))}."
                )
            if not isinstance(weight, Real) or not math.isfinite(weight):
                raise ValueError(f"`{self.field}`{where} must be a finite number, got {weight!r} for {name!r}.")
            found[known] = float(weight)
        return list(found.values())

    def any(self, names: slice = slice(None)) -> bool:
        """Whether any of these names has a weight that is not 0, in any row."""
        return any(weight for row in self.rows for weight in row[names])

    def tensor(self, n: int, device: torch.device) -> torch.Tensor:
        """
        The weights of `n` rows, of shape (N, H), float32.

        Raises:
            `ValueError`: There is not one a row or a prompt.
        """
        if n % len(self.rows):
            raise ValueError(
                f"`{self.field}` has {len(self.rows)} rows and the batch has {n}: give one for each sequence or "
                "prompt of the batch, or one for all."
            )
        if (n, device) not in self._made:
            rows = torch.tensor(self.rows, dtype=torch.float32, device=device)
            self._made = {(n, device): rows.repeat_interleave(n // len(rows), 0)}
        return self._made[n, device]


def full_names(name: str, heads: Sequence[str]) -> list[str]:
    """What `beta` calls the heads of a value model of this name (`""` for one without)."""
    return list(heads) if not name else [name] if len(heads) == 1 else [f"{name}/{head}" for head in heads]


def head_weights(beta: Any, heads: Sequence[str]) -> RowWeights:
    """The weights of heads by their full names, or by what comes after the `/` where only one is called that."""
    bare = [head.rpartition("/")[2] for head in heads]
    aliases = {name: full for name, full in zip(bare, heads, strict=True) if bare.count(name) == 1}
    aliases = {name: full for name, full in aliases.items() if name not in heads}
    return RowWeights(beta, heads, aliases=aliases, field="beta")
