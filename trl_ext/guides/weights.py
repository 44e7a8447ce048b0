# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Weights of the heads of guides, one for all rows of a batch or one per row.

Dimensions: N rows, H heads.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch


# Far larger ones overflow in float32: infinity minus infinity is NaN, and NaN logits sample any token.
MAX_WEIGHT = 1e4


def parse_weights(text: str, field: str = "weights") -> float | dict[str, float]:
    """
    Parse weights from the command line: `"2"` is a number, `"helpful=2,concise=0.5"` is a dictionary.

    Args:
        text (`str`): The text.
        field (`str`, *optional*, defaults to `"weights"`): Name of the setting in errors.

    Raises:
        `ValueError`: The text is neither.
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


def describe_weights(weights: Mapping[str, float]) -> str:
    """Weights as [`parse_weights`] reads them."""
    if len(weights) == 1:
        return f"{next(iter(weights.values())):g}"
    return ",".join(f"{name}={weight:g}" for name, weight in weights.items())


class RowWeights:
    """
    One weight per name, the same for all rows or one set per row.

    Args:
        given (`float`, `dict[str, float]`, or a sequence of those):
            A number is the weight of the only name. Names that a dictionary omits have weight 0. A sequence has one
            entry per row, or one per prompt (the rows of a prompt are contiguous).
        names (`Sequence[str]`): The H names.
        aliases (`dict[str, str]`, *optional*): Further names, mapped to names.
        field (`str`, *optional*, defaults to `"weights"`): Name of the setting in errors.

    Raises:
        `ValueError`: A weight is not a finite number of up to `MAX_WEIGHT` in size, a name does not exist, or there is
            one number for several names.
        `TypeError`: `given` has another type.
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
            raise ValueError(f"`{field}` is an empty list: give one weight per row, or one for all rows.")
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
            number: Any = weight  # compared as it is: an integer may be too large for a float
            if not isinstance(weight, Real) or not -MAX_WEIGHT <= number <= MAX_WEIGHT:
                raise ValueError(
                    f"`{self.field}`{where} must be a finite number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}, got "
                    f"{weight!r} for {name!r}."
                )
            found[known] = float(weight)
        return list(found.values())

    def any(self, names: slice = slice(None)) -> bool:
        """Whether any of these names has a nonzero weight in any row."""
        return any(weight for row in self.rows for weight in row[names])

    def tensor(self, n: int, device: torch.device) -> torch.Tensor:
        """
        The weights of a batch.

        Args:
            n (`int`): N, number of rows of the batch.
            device (`torch.device`): Device of the result.

        Returns:
            `torch.Tensor` of shape `(N, H)`, float32.

        Raises:
            `ValueError`: N is not a multiple of the number of rows with weights.
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
    """
    Names that weights have for the heads of a guide.

    They are the names of the heads for a guide without a name (`""`), the guide's name if it has one head, and
    `"name/head"` if it has several.
    """
    if not name:
        return list(heads)
    return [name] if len(heads) == 1 else [f"{name}/{head}" for head in heads]


def head_weights(given: Any, heads: Sequence[str], field: str = "weights") -> RowWeights:
    """
    The weights of heads with these full names; `"head"` may be written for `"name/head"` if unambiguous.

    Args:
        given (`float`, `dict[str, float]`, or a sequence of those): As for [`RowWeights`].
        heads (`Sequence[str]`): Full names of the heads.
        field (`str`, *optional*, defaults to `"weights"`): Name of the setting in errors.
    """
    short_names = [head.rpartition("/")[2] for head in heads]
    aliases = {}
    for short, full in zip(short_names, heads, strict=True):
        if short_names.count(short) == 1 and short not in heads:
            aliases[short] = full
    return RowWeights(given, heads, aliases=aliases, field=field)
