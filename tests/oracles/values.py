# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Values, TD(lambda) targets and the loss of VAS as plain loops, and rows to train on."""

from collections.abc import Sequence
from typing import Any

import torch
from conftest import letter_reward

from trl_ext import ValueModel


def oracle_targets(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """The recursion of the authors' code, in plain numbers."""
    ahead, after, targets = 0.0, 0.0, []
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        ahead = reward + gamma * after - value + gamma * lam * ahead
        targets.append(ahead + value)
        after = value
    return targets[::-1]


def oracle_values(model: ValueModel, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Values (T, H) of a completion, from one sequence at a time: V(s + a), or v(h) + sum over r of u_r (W h)_r."""
    hidden = model.backbone(input_ids=torch.tensor([prompt + ids])).last_hidden_state[0]
    if model.config.form == "state":
        return hidden[len(prompt) :] @ model.head.weight.T + model.head.bias
    if model.config.form == "policy":
        hidden = hidden.detach()
    rank, rows = model.config.action_rank, []
    for t, token in enumerate(ids):
        before = hidden[len(prompt) + t - 1]
        row = []
        for h in range(len(model.head_names)):
            query = model.action.query.weight[h * rank : (h + 1) * rank] @ before
            state_term = model.head.weight[h] @ before + model.head.bias[h]
            row.append(state_term + (model.action.actions.weight[token] * query).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def oracle_loss(
    model: ValueModel, dataset: Any, gamma: float = 1.0, lam: float = 0.95, shift: Any = (0.0, 1.0), old: Any = None
) -> Any:
    """
    The mean over tokens of the sum over heads of 0.5 (V - G)^2.

    `shift` is the mean and deviation of the rewards. Targets come from the values of `old` if it is given.
    """
    total, count = torch.zeros(()), 0
    for row in dataset:
        for ids, by_head in zip(row["completion_ids"], row["token_rewards"], strict=True):
            values = oracle_values(model, row["prompt_ids"], ids)
            source = (values if old is None else oracle_values(old, row["prompt_ids"], ids)).detach()
            count += len(ids)
            for h, numbers in enumerate(by_head):
                if not numbers:
                    continue
                rewards = [0.0] * (len(ids) - len(numbers)) + [x / shift[1] for x in numbers]
                rewards[-1] -= shift[0] / shift[1]
                targets = oracle_targets(rewards, source[:, h].tolist(), gamma, lam)
                for t, target in enumerate(targets):
                    total = total + 0.5 * (values[t, h] - target) ** 2
    return total / count


def rows_scored_by_letters(count: int) -> list[dict]:
    """Rows of three completions, whose scores can be computed from their tokens."""
    words = ["good", "bad", "dull", "story", "movie", "no", "not", "hated"]
    rows = []
    for i in range(count):
        texts = []
        for j in range(3):
            texts.append(" " + " ".join(words[(i * 7 + j * 3 + k * (i + j + 1)) % 8] for k in range(4)))
        rows.append({"prompt": ["the", "a", "we"][i % 3], "completions": texts, "scores": letter_reward(texts)})
    return rows
