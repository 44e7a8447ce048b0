# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guidance in a loop of fixed shapes: what values add to the logits of a token, as part of its CUDA graph.

N rows, P tokens of a prompt, k candidates, H heads, V vocabulary, D hidden size of the language model.
"""

import torch

from ..static_tree import StaticTree
from .generation import Guide, ValueAugmentedLogitsProcessor


class StaticValues:
    """
    Value models in rooms of fixed size; a [`~trl_ext.static_generate.StaticGuide`].

    Each reads the last token and the candidates behind it in one forward; the form `"action"` the last token alone,
    and `"policy"` nothing.

    Args:
        processor ([`ValueAugmentedLogitsProcessor`]): Whose value models and `top_k` these are.
        rows (`int`), columns (`int`): Sizes of the rooms.
    """

    def __init__(self, processor: ValueAugmentedLogitsProcessor, rows: int, columns: int) -> None:
        self.processor = processor
        self._trees = {
            guide: StaticTree(guide.model.backbone, rows, columns)
            for guide in processor.guides
            if guide.model.config.form != "policy"
        }
        self.trees = list(self._trees.values())
        device = processor.guides[0].device
        self.weights_NH = torch.zeros(rows, len(processor.heads), device=device)
        self.state = [self.weights_NH, *(tree.length_1 for tree in self.trees)]

    def start(self, processor: ValueAugmentedLogitsProcessor, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Read prompts, and take the weights of this call."""
        for tree in self.trees:
            tree.start(ids_NP.to(tree.device), mask_NP.to(tree.device))
        weights = processor.weights(len(ids_NP), self.weights_NH.device)
        self.weights_NH.copy_(weights.expand_as(self.weights_NH))

    def __call__(self, scores_NV: torch.Tensor, token_N1: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Scores (N, V) with the values of what may follow the token."""

        def values(guide: Guide, candidates_Nk: torch.Tensor) -> torch.Tensor:
            if guide.model.config.form == "policy":
                return guide.model.action_values(hidden_ND, candidates_Nk)
            tree = self._trees[guide]
            if guide.model.config.form == "action":
                return guide.model.action_values(tree.append(token_N1), candidates_Nk)
            return guide.model.value_of(tree.branch(candidates_Nk, after_N1=token_N1))

        return self.processor.moved(scores_NV, self.weights_NH, self.processor.guides, values)
