# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What tensors occupy, counted operation by operation: the same on every device, where allocators differ."""

import gc
import math
import warnings
import weakref
from typing import Any

import torch

from trl_ext.upstream import TorchDispatchMode, operation_name, storage_id, tree_leaves


# Bytes of a matrix that an operation makes and frees inside it, from its arguments. A 4-bit weight is multiplied
# by more than a few rows in the dtype of these.
INSIDE = {"bitsandbytes::gemm_4bit": lambda rows, weight, shape, *_: math.prod(shape) * rows.element_size()}


class Tally(TorchDispatchMode):
    """
    Counts the bytes of tensors that are made inside it, from the operation that makes a storage until it is freed.

    Scratch space inside an operation is not seen, but for that of `INSIDE`, nor what an allocator adds by rounding and
    by pieces that it cannot use, nor tensors made of Python's numbers. What was there before stays counted as it was,
    freed or not.

    Attributes:
        peak (`int`): Most bytes at a time.
        total (`int`): Bytes now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.total = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note((args, kwargs), made=False)  # what was there before does not count, whatever becomes of it
        out = func(*args, **kwargs)
        self._note(out, made=True)
        inside = INSIDE[operation_name(func)](*args, **kwargs) if operation_name(func) in INSIDE else 0
        self.peak = max(self.peak, self.total + inside)
        return out

    def _note(self, tree: Any, *, made: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage_id(storage) not in self._known:
                    self._known[storage_id(storage)] = size = storage.nbytes() if made else 0
                    self.total += size
                    weakref.finalize(storage, self._free, storage_id(storage))

    def _free(self, key: int) -> None:
        self.total -= self._known.pop(key)


def occupied() -> int:
    """Bytes of all storages of strided tensors that Python can reach."""
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a look at some modules' attributes warns
        for item in gc.get_objects():
            if isinstance(item, torch.Tensor) and item.layout == torch.strided and not item.is_meta:
                storage = item.untyped_storage()
                storages[storage_id(storage)] = storage.nbytes()
    return sum(storages.values())
