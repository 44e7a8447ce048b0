# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Batches of MyMethod: prompts with any number of scored completions each."""

from typing import Any

import torch


class DataCollatorForRankings:
    """
    Collects tokenized rows in lists, without padding.

    `completion_ids` and `scores` are empty for rows whose completions training generates. The trainer asks for
    `row_index` (where the completions go) and `rows` (which reward functions get).
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "row_index": torch.tensor([row["row_index"] for row in rows]),
            "prompt_ids": [row["prompt_ids"] for row in rows],
            "completion_ids": [row.get("completion_ids") or [] for row in rows],
            "scores": [row.get("scores") or [] for row in rows],
            "rows": rows,
        }
