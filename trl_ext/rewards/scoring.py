# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Scores completions with several weighted reward functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.data.schema import as_completion, extra_columns

from .functions import Reward


@dataclass(frozen=True)
class RewardTable:
    """
    Rewards of N completions.

    Args:
        total (`list[float]`):
            Weighted sum of each completion's rewards; NaN where no function applied.
        by_name (`dict[str, list[float]]`):
            Each function's own rewards, unweighted; NaN where it did not apply.
        nans (`list[tuple[str, int]]`, *optional*):
            Functions that returned NaN itself, rather than `None`, and for which completions.
    """

    total: list[float]
    by_name: dict[str, list[float]]
    nans: list[tuple[str, int]] = field(default_factory=list)


def score_completions(
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Sequence[Completion]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
) -> RewardTable:
    """
    The rewards of each completion of each row, all in one list, in the form and with the columns of the rows.

    Args:
        rows (`Sequence[dict[str, Any]]`): Rows with a `prompt`, and whatever columns the rewards take.
        completions (`Sequence[Sequence[Completion]]`): The completions of each row.
        rewards (`Sequence[Reward]`): From [`~trl_ext.rewards.functions.load_rewards`].
        weights (`Sequence[float]`, *optional*): One a reward, 1 by default.

    Raises:
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
    """
    flat = [(row, completion) for row, drawn in zip(rows, completions, strict=True) for completion in drawn]
    return score(
        rewards,
        weights,
        [row["prompt"] for row, _ in flat],
        [as_completion(row, x.text) for row, x in flat],
        completion_ids=[x.ids for _, x in flat],
        columns=extra_columns([row for row, _ in flat]),
    )


def check_reward_weights(weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """
    The weight of each reward; all are 1 if none is given.

    Args:
        weights (`Sequence[float]`, *optional*): What was given.
        names (`Sequence[str]`): Names of the rewards.

    Raises:
        `ValueError`: There are more or fewer, or one is NaN or infinite, which would make every score so.
    """
    if weights is None:
        return [1.0] * len(names)
    if len(weights) != len(names):
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(f"`reward_weights` has {len(weights)} entries for {len(names)} reward functions{named}.")
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"`reward_weights` must be finite, got {list(weights)}.")
    return list(weights)


def score(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    columns: dict[str, Any] | None = None,
) -> RewardTable:
    """
    Calls every reward function and adds up what they say, as TRL does: a `None` or NaN is left out of the sum.

    Args:
        rewards (`list[Reward]`): The reward functions.
        weights (`list[float]`, *optional*): One a function; all 1 by default.
        prompts (`list`): One a completion: each prompt is repeated for its completions.
        completions (`list`): The completions, N of them.
        completion_ids (`list[list[int]]`, *optional*): Their token ids.
        columns (`dict[str, Any]`, *optional*):
            The data set's other columns, repeated as the prompts are, and whatever else the functions are to be given.

    Returns:
        [`RewardTable`]

    Raises:
        `RewardError`: See [`Reward`].
        `ValueError`: The weights or the lists do not match in length, a weight is not finite, or two functions have
            one name.
    """
    names = [reward.name for reward in rewards]
    weights = check_reward_weights(weights, names)
    if len(set(names)) < len(names):
        raise ValueError(f"Reward functions must have different names, got {names}.")
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions: give one prompt a completion.")
    if not completions:
        return RewardTable(total=[], by_name={reward.name: [] for reward in rewards})
    nan = float("nan")
    said = {reward.name: reward(prompts, completions, completion_ids, **columns or {}) for reward in rewards}
    nans = [
        (name, i) for name, values in said.items() for i, x in enumerate(values) if x is not None and math.isnan(x)
    ]
    by_name = {name: [nan if value is None else value for value in values] for name, values in said.items()}
    total = []
    for values in zip(*by_name.values(), strict=True):
        known = [w * v for w, v in zip(weights, values, strict=True) if not math.isnan(v)]
        total.append(sum(known) if known else nan)
    return RewardTable(total, by_name, nans)
