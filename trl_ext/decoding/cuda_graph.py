# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Records a decoding step as a CUDA graph and replays it; elsewhere than on a GPU it is a plain call."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trl_ext.devices import record_cuda_graph, supports_cuda_graphs
from trl_ext.models.properties import base_of
from trl_ext.upstream import attention_implementation


WARM_UP = 2  # calls before a recording: libraries choose their kernels and workspaces in the first
CHECK_EVERY = 16  # steps between two checks whether all rows have ended: each check waits for the device
# Decoding loops that a model keeps, and bytes of those that are not in use.
KEPT, IDLE = 6, 2**30


class Replay:
    """
    A function whose inputs and outputs are tensors that keep their addresses.

    On a CUDA device the first call runs it a few times and records it as a graph. From then on each call replays the
    graph: one launch for all of its kernels. On other devices each call runs the function.

    Args:
        step (`Callable`): The function. It must not wait for the device, nor depend on anything but tensors. If it is
            a method, its object is referenced weakly, so that its memory is freed with the object.
        state (`Sequence[torch.Tensor]`): Tensors that it changes and reads again. Recording leaves them unchanged.
        device (`torch.device`): Where it computes.
        arguments (*optional*): Constant arguments of the function.
    """

    def __init__(
        self, step: Callable[..., Any], state: Sequence[torch.Tensor], device: torch.device, *arguments: Any
    ) -> None:
        owned = weakref.WeakMethod(step) if hasattr(step, "__self__") else lambda: step
        self.step: Callable[[], Any] = lambda: owned()(*arguments)  # type: ignore[misc]
        self.state, self.device = list(state), device
        self._replay: Callable[[], Any] | None = None

    @torch.no_grad()
    def __call__(self) -> None:
        if self._replay is None:
            self._replay = self._record() if supports_cuda_graphs(self.device) else self.step
        self._replay()

    def _record(self) -> Callable[[], Any]:
        before = [tensor.clone() for tensor in self.state]

        def restore() -> None:
            for tensor, kept in zip(self.state, before, strict=True):
                tensor.copy_(kept)

        with _autocast_cache_off():
            return record_cuda_graph(self.step, restore, self.device, WARM_UP)


@contextmanager
def _autocast_cache_off() -> Iterator[None]:
    """Autocast frees its casts of weights when its context ends, but a graph would go on reading that memory."""
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


class LoopCache:
    """
    The decoding loops that were last used with a model, by key. Copies of the model do not include them.

    Args:
        most (`int`, *optional*, defaults to `6`): How many are kept.
        idle (`int`, *optional*, defaults to 1 GiB): Bytes of those that are not in use.

    Attributes:
        lock (`threading.RLock`): Has to be held while a loop runs: all threads share its static KV cache.
    """

    def __init__(self, most: int = KEPT, idle: int = IDLE) -> None:
        self.most, self.idle = most, idle
        self.lock = threading.RLock()
        self._loops: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """
        The loop for a key. If there is none, makes it and drops those unused for longest.

        Args:
            key (`Hashable`): Everything that the loop depends on, except its inputs.
            make (`Callable`): Makes it; an object with its size in bytes as `nbytes`.
        """
        loops = self._loops
        if key not in loops:
            while loops and (len(loops) >= self.most or sum(x.nbytes for x in loops.values()) > self.idle):
                loops.popitem(last=False)
            loops[key] = make()
        loops.move_to_end(key)
        return loops[key]

    def clear(self) -> None:
        """Frees their memory."""
        self._loops.clear()

    def __deepcopy__(self, memo: Any) -> "LoopCache":
        return LoopCache(self.most, self.idle)

    def __reduce__(self) -> Any:
        return LoopCache, (self.most, self.idle)


def cached_loops(model: torch.nn.Module) -> LoopCache:
    """
    The loops of a model, kept in an attribute of it: a dictionary elsewhere would keep the model alive.

    Args:
        model (`torch.nn.Module`): The language model.
    """
    return model.__dict__.setdefault("_trl_ext_loops", LoopCache())


def graph_key(model: Any) -> tuple[Hashable, ...]:
    """All that a graph records of a model beside its inputs: addresses of weights, adapters, attention and dtypes."""
    base = base_of(model)
    tuners: Any = [m for m in base.modules() if hasattr(m, "disable_adapters") and hasattr(m, "merged_adapters")]
    adapters = tuple((tuple(t.active_adapters), t.disable_adapters, tuple(t.merged_adapters)) for t in tuners)
    scales = [tuple(m.scaling.items()) for m in base.modules() if isinstance(getattr(m, "scaling", None), dict)]
    kind = base.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    attention = attention_implementation(base.config.get_text_config())
    return adapters, *scales, weights_key(base), attention, autocast


def weights_key(module: torch.nn.Module) -> Hashable:
    """Addresses and dtypes of the weights of a module: a graph is valid for these only."""
    return tuple((parameter.data_ptr(), parameter.dtype) for parameter in module.parameters())
