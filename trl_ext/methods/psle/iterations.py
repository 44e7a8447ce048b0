# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Completions with and without a principle, and the state that PSLE keeps from iteration to iteration."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from trl_ext.atomic_files import write_text
from trl_ext.data.completion import Completion
from trl_ext.evaluation.metrics import distinct_n
from trl_ext.training.engine import GenerateFunction
from trl_ext.training.rollouts import Rollout
from trl_ext.training.row_order import steps_in_epoch
from trl_ext.training.statistics import Running

from .config import PSLEConfig
from .data import GUIDED, PLAIN, principle_index
from .losses import decayed


logger = logging.get_logger(__name__)


def both_views(rows: list[dict[str, Any]], iteration: int, generate: GenerateFunction) -> list[list[Completion]]:
    """
    Completions of each row's plain prompt, then of its guided one. All prompts go to `generate` in one call.

    Of several principles, a row takes the one that its prompt and the iteration determine.

    Args:
        rows (`list[dict]`): Rows with `prompt_ids` and `guided_ids` (empty: plain completions only).
        iteration (`int`): The current iteration, from 0.
        generate (`Callable`): From prompts to K completions of each.

    Returns:
        `list[list[Completion]]`: For each row K plain and K guided completions (or K plain ones).
    """
    plain = [row["prompt_ids"] for row in rows]
    guided = [row["guided_ids"][_index(row, iteration)] for row in rows if row["guided_ids"]]
    completions = generate(plain + guided)
    rest = iter(completions[len(plain) :])
    return [own + (next(rest) if row["guided_ids"] else []) for row, own in zip(rows, completions, strict=False)]


def principle_numbers(rows: list[dict[str, Any]], iteration: int, marks: list[int]) -> list[int]:
    """
    For the table of completions: which principle, from 1, guided each completion (`0`: a plain one).

    With `principles_per_query`, the first of those that guided it together, in the order of [`principle_texts`].
    """
    return [(_index(row, iteration) + 1 if mark == GUIDED else 0) for row in rows for mark in marks]


def _index(row: dict[str, Any], iteration: int) -> int:
    return principle_index(row["prompt_ids"], iteration, len(row["guided_ids"]))


# ------------------------------------------------------------------------------------------------------- iterations


def check_max_steps(args: PSLEConfig, num_rows: int) -> None:
    """
    Check that `max_steps` fits `num_iterations`. If it ends the run early, a warning shows the arithmetic.

    Args:
        args ([`PSLEConfig`]): The trainer's config.
        num_rows (`int`): Number of rows of the train dataset (`0`: a stream).

    Raises:
        `ValueError`: Training would need more iterations than `num_iterations`.
    """
    if args.max_steps <= 0:
        return
    if args.resample_steps:
        if args.max_steps < args.num_iterations:
            logger.warning(
                f"`max_steps` ({args.max_steps}) is less than `num_iterations` ({args.num_iterations}). An iteration "
                "is max_steps / num_iterations steps, so iterations are left out, and the threshold decays several "
                f"times in a step. Set `num_iterations` to {args.max_steps} at most."
            )
        return
    batch = args.train_batch_size * args.world_size
    per_iteration = steps_in_epoch(args, num_rows) * args.epochs_per_iteration
    needed, planned = -(-args.max_steps // per_iteration), args.num_iterations * per_iteration
    arithmetic = (
        f"an iteration is {per_iteration} steps ({num_rows} rows, {batch * args.gradient_accumulation_steps} in a "
        f"step, `epochs_per_iteration` {args.epochs_per_iteration}), so `num_iterations` ({args.num_iterations}) is "
        f"{planned} steps"
    )
    if needed > args.num_iterations:
        raise ValueError(
            f"`max_steps` ({args.max_steps}) needs {needed} iterations: {arithmetic}. Set `num_iterations` to "
            f"{needed}, or `max_steps` to {planned} at most (-1: all of them); or set `resample_steps`, with which an "
            "iteration is max_steps / num_iterations steps."
        )
    if args.max_steps < planned:
        logger.warning(
            f"`max_steps` ({args.max_steps}) ends the run in iteration {needed} of {args.num_iterations}: "
            f"{arithmetic}."
        )


@dataclass
class Sample:
    """Statistics of the completions that one process generated in a round."""

    rewards: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    completions: int = 0
    empty: int = 0
    distinct_2: float = math.nan

    @classmethod
    def of(cls, rollouts: list[Rollout], completions: list[list[Completion]]) -> "Sample":
        """The rewards of `rollouts`, the reward gaps of all pairs in them, and statistics of `completions`."""
        rewards = [reward for rollout in rollouts for reward in rollout.scores]
        gaps = []
        for rollout in rollouts:
            by_view = [
                [s for s, m in zip(rollout.scores, rollout.marks, strict=True) if m == v] for v in (PLAIN, GUIDED)
            ]
            gaps += [guided - plain for plain in by_view[PLAIN] for guided in by_view[GUIDED]]
        flat = [completion for group in completions for completion in group]
        distinct = distinct_n([completion.ids for completion in flat])
        return cls(rewards, gaps, len(flat), sum(not c.text.strip() for c in flat), distinct)


@dataclass
class Iterations:
    """
    The state of the iterations, which checkpoints store so that a resumed run equals an uninterrupted one.

    Args:
        threshold (`float`): The threshold of the current iteration, in units of `scale`.
        number (`int`, *optional*, defaults to `0`): The current iteration, from 0.
        rewards ([`~trl_ext.training.statistics.Running`], *optional*): Mean and deviation of all rewards so far.
        scale (`float`, *optional*, defaults to `1.0`): Divisor of the rewards.
        first_distinct_2 (`float`, *optional*, defaults to NaN): Distinct-2 of the first round.
        tally (`dict[str, float]`, *optional*): Sums over the rounds of the current iteration.
        said (`list[str]`, *optional*): Kinds of warnings that have been logged and are not repeated.
    """

    threshold: float
    number: int = 0
    rewards: Running = field(default_factory=Running)
    scale: float = 1.0
    first_distinct_2: float = math.nan
    tally: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def advance(self, number: int, decay: float) -> None:
        """Advance to iteration `number`: the threshold decays once for each iteration that ended."""
        for _ in range(number - self.number):
            self.threshold = decayed(self.threshold, decay)
        if number > self.number:
            self.number, self.tally = number, {}

    def observe(self, samples: list[Sample], scaling: str, two_sided: bool) -> None:
        """Add the statistics of a round from all processes: the scale of the rewards first, then its pairs."""
        rewards = [reward for sample in samples for reward in sample.rewards]
        gaps = [gap for sample in samples for gap in sample.gaps]
        self.rewards.add(rewards)
        batch = Running()
        batch.add(rewards)
        self.scale = {"running": self.rewards.std, "batch": batch.std, "none": 1.0}[scaling]
        known = [sample.distinct_2 for sample in samples if not math.isnan(sample.distinct_2)]
        distinct = sum(known) / len(known) if known else math.nan
        if math.isnan(self.first_distinct_2):
            self.first_distinct_2 = distinct
        ranked = sum((abs(gap) if two_sided else gap) / self.scale > self.threshold for gap in gaps)
        for name, value in {
            "rounds": 1.0,
            "answers": sum(sample.completions for sample in samples),
            "empty": sum(sample.empty for sample in samples),
            "spread": batch.square,
            "pairs": float(len(gaps)),
            "gap": math.fsum(gaps),
            "ranked": float(ranked),
            "distinct_2": 0.0 if math.isnan(distinct) else distinct,
        }.items():
            self.tally[name] = self.tally.get(name, 0.0) + value

    def warnings(self, ranks: bool = True) -> list[str]:
        """
        Warnings about the current iteration so far. Those about lasting conditions are returned once per run.

        Args:
            ranks (`bool`, *optional*, defaults to `True`): Whether pairs above the threshold are ranked at all.
        """
        t = self.tally
        found: dict[str, str] = {}
        if not t:
            return []
        if t["answers"] and t["empty"] == t["answers"]:
            found["empty"] = "all completions are empty, so the model can only learn to stop immediately."
        same = t["spread"] == 0  # all rewards are: a warning of `ExtTrainer` says it, from which the others follow
        if not same and t["pairs"] and t["gap"] <= 0:
            gap = f"(mean gap {t['gap'] / t['pairs']:.3g} over {t['pairs']:.0f} pairs)"
            found["principle"] = (
                f"plain completions have caught up with guided ones {gap}; which pairs are ranked is now mostly noise."
                if self.number
                else f"guided completions are not better than plain ones {gap}: the principle does nothing; try "
                "another, or another `principle_role`."
            )
        if ranks and not same and t["pairs"] and t["ranked"] in (0, t["pairs"]):
            which, what = ("every", "ranked") if t["ranked"] else ("no", "imitated")
            found["threshold"] = (
                f"{which} pair is above the threshold of {self.threshold:.3g} (x {self.scale:.3g}), so all are {what}."
            )
        if t["distinct_2"] / t["rounds"] < 0.5 * self.first_distinct_2:
            found["diversity"] = (
                f"the diversity of completions collapses: distinct-2 is {t['distinct_2'] / t['rounds']:.2f}, after "
                f"{self.first_distinct_2:.2f} at first. Fewer iterations, a lower `learning_rate`, `beta` or "
                "`sft_mix` preserve it."
            )
        new = {kind: text for kind, text in found.items() if kind not in self.said}
        self.said += [kind for kind in new if kind in ("principle", "diversity")]
        return [f"Iteration {self.number + 1}: {text}" for text in new.values()]

    def save(self, path: Path) -> None:
        """Write the state to a JSON file, atomically."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Iterations":
        """The state that [`Iterations.save`] wrote."""
        state = json.loads(path.read_text())
        return cls(**{**state, "rewards": Running(**state["rewards"])})
