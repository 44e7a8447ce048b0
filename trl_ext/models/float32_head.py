# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A language model head in float32 on a model in half precision, as ScaleRL recommends (arXiv 2510.13786)."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from .properties import base_of


class Float32Head(nn.Linear):
    """A head that computes in float32, under autocast too."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def cast_head_to_float32(model: Any) -> None:
    """
    Makes the head of a language model compute in float32, with weights in float32.

    A tied input embedding shares these weights; its output keeps its dtype.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, before any distributed wrapper.

    Raises:
        `ValueError`: The head is no plain linear layer.
    """
    base: Any = base_of(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if isinstance(head, Float32Head):
        return
    if type(head) is not nn.Linear:
        raise ValueError(
            f"`cast_lm_head_to_fp32` needs a head that is a plain linear layer; that of {type(base).__name__} is a "
            f"{type(head).__name__}. Leave it out."
        )
    dtype = embedding.weight.dtype
    head.float()
    head.__class__ = Float32Head  # and not a function on the instance, which a deep copy would share
    if embedding.weight is head.weight:
        embedding.register_forward_hook(partial(_cast_output, dtype))


def _cast_output(dtype: torch.dtype, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)
