# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which models can try sibling tokens on a shared cache: judged from the config, and confirmed on a few tokens."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from trl_ext.logprobs.prefix_attention import CASCADE
from trl_ext.models.load import base_of, cache_name, is_quantized
from trl_ext.models.modes import evaluation_mode
from trl_ext.upstream import attention_implementation

from .tree_backends import FULL, SLIDING, RecomputeBackend, SharedCacheBackend


logger = logging.getLogger(__name__)

# Attention that takes a mask of 4 dimensions.
_MASKED_ATTENTION = ("sdpa", "eager", CASCADE)

# Settings by which configs without `layer_types` limit attention in a way of their own.
_OWN_WINDOWS = ("window_size", "attention_window_size", "attention_chunk_size")

# What was found out about a model under an attention implementation, dtype and device.
_FOUND: "WeakKeyDictionary[torch.nn.Module, dict[Any, tuple[set[str], str]]]" = WeakKeyDictionary()


def shared_support(backbone: torch.nn.Module, forward_kwargs: Mapping[str, Any]) -> tuple[set[str], str]:
    """
    Whether siblings can share a cache in this model; found out once a model, and said in the log if they cannot.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
        forward_kwargs (`dict`): Further arguments of its forward.

    Returns:
        The kinds of its layers, and why its siblings cannot share a cache; empty if they can.
    """
    base = base_of(backbone)
    known = _FOUND.setdefault(base, {})
    key = (attention_implementation(base.config.get_text_config()), base.dtype, base.device.type)
    if key not in known:
        kinds, reason = _judge(base)
        if not reason:
            with torch.no_grad(), evaluation_mode(backbone), short_window(base):
                reason = _fault(backbone, SharedCacheBackend(backbone, kinds, forward_kwargs), forward_kwargs)
        if reason:
            logger.warning(
                "Sibling tokens of %s are read from their first token each time, which is slow: %s.",
                type(base).__name__,
                reason,
            )
        known[key] = (kinds, reason)
    return known[key]


def _judge(base: Any) -> tuple[set[str], str]:
    """Kinds of the layers, and why they cannot share a cache, from the config."""
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kinds = {SLIDING if window else FULL}
        own = next((name for name in _OWN_WINDOWS if getattr(config, name, None)), None)
        if own is not None:
            return kinds, f"its attention is limited by `{own}`"
    if not kinds <= {FULL, SLIDING}:
        return kinds, f"it has layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))}"
    if base.config.is_encoder_decoder:
        return kinds, "it is an encoder-decoder"
    if attention_implementation(config) not in _MASKED_ATTENTION:
        return kinds, (
            f"{attention_implementation(config)} takes no custom attention mask; load the model with "
            "`attn_implementation='sdpa'` instead"
        )
    missing = {"position_ids", cache_name(base)} - set(inspect.signature(type(base).forward).parameters)
    return kinds, f"its forward takes no `{min(missing)}`" if missing else ""


@contextmanager
def short_window(base: torch.nn.Module) -> Iterator[None]:
    """A few tokens cannot tell whether a window of thousands is respected, so it is shortened meanwhile."""
    config: Any = base.config.get_text_config()  # type: ignore[union-attr,operator]
    window = getattr(config, "sliding_window", None)
    if not window:
        yield
        return
    config.sliding_window = 4
    try:
        yield
    finally:
        config.sliding_window = window


def _fault(backbone: torch.nn.Module, shared: SharedCacheBackend, forward_kwargs: Mapping[str, Any]) -> str:
    """
    Compare the two forms over a prompt, siblings, a kept one, further tokens with siblings, and tokens alone.

    In half precision a difference is judged by what another token in the prompt does to the hidden states: siblings
    that see one another must not pass for a rounding error.
    """
    base = base_of(backbone)
    vocabulary = base.config.get_text_config().vocab_size  # type: ignore[union-attr]
    device = base.get_input_embeddings().weight.device
    ids = torch.tensor([[(7 * i + 3) % vocabulary for i in range(14)]] * 2, device=device)
    replay = RecomputeBackend(backbone, forward_kwargs)
    expected = _walk(replay, ids)
    other = ids.clone()
    other[:, 4] = (ids[:, 4] + 5) % vocabulary
    effect = _distance(_walk(replay, other), expected).mean()
    try:
        error = _distance(_walk(shared, ids), expected)
    except torch.OutOfMemoryError:
        raise  # another time there may be enough
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as failure:
        return f"its forward fails there ({failure})"
    precise = base.dtype == torch.float32 and not is_quantized(base) and not torch.is_autocast_enabled(device.type)
    # Written so that NaN is a fault.
    if bool(error.max() <= 1e-3 if precise else error.mean() <= max(0.03, 0.5 * effect)):
        return ""
    return f"it computes something else there (hidden states differ by {error.max():.2g} of their size)"


def _walk(form: SharedCacheBackend | RecomputeBackend, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states of one walk, of shape (2, 11, D); the second row has two columns of padding."""
    device = ids.device
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    siblings = ids[:, 5:8]
    states = [
        form.forward(ids[:, :7], mask[:, :7], 7, None)[:, -1:],
        form.forward(ids[:, :7], mask[:, :7], 0, siblings),
    ]
    choice = torch.tensor([0, 2], device=device)
    form.keep(choice)
    ids = torch.cat([ids[:, :7], siblings.gather(1, choice[:, None]), ids[:, 8:]], 1)
    states.append(form.forward(ids[:, :9], mask[:, :9], 1, siblings))
    states.append(form.forward(ids[:, :12], mask[:, :12], 3, None))
    return torch.cat(states, 1).float()


def _distance(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)
