# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Fused language model head for the CPU: per-token log-probabilities, one chunk of tokens at a time.

TRL's fused head is written for Triton. Without it, its element-wise operations over (tokens, vocabulary) take most of
a training step of a small model. This one keeps a chunk in the CPU's cache and computes only positions that predict a
token: a step of a 2 M model takes a third of the time (`benchmarks/`). TRL's head is used everywhere else.

Dimensions: T tokens that are predicted, D hidden size, V vocabulary.
"""

import functools
import types
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from trl_ext.models.architecture import logit_cap, logit_scale
from trl_ext.models.copies import independent_copy
from trl_ext.models.float32_head import Float32Head
from trl_ext.models.properties import backbone_of, base_of
from trl_ext.upstream import add_fused_lm_head


CHUNK_ELEMENTS = 1 << 19  # logits of a chunk: 2 MiB in float32, about a second-level cache


@dataclass
class HeadOutput:
    """
    Output of the head for each position, 0 where it predicts nothing; the names are TRL's.

    Args:
        log_probs (`torch.Tensor` of shape (rows, L)): log P of the label, in nats, float32.
        entropy (`torch.Tensor` of shape (rows, L)): Entropy of the prediction, in nats, without gradient.
        is_top1 (`torch.Tensor` of shape (rows, L)): 1 where the label was the most likely token.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor


def add_fused_head(model: PreTrainedModel) -> None:
    """
    Makes `model(..., shift_labels=labels, fused_lm_head=True)` return log-probabilities instead of logits.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, without distributed wrapper. Its other
            calls do not change. A second call of this function has no effect.
    """
    if getattr(model, "_trl_ext_head", False):
        return
    exact = isinstance(model.get_output_embeddings(), Float32Head)
    add_fused_lm_head(model, cast_lm_head_to_fp32=exact, outputs=("log_probs", "entropy", "is_top1"))
    model._trl_ext_head = True  # type: ignore[assignment]
    copy_with_own_weights(model)
    config = model.config.get_text_config()
    if logit_cap(config) or logit_scale(config) != 1:
        return  # only TRL's head applies them
    fused_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, shift_labels: Any = None, **kwargs: Any) -> Any:
        head = self.get_output_embeddings()
        if not fused_lm_head or shift_labels is None or not _is_plain_cpu(head):  # `labels` are for TRL's
            if shift_labels is not None:
                kwargs["shift_labels"] = shift_labels
            return fused_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        hidden = backbone_of(self)(*args, use_cache=False, **kwargs).last_hidden_state
        mask = shift_labels != -100
        with torch.autocast("cpu", enabled=False) if exact else nullcontext():
            values = ChunkedLogProbs.apply(hidden[mask], head.weight, head.bias, shift_labels[mask])
        # `masked_scatter` keeps the graph connected where no position predicts anything.
        return HeadOutput(*(x.new_zeros(mask.shape).masked_scatter(mask, x) for x in values))

    model.forward = types.MethodType(forward, model)


def copy_with_own_weights(model: torch.nn.Module) -> None:
    """Makes a deep copy of a model with the fused head, such as an average of weights, a model with a head too."""
    model.__deepcopy__ = types.MethodType(_deepcopy, model)  # type: ignore[assignment]


def _deepcopy(model: Any, memo: dict[int, Any]) -> Any:
    copied = independent_copy(model, memo)
    add_fused_head(base_of(copied))
    if copied is not base_of(copied):
        copy_with_own_weights(copied)
    return copied


def _is_plain_cpu(head: torch.nn.Module) -> bool:
    """Whether the head's weight is a complete CPU tensor: neither sharded by FSDP or ZeRO-3 nor quantized."""
    weight = head.weight
    return (
        weight.device.type == "cpu"
        and type(weight) in (torch.nn.Parameter, torch.Tensor)
        and weight.is_floating_point()
        and not hasattr(weight, "ds_id")
    )


def from_logits(logits: torch.Tensor, shift_labels: torch.Tensor) -> HeadOutput:
    """
    Log-probabilities from full logits, for models whose head is more than a matrix product.

    Args:
        logits (`torch.Tensor` of shape (rows, L, V)): Logits of the model's own forward.
        shift_labels (`torch.Tensor` of shape (rows, L)): The token each position predicts, -100 for none.
    """
    mask = shift_labels != -100
    all_log_probs = logits[mask].float().log_softmax(dim=-1)
    labels = shift_labels[mask]
    with torch.no_grad():
        entropy = -(all_log_probs.exp() * all_log_probs).sum(dim=-1)
        is_top1 = (all_log_probs.argmax(dim=-1) == labels).float()
    values = (all_log_probs.gather(1, labels[:, None]).squeeze(1), entropy, is_top1)
    return HeadOutput(*(x.new_zeros(mask.shape).masked_scatter(mask, x) for x in values))


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(h W^T + b)[label] with its entropy. Both passes work on chunks and never hold (T, V) logits."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.dtype = _compute_dtype(weight_VD)
        weight = weight_VD.to(ctx.dtype)
        columns = []
        for hidden, labels in _chunks(hidden_TD, labels_T, weight_VD.shape[0]):
            logits = _logits(hidden, weight, bias_V)
            top = logits.amax(dim=1)
            logits.sub_(top[:, None])
            label_logit = logits.gather(1, labels[:, None]).squeeze(1)
            weights = logits.exp()
            total = weights.sum(dim=1)
            log_total = total.log()
            # Shifted logits, and `sum` rather than a product of vectors, whose terms torch adds one after another:
            # together 100 times closer to float64 on a real model.
            entropy = log_total - weights.mul_(logits).sum(dim=1) / total
            columns.append(
                torch.stack([label_logit - log_total, entropy, (label_logit == 0).float(), log_total + top])
            )
        log_probs, entropy, is_top1, lse = torch.cat(columns, dim=1) if columns else hidden_TD.new_zeros(4, 0).float()
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, labels_T, lse)
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, grad_T: torch.Tensor, *_: Any) -> Any:  # type: ignore[override]
        hidden_TD, weight_VD, bias_V, labels_T, lse_T = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        weight = weight_VD.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden_TD) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias_V) if need_bias and bias_V is not None else None
        start = 0
        for hidden, labels in _chunks(hidden_TD, labels_T, weight_VD.shape[0]):
            rows = slice(start, start + len(labels))
            grad = grad_T[rows, None]
            # d log P(label) / d logits = onehot(label) - softmax
            slope = _logits(hidden, weight, bias_V).sub_(lse_T[rows, None]).exp_().mul_(-grad)
            slope.scatter_add_(1, labels[:, None], grad)
            slope_cast = slope.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slope_cast @ weight
            if grad_weight is not None:
                grad_weight.add_(slope_cast.T @ hidden.to(ctx.dtype))
            if grad_bias is not None:
                grad_bias.add_(slope.sum(dim=0))
            start += len(labels)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), grad_bias, None


def _compute_dtype(weight: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        logits = linear(hidden.to(weight.dtype), weight).float()
    return logits if bias is None else logits + bias


def _chunks(hidden: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> Any:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return zip(hidden.split(size), labels.split(size), strict=True) if len(labels) else ()
