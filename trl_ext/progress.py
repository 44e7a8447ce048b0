# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Progress of long phases: a bar on a terminal or in a notebook, elsewhere (a pipe, a log file) a line a minute.

    with progress("sampling", total=200, unit="prompts") as phase:
        phase.advance(32)

A phase within one of the same name is a part of it and counts there: the caller who knows the total opens the phase,
and code that can also be called by itself opens it too. Only the main process shows anything.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from tqdm.auto import tqdm


_SECONDS_WITHOUT_BAR = 2  # a phase that ends earlier shows no bar
_SECONDS_BETWEEN_LINES = 60  # where there is no terminal
_SECONDS_BETWEEN_TICKS = 1  # the time goes on in a bar or in lines while one call of a model takes minutes

_BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"

_enabled: ContextVar[bool] = ContextVar("enabled", default=True)
_title: ContextVar[str] = ContextVar("title", default="")
_current: ContextVar["Progress | None"] = ContextVar("current", default=None)


@contextmanager
def shown(value: bool) -> Iterator[None]:
    """Context whose phases are shown, or, if `value` is `False`, hidden."""
    token = _enabled.set(_enabled.get() and value)
    try:
        yield
    finally:
        _enabled.reset(token)


@contextmanager
def titled(title: str) -> Iterator[None]:
    """Context whose phases are shown with `title` in front of their names, such as the name of a model."""
    token = _title.set(title)
    try:
        yield
    finally:
        _title.reset(token)


@contextmanager
def progress(name: str, total: int | None = None, unit: str = "prompts", **kwargs: Any) -> Iterator["Progress"]:
    """
    Context of a phase; see [`Progress`] for the arguments.

    Returns:
        [`Progress`]: The phase, or the one around it if that has the same name.
    """
    outer = _current.get()
    if outer is not None and outer.name == name:
        yield outer
        return
    phase = Progress(name, total, unit, **kwargs)
    phase.start()
    try:
        yield phase
    except BaseException:
        phase.close(finished=False)
        raise
    phase.close()


class Progress:
    """
    A long phase, shown from [`start`] to [`close`].

    Args:
        name (`str`): What is done, such as `"sampling"`.
        total (`int`, *optional*): Number of units. Without it, only the time is shown.
        unit (`str`, *optional*, defaults to `"prompts"`): Name of the units, in the plural.
        done (`int`, *optional*, defaults to `0`): Number of units that were done earlier, as by a resumed run.
        hidden (`bool`, *optional*, defaults to `False`): Whether to show nothing.
        has_bar (`bool`, *optional*, defaults to `True`): Whether there is a bar on a terminal; lines in any case.
        leave (`bool`, *optional*, defaults to `False`): Whether the bar stays when the phase ends.
        remaining (`Callable`, *optional*): Returns the remaining time in seconds, or `None` while it is unknown. By
            default the units left take as long as those done.
        clock (`Callable`, *optional*, defaults to `time.monotonic`): The time in seconds.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "prompts",
        *,
        done: int = 0,
        hidden: bool = False,
        has_bar: bool = True,
        leave: bool = False,
        remaining: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, float(done)
        self.label = f"{_title.get()}, {name}" if _title.get() else name
        self.remaining = remaining or self._remaining
        self._clock, self._before, self._leave = clock, done, leave
        self._shown = _enabled.get() and is_main_process() and not hidden
        self._has_bar = has_bar
        self._bar: _Bar | None = None
        self._inner = 0  # number of phases within this one that are running
        self._outer: Progress | None = None
        self._token: Token[Progress | None] | None = None
        self._lines = 0
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin the phase."""
        self._start = self._last_line = self._clock()
        self._outer = _current.get()
        self._token = _current.set(self)
        if not self._shown:
            return
        if self._outer is not None:
            self._outer._inner += 1
        if bars_are_shown() and self._has_bar:
            self._bar = _Bar(
                self,
                total=self.total,
                initial=int(self.done),
                desc=self.label,
                unit=self.unit,
                bar_format=_BAR_FORMAT,
                leave=self._leave,
                delay=0 if self._leave else _SECONDS_WITHOUT_BAR,
                miniters=0,
                smoothing=0,
                dynamic_ncols=True,
            )
        if not bars_are_shown() or self._bar is not None:
            self._thread = threading.Thread(target=self._tick_until_closed, daemon=True)
            self._thread.start()

    def advance(self, units: float = 1) -> None:
        """Count units that were just completed, or parts of one."""
        with self._lock:
            self.done += units
            self._update_bar()

    def set_total(self, total: int) -> None:
        """Set the number of units, if it is known only later."""
        with self._lock:
            self.total = total
            if self._bar is not None:
                self._bar.total = total

    def tick(self) -> None:
        """Show the time that has passed: called every second, also while one call of a model takes minutes."""
        with self._lock:
            if self._closed.is_set() or not self._shown:
                return
            self._update_bar()
            due = self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES
            if self._bar is None and due and not self._inner:  # the innermost phase says what is going on
                self._last_line, self._lines = self._clock(), self._lines + 1
                _write(self.line())

    def close(self, finished: bool = True) -> None:
        """End the phase. If it has written lines and is `finished`, it writes one with its time."""
        with self._lock:
            if self._closed.is_set() or self._token is None:
                return
            self._closed.set()
            _reset_current(self._token, self._outer)
            if not self._shown:
                return
            if self._outer is not None:
                self._outer._inner -= 1
            if self._bar is not None:
                self._update_bar()
                self._bar.close()
            if self._lines and finished:
                what = f"{int(self.done)} {self.unit} " if self.total else ""
                _write(f"{self.label}: {what}in {duration(self._clock() - self._start)}")
        if self._thread is not None:
            self._thread.join()

    def line(self) -> str:
        """What a log file gets: units done, time taken, and about how long the rest takes."""
        parts = [duration(self._clock() - self._start)]
        if self.total is not None:
            parts.insert(0, f"{int(self.done)} of {self.total} {self.unit}")
        left = self.remaining()
        if left is not None:
            parts.append(f"about {about(left)} left")
        return f"{self.label}: {', '.join(parts)}"

    def _remaining(self) -> float | None:
        done = self.done - self._before
        if self.total is None or done <= 0:
            return None
        return max(self.total - self.done, 0) * (self._clock() - self._start) / done

    def _update_bar(self) -> None:
        if self._bar is not None:
            self._bar.update(int(self.done + 1e-6) - self._bar.n)  # parts of a unit may add up to a little less

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(_SECONDS_BETWEEN_TICKS):
            self.tick()


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar whose remaining time is that of its phase."""

    def __init__(self, phase: Progress, **kwargs: Any) -> None:
        self._phase = phase
        super().__init__(**kwargs)

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().format_dict
        left, units = self._phase.remaining(), (self.total or 0) - self.n
        if left and units > 0:
            values["rate"] = units / left
        return values


def _reset_current(token: "Token[Progress | None]", outer: "Progress | None") -> None:
    try:
        _current.reset(token)
    except ValueError:  # closed in another context than it was started in, such as another cell of a notebook
        _current.set(outer)


@contextmanager
def library_progress(name: str) -> Iterator[None]:
    """
    Context for a long call of `datasets` or transformers: on a terminal with their bars, elsewhere with a line a
    minute in their place.

    Args:
        name (`str`): What is done, such as `"tokenizing the train dataset"`.
    """
    if _enabled.get() and is_main_process() and bars_are_shown():
        with progress(name, has_bar=False):
            yield
        return
    import datasets
    from transformers.utils import logging

    switches: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
    if not datasets.are_progress_bars_disabled():
        switches.append((datasets.disable_progress_bars, datasets.enable_progress_bars))
    if logging.is_progress_bar_enabled():
        switches.append((logging.disable_progress_bar, logging.enable_progress_bar))
    for disable, _ in switches:
        disable()
    try:
        with progress(name):
            yield
    finally:
        for _, enable in switches:
            enable()


def bars_are_shown() -> bool:
    """Whether the error stream is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def is_main_process() -> bool:
    """Whether this is the first of the processes that `accelerate launch` or `torchrun` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _in_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and "IPKernelApp" in getattr(get_ipython(), "config", ())


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time for people: `45 s`, `1 min 20 s`, `35 min`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return about(60 * minutes)


def about(seconds: float) -> str:
    """A time that is an estimate: `40 s`, `6 min`, `2 h 5 min`."""
    if seconds < 55:
        return f"{max(10, 10 * math.ceil(seconds / 10))} s"
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
