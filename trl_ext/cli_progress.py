# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How far a command is: a bar on a terminal, one line a model elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress


class PromptProgress:
    """What policies call with the number of prompts just answered, whichever of them is at work."""

    def __init__(self) -> None:
        self._advance = lambda done: None

    def __call__(self, done: int) -> None:
        self._advance(done)

    @contextmanager
    def of(self, name: str, total: int) -> Iterator[None]:
        """A bar on the terminal's error stream, and one line with the time once `name` is done."""
        start = time.monotonic()
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{Path(name).name}: sampling", total=total)
            self._advance = lambda done: bar.advance(task, done)
            try:
                yield
            finally:
                self._advance = lambda done: None
        print(f"{name}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
