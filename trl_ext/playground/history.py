# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The comparisons of a visitor, in memory, and the files that they are exported to."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from trl_ext.atomic_files import write_text

from .answers import Comparison
from .picture import save_picture


KEPT = 50


@dataclass
class History:
    """
    The latest comparisons of a visitor. They are lost when the visitor closes the page.

    Args:
        comparisons (`list[Comparison]`): The comparisons, the latest last.
        added (`int`): Number of comparisons so far, with those that are no longer kept.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    added: int = 0

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison, and drop the oldest if there are too many."""
        self.added += 1
        self.comparisons = [*self.comparisons, comparison][-KEPT:]

    @property
    def labels(self) -> list[str]:
        """A label for each comparison, the latest first: number, prompt and settings."""
        first = self.added - len(self.comparisons) + 1
        numbered = enumerate(self.comparisons, first)
        return [f"{number}. {label(each)}" for number, each in numbered][::-1]

    def labelled(self, text: str) -> Comparison:
        """
        The comparison with a label.

        Raises:
            `ValueError`: There is none.
        """
        for each, known in zip(reversed(self.comparisons), self.labels, strict=True):
            if known == text:
                return each
        raise ValueError("This comparison is no longer kept: choose another one.")


def label(comparison: Comparison) -> str:
    """A comparison in a line."""
    prompt = " ".join(comparison.prompt.split())
    short = prompt if len(prompt) <= 40 else f"{prompt[:40]}…"
    return f"“{short}” – {' | '.join(answer.title for answer in comparison.answers)}"


def export(comparison: Comparison, folder: Path, kind: str, colour_by: str = "") -> Path:
    """
    Write a comparison to a file.

    Args:
        comparison ([`~trl_ext.playground.answers.Comparison`]): The comparison.
        folder (`Path`): Where.
        kind (`str`): `"json"` (everything) or `"png"` (a plot of the answers).
        colour_by (`str`, *optional*, defaults to `""`): As for [`~trl_ext.playground.markup.answer_html`].

    Returns:
        `Path`: The file, named after the prompt.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", comparison.prompt)[:40].strip("-").lower() or "comparison"
    path = folder / f"{words}.{kind}"
    if kind == "png":
        save_picture(comparison, path, colour_by)
        return path
    write_text(path, json.dumps(comparison.as_dict(), ensure_ascii=False, indent=1))
    return path


def read_comparison(path: str | Path) -> Comparison:
    """
    A comparison that was exported as JSON.

    Raises:
        `ValueError`: The file is no such comparison.
    """
    try:
        return Comparison.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no exported comparison ({type(error).__name__}: {error}).") from error
