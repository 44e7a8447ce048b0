# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The checks of the built site (docs/build/checks.py) find what is wrong, and external links are well formed."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import REPOSITORY
from docs_build import hook
from pages import DOCUMENTS


GOOD = '<h2 id="there">Title</h2><a href="https://example.org/">elsewhere</a><a href="page/#here">page</a>'


def site(folder: Path, html: str) -> list[str]:
    """The problems of a site of two pages, the first of which has this HTML too."""
    (folder / "page").mkdir()
    (folder / "index.html").write_text(GOOD + html)
    (folder / "page" / "index.html").write_text('<p id="here"></p><a href="../#there">up</a><img src="../a.png">')
    (folder / "a.png").touch()
    (folder / "404.html").write_text('<a href="/page/">page</a>')
    return list(hook("checks").problems(folder))


def test_a_good_site(tmp_path):
    assert site(tmp_path, "") == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="page/#gone">', "index.html links to page/#gone, where there is no such anchor"),
        ('<a href="#gone">', "index.html links to #gone, where there is no such anchor"),
        ('<a href="other/">', "index.html links to other/, which is not there"),
        ('<img src="b.png">', "index.html links to b.png, which is not there"),
        ('<script src="https://cdn.example.org/a.js">', "index.html loads https://cdn.example.org/a.js"),
        ('<img src="//example.org/pixel.gif">', "index.html loads //example.org/pixel.gif"),
        ('<link rel="preconnect" href="https://fonts.gstatic.com">', "index.html loads https://fonts.gstatic.com"),
        ('<style>@import "https://example.org/a.css";</style>', "index.html loads https://example.org/a.css"),
        ('<style>p {src: url(https://example.org/a.woff)}</style>', "index.html loads https://example.org/a.woff"),
        ('<a data-md-component="source">', "index.html asks GitHub for the stars of the repository"),
    ],
)  # fmt: skip
def test_what_is_wrong(tmp_path, html, problem):
    assert site(tmp_path, html) == [problem]


def test_styles(tmp_path):
    (tmp_path / "a.css").write_text("@font-face {src: url('https://example.org/a.woff2')} a {background: url(b.png)}")
    assert site(tmp_path, "") == ["a.css loads https://example.org/a.woff2"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_the_form_of_external_links(page):
    for link in re.findall(r"\]\((\w+:[^)\s]*|//[^)\s]*|www\.[^)\s]*)", page.read_text(encoding="utf-8")):
        scheme, host, path, _, _ = urlsplit(link)
        assert scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host), f"{page.name} links to {link}"
        assert not re.search(r"//|[.,;]$|[<>\"' ]", path), f"{page.name} links to {link}"
