# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reading requests, growing texts, and malformed bodies of any kind."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANGS, REPOSITORY, make_llama2_tokenizer, make_model, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running_server import Running, make_value_model, running

from trl_ext import ProxyModel
from trl_ext.generation import growing_text
from trl_ext.generation.growing_text import GrowingText
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.serving.limits import RequestError, ServerLimits
from trl_ext.serving.models import ServedModels
from trl_ext.serving.requests import _CHAT, _COMPLETIONS, IGNORED, UNSUPPORTED, read_request


DEFAULTS = GenerationSettings(num_generations=1, max_completion_length=4)
FIELDS = (
    "model prompt messages stream stream_options n max_tokens max_completion_tokens max_completion_length temperature "
    "top_p top_k min_p repetition_penalty stop seed beta best_of_n reward_weights logprobs top_logprobs guidance "
    "chat_template_kwargs add_generation_prompt continue_final_message return_token_ids return_tokens_as_token_ids"
).split()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
# Near misses: what a field takes, in any field.
LIKELY = st.sampled_from(
    [
        0, 1, 2, -1, 0.5, 1.0, True, False, "tiny", "the film", [5, 6], ["a", "b"], [[5], [6]], {"reward": 1}, {},
        [{"role": "user", "content": "the film"}], [{"role": "assistant", "content": ""}], {"include_usage": True},
        "\ud800", [2**70], [-1], {"role": "user"}, 1e308, 5e-324, 2**63,
    ]
)  # fmt: skip
BODIES = st.dictionaries(st.sampled_from([*FIELDS, *IGNORED, *UNSUPPORTED]), LIKELY | JSON, max_size=5)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    guided = guided_policy(model, tokenizer, make_value_model(tokenizer), 2.0, name="tiny + value")
    proxy = proxy_policy(model, tokenizer, ProxyModel.for_model(model).eval(), name="tiny + proxy")
    with running(
        ServedModels(model_policy(model, tokenizer, name="tiny"), [guided, proxy]),
        defaults=DEFAULTS,
        limits={"max_request_completions": 4, "max_logprobs": 5, "request_timeout": float(HANGS)},
    ) as found:
        yield found


def dumped(body: Any) -> bytes:
    return json.dumps(body).encode()  # NaN, infinity and halves of surrogate pairs included


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(body=BODIES, base=st.sampled_from(["", "tiny", "tiny+value", "tiny+proxy"]), chat=st.booleans())
def test_no_body_breaks_the_server(server: Running, body: dict[str, Any], base: str, chat: bool) -> None:
    """A completion or an error that says what is wrong: no status 500, and an answer in time."""
    start: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
    body = (start | {"model": base, "max_tokens": 2} if base else {}) | body
    status, headers, answer = server.send("POST", "/v1/chat/completions" if chat else "/v1/completions", dumped(body))
    assert status in (200, 400, 404), (status, body, answer)
    if status == 200 and "event-stream" in headers["content-type"]:
        assert answer.endswith("data: [DONE]\n\n")
    elif status == 200:
        assert answer["choices"] and answer["usage"]["completion_tokens"] > 0
    else:
        assert answer["error"]["message"] and answer["error"]["type"] == "invalid_request_error"


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=60))
def test_no_bytes_break_the_server(server: Running, body: bytes) -> None:
    assert server.post(body)[0] == 400


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_fields_are_refused_with_a_reason(name: str) -> None:
    """Also where the value is true or false and the neutral one a number that Python takes to be equal."""
    neutral, reason = UNSUPPORTED[name]
    body = {"prompt": "x"}
    for value in neutral:
        read_request(body | {name: value}, chat=False, defaults=DEFAULTS, limits=ServerLimits())
    with pytest.raises(RequestError, match=f"`{name}` is not supported") as caught:
        read_request(body | {name: {"type": "other"}}, chat=False, defaults=DEFAULTS, limits=ServerLimits())
    assert caught.value.status == 400 and caught.value.param == name and reason in caught.value.message
    read_request(body | {name: None}, chat=False, defaults=DEFAULTS, limits=ServerLimits())


def test_the_servers_settings_are_the_defaults_of_requests() -> None:
    own = GenerationSettings(num_generations=1, temperature=0.5, top_k=7, min_p=0.1)
    read = read_request({"prompt": "x", "top_k": 3}, chat=False, defaults=own, limits=ServerLimits()).settings
    assert (read.temperature, read.top_k, read.min_p) == (0.5, 3, 0.1)


@pytest.mark.parametrize(("fields", "param"), [({"n": 3}, "n"), ({"prompt": ["x"] * 3}, "prompt")])
def test_a_request_may_have_as_many_completions_as_the_limit_and_no_more(fields: dict[str, Any], param: str) -> None:
    body = {"prompt": "x"} | fields
    read_request(body, chat=False, defaults=DEFAULTS, limits=ServerLimits(max_request_completions=3))
    with pytest.raises(RequestError) as caught:
        read_request(body, chat=False, defaults=DEFAULTS, limits=ServerLimits(max_request_completions=2))
    assert caught.value.param == param


@pytest.mark.parametrize("make", [make_tokenizer, make_llama2_tokenizer])
@pytest.mark.parametrize("stops", [(), (" good", "d."), ("\n",), ("the film",)])
@pytest.mark.parametrize("window", [1, 3, growing_text.WINDOW])
def test_pieces_add_up_to_the_text(
    make: Any, stops: tuple[str, ...], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces are the text before the first stop text, found by a search in the whole text."""
    monkeypatch.setattr(growing_text, "WINDOW", window)
    tokenizer = make()
    prompt = tokenizer("I", add_special_tokens=False)["input_ids"]
    for text in ("the film was good\nbad.", " was  the  film", "a good . \n\n bad", "the", "é 日本語語 the film"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer.decode(prompt + ids, skip_special_tokens=True)[len(tokenizer.decode(prompt)) :]
        places = [whole.index(stop) for stop in stops if stop in whole]
        expected = whole[: min(places)] if places else whole
        growing, pieces = GrowingText(tokenizer, prompt, stops), []
        for n in range(1, len(ids) + 1):
            pieces.append(growing.grow(ids[:n], final=n == len(ids)))
            assert expected.startswith(growing.text)
        assert "".join(pieces) == growing.text == expected
        assert growing.stopped == bool(places)


def test_a_token_takes_as_long_at_the_end_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = make_tokenizer(), []
    decode = tokenizer.batch_decode

    def counted(rows: Any, **kwargs: Any) -> Any:
        decoded.append(sum(map(len, rows)))
        return decode(rows, **kwargs)

    monkeypatch.setattr(tokenizer, "batch_decode", counted)
    ids = tokenizer("the film was good. " * 100, add_special_tokens=False)["input_ids"]
    growing = GrowingText(tokenizer, ids[:5])
    for n in range(1, len(ids)):
        growing.grow(ids[:n])
    assert len(ids) > 400 and max(decoded) == growing_text.WINDOW
    growing.grow(ids, final=True)
    assert growing.text == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["max_batch_size", "max_waiting", "max_body_bytes", "body_timeout"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        ServerLimits(**{name: 0})


def test_the_page_lists_the_fields() -> None:
    """docs/how_to/serving.md names every field, which are ignored or refused, and every limit with its default."""
    page = (REPOSITORY / "docs" / "how_to" / "serving.md").read_text(encoding="utf-8")
    names = {*FIELDS, *IGNORED, *UNSUPPORTED}
    assert not [name for name in names if f"`{name}`" not in page]
    assert names == _COMPLETIONS | _CHAT | IGNORED | UNSUPPORTED.keys()
    ignored = page[page.index("Accepted without an effect") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", ignored)) == IGNORED
    refused = page[page.index("Accepted where they ask for nothing") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", refused)) == set(UNSUPPORTED)
    usual = ServerLimits()
    rows = dict(re.findall(r"\| `--(\w+)` \| (\d+)", page))
    assert {name: int(value) * (2**20 if name == "max_body_bytes" else 1) for name, value in rows.items()} == {
        field.name: getattr(usual, field.name) for field in dataclasses.fields(usual) if field.name != "max_logprobs"
    }
