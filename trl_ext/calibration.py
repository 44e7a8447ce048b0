# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What half a completion leads to: continuations of it by the model that began it, and their rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import is_conversational
from .rewards import Reward, RewardTable, score
from .rollouts import extra_columns
from .sampling import GenerationSettings, generate


@dataclass(frozen=True)
class HalfWay:
    """
    A completion that was cut in the middle.

    Args:
        row (`dict`): The tokenised row that it belongs to.
        completion_ids (`list[int]`): Its first half, at least one token.
    """

    row: dict[str, Any]
    completion_ids: list[int]

    @property
    def prefix(self) -> list[int]:
        """Prompt and half a completion."""
        return self.row["prompt_ids"] + self.completion_ids


def half_way(rows: Sequence[dict[str, Any]], groups: Sequence[Sequence[list[int]]], limit: int) -> list[HalfWay]:
    """
    Completions of two tokens or more, each cut in the middle: first one of each row, then the next one of each.

    Args:
        rows (`list[dict]`): Tokenised rows.
        groups (`list[list[list[int]]]`): The completions of each row.
        limit (`int`): How many are taken at most.
    """
    states: list[HalfWay] = []
    for k in range(max(map(len, groups), default=0)):
        for row, group in zip(rows, groups, strict=True):
            if len(states) < limit and k < len(group) and len(group[k]) > 1:
                states.append(HalfWay(row, group[k][: len(group[k]) // 2]))
    return states


def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    states: Sequence[HalfWay],
    settings: GenerationSettings,
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    batch_size: int,
    trainer_state: Any = None,
    progress: Callable[[int], Any] | None = None,
) -> RewardTable:
    """
    Draw the rest of each completion several times, and score the whole.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer: What draws.
        states (`list[HalfWay]`): Where to go on from.
        settings ([`~trl_ext.sampling.GenerationSettings`]): Its `num_generations` are drawn for each state; its
            `max_completion_length` is the longest completion, the given half included.
        rewards (`list[Reward]`), weights (`list[float]`, *optional*): See [`~trl_ext.rewards.score`].
        batch_size (`int`): Sequences drawn at once.
        trainer_state (*optional*): Passed to the reward functions.
        progress (`Callable`, *optional*): See [`~trl_ext.sampling.generate`].

    Returns:
        [`~trl_ext.rewards.RewardTable`]: `num_generations` entries for each state, in their order.
    """
    rooms = [max(settings.max_completion_length - len(state.completion_ids), 1) for state in states]
    drawn = generate(
        model,
        tokenizer,
        [state.prefix for state in states],
        replace(settings, max_completion_length=max(rooms)),
        batch_size=batch_size,
        progress=progress,
    )
    owners, ids = [], []
    for state, room, group in zip(states, rooms, drawn, strict=True):
        owners += [state.row] * len(group)
        ids += [state.completion_ids + completion.ids[:room] for completion in group]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    answers = [
        [{"role": "assistant", "content": text}] if is_conversational(row) else text
        for row, text in zip(owners, texts, strict=True)
    ]
    columns = {**extra_columns(owners), "trainer_state": trainer_state}
    return score(rewards, weights, [row["prompt"] for row in owners], answers, ids, columns)
