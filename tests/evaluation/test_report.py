# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""What the report of `trl-ext evaluate` prints of long prompts and of small numbers."""

from typing import Any

import pytest

from trl_ext.evaluation import report


def test_zero_has_no_sign() -> None:
    assert report._cell(-0.0004, 0.0002) == "0.000 ± 0.000"
    assert report._cell(-0.05, 0.01) == "-0.050 ± 0.010"


@pytest.mark.parametrize("chat", [False, True])
def test_the_end_of_a_long_prompt_is_printed(chat: bool) -> None:
    """Some passages and a question: the table stays readable, and shows what the completion answers."""
    text = "Passage. " * 200 + "What is the answer?"
    prompt: Any = [{"role": "user", "content": text}] if chat else f"\n\n{text}"
    shown = str(report._prompt_text(prompt))
    assert shown.startswith("[...] ") and shown.endswith("What is the answer?") and len(shown) < 420
    short: Any = [{"role": "user", "content": "Hi"}] if chat else "user: Hi"
    assert str(report._prompt_text(short)) == "user: Hi"
