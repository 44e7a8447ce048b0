# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: checks the HTML of the site when it is built; with `--strict`, what it finds is an error.

- A page loads nothing from elsewhere: no script, style, font or picture, and no script of the theme that asks GitHub.
- Links, pictures and anchors lead to what is there, also from notebooks and raw HTML, which mkdocs does not look at.
"""

import logging
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


logger = logging.getLogger("mkdocs.hooks.checks")

# Elements and attributes that make a browser load something. A link of `rel="canonical"` or `"edit"` loads nothing.
_LOADING = {"script": "src", "img": "src", "source": "srcset", "iframe": "src", "video": "src", "audio": "src"}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}
_FROM_ELSEWHERE = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""")
_ASKS_GITHUB = ("data-md-component", "source")


class Found(HTMLParser):
    """What a page loads, where it links to, and its anchors."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.asks_github = False
        self.feed(html)
        styles = re.findall(r"<style.*?</style>", html, flags=re.DOTALL)
        self.loaded += [address for style in styles for address in _FROM_ELSEWHERE.findall(style)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.asks_github |= _ASKS_GITHUB in given.items()
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if given.get(_LOADING.get(tag, "")):
            self.loaded.append(given[_LOADING[tag]])
        if tag == "link" and _LOADING_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the pages and styles of a site."""

    @cache
    def found(path: Path) -> Found:
        return Found(path.read_text(encoding="utf-8"))

    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site).as_posix()
        if found(page).asks_github:
            yield f"{name} asks GitHub for the stars of the repository"
        for address in found(page).loaded:
            if re.match(r"(https?:)?//", address):
                yield f"{name} loads {address}"
        if name == "404.html":  # whose addresses begin at the root of the server
            continue
        for address in {*found(page).loaded, *found(page).links}:
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            path, _, anchor = unquote(address.partition("?")[0]).partition("#")
            target = page if not path else site / posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to {address}, which is not there"
            elif anchor and target.suffix == ".html" and anchor not in found(target).anchors:
                yield f"{name} links to {address}, where there is no such anchor"
    for style in sorted(site.rglob("*.css")):
        for address in _FROM_ELSEWHERE.findall(style.read_text(encoding="utf-8")):
            yield f"{style.relative_to(site).as_posix()} loads {address}"


def on_post_build(config: Any, **_: Any) -> None:
    """Warn of each problem."""
    for problem in problems(Path(config.site_dir)):
        logger.warning(problem)
