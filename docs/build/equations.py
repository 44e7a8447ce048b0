# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A hook of mkdocs: equations become MathML when the site is built, so that a page loads no script to show them.

`pymdownx.arithmatex` marks `$...$` and `$$...$$`; browsers have rendered MathML since 2023.
"""

import html
import re
from typing import Any


_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.+?)\\\]</div>', re.DOTALL)
_NAME = "<mi>(?:exp|ln|log)</mi>"  # of a function
_BEFORE_NAME = re.compile(rf"(</m[in]>|</msub>)(?={_NAME})")
_AFTER_NAME = re.compile(rf"({_NAME})(?!<mo|</)")
_JOINED = re.compile(r"<mo><mrow><mo>([^<]+)</mo></mrow></mo><mo>([^<]+)</mo>")
_THIN = '<mspace width="0.167em" />'


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations of a page by MathML."""
    content = _DISPLAY.sub(lambda found: mathml(found[1], "block"), content)
    return _INLINE.sub(lambda found: mathml(found[1], "inline"), content)


def mathml(equation: str, display: str) -> str:
    """An equation of LaTeX, as it is in HTML, as MathML."""
    from latex2mathml.converter import convert  # tests import this module without it

    return spaced(convert(html.unescape(equation).strip(), display=display))


def spaced(mathml: str) -> str:
    r"""
    What latex2mathml returns, with the spaces of LaTeX: around the name of a function beside a letter, none within an
    operator of two signs, as in `\mathrel{+}=`.
    """
    joined = _JOINED.sub(r"<mo>\1\2</mo>", mathml)
    return _AFTER_NAME.sub(rf"\1{_THIN}", _BEFORE_NAME.sub(rf"\1{_THIN}", joined))
