# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What a model says of every token of the completions of a batch, with each prompt computed once where that pays.

Letters: B prompts, N completions in all, T tokens of the longest of them, L tokens a row, C numbers a token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from trl_ext.logprobs.row_layout import SharedPrefixRows
from trl_ext.models.load import base_of


@dataclass
class TokenStates:
    """
    Numbers for each token of the completions of a batch.

    Args:
        states (`torch.Tensor` of shape (N, T, C)): Of each token; 0 in padding, which is on the right.
        mask (`torch.Tensor` of shape (N, T)): True where there is a token.
        form (`str`): `"separate"`, `"dense"` or `"cascade"`.
        num_positions (`int`): Positions that went through the model, padding included.
    """

    states: torch.Tensor
    mask: torch.Tensor
    form: str
    num_positions: int


class States(SharedPrefixRows):
    """
    Builds rows for a model that judges the tokens of completions, and reads what it says of each.

    Args:
        model ([`~transformers.PreTrainedModel`]): A model with a `backbone`, whose output has `values` of shape
            (N, L) or (N, L, C) and a `last_hidden_state`; before any distributed wrapper.
        pad_token_id (`int`): Token in padding.
        predict (`bool`, *optional*, defaults to `False`): Whether the model judges a token from the state before it:
            its forward is then given `next_ids`, the token behind each position, -100 for none.
        kwargs: See [`~trl_ext.logprobs.row_layout.SharedPrefixRows`].
    """

    unit = "the hidden state"

    def __init__(self, model: PreTrainedModel, pad_token_id: int, *, predict: bool = False, **kwargs: Any) -> None:
        self.predict = predict
        super().__init__(base_of(model.backbone), pad_token_id, **kwargs)

    def __call__(
        self, model: torch.nn.Module, prompts: list[list[int]], completions: list[list[list[int]]]
    ) -> TokenStates:
        """
        What `model` says of each token of the completions.

        Args:
            model (`torch.nn.Module`): The model, possibly in a distributed wrapper.
            prompts (`list[list[int]]`): B prompts of at least one token.
            completions (`list[list[list[int]]]`): For each prompt its completions, of at least one token each.
        """
        if not self._confirmed:
            inner = extract_model_from_parallel(model)
            self._settle(model, base_of(getattr(inner, "module", inner).backbone))
        form = self._form(prompts, completions)
        output, index, positions = self._forward(model, form, prompts, completions)
        values = output.values if output.values.dim() == 3 else output.values[..., None]
        lengths_N = torch.tensor([len(c) for group in completions for c in group], device=values.device)
        mask_NT = torch.arange(int(max(lengths_N)), device=values.device) < lengths_N[:, None]
        # Tokens of a completion are next to one another in every form, and completions in their order.
        states = values.new_zeros(*mask_NT.shape, values.shape[-1])
        states = states.masked_scatter(mask_NT[..., None], values[index.to(values.device) >= 0])
        return TokenStates(states, mask_NT, form, positions)

    def _forward(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> tuple:
        rows, inputs = self._lay_out(model, form, prompts, completions, predict=self.predict)
        if self.predict:
            inputs["next_ids"] = rows["shift_labels"].to(inputs["input_ids"].device)
        return model(**inputs), rows["completion_index"], rows["input_ids"].numel()

    def probe_of(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> torch.Tensor:
        """Hidden states of all completion tokens, (tokens, D): the head may be zero still."""
        output, index, _ = self._forward(model, form, prompts, completions)
        hidden = output.last_hidden_state
        return hidden[index.to(hidden.device) >= 0].float()
