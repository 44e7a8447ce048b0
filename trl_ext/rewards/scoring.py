# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Scores groups of completions with several weighted reward functions."""

import contextvars
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.data.schema import extra_columns
from trl_ext.progress import progress

from .aggregation import SUM, aggregate
from .async_calls import is_async
from .functions import Reward, RewardError
from .kept_scores import BatchScores, KeptScores


# Columns of tables of completions beside the rewards.
_TABLE_COLUMNS = ("step", "prompt", "completion", "score", "guided")


def reward_column(name: str) -> str:
    """The column of a reward in tables of completions: its name, or `rewards/name` where that is another column."""
    return f"rewards/{name}" if name in _TABLE_COLUMNS else name


@dataclass(frozen=True)
class ScoredCompletion:
    """
    A completion with its rewards.

    Args:
        completion ([`~trl_ext.data.completion.Completion`]):
            Text, token ids, and whether it ended.
        score (`float`):
            Weighted sum of its rewards, which may be normalised over its group; NaN if no reward function applied.
        rewards (`dict[str, float]`):
            Reward of each function by name, unweighted; NaN if the function did not apply.
        returned_nan (`tuple[str, ...]`, *optional*, defaults to `()`):
            Names of the functions that returned NaN itself. One that does not apply returns `None`.
        reward (`float`, *optional*):
            Weighted sum of its rewards as they are. By default the score.
        extra (`dict[str, Any]`, *optional*):
            The completion's entry in each column of `log_extra`; `None` where a call gave none.
    """

    completion: Completion
    score: float
    rewards: dict[str, float]
    returned_nan: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    reward: float | None = None

    def __post_init__(self) -> None:
        if self.reward is None:
            object.__setattr__(self, "reward", self.score)

    @property
    def text(self) -> str:
        """Text of the completion."""
        return self.completion.text


def score_completions(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Completion]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None = None,
    *,
    aggregation: str = SUM,
    metrics: dict[str, list[float]] | None = None,
    kept: KeptScores | None = None,
    **arguments: Any,
) -> list[list[ScoredCompletion]]:
    """
    Calls every reward function in batches of whole groups, and makes one score of the rewards of each completion.

    As in TRL, a `None` or NaN is left out of the sum, and async functions run side by side.

    Args:
        rows (`Sequence[dict[str, Any]]`):
            Rows with a `prompt`. Their other columns are passed to the reward functions, one entry per completion.
        groups (`Sequence[Sequence[Completion]]`):
            The completions of each row.
        rewards (`Sequence[Reward]`):
            From [`~trl_ext.rewards.functions.load_rewards`].
        weights (`Sequence[float]`, *optional*):
            One per reward, 1 by default.
        aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            See [`~trl_ext.rewards.aggregation.aggregate`].
        metrics (`dict[str, list[float]]`, *optional*):
            Receives the values that the functions give to `log_metric`.
        kept ([`~trl_ext.rewards.kept_scores.KeptScores`], *optional*):
            Keeps the batches that were scored if a later call fails, and gives them back when they come again.
        arguments:
            Further keyword arguments of the reward functions. `trainer_state` is an empty state by default.

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
    kept = KeptScores() if kept is None else kept
    if "trainer_state" not in arguments:
        from transformers import TrainerState  # which imports torch; a caller without a trainer may pass None

        arguments["trainer_state"] = TrainerState()
    inputs = _Inputs(rows, groups, arguments)
    scored = _all_scores(inputs, rewards, kept)
    for name, value in [logged for parts in scored.values() for part in parts for logged in part.metrics]:
        if metrics is not None:
            metrics.setdefault(name, []).append(value)
    values = {name: [value for part in parts for value in part.rewards] for name, parts in scored.items()}
    extra = _columns(scored)
    found, start = [], 0
    for group in groups:
        end = start + len(group)
        of_group = {name: values[name][start:end] for name in names}
        columns = {column: entries[start:end] for column, entries in extra.items()}
        scores, sums = (aggregate(of_group, weights, how) for how in (aggregation, SUM))
        found.append(
            [
                _scored_completion(
                    completion,
                    scores[i] if names else math.nan,
                    sums[i] if names else math.nan,
                    {name: rewards_of[i] for name, rewards_of in of_group.items()},
                    {column: entries[i] for column, entries in columns.items()},
                )
                for i, completion in enumerate(group)
            ]
        )
        start = end
    return found


class _Inputs:
    """Rows and groups in the form in which reward functions take them: one entry per completion."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], groups: Sequence[Sequence[Completion]], arguments: dict[str, Any]
    ) -> None:
        self.rows = [row for row, group in zip(rows, groups, strict=True) for _ in group]
        self.contents = [c.content(row) for row, group in zip(rows, groups, strict=True) for c in group]
        ids = [completion.ids for group in groups for completion in group]
        self.ids = ids if any(ids) else None
        self.columns = extra_columns(self.rows)
        self.arguments = arguments
        self.sizes = [len(group) for group in groups]

    def batches(self, size: int) -> Iterator[slice]:
        """Parts of at most `size` completions, of whole groups; a larger group is a part. `0`: one part."""
        start = end = 0
        for group in self.sizes:
            if size and end > start and end + group - start > size:
                yield slice(start, end)
                start = end
            end += group
        if end > start:
            yield slice(start, end)

    def of(self, part: slice) -> dict[str, Any]:
        """The arguments of one call that depend on the completions."""
        return {
            "prompts": [row["prompt"] for row in self.rows[part]],
            "completions": self.contents[part],
            "completion_ids": None if self.ids is None else self.ids[part],
            **{name: values[part] for name, values in self.columns.items()},
        }


def _all_scores(inputs: _Inputs, rewards: Sequence[Reward], kept: KeptScores) -> dict[str, list[BatchScores]]:
    """The scores of all batches by reward: async functions side by side, the others in this thread."""
    taken = {*_TABLE_COLUMNS, *(reward_column(reward.name) for reward in rewards)}

    def score(reward: Reward) -> list[BatchScores]:
        found = []
        with progress(f"scoring by {reward.name}", len(inputs.rows), "completions") as phase:
            for part in inputs.batches(reward.batch_size):
                call = inputs.of(part)
                found.append(kept.get(reward, call, partial(_scored, reward, call, inputs.arguments, taken)))
                phase.advance(part.stop - part.start)
        return found

    waiting = [reward for reward in rewards if is_async(reward.func)]
    # The scores are kept when all threads have ended: then nothing is scored any more.
    with kept.keeping(), ThreadPoolExecutor(max_workers=max(1, len(waiting))) as pool:
        jobs = {reward.name: pool.submit(contextvars.copy_context().run, score, reward) for reward in waiting}
        own = {reward.name: score(reward) for reward in rewards if reward.name not in jobs}
        return {
            reward.name: jobs[reward.name].result() if reward.name in jobs else own[reward.name] for reward in rewards
        }


def _scored(reward: Reward, call: dict[str, Any], arguments: dict[str, Any], taken: set[str]) -> BatchScores:
    """One call of a reward function, and what it logged."""
    size = len(call["prompts"])
    metrics: list[tuple[str, float]] = []
    extra: dict[str, list[Any]] = {}

    def log_metric(name: str, value: float) -> None:
        try:
            metrics.append((str(name), float(value)))
        except (TypeError, ValueError):
            raise RewardError(
                f"The reward function '{reward.name}' called log_metric({name!r}, {value!r}): a metric is a number."
            ) from None

    def log_extra(column: str, values: Sequence[Any]) -> None:
        if column in taken:
            raise RewardError(
                f"The reward function '{reward.name}' called log_extra({column!r}, ...), but the table of completions "
                "has this column already: choose another name."
            )
        if len(values) != size:
            raise RewardError(
                f"The reward function '{reward.name}' called log_extra({column!r}, ...) with {len(values)} values for "
                f"{size} completions: give one value per completion."
            )
        extra[str(column)] = list(values)

    logs: dict[str, Any] = {"log_metric": log_metric, "log_extra": log_extra}
    return BatchScores(reward(**call, **arguments, **logs), metrics, extra)


def _columns(scored: dict[str, list[BatchScores]]) -> dict[str, list[Any]]:
    """The columns of `log_extra` over all batches, `None` for the completions of a call that gave none."""
    columns: dict[str, list[Any]] = {}
    for parts in scored.values():
        for name in dict.fromkeys(name for part in parts for name in part.extra):
            columns[name] = [x for part in parts for x in part.extra.get(name, [None] * len(part.rewards))]
    return columns


def _scored_completion(
    completion: Completion, score: float, reward: float, values: dict[str, float | None], extra: dict[str, Any]
) -> ScoredCompletion:
    rewards = {name: math.nan if value is None else value for name, value in values.items()}
    returned_nan = tuple(name for name, value in values.items() if value is not None and math.isnan(value))
    return ScoredCompletion(completion, score, rewards, returned_nan, extra, reward)


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
