# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of the server that say what guides did at each token."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import make_model, make_tokenizer


pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running_server import Running, make_value_model, running

from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.serving.models import ServedModels


GUIDED = {"model": "tiny+value", "prompt": "the film was", "temperature": 0, "max_tokens": 5}
CHAT = {key: value for key, value in GUIDED.items() if key != "prompt"} | {
    "messages": [{"role": "user", "content": "the film"}]
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    plain = model_policy(model, tokenizer, name="tiny", batch_size=16)
    guided = guided_policy(model, tokenizer, make_value_model(tokenizer), 2.0, name="v", series="tiny + value")
    with running(ServedModels(plain, [guided]), limits={"max_logprobs": 30}) as found:
        yield found


def guidance(answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer["choices"][0]["guidance"]
    return found


def test_candidates_with_their_probabilities(server: Running) -> None:
    """Among the 20 candidates, after = softmax(log before + 2 value); the chosen token is one of them."""
    status, answer = server.post(GUIDED | {"guidance": 20, "logprobs": 1})
    assert status == 200
    names = answer["choices"][0]["logprobs"]["tokens"]
    assert [each["token"] for each in guidance(answer)] == names
    for each, logprob in zip(guidance(answer), answer["choices"][0]["logprobs"]["token_logprobs"], strict=True):
        assert len(each["candidates"]) == 20
        raised = [c["before"] * math.exp(2.0 * c["values"]["reward"]) for c in each["candidates"]]
        total = sum(c["after"] for c in each["candidates"])
        for candidate, expected in zip(each["candidates"], raised, strict=True):
            assert candidate["after"] / total == pytest.approx(expected / sum(raised), abs=1e-4)
        assert [c["after"] for c in each["candidates"]] == sorted(
            (c["after"] for c in each["candidates"]), reverse=True
        )
        assert each["after"] == pytest.approx(math.exp(logprob), abs=1e-4)  # at temperature 0 the likeliest is chosen
        assert {key: each[key] for key in ("token", "before", "after", "values")} == each["candidates"][0]


def test_a_stream_has_the_same_entries_and_a_chat_too(server: Running) -> None:
    _, whole = server.post(GUIDED | {"guidance": 2})
    chunks = server.events(GUIDED | {"guidance": 2, "stream": True})[:-1]
    streamed = [entry for chunk in chunks for entry in guidance(chunk)]
    assert streamed == guidance(whole) and all(len(entry["candidates"]) == 2 for entry in streamed)
    _, chat = server.post(CHAT | {"guidance": 0}, chat=True)
    assert guidance(chat) and all(entry["candidates"] == [] and entry["values"] for entry in guidance(chat))


def test_an_unguided_answer_has_values(server: Running) -> None:
    """At `beta` 0 the answer is the plain model's, and the probabilities are equal."""
    _, plain = server.post(GUIDED | {"model": "tiny"})
    _, zero = server.post(GUIDED | {"beta": 0, "guidance": 3})
    assert zero["choices"][0]["text"] == plain["choices"][0]["text"]
    for entry in guidance(zero):
        assert all(c["before"] == pytest.approx(c["after"]) and c["values"] for c in entry["candidates"])


def test_answers_without_it_are_as_before(server: Running) -> None:
    _, answer = server.post(GUIDED)
    assert "guidance" not in answer["choices"][0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "tiny"}, "not available for 'tiny'"),
        ({"guidance": 31}, "between 0 and 30"),
        ({"guidance": True}, "an integer"),
    ],
)
def test_what_is_refused(server: Running, fields: dict[str, Any], message: str) -> None:
    status, answer = server.post(GUIDED | {"guidance": 2} | fields)
    assert status == 400 and message in answer["error"]["message"] and answer["error"]["param"] == "guidance"


def test_the_list_of_models_says_where_it_is_available(server: Running) -> None:
    _, _, listed = server.send("GET", "/v1/models")
    assert {each["id"]: (each["guidance"], each["beta"], each["chat"]) for each in listed["data"]} == {
        "tiny": (False, None, True),
        "tiny+value": (True, {"reward": 2.0}, True),
    }
