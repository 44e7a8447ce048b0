# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Scores groups of completions with several weighted reward functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.data.schema import extra_columns

from .functions import Reward


@dataclass(frozen=True)
class ScoredCompletion:
    """
    A completion with its rewards.

    Args:
        completion ([`~trl_ext.data.completion.Completion`]):
            Text, token ids, and whether it ended.
        score (`float`):
            Weighted sum of its rewards; NaN if no reward function applied.
        rewards (`dict[str, float]`):
            Reward of each function by name, unweighted; NaN if the function did not apply.
        returned_nan (`tuple[str, ...]`, *optional*, defaults to `()`):
            Names of the functions that returned NaN itself. One that does not apply returns `None`.
    """

    completion: Completion
    score: float
    rewards: dict[str, float]
    returned_nan: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Text of the completion."""
        return self.completion.text


def score_completions(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Completion]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
    **arguments: Any,
) -> list[list[ScoredCompletion]]:
    """
    Calls every reward function once, on all completions, and adds up the rewards of each completion.

    As in TRL, a `None` or NaN is left out of the sum.

    Args:
        rows (`Sequence[dict[str, Any]]`):
            Rows with a `prompt`. Their other columns are passed to the reward functions, one entry per completion.
        groups (`Sequence[Sequence[Completion]]`):
            The completions of each row.
        rewards (`Sequence[Reward]`):
            From [`~trl_ext.rewards.functions.load_rewards`].
        weights (`Sequence[float]`, *optional*):
            One per reward, 1 by default.
        arguments:
            Further keyword arguments of the reward functions, such as `trainer_state`.

    Returns:
        `list[list[ScoredCompletion]]`: In the order of `groups`.

    Raises:
        [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
        `ValueError`: There is not one group per row or one weight per reward, a weight is not finite, or two rewards
            have the same name.
    """
    names = [reward.name for reward in rewards]
    weights = check_reward_weights(weights, names)
    if len(set(names)) < len(names):
        raise ValueError(f"Reward functions must have different names, got {names}.")
    if len(rows) != len(groups):
        raise ValueError(f"{len(rows)} rows for {len(groups)} groups of completions: pass one group per row.")
    # One entry per completion, as reward functions take them.
    row_of_each, contents, ids = [], [], []
    for row, group in zip(rows, groups, strict=True):
        for completion in group:
            row_of_each.append(row)
            contents.append(completion.content(row))
            ids.append(completion.ids)
    returned: dict[str, list[float | None]] = {name: [] for name in names}
    if contents:
        prompts = [row["prompt"] for row in row_of_each]
        columns = extra_columns(row_of_each) | arguments
        for reward in rewards:
            returned[reward.name] = reward(prompts, contents, ids if any(ids) else None, **columns)
    scored, start = [], 0
    for group in groups:
        end = start + len(group)
        values = [{name: returned[name][i] for name in names} for i in range(start, end)]
        scored.append([_with_score(c, value, weights) for c, value in zip(group, values, strict=True)])
        start = end
    return scored


def _with_score(completion: Completion, values: dict[str, float | None], weights: Sequence[float]) -> ScoredCompletion:
    """A completion with its rewards and their weighted sum."""
    rewards, terms, returned_nan = {}, [], []
    for (name, value), weight in zip(values.items(), weights, strict=True):
        rewards[name] = math.nan if value is None else value
        if value is None:
            continue
        if math.isnan(value):
            returned_nan.append(name)
        else:
            terms.append(weight * value)
    return ScoredCompletion(completion, sum(terms) if terms else math.nan, rewards, tuple(returned_nan))


def check_reward_weights(weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """
    The weight of each reward; all are 1 if none is given.

    Args:
        weights (`Sequence[float]`, *optional*): The weights that were set.
        names (`Sequence[str]`): Names of the rewards.

    Raises:
        `ValueError`: There are more or fewer weights than rewards, or one is NaN or infinite.
    """
    if weights is None:
        return [1.0] * len(names)
    if len(weights) != len(names):
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(f"`reward_weights` has {len(weights)} entries for {len(names)} reward functions{named}.")
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"`reward_weights` must be finite, got {list(weights)}.")
    return list(weights)
