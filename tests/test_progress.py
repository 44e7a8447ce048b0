# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Progress of long phases: lines where there is no terminal, with a clock that the test moves, and bars on one."""

import io
import sys
import threading
from types import SimpleNamespace

import datasets
import pytest
from transformers.utils import logging

from trl_ext import progress as module
from trl_ext.progress import Progress, about, bars_are_shown, duration, library_progress, progress, shown, titled


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The clock of phases whose time only the test advances: no thread ticks."""
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_TICKS", 3600)
    return Clock()


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_a_minute_without_a_terminal(clock, capsys):
    with progress("sampling", 200, clock=clock) as phase:
        for second in range(1, 131):  # 40 prompts in 80 s, none before: one call of the model takes that long
            clock.now += 1
            if second == 80:
                phase.advance(40)
            phase.tick()
    assert lines(capsys) == [
        "sampling: 0 of 200 prompts, 1 min",
        "sampling: 40 of 200 prompts, 2 min, about 8 min left",  # 160 / 40 * 2 min
        "sampling: 40 prompts in 2 min 10 s",
    ]


def test_a_short_phase_and_one_that_failed_write_nothing_at_the_end(clock, capsys):
    with progress("sampling", 2, clock=clock) as phase:
        phase.advance(2)
        phase.tick()
    assert lines(capsys) == []
    with pytest.raises(KeyError), progress("sampling", 2, clock=clock) as phase:
        clock.now += 60
        phase.tick()
        raise KeyError
    assert lines(capsys) == ["sampling: 0 of 2 prompts, 1 min"]


def test_the_remaining_time_of_a_resumed_phase_counts_what_it_did_itself(clock):
    phase = Progress("sampling", 100, done=60, clock=clock)
    phase.start()
    clock.now += 600
    phase.advance(10)
    assert phase.line() == "sampling: 70 of 100 prompts, 10 min, about 30 min left"
    phase.close()


def test_a_phase_within_one_of_the_same_name_is_a_part_of_it(clock):
    with progress("sampling", 8, clock=clock) as outer:
        for _ in range(2):
            with progress("sampling", 4) as part:
                part.advance(1.5)
                part.advance(2.5)
        with progress("scoring", 8, "completions", clock=clock) as other:
            other.advance(8)
    assert (outer.done, other.done) == (8, 8)
    with progress("sampling", 4) as later:
        assert later is not outer


def test_only_the_innermost_phase_writes_lines(clock, capsys):
    with progress("training", 4, "steps", clock=clock) as outer:
        with titled("imdb"), progress("sampling", 2, clock=clock) as inner:
            clock.now += 60
            outer.tick()
            inner.tick()
        outer.tick()
    assert lines(capsys)[:2] == ["imdb, sampling: 0 of 2 prompts, 1 min", "imdb, sampling: 0 prompts in 1 min"]


def test_hidden_phases_and_other_processes_are_silent(clock, capsys, monkeypatch):
    def run(**kwargs):
        with progress("sampling", 2, clock=clock, **kwargs) as phase:
            clock.now += 60
            phase.tick()
        return lines(capsys)

    assert run()
    assert not run(hidden=True)
    with shown(False), shown(True):  # what switched it off counts
        assert not run()
    monkeypatch.setenv("RANK", "1")
    assert not run()


def test_the_time_goes_on_while_nothing_is_counted(monkeypatch, capsys):
    """The thread of a phase ticks by itself, and ends with it."""
    ticked = threading.Event()
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_TICKS", 0.001)
    monkeypatch.setattr(Progress, "tick", lambda self: ticked.set())
    before = threading.active_count()
    with progress("sampling", 2):
        assert ticked.wait(10)
    assert threading.active_count() == before


def test_a_bar_on_a_terminal_with_the_estimate_of_the_phase(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    phase = Progress("training", 12, "steps", leave=True, remaining=lambda: 90.0)
    phase.start()
    phase.advance(3)
    phase.close()
    shown_bar = terminal.getvalue()
    assert "training:" in shown_bar and "3/12 steps" in shown_bar and "<01:30]" in shown_bar
    with progress("sampling", 5) as short:  # ends before the bar is due
        short.advance(5)
    assert "sampling" not in terminal.getvalue()
    monkeypatch.setattr(module, "_SECONDS_WITHOUT_BAR", 0)
    with progress("sampling", 5) as long:
        long.tick()
        long.advance(0.5)  # parts of a prompt are not shown
        long.advance(0.5)
    assert "sampling:" in terminal.getvalue()


def test_bars_of_libraries_become_lines_without_a_terminal(clock, capsys, monkeypatch):
    assert not datasets.are_progress_bars_disabled()
    with library_progress("tokenizing the train dataset"):
        assert datasets.are_progress_bars_disabled() and not logging.is_progress_bar_enabled()
        phase = module._current.get()
        phase._clock, phase._start, phase._last_line = clock, clock.now, clock.now
        clock.now += 61
        phase.tick()
    assert not datasets.are_progress_bars_disabled()
    assert lines(capsys)[0] == "tokenizing the train dataset: 1 min 1 s"
    monkeypatch.setattr(sys, "stderr", Terminal())
    with library_progress("tokenizing the train dataset"):
        assert not datasets.are_progress_bars_disabled() and logging.is_progress_bar_enabled()
        assert module._current.get()._bar is None


def test_a_notebook_has_bars(monkeypatch):
    """As Jupyter's kernel says it; an IPython shell in a pipe has none."""
    shell = SimpleNamespace(config={})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not bars_are_shown()
    shell.config["IPKernelApp"] = {}
    assert bars_are_shown()
    with progress("sampling", 3, "prompts") as phase:
        assert phase._bar is not None


@pytest.mark.parametrize(
    "seconds, exact, rough",
    [
        (4, "4 s", "10 s"),
        (41, "41 s", "50 s"),
        (80, "1 min 20 s", "1 min"),
        (120, "2 min", "2 min"),
        (2105, "35 min", "35 min"),
        (7500, "2 h 5 min", "2 h 5 min"),
        (7200, "2 h", "2 h"),
    ],
)
def test_times_for_people(seconds, exact, rough):
    assert (duration(seconds), about(seconds)) == (exact, rough)
