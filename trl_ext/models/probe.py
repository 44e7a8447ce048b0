# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Self-test at run time: compares a fast path with a plain computation on a few tokens before it is relied on."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from .modes import evaluation_mode
from .properties import has_quantized_weights


# Results of the self-tests of each model.
_RESULTS: "WeakKeyDictionary[torch.nn.Module, dict[Hashable, str | None]]" = WeakKeyDictionary()


# A path that shows or hides a token is at least half as far from the reference as another prompt.
_MOST_OF_EFFECT = 0.4


@dataclass(frozen=True)
class Tolerance:
    """
    How far a fast path may be from its reference, as relative errors of vectors.

    Rounding errors in half precision depend on the depth of the model and on the processor, so that no fixed bound
    fits. They are also compared with the effect of another prompt: a fast path that hides the prompt, or shows a token
    too many, is as far from the reference as that. And they are compared with rounding itself, which is how far the
    reference is from itself in another layout.

    Args:
        precise (`float`, *optional*, defaults to `1e-3`): Largest error in float32.
        rounded (`float`, *optional*, defaults to `0.03`): Mean error in half precision and with quantized weights.
        of_effect (`float`, *optional*, defaults to `0.0`): Mean error there, as a part of the effect of another
            prompt. The largest of the bounds counts.
        of_rounding (`float`, *optional*, defaults to `4.0`): Mean error there, as a multiple of the effect of another
            layout. This bound is at most 0.4 of the effect of another prompt.
        smallest_norm (`float`, *optional*, defaults to `0.0`): Vectors below this norm count as if they had it.
    """

    precise: float = 1e-3
    rounded: float = 0.03
    of_effect: float = 0.0
    of_rounding: float = 4.0
    smallest_norm: float = 0.0


def probe_tokens(vocabulary: int, count: int) -> list[int]:
    """Distinct token ids for a self-test."""
    return [(7 * i + 3) % vocabulary for i in range(count)]


@torch.no_grad()
def probe(
    model: torch.nn.Module,
    key: Hashable,
    fast: Callable[[], torch.Tensor],
    reference: Callable[[], torch.Tensor],
    tolerance: Tolerance,
    *,
    altered: Callable[[], torch.Tensor] | None = None,
    relaid: Callable[[], torch.Tensor] | None = None,
    quantity: str = "hidden states",
) -> str | None:
    """
    Compares a fast path of a model with its reference, once per model, key, dtype, device and autocast setting.

    Args:
        model (`torch.nn.Module`): The model, possibly in a wrapper. It is in evaluation mode meanwhile.
        key (`Hashable`): Name of the fast path, with the settings that it depends on.
        fast, reference (`Callable`): Both return vectors, of shape `(..., D)`.
        tolerance ([`Tolerance`]): How far apart they may be.
        altered (`Callable`, *optional*): The reference for another prompt, needed for `of_effect`.
        relaid (`Callable`, *optional*): The reference in another layout, with more padding: it differs by rounding
            alone. Needed, with `altered`, for `of_rounding`; called only if the error is beyond the other bounds.
        quantity (`str`, *optional*, defaults to `"hidden states"`): Name of the vectors in the reason.

    Returns:
        `str` or `None`: Why the fast path cannot be used: it fails, or computes something else. `None` if it can.

    Raises:
        `torch.OutOfMemoryError`: There was no memory for the comparison. Nothing is remembered then.
    """
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    autocast = torch.is_autocast_enabled(parameter.device.type)
    known = _RESULTS.setdefault(model, {})
    key = (key, parameter.dtype, parameter.device.type, autocast)
    if key not in known:
        precise = parameter.dtype == torch.float32 and not autocast and not has_quantized_weights(model)
        with evaluation_mode(model):
            known[key] = _compare(fast, reference, altered, relaid, tolerance, precise, quantity)
    return known[key]


def _compare(
    fast: Callable[[], torch.Tensor],
    reference: Callable[[], torch.Tensor],
    altered: Callable[[], torch.Tensor] | None,
    relaid: Callable[[], torch.Tensor] | None,
    tolerance: Tolerance,
    precise: bool,
    quantity: str,
) -> str | None:
    try:
        found = fast()
    except torch.OutOfMemoryError:
        raise  # another time there may be enough
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as failure:
        return f"its forward fails ({failure})"
    expected = reference().float()
    if found.shape != expected.shape:
        return f"it returns {quantity} of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    bound = tolerance.precise if precise else tolerance.rounded
    if altered is not None and not precise:
        effect = float(_errors(altered(), expected, tolerance).mean())
        bound = max(bound, tolerance.of_effect * effect)
    errors = _errors(found, expected, tolerance)
    error = errors.max() if precise else errors.mean()
    if altered is not None and relaid is not None and not precise and bool(error > bound):
        rounding = float(_errors(relaid(), expected, tolerance).mean())
        bound = max(bound, min(tolerance.of_rounding * rounding, _MOST_OF_EFFECT * effect))
    # Written so that NaN is an error.
    if bool(error <= bound):
        return None
    return f"it computes something else ({quantity} differ by {float(errors.max()):.2g} of their size)"


def _errors(found: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    """Relative error of each vector: 0 where both are equal, also to zero."""
    distances = (found.float().to(expected.device) - expected).norm(dim=-1)
    sizes = expected.norm(dim=-1).clamp(min=tolerance.smallest_norm)
    return torch.where(distances == 0, distances, distances / sizes)
