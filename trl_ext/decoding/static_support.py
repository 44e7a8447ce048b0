# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which models can work in a room of fixed size: judged from what they are, and confirmed on a few tokens."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from trl_ext.models.load import base_of, has_quantized_weights
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.sharding import is_sharded
from trl_ext.upstream import attention_implementation

from .cuda_graph import Replay, cached_loops
from .static_tree import StaticTree
from .tree_backends import SharedCacheBackend
from .tree_support import shared_support, short_window


_FAULTS: "WeakKeyDictionary[torch.nn.Module, dict[Any, str]]" = WeakKeyDictionary()


def static_unsupported_reason(backbone: torch.nn.Module) -> str:
    """
    Why a model's siblings cannot be computed in a room of fixed size; empty if they can.

    Judged from its config and, once a model, by comparing hidden states with those on an ordinary cache.

    Args:
        backbone (`torch.nn.Module`): The model, or a [`~peft.PeftModel`] around it.
    """
    base = base_of(backbone)
    with cached_loops(base).lock:  # who looks or runs changes the model's settings for a while
        known = _FAULTS.setdefault(base, {})
        key = (attention_implementation(base.config.get_text_config()), base.dtype, base.device.type)
        if key not in known:
            known[key] = _look(backbone)
        return known[key]


def _look(backbone: torch.nn.Module) -> str:
    base = base_of(backbone)
    if is_sharded(backbone):
        return "it is in pieces on several devices"
    if len({parameter.device for parameter in base.parameters()}) > 1:
        return "it is on several devices"
    if has_quantized_weights(base):
        return "its weights are quantised"
    config: Any = base.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and attention_implementation(config) != "eager":
        return "its attention leaves out the cap on scores; load it with `attn_implementation='eager'`"
    _, reason = shared_support(backbone, {})
    if reason:
        return reason
    with torch.no_grad(), evaluation_mode(backbone), short_window(base):
        try:
            found, expected, other = _walks(backbone)
        except torch.OutOfMemoryError:
            raise  # another time there may be enough
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as failure:
            return f"its forward fails there ({failure})"
    error, effect = ((x - expected).norm(dim=-1) / expected.norm(dim=-1) for x in (found, other))
    precise = base.dtype == torch.float32 and not torch.is_autocast_enabled(base.device.type)
    # In half precision judged by what another token in the prompt does. Written so that NaN is a fault.
    if bool(error.max() <= 1e-3 if precise else error.mean() <= max(0.03, 0.25 * float(effect.mean()))):
        return ""
    return f"it computes something else there (hidden states differ by {error.max():.2g} of their size)"


def _walks(backbone: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """
    Hidden states along one walk: here, on an ordinary cache, and there with another token in the prompt.

    The second row has two columns of padding. At the end a step is recorded: some forwards wait for the device, which
    no graph can do.
    """
    base: Any = base_of(backbone)
    config = base.config.get_text_config()
    device = base.get_input_embeddings().weight.device
    ids = torch.tensor([[(7 * i + 3) % config.vocab_size for i in range(14)]] * 2, device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    siblings, choice = ids[:, 5:8], torch.tensor([0, 2], device=device)
    tree = StaticTree(backbone, 2, 20)
    found = [tree.start(ids[:, :7], mask[:, :7])[:, None], tree.branch(siblings)]
    tree.keep(choice)
    found += [tree.branch(siblings, after_N1=ids[:, 8:9]), tree.append(ids[:, 9:10])[:, None]]
    Replay(lambda: tree.branch(siblings, after_N1=ids[:, 10:11]), [tree.length_1], device)()
    other = ids.clone()
    other[:, 4] = (ids[:, 4] + 5) % config.vocab_size
    expected = [
        _ordinary(SharedCacheBackend(backbone, tree.kinds, {}), x, mask, siblings, choice) for x in (ids, other)
    ]
    return torch.cat(found, 1).float(), *expected


def _ordinary(
    form: SharedCacheBackend, ids: torch.Tensor, mask: torch.Tensor, siblings: torch.Tensor, choice: torch.Tensor
) -> torch.Tensor:
    path = torch.cat([ids[:, :7], siblings.gather(1, choice[:, None]), ids[:, 8:]], 1)
    expected = [form.forward(ids[:, :7], mask[:, :7], 7, None)[:, -1:]]
    expected.append(form.forward(ids[:, :7], mask[:, :7], 0, siblings))
    form.keep(choice)
    expected.append(form.forward(path[:, :9], mask[:, :9], 1, siblings)[:, 1:])
    expected.append(form.forward(path[:, :10], mask[:, :10], 1, None))
    return torch.cat(expected, 1).float()
