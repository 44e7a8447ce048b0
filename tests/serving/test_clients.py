# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Clients against the server: this package's own and OpenAI's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import state_value


pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running_server import Running, make_value_model, running

from trl_ext import EndpointGuide
from trl_ext.cli import generate as cli_generate
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import EndpointBusy, RequestRefused, TooFewLogprobs
from trl_ext.endpoint.next_tokens import NextTokens
from trl_ext.endpoint.protocol import ask, served_models, takes_ids
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.serving.models import ServedModels


IDS = [5, 6, 7, 8]
CHAT = [{"role": "user", "content": "the film"}]
GREEDY = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=8)


@pytest.fixture(scope="module")
def value_model() -> Any:
    return make_value_model(make_tokenizer())


@pytest.fixture(scope="module")
def server(value_model: Any) -> Iterator[Running]:
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    guided = guided_policy(model, tokenizer, value_model, 2.0, name="g", series="tiny + value")
    plain = model_policy(model, tokenizer, name="tiny")
    with running(ServedModels(plain, [guided]), limits={"max_logprobs": 30}) as found:
        yield found


@pytest.fixture
def endpoint(server: Running) -> Iterator[Endpoint]:
    found = Endpoint(server.url, "tiny", max_retries=0)
    yield found
    found.close()


def test_our_client_reads_answers(server: Running, endpoint: Endpoint) -> None:
    plain = server.app.models.plain
    expected = plain.generate([IDS], GREEDY)[0][0]
    assert served_models(endpoint) == ["tiny", "tiny+value"]
    [answer] = ask(endpoint, IDS, max_tokens=8, logprobs=3, temperature=0, return_token_ids=True)
    assert answer.text == expected.text and answer.ids == expected.ids and not answer.ended
    assert [len(candidates) for candidates in answer.candidates] == [3] * 8
    assert (answer.prompt_tokens, answer.completion_tokens) == (4, 8)
    assert takes_ids(endpoint, IDS)
    chat = ask(endpoint, CHAT, max_tokens=4, n=2, logprobs=2)
    assert len(chat) == 2 and all(len(candidates) == 2 for candidates in chat[0].candidates)
    [continued] = ask(endpoint, CHAT, partial="it was", max_tokens=4, temperature=0)
    prompt = [*CHAT, {"role": "assistant", "content": "it was"}]
    ids = plain.encode(prompt, add_generation_prompt=False, continue_final_message=True)
    assert continued.text == plain.generate([ids], GREEDY)[0][0].text[: len(continued.text)]


def test_next_tokens_are_those_of_the_model(server: Running, endpoint: Endpoint) -> None:
    plain = server.app.models.plain
    following = NextTokens(endpoint, plain.tokenizer, 10)
    options = following.after(following.text(IDS))
    assert plain.logps is not None
    logps = [plain.logps([IDS], [[[option.id]]])[0][0].item() for option in options]
    assert len(options) == 10
    assert [option.logprob for option in options] == pytest.approx(logps, abs=1e-4)
    with pytest.raises(TooFewLogprobs, match="logprobs"):
        far = NextTokens(endpoint, plain.tokenizer, 31)
        far.after(far.text(IDS))


@pytest.mark.parametrize("chat", [False, True])
def test_a_guide_of_an_endpoint_gives_what_the_guided_model_gives(
    server: Running, endpoint: Endpoint, value_model: Any, chat: bool
) -> None:
    """
    Guided here by the client, from the log-probabilities of the plain model, or there by the server. The chat endpoint
    continues text, which it tokenizes again, and this tokenizer finds other tokens in it after a few.
    """
    settings = replace(GREEDY, max_completion_length=2) if chat else GREEDY
    guided = server.app.models.by_name["tiny+value"]
    assert guided.weights is not None
    strong = guided.weights.change({"reward": 6.0})
    guide = EndpointGuide(endpoint, value_model, 6.0, guided.tokenizer, top_k=20, chat=chat)
    prompt: Any = CHAT if chat else IDS
    ids = guided.encode(CHAT) if chat else IDS
    expected = strong.generate([ids], settings)[0][0]
    assert guide.answer(prompt, settings).completion.text == expected.text
    assert expected.text != server.app.models.plain.generate([ids], settings)[0][0].text
    served = Endpoint(server.url, "tiny+value", extra_body={"beta": 6})
    [answer] = ask(served, prompt, max_tokens=settings.max_completion_length, temperature=0)
    assert answer.text == expected.text
    served.close()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("mode", ["block", "answer"])
def test_blocks_and_answers_are_chosen_by_their_values(
    server: Running, endpoint: Endpoint, value_model: Any, mode: str, chat: bool
) -> None:
    """A weight of 1,000 takes the best of six, one of -1,000 the worst."""
    plain = server.app.models.plain
    prompt: Any = CHAT if chat else IDS
    start = plain.encode(CHAT) if chat else IDS
    lengths = {"block_length": 4} if mode == "block" else {}
    guide = EndpointGuide(endpoint, value_model, 0.0, plain.tokenizer, mode=mode, chat=chat, num_blocks=6, **lengths)
    settings = replace(GREEDY, temperature=1.0, max_completion_length=4)

    def value(beta: float, seed: int) -> float:
        completion = guide.answer(prompt, settings, beta=beta, seed=seed).completion
        return state_value(value_model, [*start, *completion.ids])

    worst, best = (sum(value(beta, seed) for seed in range(4)) for beta in (-1e3, 1e3))
    assert worst < best


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_commands_ask_for_a_weight_of_the_server(
    server: Running, beta: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--endpoint_body` has it, as the page about the server says. The prompt is a message, as there is a template."""
    guided = server.app.models.by_name["tiny+value"]
    guided.tokenizer.save_pretrained(tmp_path)
    assert guided.weights is not None
    expected = guided.weights.change({"reward": beta}).generate([guided.encode(CHAT)], GREEDY)[0][0].text
    words = ["--endpoint", server.url, "--endpoint_model", "tiny+value", "--endpoint_tokenizer", str(tmp_path)]
    words += ["--endpoint_body", json.dumps({"beta": beta}), "--temperature", "0", "--max_completion_length", "8"]
    assert cli_generate.main([*words, "--prompt", CHAT[0]["content"]]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_our_client_reads_errors(server: Running, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestRefused, match="context length"):
        ask(endpoint, IDS, max_tokens=300)
    with pytest.raises(RequestRefused, match="no model"):
        ask(Endpoint(server.url, "other", max_retries=0), IDS)
    with running(ServedModels(server.app.models.plain), api_key="abc") as own:
        monkeypatch.setenv("SERVE_KEY", "abc")
        assert served_models(Endpoint(own.url, "", api_key_variable="SERVE_KEY")) == ["tiny"]
        with pytest.raises(RequestRefused, match="API key"):
            served_models(Endpoint(own.url, ""))
    assert issubclass(EndpointBusy, Exception)


def test_openais_client(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    client = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny", "tiny+value"]
    plain, guided = server.app.models.plain, server.app.models.by_name["tiny+value"]
    assert guided.weights is not None
    text = plain.generate([IDS], GREEDY)[0][0].text
    answer = client.completions.create(model="tiny", prompt=IDS, max_tokens=8, temperature=0, logprobs=2)
    assert answer.choices[0].text == text and len(answer.choices[0].logprobs.tokens) == 8
    chat: dict[str, Any] = {"messages": CHAT, "max_completion_tokens": 8, "temperature": 0}
    strong = guided.weights.change({"reward": 6.0}).generate([guided.encode(CHAT)], GREEDY)[0][0].text
    for beta in (6, {"reward": 6}):
        found = client.chat.completions.create(model="tiny+value", extra_body={"beta": beta}, **chat)
        assert found.choices[0].message.content == strong and found.usage.completion_tokens == 8
    stream = client.chat.completions.create(
        model="tiny+value", extra_body={"beta": 6}, stream=True, stream_options={"include_usage": True}, **chat
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == strong
    assert chunks[-1].usage.completion_tokens == 8
    scored = client.chat.completions.create(model="tiny", logprobs=True, top_logprobs=2, **chat)
    assert len(scored.choices[0].logprobs.content[0].top_logprobs) == 2
    with pytest.raises(openai.BadRequestError, match="echo") as caught:
        client.completions.create(model="tiny", prompt="x", echo=True)
    assert caught.value.param == "echo"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    client.close()
