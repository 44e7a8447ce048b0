# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Streams of server-sent events: chunks as they come, errors, and connections that end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANGS
from scripted_server import CUT, ScriptedServer

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import BadAnswer, EndpointClosed, EndpointFailed, EndpointUnreachable, RequestRefused


EVENTS = {"Content-Type": "text/event-stream"}
CHUNKS = [{"choices": [{"text": text}]} for text in ("a", "é\n", "c")]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def stream(*events: Any) -> tuple[int, dict[str, str], bytes]:
    lines = [event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events]
    return 200, EVENTS, "".join(f"data: {line}\n\n" for line in lines).encode()


def client(server: ScriptedServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "", timeout=HANGS, **settings)


def test_chunks_until_the_end(server: ScriptedServer) -> None:
    """Comments and empty lines are no chunks, and nothing is read after [DONE]."""
    status, headers, data = stream(*CHUNKS, "[DONE]", {"choices": []})
    server.script = [(status, headers, b": ping\n\nevent: x\n" + data)]
    endpoint = client(server, extra_body={"min_p": 0.1})
    assert list(endpoint.stream("completions", {"model": "m", "prompt": "p"})) == CHUNKS
    [(path, body, _)] = server.requests
    assert path == "/v1/completions" and body == {"model": "m", "prompt": "p", "min_p": 0.1, "stream": True}
    assert endpoint.cost.requests == 1


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        ((404, {}, {"error": {"message": "There is no model 'x'"}}), RequestRefused, "no model 'x'"),
        ((503, {}, {"error": {"message": "busy"}}), EndpointFailed, "busy"),
        (stream(CHUNKS[0], {"error": {"message": "out of memory"}}), EndpointFailed, "out of memory"),
        (stream(CHUNKS[0], {"error": "broken"}), EndpointFailed, "broken"),
        (stream("{not json"), BadAnswer, "not JSON"),
        (stream("[1]"), BadAnswer, "not a JSON object"),
        (CUT, EndpointUnreachable, "connection failed"),
    ],
)
def test_failures_are_not_retried(server: ScriptedServer, step: Any, kind: type[Exception], message: str) -> None:
    server.script = [step]
    with pytest.raises(kind, match=message):
        list(client(server).stream("completions", {}))
    assert len(server.requests) == 1


def test_what_came_before_a_failure_is_there(server: ScriptedServer) -> None:
    server.script = [stream(CHUNKS[0], {"error": {"message": "no"}})]
    chunks = client(server).stream("completions", {})
    assert next(chunks) == CHUNKS[0]
    with pytest.raises(EndpointFailed):
        next(chunks)


def test_a_closed_client_and_a_closed_iterator(server: ScriptedServer) -> None:
    server.script = [stream(*CHUNKS)]
    endpoint = client(server)
    chunks = endpoint.stream("completions", {})
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    endpoint.close()
    with pytest.raises(EndpointClosed):
        next(endpoint.stream("completions", {}))


def test_proxies_of_the_environment_may_be_left_out(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.script = [stream(*CHUNKS)]
    assert list(client(server, use_proxies=False).stream("completions", {})) == CHUNKS
    with pytest.raises(EndpointUnreachable):
        list(client(server).stream("completions", {}))
