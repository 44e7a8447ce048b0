# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: equations become MathML when the site is built, so that a page loads no script to show them.

`pymdownx.arithmatex` marks `$...$` and `$$...$$`; browsers have rendered MathML since 2023.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert


_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.+?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations of a page by MathML."""
    content = _DISPLAY.sub(lambda found: convert(html.unescape(found[1]).strip(), display="block"), content)
    return _INLINE.sub(lambda found: convert(html.unescape(found[1]).strip()), content)
