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
from trl_ext.data.completion import Completion, cut
from trl_ext.data.schema import as_completion, extra_columns
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import score
from trl_ext.upstream import print_prompt_completions_sample

from .config import ExtConfig
from .meters import Meters


@dataclass
class Rollout:
    """
    The scored completions of one prompt.

    Args:
        completion_ids (`list[list[int]]`): Token ids, without completions that no reward function scored.
        scores (`list[float]`): Weighted sum of the rewards, minus the KL term if there is one.
        rewards (`dict[str, list[float]]`, *optional*): Rewards by reward function, NaN where one did not apply.
        marks (`list[int]`, *optional*): A number per completion that a method gives it, such as how it was generated.
    """

    completion_ids: list[list[int]]
    scores: list[float]
    rewards: dict[str, list[float]] = field(default_factory=dict, compare=False)  # NaN is not equal to itself
    marks: list[int] = field(default_factory=list)

    def __add__(self, other: "Rollout") -> "Rollout":
        """The completions of both, with the rewards that both have."""
        both = self.rewards.keys() & other.rewards.keys()
        rewards = {name: self.rewards[name] + other.rewards[name] for name in sorted(both)}
        marks = self.marks + other.marks
        return Rollout(self.completion_ids + other.completion_ids, self.scores + other.scores, rewards, marks)


@dataclass
class Round:
    """
    The completions of a round.

    Args:
        rollouts (`dict[int, Rollout]`): The scored completions by row number.
        table (`dict[str, list]`): All completions, one per row: `prompt`, `completion`, the rewards by name, `score`.
        drawn (`list[bool]`): For each row of the table, whether the model generated it in this round, rather than the
            dataset having it.
        ended (`list[bool]`): For each row of the table, whether the completion ended by itself.
        lengths (`list[int]`): For each row of the table, its number of tokens.
        nans (`list[tuple[str, int]]`): Reward functions that returned NaN, and the row of each such completion.
    """

    rollouts: dict[int, Rollout]
    table: dict[str, list[Any]] = field(default_factory=dict)
    drawn: list[bool] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    nans: list[tuple[str, int]] = field(default_factory=list)


def score_round(
    rows: list[dict[str, Any]],
    completions: list[list[Completion]],
    rewards: list[Reward],
    weights: list[float] | None,
    *,
    max_length: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    penalty: Callable[[list[list[int]], list[list[list[int]]]], list[list[float]]] | None = None,
    keep_dataset_completions: bool = False,
    trainer_state: Any = None,
    marks: list[int] | None = None,
) -> Round:
    """
    Score the completions of one round.

    Args:
        rows (`list[dict]`): Tokenised rows (see [`~trl_ext.data.tokenization.prepare_dataset`]).
        completions (`list[list[Completion]]`): K completions for each row.
        rewards (`list[Reward]`): See [`~trl_ext.rewards.functions.load_rewards`].
        weights (`list[float]`, *optional*): One a reward; 1 by default.
        max_length (`int`, *optional*, defaults to `0`): Longest prompt plus completion (`0`: no limit).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Cuts completions that are longer, before
            they are scored; without it they are left out.
        penalty (`Callable`, *optional*): From prompt and completion ids to what is subtracted from each score.
        keep_dataset_completions (`bool`, *optional*, defaults to `False`): Whether each row's own completions join.
        trainer_state (*optional*): Passed to the reward functions, as TRL does.
        marks (`list[int]`, *optional*): One for each of a row's K completions, kept with those that are kept.

    Raises:
        `RewardError`: A reward function failed, or returned something else than a number a completion.
    """
    if tokenizer is not None and max_length:
        rooms = [max_length - len(row["prompt_ids"]) for row in rows]
        completions = [[cut(c, n, tokenizer) for c in some] for some, n in zip(completions, rooms, strict=True)]
    groups: list[list[Completion]] = []
    for row, sampled in zip(rows, completions, strict=True):
        own = _own_completions(row) if keep_dataset_completions else []
        groups.append([*sampled, *own])
    owners = [row for row, group in zip(rows, groups, strict=True) for _ in group]
    flat = [completion for group in groups for completion in group]
    ids = [completion.ids for completion in flat]
    prompts = [row["prompt"] for row in owners]
    texts = [as_completion(row, completion.text) for row, completion in zip(owners, flat, strict=True)]
    table = score(rewards, weights, prompts, texts, ids, {**extra_columns(owners), "trainer_state": trainer_state})
    # Only what the policy has just drawn pays for its distance from the reference.
    prompt_ids, drawn_ids = [row["prompt_ids"] for row in rows], [[c.ids for c in group] for group in completions]
    paid = penalty(prompt_ids, drawn_ids) if penalty else [[0.0] * len(group) for group in completions]
    costs = [c for group, some in zip(groups, paid, strict=True) for c in some + [0.0] * (len(group) - len(some))]
    totals = [total - cost for total, cost in zip(table.total, costs, strict=True)]
    rollouts, start = {}, 0
    for row, group in zip(rows, groups, strict=True):
        numbers = totals[start : start + len(group)]
        room = max_length - len(row["prompt_ids"]) if max_length else math.inf
        # What is still longer than the room was not scored as it would be trained on: it is left out.
        kept = [
            n
            for n, (c, s) in enumerate(zip(group, numbers, strict=True))
            if math.isfinite(s) and 0 < len(c.ids) <= room
        ]
        rollouts[int(row["row_index"])] = Rollout(
            [group[n].ids for n in kept],
            [numbers[n] for n in kept],
            {name: [values[start + n] for n in kept] for name, values in table.by_name.items()},
            [marks[n] for n in kept] if marks else [],
        )
        start += len(group)
    columns = {"prompt": prompts, "completion": texts, **table.by_name, "score": totals}
    drawn = [i < len(some) for group, some in zip(groups, completions, strict=True) for i in range(len(group))]
    nans = [(name, int(owners[i].get("data_row", owners[i]["row_index"]))) for name, i in table.nans]
    return Round(rollouts, columns, drawn, [c.ended for c in flat], [len(c.ids) for c in flat], nans)


def _own_completions(row: dict[str, Any]) -> list[Completion]:
    texts = row.get("completions") or []
    plain = [text if isinstance(text, str) else text[-1].get("content") or "" for text in texts]
    return [Completion(t, i, e) for t, i, e in zip(plain, row["completion_ids"], row["ended"], strict=True)]


# ---------------------------------------------------------------------------------------------------------- logging


def measure_round(sampled: Round, rewards: list[Reward], meters: Meters) -> None:
    """Record the metrics of a round, under the names that TRL's GRPO uses."""
    drawn = torch.tensor(sampled.drawn, dtype=torch.bool)
    for reward in rewards:
        values = torch.tensor(sampled.table[reward.name], dtype=torch.float)[drawn]
        meters.add_values(f"rewards/{reward.name}/mean", values)
        meters.add_deviation(f"rewards/{reward.name}/std", values)
    meters.add_values("reward", torch.tensor(sampled.table["score"])[drawn])
    stds = [torch.tensor(r.scores).std() for r in sampled.rollouts.values() if len(r.scores) > 1]
    if stds:
        meters.add_values("reward_std", torch.stack(stds))
    lengths, ended = torch.tensor(sampled.lengths, dtype=torch.float)[drawn], torch.tensor(sampled.ended)[drawn]
    meters.add_values("completions/mean_length", lengths)
    meters.add_extremes("completions/min_length", "completions/max_length", lengths)
    meters.add_values("completions/mean_terminated_length", lengths[ended])
    meters.add_values("completions/clipped_ratio", 1 - ended.float())


def show_tables(
    tables: list[dict[str, list[Any]]], accelerator: Accelerator, args: ExtConfig, step: int, mode: str
) -> None:
    """
    Print some completions with their rewards, save all of them as Parquet, and send them to a W&B or Trackio run.

    Every process calls this with its own tables; the main process writes those of all processes.
    """
    import pandas as pd

    tables = gather_object(tables) if accelerator.num_processes > 1 else tables
    if not tables or not accelerator.is_main_process:
        return
    table = {name: [value for part in tables for value in part[name]] for name in tables[0]}
    folder = Path(args.output_dir) / "completions"
    frame = pd.DataFrame({"step": [step] * len(table["prompt"]), **table})
    with replacing(folder / f"{mode}_completions_{step:05d}.parquet") as part:
        frame.to_parquet(part)
    prompts, completions = table.pop("prompt"), table.pop("completion")
    print_prompt_completions_sample(prompts, completions, table, None, step, args.num_completions_to_print)
    for tracker in set(args.report_to or []) & {"wandb", "trackio"}:
        module = importlib.import_module(tracker)
        if tracker == "trackio" or module.run is not None:
            module.log({f"{mode}_completions": module.Table(dataframe=frame)})


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
