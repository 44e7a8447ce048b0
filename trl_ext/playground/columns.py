# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of each answer of the page: its model, beta, and the weights of rewards."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .sources import SourceModel


@dataclass(frozen=True)
class Column:
    """
    The settings of one answer.

    Args:
        model (`str`): Label of the model.
        beta (`float`): Strength of the guidance. With one head it is its weight; with several, weights are multiplied
            by it.
        weights (`list[float]`): Weight of each head, where there are several.
    """

    model: str
    beta: float = 1.0
    weights: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return asdict(self)


def default_column(model: SourceModel, factor: float = 1.0) -> Column:
    """The settings that a server gives a model, with `factor` times the strength."""
    heads = list((model.weights or {}).values())
    if len(heads) > 1:
        return Column(model.label, factor, heads)
    return Column(model.label, factor * heads[0] if heads else 0.0)


def first_columns(models: Sequence[SourceModel], count: int) -> list[Column]:
    """
    What the page begins with: a guided model without guidance, with its own, and with twice that; or, if nothing
    guides, the models one after the other.
    """
    guided = next((model for model in models if model.weights is not None), None)
    if guided is not None:
        return [default_column(guided, factor) for factor in (0.0, 1.0, 2.0)[:count]]
    return [default_column(models[i % len(models)]) for i in range(count)]


def weights_of(model: SourceModel, column: Column) -> dict[str, float] | None:
    """
    The weights of the heads that a request gets; `None` if they cannot change.

    Raises:
        `ValueError`: There are fewer weights than heads.
    """
    if model.weights is None:
        return None
    heads = list(model.weights)
    if len(heads) == 1:
        return {heads[0]: column.beta}
    if len(column.weights) < len(heads):
        raise ValueError(f"{model.label!r} has the heads {', '.join(heads)}: give each a weight.")
    return {head: column.beta * weight for head, weight in zip(heads, column.weights, strict=False)}
