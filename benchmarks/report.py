# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Write the tables of README.md and the pictures from the results, or check that the tables are what the results give.

    python -m benchmarks.report [--check]

A suite's tables stand between `<!-- <suite>: begin -->` and `<!-- <suite>: end -->`; a suite whose module has
`pages()` has some on these pages too.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from .harness import RESULTS, read_results
from .run import SUITES


README = Path(__file__).resolve().parent / "README.md"


def render(readme: str, results: Path = RESULTS) -> str:
    """
    `readme` with the tables of all suites renewed.

    Raises:
        `ValueError`: The markers of a suite are missing.
    """
    for suite in SUITES:
        tables = importlib.import_module(f"benchmarks.{suite}").report(read_results(suite, results))
        readme = renewed(readme, suite, tables)
    return readme


def renewed(text: str, suite: str, tables: str) -> str:
    """
    `text` with other tables between the markers of a suite.

    Raises:
        `ValueError`: They are missing.
    """
    begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"README.md has no lines {begin} and {end}.")
    return f"{before}{begin}\n{tables.strip()}\n{end}{after}"


def render_all(results: Path = RESULTS) -> dict[Path, str]:
    """All pages that have tables, as they ought to be."""
    pages = {README: render(README.read_text(encoding="utf-8"), results)}
    for suite in SUITES:
        module = importlib.import_module(f"benchmarks.{suite}")
        for path, part in module.pages().items() if hasattr(module, "pages") else ():
            text = pages.get(path) or path.read_text(encoding="utf-8")
            pages[path] = renewed(text, suite, module.page(read_results(suite, results), part))
    return pages


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README.md would change")
    options = parser.parse_args(argv)
    pages = render_all()
    stale = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{path} is not what the results give: run `python -m benchmarks.report`.", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for suite in SUITES:
        module = importlib.import_module(f"benchmarks.{suite}")
        if hasattr(module, "draw"):
            for picture in module.draw(read_results(suite)):
                print("drew", picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
