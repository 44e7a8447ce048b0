# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Answers of real servers: ours with values, others with log-probabilities or nothing, errors, and Stop."""

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HANGS, make_model, make_tokenizer
from scripted_server import ScriptedServer


pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running_server import Running, make_value_model, running

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import BadAnswer, EndpointUnreachable
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.playground.answers import Answer
from trl_ext.playground.columns import Column, weights_of
from trl_ext.playground.recorder import record
from trl_ext.playground.run import Run
from trl_ext.playground.running import known_models
from trl_ext.playground.sources import NO_GUIDES, NOTHING, ONLY_LOGPROBS, Ask, SourceModel, models_of
from trl_ext.serving.models import ServedModels
from trl_ext.serving.vllm.settings import request_weights


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 6, "seed": 1}
TEXT = Ask("the film was", False, "", SAMPLING, 3)
CHAT = Ask("the film", True, "be brief", SAMPLING, 3)


def policies() -> tuple[Policy, Policy]:
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    plain = model_policy(model, tokenizer, name="tiny", batch_size=16)
    return plain, guided_policy(model, tokenizer, make_value_model(tokenizer), 2.0, name="v", series="tiny + value")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    plain, guided = policies()
    with running(ServedModels(plain, [guided]), limits={"max_logprobs": 30}) as found:
        yield found


@pytest.fixture(scope="module")
def models(server: Running) -> dict[str, SourceModel]:
    return {model.name: model for model in models_of(Endpoint(server.url, ""))}


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def finished(ask: Ask, *models: tuple[SourceModel, dict[str, float] | None]) -> list[Answer]:
    run = Run(ask, models).start()
    for _ in run.updates(pause=0.01):
        pass
    return run.answers


def test_models_with_their_weights(models: dict[str, SourceModel]) -> None:
    plain, guided = models["tiny"], models["tiny+value"]
    assert (plain.weights, plain.guidance, plain.ours, plain.chat) == (None, False, True, True)
    assert (guided.weights, guided.guidance) == ({"reward": 2.0}, True)


@pytest.mark.parametrize("ask", [TEXT, CHAT])
def test_answers_side_by_side(server: Running, models: dict[str, SourceModel], ask: Ask) -> None:
    """Texts are those of whole answers; guided ones have values, also at weight 0; plain ones say why not."""
    guided = models["tiny+value"]
    plain, zero, two = finished(ask, (models["tiny"], None), (guided, {"reward": 0.0}), (guided, {"reward": 2.0}))
    assert plain.text == zero.text != two.text
    body = ask.body(guided, {"reward": 2.0})
    _, whole = server.post(body, chat=ask.chat)
    choice = whole["choices"][0]
    assert two.text == (choice["message"]["content"] if ask.chat else choice["text"])
    assert plain.note == NO_GUIDES and not two.note
    assert all(token.chosen is not None and token.chosen.values for token in two.tokens)
    assert all(token.chosen is not None and token.chosen.before is None for token in plain.tokens)
    assert all(len(token.options) == 3 for token in [*plain.tokens, *two.tokens])
    assert {plain.finish_reason, two.finish_reason} <= {"stop", "length"} and two.seconds > 0


def test_without_candidates_nothing_is_asked_for(models: dict[str, SourceModel]) -> None:
    ask = Ask("the film was", False, "", SAMPLING, 0)
    [answer] = finished(ask, (models["tiny+value"], {"reward": 2.0}))
    assert answer.text and not answer.note and all(token.chosen is None for token in answer.tokens)


def test_the_recorder_of_notebooks_has_the_same(models: dict[str, SourceModel]) -> None:
    """The same tokens, values and probabilities without a server, up to rounding."""
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=6)
    plain, guided = policies()
    recorded = record(guided, "the film was", settings, candidates=3)
    [served] = finished(TEXT, (models["tiny+value"], {"reward": 2.0}))
    assert [token.name for token in recorded.tokens] == [token.name for token in served.tokens]
    assert recorded.text == served.text and recorded.weights == {"reward": 2.0}
    for a, b in zip(recorded.tokens, served.tokens, strict=True):
        assert a.chosen is not None and b.chosen is not None
        assert a.chosen.after == pytest.approx(b.chosen.after, abs=1e-4)
        assert a.chosen.values == pytest.approx(b.chosen.values, abs=1e-4)
    unguided = record(plain, [{"role": "user", "content": "the film"}], settings)
    assert unguided.tokens and unguided.tokens[0].chosen is not None and unguided.tokens[0].chosen.before is None


def test_a_policy_that_cannot_be_observed() -> None:
    policy = Policy("blocks", make_tokenizer(), lambda prompts, settings: [])
    with pytest.raises(ValueError, match="'blocks' cannot be seen one by one"):
        record(policy, "x", GenerationSettings(num_generations=1))


# ----------------------------------------------------------------------------------------------------- other servers


def chunked(*choices: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    lines = [json.dumps({"choices": [choice]}) for choice in choices]
    data = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
    return 200, {"Content-Type": "text/event-stream"}, data.encode()


def foreign(other: ScriptedServer, weights: dict[str, float] | None = None) -> SourceModel:
    other.script = [(200, {}, {"data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 9}]})]
    [model] = models_of(Endpoint(other.url, "", timeout=HANGS), "there", weights)
    return model


def test_a_server_with_log_probabilities(other: ScriptedServer) -> None:
    """As vLLM streams them. Fields that only some servers have are not sent where they are off."""
    model = foreign(other)
    assert (model.label, model.ours, model.weights, model.guidance) == ("m (there)", False, None, False)
    logprobs = {"tokens": [" good"], "token_logprobs": [-0.5], "top_logprobs": [{" good": -0.5, " bad": -1.0}]}
    other.script = [chunked({"text": " good", "logprobs": logprobs}, {"text": "", "finish_reason": "stop"})]
    [answer] = finished(TEXT, (model, None))
    assert answer.note == ONLY_LOGPROBS and answer.text == " good" and answer.finish_reason == "stop"
    assert answer.tokens[0].chosen is not None and answer.tokens[0].chosen.before is None
    body = other.requests[-1][1]
    assert body["logprobs"] == 3 and not {"top_k", "beta", "guidance"} & body.keys()


@pytest.mark.parametrize(
    ("inside", "chosen", "sent"),
    [
        ({"": 2.0}, Column("m", 1.5), 1.5),
        ({"": 2.0}, Column("m", 0.0), 0.0),
        ({"kind": 2.0}, Column("m", -1.0), "kind=-1.0"),
        ({"kind": 2.0, "short": 1.0}, Column("m", 2.0, [1.0, -0.25]), "kind=2.0,short=-0.5"),
    ],
)
def test_weights_of_value_models_inside_vllm(
    other: ScriptedServer, inside: dict[str, float], chosen: Column, sent: Any
) -> None:
    """They are sent as `vllm_xargs`, in the form that the engine reads."""
    model = foreign(other, inside)
    assert model.weights == inside and not model.guidance
    weights = weights_of(model, chosen)
    other.script = [chunked({"text": "good", "finish_reason": "stop"})]
    [answer] = finished(TEXT, (model, weights))
    assert answer.error == "" and answer.title.startswith("m (there), ")
    body = other.requests[-1][1]
    assert body["vllm_xargs"] == {"beta": sent} and "beta" not in body
    heads = list(inside) if "" not in inside else ["reward"]
    params = SimpleNamespace(extra_args=body["vllm_xargs"])
    read = request_weights(params, heads)
    assert list(read or [0.0]) == list((weights or {}).values())


def test_weights_for_servers_that_list_their_own(server: Running) -> None:
    with pytest.raises(ValueError, match="`server_beta` has no effect"):
        known_models([Endpoint(server.url, "")], {"": 2.0})


@pytest.mark.parametrize("refused", [False, True])
def test_a_server_without_log_probabilities(other: ScriptedServer, refused: bool) -> None:
    """One that leaves them out, and one that refuses the request, which is then sent without them."""
    model = foreign(other)
    steps = [chunked({"delta": {"content": "good"}}, {"delta": {}, "finish_reason": "length"})]
    if refused:
        steps.insert(0, (400, {}, {"error": {"message": "top_logprobs must be off for this model"}}))
    other.script = steps  # type: ignore[assignment]
    [answer] = finished(CHAT, (model, None))
    assert (answer.text, answer.finish_reason, answer.error) == ("good", "length", "")
    assert ("refuses" in answer.note and "must be off" in answer.note) if refused else answer.note == NOTHING
    messages = other.requests[-1][1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]


def test_errors_say_what_the_server_says(other: ScriptedServer) -> None:
    model = foreign(other)
    other.script = [(404, {}, {"error": {"message": 'The model "m" does not exist', "type": "x"}})]
    [answer] = finished(TEXT, (model, None))
    assert (answer.error, answer.finish_reason) == ('The model "m" does not exist', "error")
    other.script = [chunked({"text": "a"})]
    [answer] = finished(TEXT, (model, None))
    assert "without an end" in answer.error and answer.text == "a"
    other.script = [chunked({"text": 3})]
    assert "protocol" in finished(TEXT, (model, None))[0].error


def test_an_error_of_one_answer_leaves_the_others(server: Running, models: dict[str, SourceModel]) -> None:
    gone = SourceModel(Endpoint("http://127.0.0.1:9/v1", "", timeout=2.0), "m", "m")
    bad, good = finished(TEXT, (gone, None), (models["tiny"], None))
    assert "Is the server running" in bad.error and good.text and not good.error


def test_a_model_without_a_chat_template_takes_no_messages(models: dict[str, SourceModel]) -> None:
    tokenizer = make_tokenizer()
    with running(ServedModels(model_policy(make_model(len(tokenizer)), tokenizer, name="text"))) as own:
        [model] = models_of(Endpoint(own.url, ""))
        assert "a text to continue" in finished(CHAT, (model, None))[0].error


def test_what_lists_no_models(other: ScriptedServer) -> None:
    endpoint = Endpoint(other.url, "", timeout=2.0)
    for body in ({"data": []}, {"data": [1]}, {"models": []}):
        other.script = [(200, {}, body)]
        with pytest.raises(BadAnswer, match="models"):
            models_of(endpoint)
    with pytest.raises(EndpointUnreachable):
        models_of(Endpoint("http://127.0.0.1:9/v1", "", timeout=2.0))


# ------------------------------------------------------------------------------------------------------------- stop


def test_stop_ends_the_answers_and_the_server(server: Running, models: dict[str, SourceModel]) -> None:
    """At once for the visitor, with what was there; the server stops with its next token."""
    long = Ask("the film was", False, "", SAMPLING | {"max_tokens": 100, "temperature": 1.0}, 3)
    policy, started = server.app.models.by_name["tiny"], threading.Event()
    generate = policy.generate

    def slow(prompts: Any, settings: Any, *, observer: Any = None) -> Any:
        see = observer.see

        def paused(step: Any) -> Any:
            started.set()
            time.sleep(0.05)
            return see(step)

        observer.see = paused
        return generate(prompts, settings, observer=observer)

    object.__setattr__(policy, "generate", slow)
    try:
        run = Run(long, [(models["tiny"], None)]).start()
        updates = run.updates(pause=0.01)
        while not next(updates)[0].tokens:
            pass
        run.stop()
        assert list(updates) == []
        [answer] = run.answers
        count = len(answer.tokens)
        assert answer.finish_reason == "stopped" and 0 < count < 100
        end = time.monotonic() + HANGS
        while server.app.engine.running and time.monotonic() < end:
            time.sleep(0.02)
        assert not server.app.engine.running and len(answer.tokens) == count
    finally:
        object.__setattr__(policy, "generate", generate)
