# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Colours of tokens, and answers as HTML that no text of a model or user can break out of."""

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.playground.answers import CHANGE, LOGPROB, Answer, Option, Token, quantities, quantity
from trl_ext.playground.colours import HIGH, LOW, Scale, scale
from trl_ext.playground.markup import answer_html, legend_html


def token(text: str, value: float | None = None, before: float = 0.25, after: float = 0.5) -> Token:
    values = None if value is None else {"reward": value}
    return Token(text, text, Option(text, after, before, values), [Option("other", 0.1, 0.2, {"reward": 0.0})])


def plain(text: str, probability: float) -> Token:
    return Token(text, text, Option(text, probability), [Option(text, probability)])


def test_colours_of_values() -> None:
    """Of -1, 0 and 3: the middle of the ends is 1; 3 is blue, -1 orange, 2 half as strong, 9 not stronger than 3."""
    found = scale(
        [Answer("m", tokens=[token("a", -1.0), token("b", 0.0)]), Answer("m", tokens=[token("c", 3.0)])], "reward"
    )
    assert found == Scale("reward", -1.0, 1.0, 3.0)
    assert found.colour(3.0) == (*HIGH, 0.6) and found.colour(9.0) == (*HIGH, 0.6)
    assert found.colour(-1.0) == (*LOW, 0.6) and found.colour(2.0) == (*HIGH, 0.3)
    assert found.colour(1.0)[3] == 0.0


def test_colours_of_log_probabilities_and_changes() -> None:
    """ln 0.5 = -0.693 and ln 0.1 = -2.303: certain tokens have no colour. A change is ln(after / before)."""
    unlikely = [plain("a", 0.5), plain("b", 0.1)]
    found = scale([Answer("m", tokens=unlikely)], LOGPROB)
    assert found is not None and (found.low, found.middle) == (pytest.approx(-2.3026, abs=1e-4), 0.0)
    assert found.colour(0.0)[3] == 0.0 and found.colour(found.low) == (*LOW, 0.6)
    assert quantity(token("a", before=0.25, after=0.5), CHANGE) == pytest.approx(math.log(2))
    assert quantity(plain("a", 0.5), CHANGE) is None


def test_an_outlier_does_not_pale_the_others() -> None:
    """Of 40 tokens, two at each end are beyond the scale."""
    tokens = [token("x", value) for value in [*range(39), 1e6]]
    found = scale([Answer("m", tokens=tokens)], "reward")
    assert found is not None and (found.low, found.high) == (2.0, 37.0)


def test_equal_values_and_none() -> None:
    found = scale([Answer("m", tokens=[token("a", 2.0)] * 3)], "reward")
    assert found is not None and found.strength(2.0) == 0.0
    assert scale([Answer("m", tokens=[Token("a", "a")])], LOGPROB) is None


def test_what_can_be_coloured() -> None:
    """Heads first; without guides log-probabilities only; without those nothing."""
    assert quantities([Answer("m", tokens=[token("a", 1.0)])]) == ["reward", CHANGE, LOGPROB]
    assert quantities([Answer("m", tokens=[plain("a", 0.5)])]) == [LOGPROB]
    assert quantities([Answer("m", tokens=[Token("a", "a")])]) == []


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of an answer without its cards."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", [""]
        self.feed(html)
        assert self.open == [""]  # every element is closed

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(str(dict(attrs).get("class") or tag))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1].startswith("tx-token"):
            self.text += data


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;</span></table>"
ALLOWED = {"div", "span", "table", "caption", "tr", "th", "td"}


@given(st.text(max_size=20).filter(lambda text: "\r" not in text and "\0" not in text))
def test_texts_are_never_markup(text: str) -> None:
    hostile = text + ATTACK
    option = Option(hostile, 0.5, 0.25, {hostile: 1.0})
    answer = Answer(hostile, {hostile: 2.0}, [Token(hostile, hostile, option, [option])], "stop", hostile, hostile)
    parsed = Parsed(answer_html(answer))
    assert parsed.text == hostile
    assert {tag for tag, _ in parsed.tags} <= ALLOWED
    assert {name for _, attributes in parsed.tags for name in attributes} <= {
        "class",
        "style",
        "tabindex",
        "dir",
        "role",
    }
    assert {tag for tag, _ in Parsed(legend_html([answer])).tags} <= {"div", "span", "b"}


def test_a_card_has_the_candidates_with_their_probabilities() -> None:
    answer = Answer("m", {"reward": 2.0}, [token(" good", 1.5, 0.041, 0.123)], "stop")
    html = answer_html(answer)
    assert "␣good: reward 1.500" in html
    assert re.search(r"<th>token</th><th>before</th><th>after</th><th>reward</th>", html)
    assert re.search(
        r'<tr class="tx-chosen"><td>␣good</td><td>4.1 %</td><td [^>]*>12.3 %</td><td>1.50</td></tr>', html
    )
    assert "<td>other</td><td>20.0 %</td>" in html
    assert ">&lt;0.1 %<" in answer_html(Answer("m", None, [plain("a", 0.0001)], "stop"))
    assert "tx-card" not in answer_html(answer, details=False)


def test_where_there_is_no_guidance() -> None:
    """One column of probabilities, and no heads; without probabilities no card."""
    html = answer_html(Answer("m", None, [plain("a", 0.5), Token("b", "b")], "length"))
    assert "<th>token</th><th>probability</th></tr>" in html and html.count("tx-card") == 1
    assert "2 tokens, 0.0 s, maximum length reached" in html


def test_tokens_without_text() -> None:
    """The end of an answer is a mark; a part of a character is not shown."""
    end = Token("", "<|im_end|>", Option("<|im_end|>", 0.9))
    part = Token("", "\ufffd", Option("\ufffd", 0.9))
    html = answer_html(Answer("m", None, [part, plain("😀", 0.5), end], "stop"))
    assert "tx-end" in html and "&lt;|im_end|&gt;" in html and "\ufffd" not in html


def test_a_token_that_was_not_scored_has_no_colour() -> None:
    answer = Answer("m", {"reward": 1.0}, [token("a", 1.0), token("b", None), token("c", 2.0)], "stop")
    html = answer_html(answer)
    assert html.count("tx-unscored") == 1 and "not among the scored candidates" in html


def test_answers_share_one_scale() -> None:
    first, second = Answer("m", tokens=[token("a", 0.0)]), Answer("m", tokens=[token("b", 4.0)])
    assert "rgba(234,88,12,0.6)" in answer_html(first, together=[first, second])
    assert "0.6" not in answer_html(first)
    assert "0.00" in legend_html([first, second]) and "4.00" in legend_html([first, second])


def test_a_notebook_gets_the_style_sheet() -> None:
    assert answer_html(Answer("m"), styled=True).startswith("<style>.tx-answer")
    assert "waiting" in answer_html(Answer("m"))


def test_the_style_sheet_and_the_script_load_nothing() -> None:
    from importlib.resources import files

    for name in ("page.css", "page.js"):
        text = files("trl_ext.playground").joinpath(name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|innerHTML", text)
