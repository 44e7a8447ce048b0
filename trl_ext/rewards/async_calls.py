# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Runs async reward functions, all of them in one event loop, from code that is not async."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable
from typing import Any


class _Loop:
    """
    An event loop in a thread of its own, which runs as long as the process.

    One loop for all calls: clients, locks and semaphores that a function keeps belong to the loop of its first call.
    A thread of its own: the loop of a notebook is already running.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop, which the first call starts."""
        with self._lock:
            if self._started is None:
                self._started = asyncio.new_event_loop()
                threading.Thread(target=self._started.run_forever, name="async rewards", daemon=True).start()
            return self._started


_loop = _Loop()


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """
    The result of an awaitable. If the wait is interrupted, the awaitable is cancelled.

    Args:
        awaitable (`Awaitable`): Such as the result of an async function.
    """

    async def result() -> Any:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(result(), _loop.get())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def is_async(func: Any) -> bool:
    """Whether a function, or an object that is called like one, is async."""
    while isinstance(func, functools.partial):
        func = func.func
    call = getattr(func, "__call__", None)  # noqa: B004 - the method of an object is what may be async
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(call)
