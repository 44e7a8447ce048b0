# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The page through gradio's client: what its functions return, for several visitors and for bad input."""

import json
import os
import re
import threading
import time
import urllib.request
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS, make_model, make_tokenizer


pytest.importorskip("gradio", reason="the extra `playground` is not installed")

from gradio_client import Client
from gradio_client.exceptions import AppError
from oracles.guided_decoding import make_value
from PIL import Image

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import EndpointUnreachable
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.playground.history import read_comparison
from trl_ext.playground.page import AUTO, MESSAGE, TEXT, Page
from trl_ext.playground.running import Playground, check_open, launch
from trl_ext.playground.sources import SourceModel
from trl_ext.serving.models import ServedModels


NAMES = "prompt send_as system count temperature top_p top_k max_tokens seed candidates colour".split()
COMMON = ["the film was", TEXT, "", 2, 1.0, 1.0, 0, 8, 1, 4, AUTO]
COLUMNS = ["tiny+value", 0.0, 2.0, 1.0, "tiny+value", 1.0, 2.0, 1.0, "tiny", 1.0, 0.0, 0.0]


def visitor(playground: Playground) -> Client:
    return Client(playground.url, verbose=False, analytics_enabled=False)


def compare(client: Client, *, columns: list[Any] | None = None, **changes: Any) -> Any:
    given = dict(zip(NAMES, COMMON, strict=True)) | changes
    return client.predict(*given.values(), *(columns or COLUMNS), api_name="/compare")


def texts(html: str) -> str:
    """The text of an answer, without the cards on its tokens."""
    inner = re.sub(r'<span class="tx-card">.*?</table></span>', "", html)
    return unescape("".join(re.findall(r'<span class="tx-token[^"]*"[^>]*>(.*?)</span>', inner, re.DOTALL)))


def choices(update: Any) -> list[str]:
    return [name for name, _ in update["choices"]]


def test_two_answers_with_values(playground: Playground) -> None:
    first, second, third, legend, colours, past = compare(visitor(playground))
    assert texts(first) and texts(first) != texts(second) and third == ""
    assert "kind 0, short 0" in first and "kind 2, short 1" in second
    assert "<th>before</th><th>after</th><th>kind</th><th>short</th>" in second
    assert "<b>kind</b>" in legend
    assert choices(colours) == [AUTO, "kind", "short", "change by guidance", "log-probability"]
    assert past["value"].startswith("1. “the film was” – ")


def test_the_same_settings_give_the_same_answers(playground: Playground) -> None:
    seconds = re.compile(r"[\d.]+ s,")
    runs = [[seconds.sub("", html) for html in compare(visitor(playground))[:4]] for _ in range(2)]
    assert runs[0] == runs[1]
    assert texts(compare(visitor(playground), seed=2)[0]) != texts(runs[0][0])


def test_history_colours_and_export(playground: Playground) -> None:
    client = visitor(playground)
    first = compare(client)
    label = first[5]["value"]
    compare(client, prompt="another", send_as=MESSAGE, count=3)
    selected = client.predict(label, AUTO, api_name="/select")
    assert list(selected[:4]) == list(first[:4])
    recoloured = client.predict(label, "log-probability", api_name="/colour")
    assert "log-probability" in recoloured[3] and texts(recoloured[0]) == texts(first[0])
    restored = client.predict(label, api_name="/restore")
    assert list(restored[:10]) == COMMON[:10]
    assert [part["value"] if isinstance(part, dict) else part for part in restored[10:18]] == COLUMNS[:8]
    made = client.predict(label, "short", api_name="/export")
    saved, picture = (Path(path) for path in made["value"])
    comparison = read_comparison(saved)
    assert comparison.prompt == "the film was" and comparison.answers[0].text == texts(first[0])
    assert json.loads(saved.read_text(encoding="utf-8"))["settings"]["seed"] == 1
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 500


def test_visitors_have_histories_of_their_own(playground: Playground) -> None:
    """Two at once, each gets the answers to the own prompt; the history of one is unknown to the other."""
    clients, found = [visitor(playground) for _ in range(2)], {}
    prompts = ["the film was", "a house is"]
    alone = [texts(compare(visitor(playground), prompt=prompt)[0]) for prompt in prompts]

    def ask(number: int) -> None:
        found[number] = compare(clients[number], prompt=prompts[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert [texts(found[number][0]) for number in range(2)] == alone
    with pytest.raises(AppError, match="not in the list of choices"):
        clients[1].predict(found[0][5]["value"], AUTO, api_name="/select")


def test_stop_keeps_what_was_there(playground: Playground) -> None:
    client = visitor(playground)
    long = dict(zip(range(len(COMMON)), COMMON, strict=True)) | {7: 120}
    job = client.submit(*long.values(), *COLUMNS, api_name="/compare")
    while not any("tx-token" in str(output) for output in job.outputs()):
        assert not job.done()
    client.predict(api_name="/stop")
    last = job.result(timeout=HANGS)
    assert "stopped by you" in last[0] + last[1] and last[5]["value"].startswith("1. ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": " \n "}, "The prompt is empty"),
        ({"system": "be brief"}, "no system message"),
        ({"seed": None}, "number for seed is missing"),
        ({"columns": ["nothing", *COLUMNS[1:]]}, "nothing"),
    ],
)
def test_bad_input(playground: Playground, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((AppError, ValueError), match=message):
        compare(visitor(playground), **changes)


def test_a_prompt_that_is_too_long_is_an_error_of_its_answers(playground: Playground) -> None:
    first, *_ = compare(visitor(playground), prompt="the film was " * 2000)
    assert 'role="alert"' in first and "context length" in first


def test_markup_in_a_prompt_is_text(playground: Playground) -> None:
    found = compare(visitor(playground), prompt="<script>alert(1)</script>", columns=[*COLUMNS[8:], *COLUMNS[4:]])
    assert not any("<script" in html for html in found[:4])
    assert "No token values" in found[0]


def test_without_a_comparison(playground: Playground) -> None:
    client = visitor(playground)
    for name, values in (("/export", [None, AUTO]), ("/restore", [None])):
        with pytest.raises(AppError, match="no comparison yet"):
            client.predict(*values, api_name=name)


def test_the_page_names_no_other_host(playground: Playground) -> None:
    """Fonts, styles and scripts are this server's; statistics of gradio are off. Links are not loaded."""
    html = urllib.request.urlopen(playground.url).read().decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?://[^"]+)"', html)
    assert loaded == []
    assert "fonts.googleapis" not in html and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


# ----------------------------------------------------------------------------------------------------------- starting


def served(name: str) -> ServedModels:
    tokenizer = make_tokenizer()
    return ServedModels(model_policy(make_model(len(tokenizer)), tokenizer, name=name))


def test_what_cannot_start() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="there is no model"):
        launch()
    with pytest.raises(ValueError, match="two models are called 'tiny'"):
        launch(served("tiny"), served("tiny"))
    with pytest.raises(ValueError, match="max_weight"):
        launch(served("tiny"), max_weight=0)
    with pytest.raises(ValueError, match="--password_variable"):
        launch(served("tiny"), host="0.0.0.0")
    with pytest.raises(EndpointUnreachable, match="Is the server running"):
        launch(served("tiny"), servers=["http://127.0.0.1:9/v1"])
    end = time.monotonic() + HANGS
    while threading.active_count() > before + 1:  # servers that were started end in threads of their own
        assert time.monotonic() < end
        time.sleep(0.05)


def test_settings_to_begin_with_are_in_the_range_of_their_sliders() -> None:
    """gradio refuses others, also those of an answer that is not shown."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    guided = guided_policy(model, tokenizer, make_value("state", model), 8.0, name="v", series="tiny + value")
    models = ServedModels(model_policy(model, tokenizer, name="tiny"), [guided])
    defaults = GenerationSettings(
        num_generations=1, temperature=3.0, top_k=300, top_p=0.005, max_completion_length=5000
    )
    own = launch(models, defaults=defaults, inline=False)
    try:
        columns = ["tiny+value", 0.0, "tiny+value", 8.0, "tiny+value", 16.0]
        shown = compare(visitor(own), columns=columns, temperature=3.0, top_k=300, top_p=0.005)
        assert "tx-token" in shown[0] and "tx-token" in shown[1]
        with pytest.raises(AppError, match="greater than maximum"):
            compare(visitor(own), columns=[*columns[:5], 17.0])
    finally:
        own.close()


def test_a_model_comes_with_its_own_sliders(tmp_path: Path) -> None:
    """Labels, and what to know about the heads, change with the model; one name may be the end of another."""
    endpoint = Endpoint("http://127.0.0.1:9/v1", "")
    two = {"kind": 2.0, "unkind": -1.0}
    about = {"kind": "rewards of 1 ± 2 in training", "unkind": "rewards of 3 ± 4 in training"}
    models = [
        SourceModel(endpoint, "a", "a", ours=True, weights=two, about=about),
        SourceModel(endpoint, "b", "b", ours=True, weights={"kind": 3.0}, about={"kind": "rewards of 5 ± 6"}),
        SourceModel(endpoint, "c", "c", weights={"": 1.0}),
        SourceModel(endpoint, "d", "d"),
    ]
    page = Page(models, tmp_path)

    def shown(label: str) -> list[tuple[str, str]]:
        return [(each["label"], each["info"]) for each in page.choose_model(label) if each["visible"]]

    assert shown("a") == [("beta", ""), ("weight of kind", about["kind"]), ("weight of unkind", about["unkind"])]
    assert shown("b") == [("beta (kind)", "rewards of 5 ± 6")]
    assert shown("c") == [("beta", "")]
    assert shown("d") == []


def test_an_open_page_needs_a_password_except_on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    with pytest.raises(ValueError, match="password"):
        check_open("0.0.0.0", "")
    check_open("127.0.0.1", "")
    check_open("0.0.0.0", "secret")
    monkeypatch.setenv("SPACE_ID", "me/space")
    check_open("0.0.0.0", "")


def test_the_password_is_asked_for() -> None:
    own = launch(served("tiny"), password="sésame", inline=False)
    try:
        with pytest.raises(Exception, match="Please login"):
            Client(own.url, verbose=False)
        with pytest.raises(Exception, match=r"(?i)log ?in"):
            Client(own.url, auth=("me", "wrong"), verbose=False)
        client = Client(own.url, auth=("me", "sésame"), verbose=False)
        assert "tx-token" in compare(client, columns=["tiny", 0.0, "tiny", 0.0, "tiny", 0.0])[0]
    finally:
        own.close()
