# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Steps of large models without their arithmetic: tensors have their sizes and live as long, and hold zeros."""

import mmap
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trl_ext.upstream import FakeTensorMode, TorchDispatchMode, operation_name, tree_leaves, tree_map_only


# Where the time goes. Everything else is computed: what a step does must not depend on what these would give.
SKIPPED = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::linear",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "aten::_flash_attention_forward",  # there is none for CPUs, and none is needed
    "aten::_flash_attention_backward",
    "bitsandbytes::gemm_4bit",
    "bitsandbytes::quantize_4bit",
    "bitsandbytes::quantize_blockwise",
    "bitsandbytes::dequantize_4bit",
    "bitsandbytes::dequantize_blockwise",
    "aten::empty",  # so that weights that are initialised in place may stay what they are
}
# Skipped where the tensor is large and of floats: activations, whose values nothing else depends on. Otherwise the
# machine would need as much memory as the step that it counts.
IF_LARGE = {
    f"aten::{name}"
    for name in "add sub mul neg pow silu silu_backward sigmoid _to_copy clone cat rsqrt mean div".split()
}
IN_PLACE = {"aten::normal_", "aten::uniform_"}
# Not zero, so that hidden states are not: a check that compares two ways of computing them would find 0 / 0.
ONES = {"aten::embedding"}

LAZY = 1 << 20  # bytes from which memory is allocated in pages that occupy nothing until they are written


@dataclass(frozen=True)
class _Form:
    """A tensor but for its contents."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str
    bytes: int  # of its storage, for results

    @classmethod
    def of(cls, x: torch.Tensor, *, result: bool = False) -> "_Form":
        device = "meta" if x.is_meta else str(x.device)
        return cls(tuple(x.shape), x.stride(), x.dtype, device, x.untyped_storage().nbytes() if result else 0)


class ShapeOnlyMode(TorchDispatchMode):
    """Operations of `SKIPPED` and `IF_LARGE` give zeros of the right shape, strides and dtype, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode()
        self._forms: dict[str, Any] = {}  # of results, by what they are made of: steps repeat layers and tokens

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in IN_PLACE:
            return args[0]
        if name in ONES:
            return func(*args, **kwargs).fill_(1)
        if name in SKIPPED or (name in IF_LARGE and _is_large(args)):
            return self._like(func, args, kwargs)
        return func(*args, **kwargs)

    def _like(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Zeros in place of what `func` would give."""
        # With the default dtype, which `empty` may have.
        key = repr((func, torch.get_default_dtype(), tree_map_only(torch.Tensor, _Form.of, (args, kwargs))))
        if key not in self._forms:
            with self._fake:
                given = tree_map_only(torch.Tensor, self._fake.from_tensor, (args, kwargs))
                out = func(*given[0], **given[1])
            self._forms[key] = tree_map_only(torch.Tensor, partial(_Form.of, result=True), out)
        return tree_map_only(_Form, _zeros, self._forms[key])


def _is_large(args: Any) -> bool:
    first = next((x for x in tree_leaves(args) if isinstance(x, torch.Tensor)), None)
    return first is not None and first.is_floating_point() and first.numel() * first.element_size() >= LAZY


def _zeros(like: _Form) -> torch.Tensor:
    if like.device != "cpu":
        return torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=like.device)
    if like.bytes < LAZY:
        flat = torch.zeros(like.bytes // like.dtype.itemsize, dtype=like.dtype)
    else:
        flat = torch.frombuffer(mmap.mmap(-1, like.bytes), dtype=like.dtype)
    return flat.as_strided(like.shape, like.stride)
