# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Every picture on a page is plotted from a result file, or from functions of the package when the site is built."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY
from docs_build import hook, made_with_the_site
from pages import DOCUMENTS

from benchmarks.harness.results import RESULTS, read_results
from benchmarks.harness.suite import Suite
from benchmarks.run import SUITES, suite_of


SHOWN = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|\bsrc(?:set)?="([^"]+)"')
PLOTTED_SUITES = [name for name in SUITES if type(suite_of(name)).plot is not Suite.plot]


def of_tutorials() -> set[Path]:
    """Those of docs/build/tutorials.py. tests/docs/test_tutorials.py compares them with the evaluations."""
    names = hook("tutorials").PLOTS
    return {REPOSITORY / "docs" / "tutorials" / f"{name}{mode}.png" for name in names for mode in ("", "-dark")}


def of_the_playground() -> set[Path]:
    """Those of docs/build/playground.py, which needs a browser."""
    return {REPOSITORY / "docs" / "how_to" / name for name in hook("playground").PICTURES}


@pytest.fixture(scope="module")
def of_results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Those of `python -m benchmarks.report`, plotted again from the results into another folder."""
    folder = tmp_path_factory.mktemp("plots")
    return [file for name in PLOTTED_SUITES for file in suite_of(name).plot(read_results(name), folder)]


def test_every_picture_of_the_repository_has_a_generator(of_results: list[Path]) -> None:
    """A picture that somebody drew or copied, or whose generator is gone, is none of these."""
    folders = [REPOSITORY / "docs", RESULTS]
    kept = {
        file
        for folder in folders
        for kind in ("png", "svg", "jpg", "gif", "webp")
        for file in folder.rglob(f"*.{kind}")
    }
    assert kept == of_tutorials() | of_the_playground() | {RESULTS / file.name for file in of_results}


def test_pictures_of_results_are_what_the_results_give(of_results: list[Path]) -> None:
    """Up to what fonts and versions of matplotlib change."""
    from matplotlib.testing.compare import compare_images

    assert of_results
    for plotted in of_results:
        assert compare_images(str(RESULTS / plotted.name), str(plotted), tol=10) is None


def test_pictures_of_the_playground_are_small() -> None:
    assert all(0 < file.stat().st_size < hook("playground").LARGEST for file in of_the_playground())


def test_pages_show_no_other_pictures(of_results: list[Path]) -> None:
    generated = (
        of_tutorials() | of_the_playground() | made_with_the_site() | {RESULTS / file.name for file in of_results}
    )
    shown = {
        (page.parent / (markdown or html)).resolve(): page
        for page in DOCUMENTS
        for markdown, html in SHOWN.findall(page.read_text(encoding="utf-8"))
    }
    assert len(shown) > 10
    assert not {str(picture): str(page) for picture, page in shown.items() if picture not in generated}
