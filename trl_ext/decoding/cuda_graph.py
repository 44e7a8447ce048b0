# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A step that is recorded once and replayed: a CUDA graph on a GPU, a plain call elsewhere."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


WARM_UP = 2  # calls before a recording: libraries choose their kernels and workspaces in the first
# Loops that a model keeps, and how many bytes those may have that are not in use.
KEPT, IDLE = 6, 2**30


class Replay:
    """
    A function without arguments whose inputs and outputs are tensors that stay where they are.

    On a CUDA device it is called a few times and then recorded as a graph; from then on a call replays the graph, one
    launch however many kernels there are. Elsewhere a call is a call.

    Args:
        step (`Callable`): The function. It must not wait for the device, nor depend on anything but tensors. The owner
            of a method, which keeps this in turn, is not kept alive by it: its room is free as soon as it goes.
        state (`Sequence[torch.Tensor]`): Tensors that it changes and reads again: they are as before after recording.
        device (`torch.device`): Where it computes.
    """

    def __init__(self, step: Callable[[], Any], state: Sequence[torch.Tensor], device: torch.device) -> None:
        owned = weakref.WeakMethod(step) if hasattr(step, "__self__") else None
        self.step: Callable[[], Any] = step if owned is None else lambda: owned()()  # type: ignore[misc]
        self.state, self.device = list(state), device
        self._graph: Any = None

    @torch.no_grad()
    def __call__(self) -> None:
        if self.device.type != "cuda":
            self.step()
            return
        with torch.cuda.device(self.device):
            if self._graph is None:
                self._record()
            self._graph.replay()

    def _record(self) -> None:
        before = [tensor.clone() for tensor in self.state]
        chance = torch.cuda.get_rng_state(self.device)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with _no_kept_casts():
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.step()
                    for tensor, kept in zip(self.state, before, strict=True):
                        tensor.copy_(kept)
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads (a data loader's, which pins memory) may use the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.step()
        torch.cuda.set_rng_state(chance, self.device)
        self._graph = graph


@contextmanager
def _no_kept_casts() -> Iterator[None]:
    """Autocast keeps casts of weights until its context ends; a graph would read that memory ever after."""
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


class LoopCache:
    """
    The loops last used with a model, by what they were made for. They go with the model, and not into copies of it.

    Args:
        most (`int`, *optional*, defaults to `6`): How many are kept.
        idle (`int`, *optional*, defaults to 1 GiB): Bytes that those may have which are not in use.

    Attributes:
        lock (`threading.RLock`): To be held while a loop runs: there is one room, whatever the number of threads.
    """

    def __init__(self, most: int = KEPT, idle: int = IDLE) -> None:
        self.most, self.idle = most, idle
        self.lock = threading.RLock()
        self._loops: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The loop for this key, whose size is its `nbytes`; if it must be made, those unused for longest give way."""
        loops = self._loops
        if key not in loops:
            while loops and (len(loops) >= self.most or sum(x.nbytes for x in loops.values()) > self.idle):
                loops.popitem(last=False)
            loops[key] = make()
        loops.move_to_end(key)
        return loops[key]

    def clear(self) -> None:
        """Give back their memory."""
        self._loops.clear()

    def __deepcopy__(self, memo: Any) -> "LoopCache":
        return LoopCache(self.most, self.idle)

    def __reduce__(self) -> Any:
        return LoopCache, (self.most, self.idle)


def cached_loops(model: torch.nn.Module) -> LoopCache:
    """
    The loops of a model, kept in an attribute of it: a dictionary elsewhere would keep the model alive.

    Args:
        model (`torch.nn.Module`): The model that they run.
    """
    return model.__dict__.setdefault("_trl_ext_loops", LoopCache())
