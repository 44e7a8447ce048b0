# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The load balancing loss of a mixture of experts, for rows of any form.

It is a function of how often each expert is chosen for the tokens of a batch. A row that holds a prompt once for its K
completions stands for K separate rows, so each token of the prompt counts K times: the loss is that of separate rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from trl_ext.models.properties import backbone_of, base_of
from trl_ext.upstream import load_balancing_loss_function


def router_aux_loss_coef(model: Any, coef: float | None) -> float:
    """
    Coefficient of the load balancing loss; `0` for a model that has none.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model.
        coef (`float` or `None`): The setting `router_aux_loss_coef`. `None`: that of the model's config.

    Raises:
        `ValueError`: A coefficient is given for a model without such a loss.
    """
    base = base_of(model)
    if has_balancing_loss(base):
        own = getattr(base.config.get_text_config(), "router_aux_loss_coef", 0.0) or 0.0
        return own if coef is None else coef
    if coef:
        raise ValueError(
            f"`router_aux_loss_coef` is {coef}, but {type(base).__name__} is no mixture of experts with a load "
            "balancing loss: leave it out."
        )
    return 0.0


def can_return_router_logits(base: PreTrainedModel) -> bool:
    """Whether the model's config has the setting by which it returns the logits of its routers."""
    return hasattr(base.config.get_text_config(), "output_router_logits")


def has_balancing_loss(base: PreTrainedModel) -> bool:
    """Whether transformers has a load balancing loss for the model."""
    return can_return_router_logits(base) and load_balancing_loss_function(base) is not None


@contextmanager
def router_logits(base: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """
    Inside this context the layers below the head record the logits of their routers.

    Args:
        base ([`~transformers.PreTrainedModel`]): The model, inside adapters and wrappers.

    Yields:
        `list[torch.Tensor]`: The logits of each layer, of shape (tokens, experts), of the last forward pass.
    """
    found: list[torch.Tensor] = []

    def ask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_router_logits": True}

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        found[:] = [logits for logits in output.router_logits if logits is not None]

    backbone = backbone_of(base)
    hooks = [
        backbone.register_forward_pre_hook(ask, with_kwargs=True),
        backbone.register_forward_hook(record, with_kwargs=True),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Routing:
    """
    The choices of experts in a batch, from which its load balancing loss is computed.

    Args:
        base ([`~transformers.PreTrainedModel`]): The model.
        logits (`list[torch.Tensor]`): From [`router_logits`]: those of each layer, of shape (tokens, experts).
        counts (`torch.Tensor` of shape (rows, L)): How many separate rows hold each token; 0 for padding.
    """

    base: PreTrainedModel
    logits: list[torch.Tensor]
    counts: torch.Tensor

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """That of several batches as one. The loss of a batch is no sum over its tokens."""
        layers = zip(*(batch.logits for batch in batches), strict=True)
        counts = torch.cat([batch.counts.flatten() for batch in batches])[None]
        return cls(batches[0].base, [torch.cat(logits) for logits in layers], counts)

    def loss(self) -> torch.Tensor:
        """The load balancing loss of the batch."""
        return balancing_loss(self.base, self.logits, self.counts)


def balancing_loss(base: PreTrainedModel, logits: list[torch.Tensor], counts: torch.Tensor) -> torch.Tensor:
    """
    The load balancing loss of a batch.

    Args:
        base ([`~transformers.PreTrainedModel`]): The model.
        logits (`list[torch.Tensor]`): From [`router_logits`].
        counts (`torch.Tensor` of shape (rows, L)): How many separate rows hold each token; 0 for padding.
    """
    if not logits:
        return torch.zeros((), device=counts.device)  # all layers of a mixture may be dense
    config: Any = base.config.get_text_config()
    experts = next(n for n in (_number(base, config, name) for name in ("num_experts", "num_local_experts")) if n)
    function: Any = load_balancing_loss_function(base)
    loss: torch.Tensor = function(tuple(logits), experts, _number(base, config, "num_experts_per_tok"), counts)
    return loss


def _number(base: Any, config: Any, name: str) -> int:
    """A number of experts, which some models have and others only their configs."""
    return int(getattr(base, name, None) or getattr(config, name, None) or 0)
