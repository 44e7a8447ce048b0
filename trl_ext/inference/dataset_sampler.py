# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""From rows of a data set to rows with scored completions, a batch at a time: what `trl-ext sample` repeats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.rewards.functions import Reward
from trl_ext.seeds import seeded

from .dataset_rows import Answer, merge, own_answers, sampled_answers, scored_rows, with_prompt
from .policy import Source


@dataclass
class Batch:
    """
    Output rows of one batch.

    Args:
        rows (`list[dict]`): Rows of the schema.
        totals (`dict[str, float]`): Numbers to add up over the batches.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, float]


@dataclass
class Sampler:
    """
    Draws and scores completions for rows.

    Args:
        sources (`list[Source]`): Models to sample from; may be empty.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How to sample.
        rewards (`list[Reward]`): May be empty.
        weights (`list[float]`, *optional*): One a reward, 1 by default.
        own_columns (`Sequence[str]`): Columns of the data set whose completions join; may be empty.
        deduplicate (`bool`): Whether to keep one of several equal completions of a prompt.
        seed (`int`): Seed of the draws.
        batch_size (`int`): Sequences that a model writes at once.
        name_sources (`bool`): Whether a column `sources` says where each completion comes from.
        best_first (`bool`): Whether the completions of a row come with the best score first.
    """

    sources: list[Source]
    settings: GenerationSettings
    rewards: list[Reward]
    weights: list[float] | None = None
    own_columns: Sequence[str] = ()
    deduplicate: bool = False
    seed: int = 42
    batch_size: int = 128
    name_sources: bool = False
    best_first: bool = False

    def __call__(
        self, rows: Sequence[dict[str, Any]], start: int, progress: Callable[[int], Any] = lambda done: None
    ) -> Batch:
        """
        One batch. What is drawn depends on the rows, the seed and `start` alone, not on what was drawn before; but a
        vLLM server draws by a chance of its own.

        Args:
            rows (`Sequence[dict]`): Rows of the data set.
            start (`int`): Number of the first one.
            progress (`Callable`, *optional*): Called with numbers of prompts done; each model does all of them.
        """
        numbered = [(start + i, with_prompt(row)) for i, row in enumerate(rows)]
        encoded = [[source.encode(row["prompt"]) for _, row in numbered] for source in self.sources]
        rooms = [source.room(self.settings) for source in self.sources]
        fits = [
            i
            for i in range(len(rows))
            if all(not room or len(ids[i]) <= room for room, ids in zip(rooms, encoded, strict=True))
        ]
        kept = [numbered[i] for i in fits]
        groups: list[list[Answer]] = [[] for _ in kept]
        tokens = 0
        for place, (source, ids) in enumerate(zip(self.sources, encoded, strict=True)):
            progress(len(rows) - len(fits))
            drawn = self._draw(source, [ids[i] for i in fits], start, place, progress)
            tokens += sum(len(completion.ids) for completions in drawn for completion in completions)
            for group, (_, row), completions in zip(groups, kept, drawn, strict=True):
                group += sampled_answers(row, completions, source.name)
        if self.own_columns:
            tokenizer = self.sources[0].tokenizer if self.sources else None
            for group, (number, row) in zip(groups, kept, strict=True):
                group += own_answers(row, number, self.own_columns, tokenizer)
        if not self.sources:
            progress(len(rows))
        groups = [merge(group, self.deduplicate) for group in groups]
        made = scored_rows(
            [row for _, row in kept],
            groups,
            self.rewards,
            self.weights,
            used_columns=self.own_columns,
            name_sources=self.name_sources,
            best_first=self.best_first,
        )
        return Batch(made, _totals(made, groups, too_long=len(rows) - len(fits), tokens=tokens))

    def _draw(
        self, source: Source, prompts: list[list[int]], start: int, place: int, progress: Callable[[int], Any]
    ) -> list[list[Completion]]:
        with seeded(self.seed, start, place):
            if source.draw is not None:
                drawn = source.draw(prompts)
                progress(len(prompts))
                return drawn
            return generate(
                source.model,
                source.tokenizer,
                prompts,
                self.settings,
                batch_size=self.batch_size,
                progress=progress,
            )


def _totals(made: list[dict[str, Any]], groups: list[list[Answer]], *, too_long: int, tokens: int) -> dict[str, float]:
    completions = sum(len(row["completions"]) for row in made)
    scores = [row["scores"] for row in made if "scores" in row]
    return {
        "too_long": too_long,
        "unscored": sum(map(len, groups)) - completions,
        "rows_unscored": len(groups) - len(made),
        "completions": completions,
        "ended": sum(sum(row["ended"]) for row in made),
        "score": sum(map(sum, scores)),
        "best_score": sum(map(max, scores)),
        "tokens": tokens,
    }


def losses(totals: dict[str, float]) -> str:
    """What of the totals is no part of the output, in words; empty if nothing is."""
    said = {
        "too_long": "prompts too long for the model with max_completion_length, left out",
        "unscored": "completions that no reward function applies to, left out",
        "rows_unscored": "prompts without a completion that one applies to, left out",
    }
    return ", ".join(f"{totals[name]:.0f} {text}" for name, text in said.items() if totals.get(name))
