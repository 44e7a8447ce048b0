# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: pages that live elsewhere in the repository or are generated, and links out of `docs/`.

The READMEs of folders, the result tables and the changelog are pages of the site where they are; a file is not copied.
A link from one page to another works in the repository and on the site; a link to a file that is no page leads to the
repository. A picture with a light and a dark form follows the reader's choice of them on the site.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[2]

# Files of the repository that are pages -> where the site has them.
REPOSITORY_PAGES = {
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "benchmarks/README.md": "reference/results/index.md",
    "recipes/README.md": "reference/recipes/index.md",
    **{
        f"recipes/{name}/README.md": f"reference/recipes/{name}.md"
        for name in ("accelerate", "proxy_rlhf", "rrhf", "scripts", "vas")
    },
    **{
        f"trl_ext/{name}/README.md": f"reference/{name}.md"
        for name in ("decoding", "endpoint", "generation", "guides", "instructions", "rewards")
    },
    **{
        f"trl_ext/methods/{name}/README.md": f"reference/methods/{name}.md"
        for name in ("proxy_rlhf", "psle", "rrhf", "vas")
    },
    **{
        f"benchmarks/results/{path.name}": f"reference/results/{path.name}"
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}

logger = logging.getLogger("mkdocs.hooks.pages")  # with --strict, its warnings are errors

# Pictures outside `docs/` -> where the site has them.
REPOSITORY_PICTURES = {
    f"benchmarks/results/{path.name}": f"reference/results/{path.name}"
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png"))
}

_PICTURE = re.compile(
    r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">'
    r'<img src="([^"]+)"[^>]* alt="([^"]*)"></picture>'
)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")
_HREF = re.compile(r'(href=")(?!https?:|#)([^"#]+\.(?:md|ipynb))(#[^"]*)?(")')
_CODE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are not files of `docs/`."""
    for source, target in REPOSITORY_PICTURES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for source, target in REPOSITORY_PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    target = page.file.src_uri
    source = {at: where for where, at in REPOSITORY_PAGES.items()}.get(target, f"docs/{target}")
    page.edit_url = f"{config.repo_url}/edit/main/{source}"
    folder = posixpath.dirname(source)

    def relink(found: re.Match[str]) -> str:
        before, link, anchor, after = found[1], found[2], found[3] or "", found[4]
        linked = posixpath.normpath(posixpath.join(folder, link))
        page_of_site = _page_of_site(linked)
        if page_of_site is not None:
            to = posixpath.relpath(page_of_site, posixpath.dirname(target) or ".")
        elif (ROOT / linked).exists():
            kind = "tree" if (ROOT / linked).is_dir() else "blob"
            to = f"{config.repo_url}/{kind}/main/{linked}"
        else:
            return found[0]  # mkdocs reports it
        return f"{before}{to}{anchor}{after}"

    markdown = _PICTURE.sub(r'![\3](\2#only-light){ width="560" } ![\3](\1#only-dark){ width="560" }', markdown)
    parts = _CODE.split(markdown)
    return "".join(part if part.startswith(("```", "~~~")) else _LINK.sub(relink, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The same for the links of a notebook, whose page mkdocs does not make of Markdown."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def relink(found: re.Match[str]) -> str:
        before, link, anchor, after = found[1], found[2], found[3] or "", found[4]
        target = files.get_file_from_path(_page_of_site(posixpath.normpath(posixpath.join(folder, link))) or link)
        if target is None:
            logger.warning(f"{page.file.src_uri} links to {link}, which is no page")
            return found[0]
        return f"{before}{target.url_relative_to(page.file)}{anchor}{after}"

    notebook = posixpath.basename(page.file.src_uri)  # mkdocs-jupyter copies it beside the page
    return f'<p><a href="{notebook}" download>Download this notebook</a></p>{_HREF.sub(relink, html)}'


def _page_of_site(path: str) -> str | None:
    """Where the site has a file of the repository, if that is a page or a picture."""
    known = REPOSITORY_PAGES.get(path) or REPOSITORY_PICTURES.get(path)
    return known or (path[5:] if path.startswith("docs/") else None)
