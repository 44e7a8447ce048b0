# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How several rewards of a completion become one score."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard


SUM = "sum_then_normalize"
NORMALIZED_SUM = "normalize_then_sum"
AGGREGATIONS = (SUM, NORMALIZED_SUM)  # of `multi_objective_aggregation`, the names of TRL's GRPO

_EPSILON = 1e-4  # TRL's; rewards that are all the same become 0

# Metadata of the field `multi_objective_aggregation`, wherever it is a setting.
AGGREGATION = {
    "help": "How several rewards become a score: 'sum_then_normalize', their weighted sum; 'normalize_then_sum' "
    "(GDPO), each reward normalised over the completions of its prompt before it is weighted.",
    "choices": list(AGGREGATIONS),
}


def aggregate(
    rewards: Mapping[str, Sequence[float | None]], weights: Sequence[float], aggregation: str = SUM
) -> list[float]:
    """
    The score of each completion of a prompt: a weighted sum, without the rewards that are `None` or NaN.

    Args:
        rewards (`Mapping[str, Sequence[float | None]]`):
            By reward function, the reward of each completion of the prompt.
        weights (`Sequence[float]`):
            One per reward function.
        aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            `"sum_then_normalize"` adds up the rewards as they are: what normalises the sum is the method's affair.
            `"normalize_then_sum"` normalises each reward over the prompt's completions first, see [`normalized`].

    Returns:
        `list[float]`: NaN for a completion to which no reward function applies.

    Raises:
        `ValueError`: There is no such aggregation.
    """
    if rewards:
        check_aggregation(aggregation, list(rewards))
    columns = [normalized(values) if aggregation == NORMALIZED_SUM else values for values in rewards.values()]
    scores = []
    for values in zip(*columns, strict=True):
        terms = [weight * value for weight, value in zip(weights, values, strict=True) if applies(value)]
        scores.append(sum(terms) if terms else math.nan)
    return scores


def check_aggregation(aggregation: str, names: Sequence[str]) -> None:
    """
    Check a setting `multi_objective_aggregation`.

    Args:
        aggregation (`str`): The setting.
        names (`Sequence[str]`): Names of the rewards.

    Raises:
        `ValueError`: There is no such aggregation, or no reward that could be aggregated.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"`multi_objective_aggregation` must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}."
        )
    if aggregation != SUM and not names:
        raise ValueError(
            f"`multi_objective_aggregation: {aggregation}` has no effect without reward functions: scores of a "
            "dataset are taken as they are. Remove it, or pass reward functions."
        )


def normalized(rewards: Sequence[float | None]) -> list[float | None]:
    """
    GDPO (arXiv 2601.05242): (r - mean) / (standard deviation + 1e-4) over the completions of a prompt.

    The deviation has the divisor n - 1, as in TRL. A reward that is `None` or NaN stays so and does not count. Where
    one completion alone has a reward, or all have the same, it becomes 0.
    """
    found = [value for value in rewards if applies(value)]
    if not found:
        return list(rewards)
    mean = sum(found) / len(found)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in found) / max(len(found) - 1, 1))
    return [(value - mean) / (deviation + _EPSILON) if applies(value) else value for value in rewards]


def applies(reward: float | None) -> TypeGuard[float]:
    """Whether a reward function gave a completion a reward."""
    return reward is not None and not math.isnan(reward)
