# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages of the repository, and the code on them, for the tests that read documentation."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import REPOSITORY


FOLDERS = ("trl_ext", "recipes", "benchmarks", "docs")
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md"))]
)

_BLOCK = re.compile(r"^( *)(```+|~~~+) *(\w*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`(?!`)([^`]+)`(?!`)")


class Block(NamedTuple):
    """Code on a page. `language` is empty for a block that names none, and for code within a line."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY).as_posix()}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The fenced blocks of a page that are in one of the languages."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        if found[3] in languages:
            yield Block(page, text.count("\n", 0, found.start()) + 2, found[3], textwrap.dedent(found[4]))


def inline_code(page: Path) -> Iterator[Block]:
    """The code within lines of a page, on one line each."""
    text = page.read_text(encoding="utf-8")
    prose = _BLOCK.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in _INLINE.finditer(prose):
        yield Block(page, prose.count("\n", 0, found.start()) + 1, "", " ".join(found[1].split()))
