# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks by which transformers' training loop calls back into a trainer."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class OnTrainBegin(TrainerCallback):
    """
    Calls a function when the training loop begins, before the first step.

    Args:
        begin (`Callable`): The function.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin()
