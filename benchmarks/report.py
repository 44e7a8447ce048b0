# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Write the tables of README.md and the pictures from the results, or check that the tables are what the results give.

    python -m benchmarks.report [--check | --changes]

A suite's tables stand between `<!-- <suite>: begin -->` and `<!-- <suite>: end -->`; a suite whose module has
`pages()` has some on these pages too. The tables name the commit and the code that a result measured: that stays
true. Whether that code has changed since differs from commit to commit: `--changes` says it of each result.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .harness.measure import RESULTS, ROOT, origin, read_results
from .harness.measured_code import changes, fingerprints, reached
from .run import SUITES, module_of


README = Path(__file__).resolve().parent / "README.md"


def render(readme: str, results: Path = RESULTS) -> str:
    """
    `readme` with the tables of all suites renewed.

    Raises:
        `ValueError`: The markers of a suite are missing.
    """
    for suite in SUITES:
        tables = module_of(suite).report(read_results(suite, results))
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
        module = module_of(suite)
        for path, part in module.pages().items() if hasattr(module, "pages") else ():
            text = pages.get(path) or path.read_text(encoding="utf-8")
            pages[path] = renewed(text, suite, module.page(read_results(suite, results), part))
    return pages


def changed(results: Path = RESULTS) -> Iterator[tuple[str, list[str]]]:
    """
    Whether the code that each result measured has changed since.

    Yields:
        `tuple[str, list[str]]`: A sentence about a result, and the definitions of today that differ from those that it
            ran through.
    """
    for suite in SUITES:
        found = read_results(suite, results)
        module = module_of(suite)
        now = reached(getattr(module, "SUITE", module).measures(), ROOT) if found else {}
        for result in found:
            sources = result["environment"]["sources"]
            told = f"{suite}, {result['time'][:10]}, {result['device']}: {origin(result)}; {changes(sources, now)}"
            different = set(now).difference(fingerprints(sources))
            yield told, sorted(now[fingerprint] for fingerprint in different)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README.md would change")
    parser.add_argument(
        "--changes",
        nargs="?",
        const="",
        metavar="PART",
        help="change nothing; say of each result whether the code that it measured has changed since, and of results "
        "with PART in their line name the definitions that differ today",
    )
    options = parser.parse_args(argv)
    if options.changes is not None:
        for told, different in changed():
            print(told)
            if options.changes and options.changes in told:
                for definition in different:
                    print(f"    {definition}")
        return 0
    pages = render_all()
    stale = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{path} is not what the results give: run `python -m benchmarks.report`.", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for suite in SUITES:
        module = module_of(suite)
        if hasattr(module, "draw"):
            for picture in module.draw(read_results(suite)):
                print("drew", picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
