# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Makes the pictures of the playground on docs/how_to/playground.md and in the README: a page in a headless Chromium.

    python docs/build/playground.py --model benchmarks/models/imdb-7m --value_model outputs/several_rewards

It needs the extra `playground`, playwright, and Chromium (by its name, or in the variable CHROMIUM). The value model
is trained as in recipes/scripts/several_rewards.py, on that model.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any


FOLDER = Path(__file__).resolve().parents[1] / "how_to"
PICTURES = {"playground.png": 1180, "playground-narrow.png": 390}  # width of the window
PROMPT = "I went to see this film with my family, and"
LARGEST = 200_000  # bytes of a picture


@contextmanager
def playground(model: str, value_model: str) -> Iterator[str]:
    """The address of a page with a model and its value model."""
    from trl_ext.cli.arguments import LoadingArguments
    from trl_ext.cli.models import load_guided
    from trl_ext.generation_settings import GenerationSettings
    from trl_ext.methods.vas.policies import VASDecoding
    from trl_ext.playground.running import launch
    from trl_ext.serving.models import ServedModels

    weights = ["imdb-7m-reward=10,short_sentences=1"]
    decoding = VASDecoding(value_model_name_or_path=[value_model], beta=weights)
    plain, guided = load_guided(model, LoadingArguments(), [decoding], batch_size=8)
    settings = GenerationSettings(num_generations=1, max_completion_length=56, top_k=50)
    page = launch(ServedModels(plain, guided), defaults=settings, seed=7, inline=False)
    try:
        yield page.url
    finally:
        page.close()


def picture(browser: Any, url: str, width: int) -> bytes:
    """A comparison, with the card of a token."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    page.goto(url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Compare").click()
    page.wait_for_function("document.querySelectorAll('.tx-card').length > 20", timeout=120_000)
    tokens = page.locator(".tx-answer").nth(1 if width > 600 else 0).locator(".tx-token[tabindex]")
    token = tokens.nth(tokens.count() - 8)
    if width <= 600:
        page.locator(".tx-answer").first.evaluate("each => each.scrollIntoView()")
        token.hover()
        page.wait_for_timeout(300)
        return bytes(page.screenshot())
    page.set_viewport_size({"width": width, "height": page.evaluate("document.documentElement.scrollHeight")})
    token.hover()
    page.wait_for_timeout(300)
    return bytes(page.screenshot(full_page=True))


def smaller(data: bytes) -> bytes:
    """The same picture with 128 colours."""
    from PIL import Image

    found = BytesIO()
    Image.open(BytesIO(data)).convert("RGB").quantize(128).save(found, "png", optimize=True)
    return found.getvalue()


def main() -> None:
    """Make the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description="Make the pictures of the playground.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--value_model", required=True)
    flags = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as running, playground(flags.model, flags.value_model) as url:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, width in PICTURES.items():
            data = smaller(picture(browser, url, width))
            assert len(data) < LARGEST, f"{name} has {len(data)} bytes"
            (FOLDER / name).write_bytes(data)
            print(FOLDER / name)
        browser.close()


if __name__ == "__main__":
    main()
