# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A long measurement whose lines are written one by one: a later call goes on where an earlier one ended."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import results
from trl_ext.atomic_files import write_text


class SavedLines:
    """
    The lines of a measurement, in a JSON file.

    Args:
        file (`Path`): The file, which is written after each line.
        settings (`dict[str, Any]`): What the lines depend on.

    Attributes:
        saved (`dict[str, Any]`): What the file has: `settings`, `lines`, and anything that was added to it.

    Raises:
        `ValueError`: The file is of other settings.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file = file
        self.saved: dict[str, Any] = {"settings": settings, "lines": []}
        if file.is_file():
            self.saved = json.loads(file.read_text(encoding="utf-8"))
        if self.saved["settings"] != settings:
            raise ValueError(f"{file} was measured with other settings, {self.saved['settings']}: name another file.")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return self.saved["lines"]  # type: ignore[no-any-return]

    def add(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """
        The line with these values, which is measured if the file does not have it.

        A line has the commit that measured it; one of another commit than the current one is named when it is kept.
        """
        commit = results.current_commit()
        for line in self.lines:
            if all(line[name] == value for name, value in key.items()):
                if line.get("commit") != commit:
                    names = ", ".join(map(str, key.values()))
                    print(f"{names}: kept, of commit {line.get('commit', 'that is not known')}", file=sys.stderr)
                return line
        line = {**key, **measure(), "commit": commit}
        self.lines.append(line)
        write_text(self.file, json.dumps(self.saved, indent=1))
        print(", ".join(f"{name} {_short(value)}" for name, value in line.items()), flush=True)
        return line


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
