# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Attention for shared rows on GPUs: two variable-length flash attention calls, merged by their log-sum-exp.

Dimensions: B prompts, N completions in all, T tokens in all, H heads, D channels of a head.
"""

from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from trl_ext.upstream import flash_attention_backward, flash_attention_forward, sdpa_attention_forward, sdpa_mask


CASCADE = "trl_ext_cascade"  # name of this attention in transformers


class Span(NamedTuple):
    """One variable-length attention call: the i-th sequence of queries attends to the i-th sequence of keys."""

    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    max_queries: int
    max_keys: int
    causal: bool


class CascadePlan:
    """
    The two attention calls of a cascade: causal inside each segment, and from completions to their prompt.

    Args:
        cu_segments (`torch.Tensor` of shape (B + N + 1,)): Where segments begin: all prompts, then all completions.
        cu_completions (`torch.Tensor` of shape (B + 1,)): Where the completions of each prompt begin among them.
        cu_prompts (`torch.Tensor` of shape (B + 1,)): Where each prompt begins.
        device (`torch.device`): Where the model is.
    """

    def __init__(
        self, cu_segments: torch.Tensor, cu_completions: torch.Tensor, cu_prompts: torch.Tensor, device: torch.device
    ) -> None:
        # Read on the CPU, so that nothing waits for the device.
        self.prompt_tokens = int(cu_prompts[-1])
        segment, completions, prompt = (int(cu.diff().max()) for cu in (cu_segments, cu_completions, cu_prompts))
        cu_segments, cu_completions, cu_prompts = (cu.to(device) for cu in (cu_segments, cu_completions, cu_prompts))
        self.inside = Span(cu_segments, cu_segments, segment, segment, causal=True)
        self.across = Span(cu_completions, cu_prompts, completions, prompt, causal=False)


def flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span, scale: float
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """torch's own variable-length flash attention: (T, H, D) inputs -> output (T, H, D), log-sum-exp (H, T), state."""
    out, lse, state, unused, _ = flash_attention_forward(q, k, v, *span[:4], 0.0, span.causal, False, scale=scale)
    return out, lse, [state, unused]


def flash_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    span: Span,
    state: list[torch.Tensor],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, from the output and log-sum-exp over all scores of a row, those of other calls too."""
    return flash_attention_backward(grad, q, k, v, out, lse, *span[:4], 0.0, span.causal, *state, scale=scale)


class CascadeAttention(torch.autograd.Function):
    """
    Attention of completions to [prompt; themselves] as two flash calls merged by their log-sum-exp.

    With o1, l1 from a completion's own tokens and o2, l2 from its prompt, l = log(e^l1 + e^l2) and
    o = e^(l1 - l) o1 + e^(l2 - l) o2. The backward pass of flash attention recomputes probabilities as e^(s - l), so
    running it for both calls with the merged o and l gives the exact gradients.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: CascadePlan, scale: float
    ) -> torch.Tensor:
        p = plan.prompt_tokens
        out, lse, own_state = flash_forward(q, k, v, plan.inside, scale)
        prompt_out, prompt_lse, prompt_state = flash_forward(q[p:], k[:p], v[:p], plan.across, scale)
        merged = torch.logaddexp(lse[:, p:], prompt_lse)
        own, prompt = ((x - merged).exp().T.unsqueeze(-1) for x in (lse[:, p:], prompt_lse))
        out = torch.cat([out[:p], (out[p:] * own + prompt_out * prompt).to(out.dtype)])
        lse = torch.cat([lse[:, :p], merged], dim=1)
        ctx.save_for_backward(q, k, v, out, lse, *own_state, *prompt_state)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        q, k, v, out, lse, *states = ctx.saved_tensors
        plan, p, grad = ctx.plan, ctx.plan.prompt_tokens, grad.contiguous()
        dq, dk, dv = flash_backward(grad, q, k, v, out, lse, plan.inside, states[:2], ctx.scale)
        tail = (grad[p:], q[p:], k[:p], v[:p], out[p:], lse[:, p:].contiguous())
        dq2, dk2, dv2 = flash_backward(*tail, plan.across, states[2:], ctx.scale)
        return (
            torch.cat([dq[:p], dq[p:] + dq2]),
            torch.cat([dk[:p] + dk2, dk[p:]]),
            torch.cat([dv[:p] + dv2, dv[p:]]),
            None,
            None,
        )


def cascade_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    prefix_plan: CascadePlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for [`~transformers.AttentionInterface`]: a cascade for shared rows, else SDPA."""
    if prefix_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # The kernels take one half-precision dtype; under autocast rotary positions leave queries and keys in float32.
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype).contiguous() for x in (query, key, value))  # (1, H, T, D) -> (T, H, D)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return CascadeAttention.apply(q, k, v, prefix_plan, scale).unsqueeze(0), None


AttentionInterface.register(CASCADE, cascade_attention_forward)
AttentionMaskInterface.register(CASCADE, sdpa_mask)
