# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Values of every token of a batch's completions. Where it is cheaper, a prompt is computed once for its completions.

Dimensions: B prompts, N completions in the batch, T tokens of the longest completion, L tokens per row, D hidden size,
H heads, A atoms of a categorical head.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_ext.logprobs.balancing_loss import Routing, router_logits
from trl_ext.logprobs.shared_prefix import SharedPrefixRows, unwrapped
from trl_ext.models.properties import base_of


@dataclass
class TokenValues:
    """
    Values of the tokens of a batch's completions.

    Args:
        values (`torch.Tensor` of shape `(N, T, H)`): Value of each token; 0 at padding, which is on the right.
        mask (`torch.Tensor` of shape `(N, T)`): True at tokens, False at padding.
        form (`str`): How the rows were laid out: `"separate"`, `"dense"` or `"cascade"`.
        num_positions (`int`): Positions in the forward pass, padding included.
        routing ([`~trl_ext.logprobs.balancing_loss.Routing`] or `None`): From which the load balancing loss of the
            batch is computed, if it was asked for.
        logits (`torch.Tensor` of shape `(N, T, H, A)` or `None`): Of categorical heads, the unnormalised
            log-probabilities of the atoms; 0 at padding.
    """

    values: torch.Tensor
    mask: torch.Tensor
    form: str
    num_positions: int
    routing: Routing | None = None
    logits: torch.Tensor | None = None

    @cached_property
    def aux_loss(self) -> torch.Tensor | None:
        """The load balancing loss of the batch, if it was asked for."""
        return None if self.routing is None else self.routing.loss()


class CompletionValues(SharedPrefixRows):
    """
    Computes the values of the tokens of completions: lays out the rows, runs the model, and gathers its values.

    Args:
        model ([`~transformers.PreTrainedModel`]): A model with a `backbone`, whose output has `values` of shape
            (N, L) or (N, L, H) and a `last_hidden_state`; without a distributed wrapper.
        pad_token_id (`int`): Token id of padding.
        predict (`bool`, *optional*, defaults to `False`): Whether the value of a token is computed from the hidden
            state before it. The model then receives `next_ids`, the token after each position, -100 for none.
        kwargs: See [`~trl_ext.logprobs.shared_prefix.SharedPrefixRows`].
    """

    quantity = "hidden states"

    def __init__(self, model: PreTrainedModel, pad_token_id: int, *, predict: bool = False, **kwargs: Any) -> None:
        super().__init__(base_of(model.backbone), pad_token_id, predict=predict, **kwargs)

    def base_in(self, model: torch.nn.Module) -> PreTrainedModel:
        """The transformers model in the backbone."""
        return base_of(model.backbone)  # type: ignore[arg-type]

    def __call__(
        self,
        model: torch.nn.Module,
        prompts: list[list[int]],
        completions: list[list[list[int]]],
        *,
        aux_loss: bool = False,
    ) -> TokenValues:
        """
        Values of each token of the completions.

        Args:
            model (`torch.nn.Module`): The model, possibly in a distributed wrapper.
            prompts (`list[list[int]]`): B prompts of at least one token.
            completions (`list[list[list[int]]]`): For each prompt its completions, of at least one token each.
            aux_loss (`bool`, *optional*, defaults to `False`): Whether to compute the load balancing loss of a mixture
                of experts. It is that of separate rows.

        Returns:
            [`TokenValues`]
        """
        self.verify(model)
        form = self.form_of(prompts, completions)
        base = self.base_in(unwrapped(model))
        recording: Any = router_logits(base) if aux_loss else nullcontext([])
        with recording as routers:
            output, rows = self._forward(model, form, prompts, completions)
        index = rows["completion_index"]
        values = output.values if output.values.dim() == 3 else output.values[..., None]
        lengths_N = torch.tensor([len(c) for group in completions for c in group], device=values.device)
        mask_NT = torch.arange(int(max(lengths_N)), device=values.device) < lengths_N[:, None]
        # In every form, the tokens of a completion are contiguous and completions are in order.
        values_NTH = values.new_zeros(*mask_NT.shape, values.shape[-1])
        values_NTH = values_NTH.masked_scatter(mask_NT[..., None], values[index.to(values.device) >= 0])
        tokens = TokenValues(values_NTH, mask_NT, form, rows["input_ids"].numel())
        if output.logits is not None:
            logits = output.logits[index.to(values.device) >= 0]
            tokens.logits = logits.new_zeros(*mask_NT.shape, *logits.shape[1:]).masked_scatter(
                mask_NT[..., None, None], logits
            )
        if aux_loss:
            tokens.routing = Routing(base, list(routers), rows["counts"])
        return tokens

    def _forward(
        self, model: torch.nn.Module, form: str, prompts: list, completions: list
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        rows, inputs = self.inputs(model, form, prompts, completions)
        if self.predict:
            inputs["next_ids"] = rows["shift_labels"].to(inputs["input_ids"].device)
        return model(**inputs), rows

    def probe_values(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> torch.Tensor:
        """Hidden states of all completion tokens, (tokens, D). Values would not do: an untrained head is zero."""
        output, rows = self._forward(model, form, prompts, completions)
        hidden = output.last_hidden_state
        return hidden[rows["completion_index"].to(hidden.device) >= 0].float()
