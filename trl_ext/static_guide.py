# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a steering logits processor has to offer to take part in a loop of fixed shapes (static_generate.py)."""

from collections.abc import Hashable
from typing import Any, Protocol, runtime_checkable

import torch

from .frozen_model import FrozenModel
from .static_tree import StaticTree


class StaticGuide(Protocol):
    """What a steering processor does in a loop of fixed shapes; it serves other processors of the same key too."""

    state: list[torch.Tensor]
    trees: list[StaticTree]

    def start(self, processor: Any, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Read prompts without their last token, and the processor's settings of the moment."""

    def __call__(self, scores_NV: torch.Tensor, token_N1: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Scores after the token, whose hidden state in the language model is given."""
        ...


@runtime_checkable
class StaticProcessor(Protocol):
    """A logits processor that can work in such a loop."""

    def static_fault(self, llm: FrozenModel) -> str:
        """Why it cannot for this language model, or nothing."""

    def static_key(self) -> Hashable:
        """Equal for processors that can use one another's guide."""

    def static_columns(self) -> int:
        """Columns that it needs behind the text."""

    def static_guide(self, rows: int, columns: int) -> StaticGuide:
        """The guide, in a room of its own."""
