# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The page in a headless Chromium: what a visitor sees and does, wide and narrow; nothing from elsewhere."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import HANGS


pytest.importorskip("gradio", reason="the extra `playground` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
if not CHROMIUM:
    pytest.skip("there is no Chromium; the variable CHROMIUM may name one", allow_module_level=True)

ATTACK = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        playwright.expect.set_options(timeout=1000 * HANGS)  # milliseconds
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = running.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=1000 * HANGS)
        yield found
        found.close()


class Visit:
    """A window on the page, with the hosts that it asked and the errors of its scripts."""

    def __init__(self, browser: Any, url: str, width: int = 1280, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(1000 * HANGS)
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def compare(self, prompt: str) -> None:
        """Ask, and wait for the answers."""
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_role("button", name="Compare").click()
        self.page.wait_for_function("document.querySelectorAll('.tx-card').length > 3")

    def token(self, answer: int, number: int = 1) -> Any:
        return self.page.locator(".tx-answer").nth(answer).locator(".tx-token[tabindex]").nth(number)

    def card(self) -> dict[str, float]:
        """Place and size of the card that is shown."""
        shown = self.page.locator(".tx-card:visible")
        playwright.expect(shown).to_have_count(1)
        self.page.wait_for_timeout(100)  # it is placed in the next frame
        return dict(shown.bounding_box())


@pytest.fixture
def visit(playground: Any, browser: Any) -> Iterator[Any]:
    made: list[Visit] = []

    def begin(**settings: Any) -> Visit:
        made.append(Visit(browser, playground.url, **settings))
        return made[-1]

    yield begin
    for each in made:
        each.page.close()
        assert not each.errors


def test_nothing_is_loaded_from_elsewhere(visit: Any, playground: Any) -> None:
    """Neither by the page nor by what a visitor does on it."""
    window = visit()
    window.compare("the film was")
    window.page.get_by_role("button", name="Export").click()
    window.page.locator("a[href*=the-film-was]").first.wait_for()
    window.page.wait_for_timeout(1000)  # gradio keeps a connection open, so that the network is never idle
    assert window.hosts - {""} == {urlsplit(playground.url).netloc}


@pytest.mark.parametrize("width", [1280, 390])
def test_a_card_is_inside_the_window(visit: Any, width: int) -> None:
    """Of tokens at the beginning and the end of a line, by pointer; the page is not wider than the window."""
    window = visit(width=width)
    window.compare("the film was")
    for answer in (0, 1):
        tokens = window.page.locator(".tx-answer").nth(answer).locator(".tx-token[tabindex]")
        for number in (0, 1, tokens.count() - 1):
            token = tokens.nth(number)
            token.scroll_into_view_if_needed()
            token.hover()
            card = window.card()
            assert card["x"] >= 0 and card["x"] + card["width"] <= width
            assert card["y"] >= 0 and card["y"] + card["height"] <= 900
    assert window.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_card_has_the_candidates(visit: Any) -> None:
    window = visit()
    window.compare("the film was")
    window.token(1, 0).hover()
    text = window.page.locator(".tx-card:visible").inner_text()
    assert "before" in text and "after" in text and "kind" in text and "%" in text


def test_the_keyboard_shows_and_hides_a_card(visit: Any) -> None:
    window = visit()
    window.compare("the film was")
    window.token(0, 0).focus()
    window.card()
    window.page.keyboard.press("Tab")
    window.card()
    window.page.keyboard.press("Escape")
    playwright.expect(window.page.locator(".tx-card:visible")).to_have_count(0)


def test_tokens_have_colours_and_a_legend(visit: Any) -> None:
    window = visit()
    window.compare("the film was")
    colours = window.page.eval_on_selector_all(".tx-text .tx-token", "all => all.map(each => each.style.background)")
    assert len({colour for colour in colours if "rgba" in colour}) > 2
    playwright.expect(window.page.locator(".tx-legend")).to_contain_text("kind")
    window.page.get_by_label("Colours show").click()
    window.page.get_by_role("option", name="log-probability").click()
    playwright.expect(window.page.locator(".tx-legend")).to_contain_text("log-probability")


def test_markup_is_shown_as_it_is(visit: Any) -> None:
    window = visit()
    window.compare(ATTACK)
    playwright.expect(window.page).to_have_title("trl-ext playground")
    assert window.page.locator(".tx-answer img, .tx-answer script").count() == 0


def test_an_empty_prompt_says_what_to_do(visit: Any) -> None:
    window = visit()
    window.page.get_by_role("button", name="Compare").click()
    window.page.get_by_text("The prompt is empty").wait_for()


def test_three_answers_and_other_models(visit: Any) -> None:
    """The sliders of a model that nothing guides go away, and come back."""
    window = visit()
    window.page.get_by_text("Sampling").click()
    window.page.get_by_label("3", exact=True).check()
    window.page.get_by_label("Model C").click()
    window.page.get_by_role("option", name="tiny", exact=True).click()
    playwright.expect(window.page.get_by_label("number input for weight of kind")).to_have_count(2)
    window.page.get_by_label("Model C").click()
    window.page.get_by_role("option", name="tiny+value", exact=True).click()
    playwright.expect(window.page.get_by_label("number input for weight of kind")).to_have_count(3)
    window.compare("the film was")
    playwright.expect(window.page.locator(".tx-answer")).to_have_count(3)


def test_stop(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an answer is written: each token takes its time, as on a real model."""
    from trl_ext.generation.observer import ObservedSteps

    step = ObservedSteps.__call__

    def slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ObservedSteps, "__call__", slowly)
    window = visit()
    window.page.get_by_text("Sampling").click()
    window.page.get_by_label("number input for Maximum length, in tokens").fill("120")
    window.page.get_by_label("Prompt", exact=True).fill("the film was")
    window.page.get_by_role("button", name="Compare").click()
    window.page.locator(".tx-token").first.wait_for()
    window.page.get_by_role("button", name="Stop").click()
    window.page.get_by_text("stopped by you").first.wait_for()


def test_dark_pages_are_readable(visit: Any, tmp_path: Path) -> None:
    """The text is light where the page is dark; a card brings its own colours."""
    window = visit(scheme="dark")
    window.compare("the film was")
    ink, paper = window.page.evaluate(
        "() => [getComputedStyle(document.querySelector('.tx-text')).color,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3 for colour in (ink, paper)]
    assert light[0] - light[1] > 120
