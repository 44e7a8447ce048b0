# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What `compute_metrics` gets: tables with a row for each prompt and a column for each of its completions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction


# The value with which transformers pads the tables of batches and processes that have fewer columns than others.
_PADDING = -100.0


def completion_table(values: torch.Tensor, columns: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """
    Numbers of the completions of a batch as a table.

    Args:
        values (`torch.Tensor` of shape `(N, ...)`): For each completion, prompt by prompt.
        columns (`list[list[int]]`): For each of the B prompts, the columns of its completions; none for a prompt
            whose completions `values` leaves out.
        width (`int`): Number of columns. The table has more if there are completions beyond them.

    Returns:
        `torch.Tensor` of shape `(B, width, ...)`: The numbers, NaN where there is no completion.

    Examples:
    ```python
    >>> import torch
    >>> from trl_ext.training.predictions import completion_table

    >>> completion_table(torch.tensor([1.0, 2.0, 3.0]), [[0, 1], [], [1]], 2)
    tensor([[1., 2.],
            [nan, nan],
            [nan, 3.]])
    ```
    """
    places = [(b, column) for b, own in enumerate(columns) for column in own]
    width = max([width, *(column + 1 for _, column in places)])
    table = values.new_full((len(columns), width, *values.shape[1:]), torch.nan)
    if places:
        rows, chosen = torch.tensor(places, device=values.device).T
        table[rows, chosen] = values.detach()
    return table


def with_nan(predictions: Any, labels: Any) -> tuple[Any, Any]:
    """
    Predictions and labels with NaN where transformers padded batches of fewer completions.

    Only a stream, which is not read ahead, has batches of different widths.
    """
    if not isinstance(predictions, np.ndarray) or not isinstance(labels, np.ndarray):
        return predictions, labels
    padding = (predictions == _PADDING) & (labels == _PADDING)  # both: a reward may be -100
    return np.where(padding, np.nan, predictions), np.where(padding, np.nan, labels)


def on_tables(compute_metrics: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """`compute_metrics`, called with NaN where there is no completion."""

    @functools.wraps(compute_metrics)  # transformers reads the signature
    def compute(prediction: EvalPrediction, **kwargs: Any) -> dict[str, float]:
        tables = with_nan(prediction.predictions, prediction.label_ids)
        return compute_metrics(EvalPrediction(*tables, prediction.inputs, prediction.losses), **kwargs)

    return compute
