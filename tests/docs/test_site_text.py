# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What the hooks of the site change in the HTML of a page: equations.py and line_breaks.py."""

import pytest
from docs_build import hook


THIN = '<mspace width="0.167em" />'


@pytest.mark.parametrize(
    ("converted", "expected"),
    [
        ("<mi>log</mi><mi>π</mi>", f"<mi>log</mi>{THIN}<mi>π</mi>"),  # \log \pi
        ("<mi>log</mi><msub><mi>π</mi></msub>", f"<mi>log</mi>{THIN}<msub><mi>π</mi></msub>"),  # \log \pi_0
        ("<mi>β</mi><mi>log</mi><mo>(</mo>", f"<mi>β</mi>{THIN}<mi>log</mi><mo>(</mo>"),  # \beta \log (
        ("<mrow><mi>log</mi></mrow>", "<mrow><mi>log</mi></mrow>"),
        ("<mo><mrow><mo>+</mo></mrow></mo><mo>=</mo>", "<mo>+=</mo>"),  # \mathrel{+}=
        ("<mi>x</mi><mo>+</mo><mi>y</mi>", "<mi>x</mi><mo>+</mo><mi>y</mi>"),
    ],
)  # fmt: skip
def test_spaces_of_equations(converted: str, expected: str) -> None:
    """Expected are the spaces of LaTeX. The MathML is latex2mathml's for the LaTeX beside it."""
    assert hook("equations").spaced(converted) == expected


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<td>−0.38 ± 0.29</td>", "<td>−0.38\u00a0±\u00a00.29</td>"),
        ("<p>a ± b, 5 % ± 1</p>", "<p>a ± b, 5 %\u00a0±\u00a01</p>"),
        ("<pre><code>1 ± 2</code></pre><p>1 ± 2</p>", "<pre><code>1 ± 2</code></pre><p>1\u00a0±\u00a02</p>"),
        ("<code>1 ± 2</code>", "<code>1 ± 2</code>"),
        (
            '<div class="language-bash highlight"><pre><code>a --b_c 1 --d-e=x-2</code></pre></div>',
            '<div class="language-bash highlight"><pre><code>a <span class="flag">--b_c</span> 1 '
            '<span class="flag">--d-e</span>=x-2</code></pre></div>',
        ),
        ('<div class="language-text"><pre>a --b</pre></div>', '<div class="language-text"><pre>a --b</pre></div>'),
        ("<!-- a comment --><p>--flag</p>", "<!-- a comment --><p>--flag</p>"),
    ],
)
def test_where_a_line_does_not_break(page: str, expected: str) -> None:
    assert hook("line_breaks").on_page_content(page) == expected
