# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Progress of the commands on the terminal's error stream."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """
    Passes on the number of prompts that policies have completed, while something shows it.

    A policy is made once, with a `Progress`, and used under several progress bars.
    """

    def __init__(self) -> None:
        self._show: Callable[[int], Any] | None = None

    def __call__(self, prompts: int) -> None:
        if self._show is not None:
            self._show(prompts)

    @contextmanager
    def shown_by(self, show: Callable[[int], Any]) -> Iterator[None]:
        """In this context, `show` is called with the number of prompts just completed."""
        self._show = show
        try:
            yield
        finally:
            self._show = None


@contextmanager
def progress_bar(progress: Progress, name: str, total: int) -> Iterator[None]:
    """
    A bar on the terminal's error stream, and one line with the time when `name` is done.

    Args:
        progress ([`~trl_ext.cli.progress.Progress`]):
            Called by the policy that is measured.
        name (`str`):
            Name of the policy.
        total (`int`):
            Number of prompts to complete.
    """
    start = time.monotonic()
    console = Console(stderr=True)
    with rich_progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{Path(name).name}: sampling", total=total)
        with progress.shown_by(lambda done: bar.advance(task, done)):
            yield
    print(f"{name}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
