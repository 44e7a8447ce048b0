# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration: values of half completions against the mean reward of continuations sampled from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.data.completion import Completion, decode_after
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import ScoredCompletion, score_completions
from trl_ext.training.meters import Meters

from .data import DEFAULT_HEAD


@dataclass(frozen=True)
class HalfCompletion:
    """
    The first half of a completion.

    Args:
        row (`dict`): The tokenised row that it belongs to.
        completion_ids (`list[int]`): Its tokens, at least one.
    """

    row: dict[str, Any]
    completion_ids: list[int]

    @property
    def prefix(self) -> list[int]:
        """Token ids of the prompt and the half completion."""
        return self.row["prompt_ids"] + self.completion_ids


def first_halves(
    rows: Sequence[dict[str, Any]], groups: Sequence[Sequence[list[int]]], limit: int
) -> list[HalfCompletion]:
    """
    First halves of completions with at least two tokens: the first completion of each row, then the second, and so on.

    Args:
        rows (`list[dict]`): Tokenised rows.
        groups (`list[list[list[int]]]`): The completions of each row.
        limit (`int`): Maximum number of halves.
    """
    states: list[HalfCompletion] = []
    for k in range(max(map(len, groups), default=0)):
        for row, group in zip(rows, groups, strict=True):
            if len(states) < limit and k < len(group) and len(group[k]) > 1:
                states.append(HalfCompletion(row, group[k][: len(group[k]) // 2]))
    return states


def sample_halves(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    settings: GenerationSettings,
    limit: int,
    *,
    batch_size: int,
) -> list[HalfCompletion]:
    """
    First halves of the rows' completions, or, for a prompt-only dataset, of one completion per row sampled first.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer: The language model and its tokenizer.
        rows (`list[dict]`): Tokenised rows.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): How to sample.
        limit (`int`): Maximum number of halves.
        batch_size (`int`): Sequences generated at once.
    """
    if rows and "completion_ids" in rows[0]:
        return first_halves(rows, [row["completion_ids"] for row in rows], limit)
    rows = rows[:limit]
    one = replace(settings, num_generations=1)
    sampled = generate(model, tokenizer, [row["prompt_ids"] for row in rows], one, batch_size=batch_size)
    return first_halves(rows, [[completion.ids for completion in group] for group in sampled], limit)


def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    states: Sequence[HalfCompletion],
    settings: GenerationSettings,
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    batch_size: int,
    trainer_state: Any = None,
) -> list[list[ScoredCompletion]]:
    """
    Generate the rest of each completion several times, and score the complete texts.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer: The model that generates.
        states (`list[HalfCompletion]`): The prompts with half a completion.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): `num_generations` is the number of
            continuations of each state; `max_completion_length` limits the complete text, the given half included.
        rewards (`list[Reward]`), weights (`list[float]`, *optional*): See
            [`~trl_ext.rewards.scoring.score_completions`].
        batch_size (`int`): Sequences in one call of the model.
        trainer_state (*optional*): Passed to the reward functions.

    Returns:
        `list[list[ScoredCompletion]]`: For each state its `num_generations` complete completions.
    """
    max_tokens = [max(settings.max_completion_length - len(state.completion_ids), 1) for state in states]
    continuations = generate(
        model,
        tokenizer,
        [state.prefix for state in states],
        replace(settings, max_completion_length=max(max_tokens, default=1)),
        batch_size=batch_size,
    )
    groups = []
    for state, limit, group in zip(states, max_tokens, continuations, strict=True):
        ids = [state.completion_ids + continuation.ids[:limit] for continuation in group]
        prompt = state.prefix[: len(state.prefix) - len(state.completion_ids)]
        texts = decode_after(tokenizer, [prompt] * len(ids), ids)
        ended = [continuation.ended and len(continuation.ids) <= limit for continuation in group]
        groups.append([Completion(*completion) for completion in zip(texts, ids, ended, strict=True)])
    rows = [state.row for state in states]
    return score_completions(rows, groups, rewards, weights, trainer_state=trainer_state)


def measure_calibration(
    meters: Meters, heads: Sequence[str], values_NH: torch.Tensor, groups: Sequence[Sequence[ScoredCompletion]]
) -> None:
    """
    Add to `calibration/r2` and `calibration/correlation` of values with the mean reward of the continuations.

    With several heads, the names end in `/head`.

    Args:
        meters ([`~trl_ext.training.meters.Meters`]): The metrics.
        heads (`Sequence[str]`): Names of the H heads. One that is not a reward function's name is their weighted sum,
            and so is `reward` if it is the only one.
        values_NH (`torch.Tensor` of shape `(N, H)`): Values of N texts, in units of the rewards.
        groups (`list[list[ScoredCompletion]]`): The continuations of these texts, from [`roll_out`].
    """
    for h, head in enumerate(heads if groups else ()):
        name = "" if list(heads) == [DEFAULT_HEAD] else head
        rewards = [[scored.rewards.get(name, scored.score) for scored in group] for group in groups]
        suffix = f"/{head}" if len(heads) > 1 else ""
        meters.add_pairs(
            values_NH[:, h],
            torch.tensor(rewards, dtype=torch.float64).nanmean(dim=-1),
            r2=f"calibration/r2{suffix}",
            correlation=f"calibration/correlation{suffix}",
        )
