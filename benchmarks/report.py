# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Write the tables and plots of the results, or check that the tables are what the results give.

    python -m benchmarks.report [--check | --changes [PART]]

A suite's tables are on the pages that its `pages()` names, between `<!-- <suite>: begin -->` and `<!-- <suite>: end
-->`; those of the claims in `claims.yaml` are on `results/claims.md`. They name the commit and the code that a result
measured, which stays true. Whether that code has changed since depends on the commit that asks: `--changes` lists it
for each result.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .claims.figures import Sources
from .claims.file import read_claims
from .claims.page import page as claims_page
from .harness.measured_code import changes, fingerprints, reached
from .harness.results import RESULTS, ROOT, origin, read_results
from .run import SUITES, suite_of


CLAIMS = RESULTS / "claims.md"


def render(results: Path = RESULTS) -> dict[Path, str]:
    """
    All pages that have tables, with those of the results.

    Raises:
        `ValueError`: The markers of a suite are missing.
    """
    pages: dict[Path, str] = {}
    for name in SUITES:
        for path, tables in suite_of(name).pages(read_results(name, results)).items():
            pages[path] = renewed(pages.get(path) or path.read_text(encoding="utf-8"), name, tables, path.name)
    verdicts = claims_page(read_claims(), Sources(results))
    pages[CLAIMS] = renewed(CLAIMS.read_text(encoding="utf-8"), "claims", verdicts, CLAIMS.name)
    return pages


def renewed(text: str, suite: str, tables: str, page: str) -> str:
    """
    `text` with other tables between the markers of a suite.

    Raises:
        `ValueError`: They are missing; `page` is named.
    """
    begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{page} has no lines {begin} and {end}.")
    return f"{before}{begin}\n{tables.strip()}\n{end}{after}"


def changed(results: Path = RESULTS) -> Iterator[tuple[str, list[str]]]:
    """
    Whether the code that each result measured has changed since.

    Yields:
        `tuple[str, list[str]]`: A sentence about a result, and the definitions of today that differ from those that it
            ran through.
    """
    for name in SUITES:
        found = read_results(name, results)
        now = reached(suite_of(name).measures(), ROOT) if found else {}
        for result in found:
            sources = result["environment"]["sources"]
            line = f"{name}, {result['time'][:10]}, {result['device']}: {origin(result)}; {changes(sources, now)}"
            different = set(now).difference(fingerprints(sources))
            yield line, sorted(now[fingerprint] for fingerprint in different)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page would change")
    parser.add_argument(
        "--changes",
        nargs="?",
        const="",
        metavar="PART",
        help="change nothing; list for each result whether the code that it measured has changed since; if PART is in "
        "that line, list the definitions that differ today too",
    )
    options = parser.parse_args(argv)
    if options.changes is not None:
        for line, different in changed():
            print(line)
            if options.changes and options.changes in line:
                for definition in different:
                    print(f"    {definition}")
        return 0
    pages = render()
    stale = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{path} is not what the results give: run `python -m benchmarks.report`.", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for name in SUITES:
        for plot in suite_of(name).plot(read_results(name)):
            print("wrote", plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
