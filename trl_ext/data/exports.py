# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
From the row schema to the data of other trainers: the one way out, for `trl-ext sample` and `trl-ext convert`.

An [`Export`] makes rows of one prompt's completions and scores; [`EXPORTS`] lists them. Texts stay texts and messages
stay messages. `formats` reads what they write.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

from datasets import Dataset
from transformers.utils import logging

from trl_ext.validation import check_at_least

from .sampled_ids import ID_COLUMNS
from .schema import AnyDataset, DataError, check_scores, where


logger = logging.get_logger(__name__)

Row: TypeAlias = dict[str, Any]
Counts: TypeAlias = MutableMapping[str, float]

# What a count of rows or completions stands for.
_DESCRIPTIONS = {
    "unended": "prompts without a completion that ended, left out",
    "single": "prompts with fewer than two completions, left out",
    "tied": "prompts whose completions have equal scores, left out",
    "below_margin": "prompts without a pair that is min_margin apart, left out",
    "below_threshold": "prompts without a completion above score_threshold, left out",
    "cut_off": "completions that did not end, to which TRL's trainers add an end-of-sequence token (ended_only leaves "
    "them out)",
    "cut_off_chosen": "of them chosen",
}
# Columns with completions, or with one entry per completion. What is left of another form, such as `chosen` beside
# `completion`, would make TRL's trainers take the rows for that form.
_OF_COMPLETIONS = {"completions", "scores", "ended", "sources", "rewards", "extra", *ID_COLUMNS}
_OF_COMPLETIONS |= {"completion", "chosen", "rejected"}


KEPT = ("best", "threshold", "random")


@dataclass
class ExportSettings:
    """
    The form of the rows that are written.

    Parameters:
        format (`str`, *optional*, defaults to `"scored"`):
            `"scored"`: the row schema, which the trainers of this package read. `"pairs"`, also called `"dpo"`:
            `prompt`, `chosen`, `rejected`. `"kto"`: `prompt`, `completion`, `label`. `"sft"`: `prompt`, `completion`.
        pairing (`str`, *optional*, defaults to `"best_worst"`):
            Pairs of a prompt: `"best_worst"` is one, `"best_others"` the best with each of the others, `"all"` each
            two. Completions with equal scores are no pair.
        min_margin (`float`, *optional*, defaults to `0.0`):
            Least difference of the scores of a pair.
        score_threshold (`float` or `str`, *optional*):
            A number, or `"mean"` or `"median"` of the prompt's scores. With `"kto"`, completions with a higher score
            get the label true; `"mean"` by default. With `"sft"`, all completions with a higher score are written
            (`keep="threshold"`).
        keep (`str`, *optional*):
            What `"sft"` writes of a prompt: its `"best"` completions, those above the `"threshold"`, or `"random"`
            ones, the control of an experiment. If not set, `"threshold"` with a `score_threshold`, else `"best"`.
        keep_per_prompt (`int`, *optional*, defaults to `0`):
            Most completions of a prompt that `"sft"` writes, the best first. `0`: one, or all with
            `keep="threshold"`.
        seed (`int`, *optional*, defaults to `42`):
            Seed of `keep="random"`.
        ended_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out completions that were cut off, whose column `ended` is false.
    """

    format: str = field(
        default="scored",
        metadata={
            "help": "Form of the rows: `scored` for the trainers here, `pairs` or `dpo` (prompt, chosen, rejected), "
            "`kto` (prompt, completion, label), `sft` (prompt, completion).",
            "choices": ["scored", "pairs", "dpo", "kto", "sft"],
        },
    )
    pairing: str = field(
        default="best_worst",
        metadata={
            "help": "Pairs of a prompt: the best and the worst, the best with each of the others, or each two.",
            "choices": ["best_worst", "best_others", "all"],
        },
    )
    min_margin: float = field(default=0.0, metadata={"help": "Least difference of the scores of a pair."})
    # "mean" for KTO: scores of a reward model have no zero, as only differences between completions of a prompt are
    # trained (arXiv 2203.02155, Eq. 1).
    score_threshold: float | str | None = field(
        default=None,
        metadata={
            "help": "A number, or `mean` or `median` of the prompt's scores. `kto`: the label is whether the score is "
            "higher (default: mean). `sft`: all completions with a higher score (default: the best one)."
        },
    )
    keep: str | None = field(
        default=None,
        metadata={
            "help": "What `sft` writes of a prompt: its best completions, those above the threshold, or random ones, "
            "as a control. By default `threshold` with a score_threshold, else `best`.",
            "choices": list(KEPT),
        },
    )
    keep_per_prompt: int = field(
        default=0,
        metadata={
            "help": "Most completions of a prompt that `sft` writes, the best first. 0: one, and all with `threshold`."
        },
    )
    seed: int = field(default=42, metadata={"help": "Seed of `keep random`."})
    ended_only: bool = field(
        default=False, metadata={"help": "Whether to leave out completions that were cut off at their maximum length."}
    )

    def check_export(self) -> None:
        """
        Check the settings, and convert them to one spelling.

        Raises:
            `ValueError`: A setting is out of range, or has no effect on this form.
        """
        self.format = {"dpo": "pairs"}.get(self.format, self.format)
        for name, values in (("format", list(EXPORTS)), ("pairing", ["best_worst", "best_others", "all"])):
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        check_at_least("min_margin", self.min_margin, 0)
        check_at_least("keep_per_prompt", self.keep_per_prompt, 0)
        if self.keep is not None and self.keep not in KEPT:
            raise ValueError(f"`keep` must be one of {', '.join(KEPT)}, got {self.keep!r}.")
        if isinstance(self.score_threshold, str) and self.score_threshold not in ("mean", "median"):
            try:
                self.score_threshold = float(self.score_threshold)
            except ValueError:
                raise ValueError(
                    f"`score_threshold` must be a number, mean or median, got {self.score_threshold!r}."
                ) from None
        if self.keep == "threshold" and self.score_threshold is None:
            raise ValueError("`keep: threshold` needs a `score_threshold`: a number, mean or median.")
        if self.keep in ("best", "random") and self.score_threshold is not None:
            raise ValueError(f"`score_threshold` has no effect with `keep: {self.keep}`: remove one of the two.")
        allowed = EXPORTS[self.format].settings
        for each in fields(ExportSettings):
            changed = getattr(self, each.name) != each.default
            if changed and each.name not in ("format", "seed", *allowed):  # commands that sample have a seed too
                users = " or ".join(name for name, export in EXPORTS.items() if each.name in export.settings)
                raise ValueError(f"`{each.name}` has no effect with --format {self.format}: it is for {users}.")


class _Scored(NamedTuple):
    """A completion as the row has it, its score if there is one, and whether it ended."""

    content: Any
    score: float
    ended: bool


@dataclass(frozen=True)
class Export:
    """
    A form of rows for other trainers.

    Args:
        trainers (`str`): What reads it, for messages.
        make (`Callable`): `(completions, settings, counts) -> rows` without the prompt; adds to the counts what it
            leaves out.
        settings (`tuple[str, ...]`): Names of the settings that it uses.
        needs_scores (`bool`, *optional*, defaults to `True`): Whether it needs scores.
    """

    trainers: str
    make: Callable[[list[_Scored], ExportSettings, Counts], list[Row]] | None
    settings: tuple[str, ...]
    needs_scores: bool = True


def export_row(row: Row, index: int, settings: ExportSettings, counts: Counts) -> list[Row]:
    """
    The rows that a row of the schema becomes. Columns that belong to the prompt are kept.

    Args:
        row (`dict[str, Any]`): A row with `prompt`, `completions` and, for most forms, `scores`.
        index (`int`): Its number, for errors.
        settings ([`ExportSettings`]): The form, already checked.
        counts (`dict[str, float]`): Gets the numbers of what was left out; [`describe_export`] explains them.

    Raises:
        `DataError`: The row has no completions, no scores although the form needs them, or scores that are no
            finite numbers.
    """
    export = EXPORTS[settings.format]
    if export.make is None:
        return [row]
    scored = export.needs_scores or settings.score_threshold is not None or settings.keep == "best"
    for name in ("completions", *(["scores"] if scored else [])):
        if row.get(name) is None:
            raise DataError(
                f"{where(index, column=name)}: is missing, and the form {settings.format!r} is made of completions "
                "with scores: `trl-ext sample` generates and scores them."
            )
    if row.get("scores") is not None:
        check_scores(row, index)
    completions = row["completions"]
    scores = row.get("scores") or [math.nan] * len(completions)
    ended = row.get("ended") or [True] * len(completions)
    found = [_Scored(*each) for each in zip(completions, scores, ended, strict=True)]
    if settings.ended_only:
        found = [each for each in found if each.ended]
    if not found:
        _count(counts, "unended")
        return []
    if settings.keep == "random":
        random.Random(f"{settings.seed} {index}").shuffle(found)
    made = export.make(found, settings, counts)
    if row.get("scores") is None:
        made = [{name: value for name, value in new.items() if name != "score"} for new in made]
    others = {name: value for name, value in row.items() if name not in _OF_COMPLETIONS}
    return [others | new for new in made]


def _pairs(completions: list[_Scored], settings: ExportSettings, counts: Counts) -> list[Row]:
    if len(completions) < 2:
        _count(counts, "single")
        return []
    ranked = sorted(completions, key=lambda each: -each.score)
    candidates = {
        "best_worst": [(ranked[0], ranked[-1])],
        "best_others": [(ranked[0], other) for other in ranked[1:]],
        "all": list(combinations(ranked, 2)),
    }[settings.pairing]
    different = [(a, b) for a, b in candidates if a.score > b.score and a.content != b.content]
    pairs = [(a, b) for a, b in different if a.score - b.score >= settings.min_margin]
    if not pairs:
        _count(counts, "below_margin" if different else "tied")
    for better, worse in pairs:
        _count_cut_off(counts, better, worse)
        if not better.ended:
            _count(counts, "cut_off_chosen")
    # Not `margin`: TRL's RewardTrainer subtracts a column of that name in its loss.
    return [
        {
            "chosen": better.content,
            "rejected": worse.content,
            "score_chosen": better.score,
            "score_rejected": worse.score,
            "score_margin": better.score - worse.score,
        }
        for better, worse in pairs
    ]


def _labels(completions: list[_Scored], settings: ExportSettings, counts: Counts) -> list[Row]:
    given = "mean" if settings.score_threshold is None else settings.score_threshold
    if isinstance(given, str) and len({each.score for each in completions}) < 2:  # none is above or below the others
        _count(counts, "single" if len(completions) < 2 else "tied")
        return []
    threshold = _threshold(completions, given)
    rows = [_completion(each) | {"label": each.score > threshold} for each in completions]
    _count_cut_off(counts, *completions)
    for row in rows:
        _count(counts, "label_true" if row["label"] else "label_false")
    return rows


def _demonstrations(completions: list[_Scored], settings: ExportSettings, counts: Counts) -> list[Row]:
    most = settings.keep_per_prompt or 1
    kept = completions
    if settings.keep == "random":
        kept = completions[:most]  # they are shuffled
    elif settings.score_threshold is not None:
        threshold = _threshold(completions, settings.score_threshold)
        kept = [each for each in completions if each.score > threshold]
        if settings.keep_per_prompt:
            kept = sorted(kept, key=lambda each: -each.score)[:most]
    elif not math.isnan(completions[0].score):
        kept = sorted(completions, key=lambda each: -each.score)[:most]
    if not kept:
        _count(counts, "below_threshold")
    _count_cut_off(counts, *kept)
    return [_completion(each) for each in kept]


def _completion(scored: _Scored) -> Row:
    return {"completion": scored.content, "score": scored.score}


def _threshold(completions: list[_Scored], given: float | str) -> float:
    scores = [each.score for each in completions]
    if given == "mean":
        return statistics.fmean(scores)
    return statistics.median(scores) if given == "median" else float(given)


def _count_cut_off(counts: Counts, *completions: _Scored) -> None:
    for each in completions:
        if not each.ended:
            _count(counts, "cut_off")


def _count(counts: Counts, name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


EXPORTS = {
    "scored": Export("the trainers of trl-ext", None, ()),
    "pairs": Export("TRL's DPOTrainer and RewardTrainer", _pairs, ("pairing", "min_margin", "ended_only")),
    "kto": Export("TRL's KTOTrainer", _labels, ("score_threshold", "ended_only")),
    "sft": Export(
        "TRL's SFTTrainer",
        _demonstrations,
        ("score_threshold", "keep", "keep_per_prompt", "ended_only"),
        needs_scores=False,
    ),
}


def describe_export(counts: Counts) -> str:
    """A description of what [`export_row`] has counted; empty if there is nothing to report."""
    parts = [f"{counts[name]:.0f} {text}" for name, text in _DESCRIPTIONS.items() if counts.get(name)]
    labels = [counts.get(f"label_{value}", 0) for value in ("true", "false")]
    if any(labels):
        parts.insert(0, f"label true {labels[0]:.0f} times, false {labels[1]:.0f}")
        if not all(labels):
            parts.insert(1, "KTO needs both: choose another score_threshold, such as mean")
    return ", ".join(parts)


def export_rows(rows: Iterable[Row], settings: ExportSettings) -> tuple[list[Row], dict[str, float]]:
    """
    [`export_row`] for all rows of a dataset.

    Returns:
        `tuple[list[dict], dict[str, float]]`: The rows, and what was counted.

    Raises:
        `DataError`: A row lacks completions or scores, or no row is left.
    """
    counts: dict[str, float] = {}
    made = [new for index, row in enumerate(rows) for new in export_row(row, index, settings, counts)]
    if not made:
        raise DataError(f"no row is left: {describe_export(counts) or 'the dataset has none'}.")
    return made, counts


def from_scored_rows(dataset: AnyDataset | Iterable[Row], format: str, **settings: Any) -> Dataset:
    """
    Convert rows of the schema to the data of another trainer. What is left out is logged.

    Args:
        dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `Iterable[dict]`):
            Rows with `prompt`, `completions` and `scores`, such as those of [`to_scored_rows`].
        format (`str`):
            `"pairs"` (or `"dpo"`), `"kto"` or `"sft"`; see [`ExportSettings`].
        settings:
            The other fields of [`ExportSettings`].

    Raises:
        `ValueError`: A setting is out of range, or has no effect on this form.
        `DataError`: A row lacks completions or scores, or no row is left.
    """
    chosen = ExportSettings(format, **settings)
    chosen.check_export()
    made, counts = export_rows(dataset, chosen)
    if found := describe_export(counts):
        logger.warning("%d rows for %s; %s.", len(made), EXPORTS[chosen.format].trainers, found)
    return Dataset.from_list(made)
