# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Batches of RRHF: prompts with any number of scored completions each, as lists of token ids."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class DataCollatorForScoredCompletions:
    """
    Collects tokenized rows in lists, without padding.

    A batch is a `dict` with `row_index` (`torch.Tensor` of shape `(B,)`), `prompt_ids` (`list[list[int]]`),
    `completion_ids` (`list[list[list[int]]]`) and `scores` (`list[list[float]]`), which are empty for rows whose
    completions are generated in training, and `rows` (the rows themselves, for reward functions).

    Examples:
    ```python
    >>> from trl_ext.methods.rrhf.data import DataCollatorForScoredCompletions

    >>> collator = DataCollatorForScoredCompletions()
    >>> row = {"row_index": 7, "prompt_ids": [1, 2], "completion_ids": [[3], [4, 5]], "scores": [0.0, 1.0]}
    >>> batch = collator([row])
    >>> batch["completion_ids"], batch["scores"]
    ([[[3], [4, 5]]], [[0.0, 1.0]])
    ```
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "row_index": torch.tensor([row["row_index"] for row in rows]),
            "prompt_ids": [row["prompt_ids"] for row in rows],
            "completion_ids": [row.get("completion_ids") or [] for row in rows],
            "scores": [row.get("scores") or [] for row in rows],
            "rows": rows,
        }


def group_index(completions: list[list[Any]]) -> list[int]:
    """The prompt that each completion of a batch belongs to: `[[a, b], [c]]` gives `[0, 0, 1]`."""
    return [b for b, group in enumerate(completions) for _ in group]
