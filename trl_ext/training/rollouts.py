# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Scored completions of a round: scoring, metrics, tables of completions, and files in checkpoints.

A round is the set of completions that one snapshot of the model generates. Checkpoints store it, so that a resumed run
trains on the same completions.
"""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from trl_ext.atomic_files import replacing, write_text
from trl_ext.data.completion import Completion, truncated
from trl_ext.rewards.aggregation import SUM
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.kept_scores import KeptScores
from trl_ext.rewards.scoring import ScoredCompletion, reward_column, score_completions
from trl_ext.upstream import print_prompt_completions_sample

from .config import ExtConfig
from .meters import Meters


@dataclass
class Rollout:
    """
    The completions of one prompt that can be trained on.

    Args:
        completion_ids (`list[list[int]]`): Token ids of each completion.
        scores (`list[float]`): Score of each from its rewards, minus the KL term if there is one.
        rewards (`dict[str, list[float]]`, *optional*): Reward of each by reward function, NaN if it did not apply.
        marks (`list[int]`, *optional*): A number that the method gave each, such as the prompt it was sampled from.
    """

    completion_ids: list[list[int]]
    scores: list[float]
    rewards: dict[str, list[float]] = field(default_factory=dict, compare=False)  # NaN is not equal to itself
    marks: list[int] = field(default_factory=list)

    def append(self, scored: ScoredCompletion, score: float, mark: int | None) -> None:
        """Add a completion with its score after the KL term."""
        self.completion_ids.append(scored.completion.ids)
        self.scores.append(score)
        for name, reward in scored.rewards.items():
            self.rewards[name].append(reward)
        if mark is not None:
            self.marks.append(mark)

    def __add__(self, other: "Rollout") -> "Rollout":
        """The completions of both, with the rewards that both have."""
        both = self.rewards.keys() & other.rewards.keys()
        rewards = {name: self.rewards[name] + other.rewards[name] for name in sorted(both)}
        marks = self.marks + other.marks
        return Rollout(self.completion_ids + other.completion_ids, self.scores + other.scores, rewards, marks)


@dataclass
class Round:
    """
    The completions that one snapshot of the model sampled, with their scores.

    Args:
        rollouts (`dict[int, Rollout]`):
            By row number.
        table (`dict[str, list]`, *optional*):
            For people, one entry per completion: `prompt`, `completion`, the rewards by name, and `score`.
        extra (`dict[str, list]`, *optional*):
            Further columns of the table, which reward functions gave to `log_extra`.
        metrics (`dict[str, list[float]]`, *optional*):
            Values that reward functions gave to `log_metric`, by name.
        is_sampled (`list[bool]`, *optional*):
            For each entry of the table, whether the model sampled it in this round; otherwise the dataset has it.
        ended (`list[bool]`, *optional*):
            For each entry of the table, whether the model ended the completion.
        lengths (`list[int]`, *optional*):
            For each entry of the table, its number of tokens.
        weighted_sums (`list[float]`, *optional*):
            For each entry of the table, the weighted sum of its rewards as they are, minus the KL term if there is
            one: the score, unless rewards are normalised before they are summed.
        nans (`list[tuple[str, int]]`, *optional*):
            Names of the reward functions that returned NaN, each with the number of the row.
    """

    rollouts: dict[int, Rollout]
    table: dict[str, list[Any]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    is_sampled: list[bool] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    weighted_sums: list[float] = field(default_factory=list)
    nans: list[tuple[str, int]] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """The table with the columns of `log_extra` under `extra`, for [`show_tables`]."""
        return self.table | {"extra": self.extra}

    def append(self, row: dict[str, Any], scored: ScoredCompletion, cost: float, *, is_sampled: bool) -> None:
        """Add a completion to the table. `cost` is its KL term, which is subtracted from its score."""
        completion, score = scored.completion, scored.score - cost
        rewards = {reward_column(name): value for name, value in scored.rewards.items()}
        entry = {"prompt": row["prompt"], "completion": completion.content(row), **rewards, "score": score}
        for name, value in entry.items():
            self.table[name].append(value)
        for name, value in scored.extra.items():
            self.extra.setdefault(name, []).append(value)
        self.is_sampled.append(is_sampled)
        self.weighted_sums.append((scored.score if scored.reward is None else scored.reward) - cost)
        self.ended.append(completion.ended)
        self.lengths.append(len(completion.ids))
        row_number = int(row.get("data_row", row["row_index"]))
        self.nans += [(name, row_number) for name in scored.returned_nan]


def score_round(
    rows: list[dict[str, Any]],
    completions: list[list[Completion]],
    rewards: list[Reward],
    weights: list[float] | None,
    *,
    aggregation: str = SUM,
    max_length: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    penalty: Callable[[list[list[int]], list[list[list[int]]]], list[list[float]]] | None = None,
    keep_dataset_completions: bool = False,
    trainer_state: Any = None,
    marks: list[int] | None = None,
    keep_truncated: bool = True,
    kept: KeptScores | None = None,
) -> Round:
    """
    Score the completions of one round.

    Args:
        rows (`list[dict]`):
            Tokenized rows (see [`~trl_ext.data.tokenization.prepare_dataset`]).
        completions (`list[list[Completion]]`):
            The K completions that the model sampled for each row.
        rewards (`list[Reward]`):
            See [`~trl_ext.rewards.functions.load_rewards`].
        weights (`list[float]`, *optional*):
            One per reward, 1 by default.
        aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            How a score is made of several rewards, see [`~trl_ext.rewards.aggregation.aggregate`]. The group of a
            prompt is all of its completions that are scored together.
        max_length (`int`, *optional*, defaults to `0`):
            Maximum number of tokens of prompt and completion together. `0` means no limit.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Truncates longer completions before they are scored. Without it they are left out of the rollouts.
        penalty (`Callable`, *optional*):
            `(prompt_ids, completion_ids) -> costs`: a cost to subtract from the score of each sampled completion.
        keep_dataset_completions (`bool`, *optional*, defaults to `False`):
            Whether the completions that the row has itself are scored with the sampled ones, without a penalty.
        trainer_state (*optional*):
            Passed to the reward functions, as TRL does.
        marks (`list[int]`, *optional*):
            One number for each of the K completions of a row, kept in the rollout.
        keep_truncated (`bool`, *optional*, defaults to `True`):
            Whether the rollouts have sampled completions that the model did not end.
        kept ([`~trl_ext.rewards.kept_scores.KeptScores`], *optional*):
            Keeps what was scored if a reward function fails.

    Raises:
        `RewardError`: A reward function failed, or did not return one number per completion.
    """
    if tokenizer is not None and max_length:
        completions = _truncated_groups(rows, completions, max_length, tokenizer)
    groups = []
    for row, group in zip(rows, completions, strict=True):
        groups.append([*group, *_dataset_completions(row)] if keep_dataset_completions else group)
    metrics: dict[str, list[float]] = {}
    shared = {"metrics": metrics, "kept": kept, "trainer_state": trainer_state}
    scored_groups = score_completions(rows, groups, rewards, weights, aggregation=aggregation, **shared)
    costs: list[list[float]] = [[] for _ in rows]
    if penalty is not None:
        costs = penalty([row["prompt_ids"] for row in rows], [[c.ids for c in group] for group in completions])

    names = [reward.name for reward in rewards]
    columns = ("prompt", "completion", *map(reward_column, names), "score")
    result = Round({}, table={name: [] for name in columns}, metrics=metrics)
    for row, num_sampled, scored_group, costs_of_group in zip(
        rows, map(len, completions), scored_groups, costs, strict=True
    ):
        max_tokens = max_length - len(row["prompt_ids"]) if max_length else math.inf
        rollout = Rollout([], [], {name: [] for name in names})
        for n, scored in enumerate(scored_group):
            cost = costs_of_group[n] if n < len(costs_of_group) else 0.0
            score = scored.score - cost
            result.append(row, scored, cost, is_sampled=n < num_sampled)
            if n < num_sampled and not (keep_truncated or scored.completion.ended):
                continue
            # A longer completion would be trained on without the end that was scored.
            if math.isfinite(score) and 0 < len(scored.completion.ids) <= max_tokens:
                rollout.append(scored, score, marks[n] if marks else None)
        result.rollouts[int(row["row_index"])] = rollout
    return result


def _truncated_groups(
    rows: list[dict[str, Any]],
    groups: list[list[Completion]],
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[Completion]]:
    """Completions that fit in `max_length` tokens together with the prompts of their rows."""
    found = []
    for row, group in zip(rows, groups, strict=True):
        max_tokens = max_length - len(row["prompt_ids"])
        found.append([truncated(completion, max_tokens, tokenizer) for completion in group])
    return found


def _dataset_completions(row: dict[str, Any]) -> list[Completion]:
    """The completions that a tokenized row has itself."""
    found = []
    for content, ids, ended in zip(row.get("completions") or [], row["completion_ids"], row["ended"], strict=True):
        messages = None if isinstance(content, str) else content
        text = content if messages is None else messages[-1].get("content") or ""
        found.append(Completion(text, ids, ended, messages=messages))
    return found


# ---------------------------------------------------------------------------------------------------------- logging


def measure_round(result: Round, rewards: list[Reward], meters: Meters) -> None:
    """Add the metrics of a round's sampled completions, under GRPO's names, and those of reward functions."""
    for name, logged in result.metrics.items():
        meters.add_values(name, torch.tensor(logged))
    sampled = torch.tensor(result.is_sampled, dtype=torch.bool)
    for reward in rewards:
        values = torch.tensor(result.table[reward_column(reward.name)], dtype=torch.float)[sampled]
        meters.add_values(f"rewards/{reward.name}/mean", values)
        meters.add_deviation(f"rewards/{reward.name}/std", values)
    meters.add_values("reward", torch.tensor(result.weighted_sums)[sampled])
    stds = [torch.tensor(r.scores).std() for r in result.rollouts.values() if len(r.scores) > 1]
    if stds:
        meters.add_values("reward_std", torch.stack(stds))
    lengths = torch.tensor(result.lengths, dtype=torch.float)[sampled]
    ended = torch.tensor(result.ended)[sampled]
    meters.add_values("completions/mean_length", lengths)
    meters.add_extremes("completions/min_length", "completions/max_length", lengths)
    meters.add_values("completions/mean_terminated_length", lengths[ended])
    meters.add_values("completions/clipped_ratio", 1 - ended.float())


def show_tables(tables: list[dict[str, Any]], accelerator: Accelerator, args: ExtConfig, step: int, mode: str) -> None:
    """
    Print some completions with their rewards, save all of them as Parquet, and send them to a W&B or Trackio run.

    Every process calls this with its own tables, as [`Round.shown`] returns them; the main process writes those of all
    processes.
    """
    import pandas as pd

    tables = gather_object(tables) if accelerator.num_processes > 1 else tables
    if not tables or not accelerator.is_main_process:
        return
    extra = _joined_extra(tables)
    table = {name: [x for part in tables for x in part[name]] for name in tables[0] if name != "extra"}
    if args.log_unique_prompts:
        first = {json.dumps(prompt): i for i, prompt in reversed(list(enumerate(table["prompt"])))}
        kept = sorted(first.values())
        table, extra = ({name: [x[i] for i in kept] for name, x in columns.items()} for columns in (table, extra))
    folder = Path(args.output_dir) / "completions"
    frame = pd.DataFrame({"step": [step] * len(table["prompt"]), **table, **extra})
    with replacing(folder / f"{mode}_completions_{step:05d}.parquet") as part:
        frame.to_parquet(part)
    prompts, completions = table.pop("prompt"), table.pop("completion")
    print_prompt_completions_sample(prompts, completions, table, None, step, args.num_completions_to_print, extra)
    for tracker in set(args.report_to or []) & {"wandb", "trackio"}:
        module = importlib.import_module(tracker)
        if tracker == "trackio" or module.run is not None:
            module.log({f"{mode}_completions": module.Table(dataframe=frame)})


def _joined_extra(tables: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of `log_extra` in all tables. One with values of several kinds is text, as Parquet has one kind."""
    names = dict.fromkeys(name for part in tables for name in part.get("extra", {}))
    columns: dict[str, list[Any]] = {}
    for name in names:
        values = [x for part in tables for x in part.get("extra", {}).get(name, [None] * len(part["prompt"]))]
        kinds = {type(value) for value in values if value is not None}
        plain = kinds <= {str} or kinds <= {bool} or kinds <= {int, float}
        columns[name] = values if plain else [None if value is None else str(value) for value in values]
    return columns


# ---------------------------------------------------------------------------------------------------------- storage


def save_rollouts(path: Path, rollouts: dict[int, Rollout], **state: Any) -> None:
    """Write rollouts and further values to a JSON file, atomically."""
    document = {
        **state,
        "rollouts": {
            str(row): {"ids": r.completion_ids, "scores": r.scores}
            | ({"rewards": r.rewards} if r.rewards else {})
            | ({"marks": r.marks} if r.marks else {})
            for row, r in rollouts.items()
        },
    }
    write_text(path, json.dumps(document))


def load_rollouts(path: Path) -> tuple[dict[int, Rollout], dict[str, Any]]:
    """Load the rollouts and values that [`save_rollouts`] wrote."""
    document = json.loads(path.read_text())
    rollouts = {
        int(row): Rollout(r["ids"], r["scores"], r.get("rewards", {}), r.get("marks", []))
        for row, r in document.pop("rollouts").items()
    }
    return rollouts, document
