# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The client against a scripted server: failures and retries, concurrency, keys, proxies, requests and answers."""

import json
import math
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec

import pytest
from conftest import HANGS
from scripted_server import CUT, HALF, SILENT, ScriptedServer, completion

from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import (
    BadAnswer,
    EndpointBusy,
    EndpointClosed,
    EndpointFailed,
    EndpointUnreachable,
    RequestRefused,
)
from trl_ext.endpoint.protocol import ask, read, takes_ids


@pytest.fixture
def server():
    made = ScriptedServer()
    yield made
    made.close()


def client(server, **settings):
    return Endpoint(server.url, "m", **{"backoff": 0.01, "timeout": 5.0, "max_retries": 3, **settings})


def error(status, message="no", **headers):
    return status, headers, {"error": {"message": message}}


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "failure",
    [
        *(error(status) for status in (408, 429, 500, 503, 507, 521, 525, 530)),
        CUT,
        HALF,
        (200, {}, b'{"choices": [{"te'),
        (200, {}, b"<html>"),
        (200, {}, []),
        (200, {}, {"choices": []}),
        (200, {}, {"error": {"message": "overloaded", "code": 503}}),
        (200, {}, {"object": "error", "message": "overloaded", "code": 500}),
        (200, {}, {"error": "overloaded"}),
        (200, {}, {"choices": [{"text": "o", "finish_reason": "error"}]}),
        (200, {}, completion("x", logprobs={"top_logprobs": [{"a": math.nan}]})),
    ],
)
def test_temporary_failures_are_retried(server, failure):
    server.script = [failure, failure]
    endpoint = client(server)
    [answer] = ask(endpoint, "The film")
    assert answer.text == "ok"
    assert endpoint.cost.requests == len(server.requests) == 3
    assert endpoint.cost.retries == 2
    assert len({json.dumps(body, sort_keys=True) for _, body, _ in server.requests}) == 1


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (error(429, "slow down"), EndpointBusy, "status 429: .*slow down"),
        (error(500, "broken"), EndpointFailed, "status 500: .*broken"),
        (CUT, EndpointUnreachable, "the connection failed"),
        (HALF, EndpointUnreachable, "the connection failed .*without sending complete"),
        ((200, {}, b"<html>"), BadAnswer, "not JSON: <html>"),
    ],
    ids=["429", "500", "cut", "cut in the middle", "no JSON"],
)
def test_a_failure_that_stays_is_raised_with_the_servers_message(server, failure, kind, message):
    server.script = [failure] * 10
    endpoint = client(server, max_retries=2)
    with pytest.raises(kind, match=f"{message}(.|\n)*tried 3 times") as caught:
        ask(endpoint, "x")
    assert caught.value.transient
    assert server.url in str(caught.value)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_that_a_gateway_sends_with_status_200_is_one(server, status):
    server.script = [(200, {}, {"error": {"message": "the prompt is too long", "code": status}})]
    with pytest.raises(RequestRefused, match="the prompt is too long"):
        ask(client(server), "x")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_refused_requests_are_not_retried(server, status):
    server.script = [error(status, "the prompt is too long")]
    with pytest.raises(RequestRefused, match=f"status {status}.*the prompt is too long") as caught:
        ask(client(server), "x")
    assert caught.value.status == status
    assert len(server.requests) == 1


def test_a_429_without_credit_is_not_retried(server):
    server.script = [(429, {}, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})]
    with pytest.raises(EndpointBusy, match="quota"):
        ask(client(server), "x")
    assert len(server.requests) == 1


def test_timeout(server):
    server.script = [SILENT]
    [answer] = ask(client(server, timeout=0.1), "x")
    assert answer.text == "ok"
    server.script = [SILENT] * 3
    with pytest.raises(EndpointUnreachable, match=r"no answer within 0\.1 s"):
        ask(client(server, timeout=0.1, max_retries=1), "x")


def test_nothing_listens_at_the_address(server):
    server.close()
    with pytest.raises(EndpointUnreachable, match="Connection refused"):
        ask(client(server, max_retries=1), "x")


def test_the_wait_doubles_up_to_the_limit(server, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    server.script = [error(500)] * 5
    endpoint = client(server, backoff=1.0, max_wait=5.0, max_retries=5)
    waits = []
    monkeypatch.setattr(endpoint, "_wait", waits.append)
    ask(endpoint, "x")
    assert [wait for wait in waits if wait > 0] == [1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(server, form):
    soon = format_datetime(datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2), usegmt=True)
    server.script = [error(429, **{"Retry-After": "0.3" if form == "seconds" else soon})]
    start = time.monotonic()
    ask(client(server), "x")
    assert time.monotonic() - start > (0.3 if form == "seconds" else 0.9)


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-5", ""])
def test_invalid_retry_after_is_ignored(server, value):
    server.script = [error(429, **{"Retry-After": value})]
    assert ask(client(server), "x")[0].text == "ok"


def test_retry_after_beyond_max_wait_raises(server):
    server.script = [error(429, **{"Retry-After": "3600"})]
    with pytest.raises(EndpointBusy, match="asks to wait 3600 s"):
        ask(client(server), "x")
    assert len(server.requests) == 1


def test_a_429_delays_all_threads(server):
    server.script = [error(429, **{"Retry-After": "0.4"})]
    endpoint = client(server)
    first = threading.Thread(target=ask, args=(endpoint, "a"))
    first.start()
    time.sleep(0.15)
    ask(endpoint, "b")
    first.join()
    assert server.times[1] - server.times[0] > 0.38


def test_close_ends_the_wait_for_a_retry(server):
    server.script = [error(429, **{"Retry-After": "30"})]
    endpoint = client(server)
    caught = []

    def work():
        try:
            ask(endpoint, "x")
        except EndpointClosed as closed:
            caught.append(closed)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.15)
    endpoint.close()
    thread.join(2)
    assert caught
    with pytest.raises(EndpointClosed):
        ask(endpoint, "x")


# ----------------------------------------------------------------------------------------------------- many requests


def test_concurrency_is_limited(server):
    full = threading.Event()

    def slow(path, body):
        if server.at_once == 3:
            full.set()
        full.wait(HANGS)
        return completion("ok")

    server.answer = slow
    endpoint = client(server, max_concurrency=3, timeout=HANGS)
    threads = [threading.Thread(target=ask, args=(endpoint, "x")) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert full.is_set()
    assert server.most_at_once == 3
    assert endpoint.cost.requests == 9


def test_connections_are_reused_and_replaced(server):
    endpoint = client(server)
    for _ in range(5):
        ask(endpoint, "x")
    assert server.connections == 1
    server.hang_up()  # as servers do with a connection that is idle for too long
    ask(endpoint, "x")
    assert (server.connections, endpoint.cost.requests, endpoint.cost.retries) == (2, 6, 0)


def test_close_lets_answers_arrive_and_then_closes_the_connections(server):
    """Closing a connection under a thread that reads from it would leave the thread waiting for its timeout."""
    asked, go = threading.Event(), threading.Event()

    def slow(path, body):
        asked.set()
        go.wait(5)
        return completion("ok")

    server.answer = slow
    endpoint, found = client(server), []
    thread = threading.Thread(target=lambda: found.extend(ask(endpoint, "x")))
    thread.start()
    asked.wait(5)
    endpoint.close()
    assert not endpoint._client.is_closed
    go.set()
    thread.join(5)
    assert [answer.text for answer in found] == ["ok"] and endpoint._client.is_closed
    endpoint.close()  # a second time does nothing


def test_cost(server):
    server.script = [error(500), (200, {}, {"choices": [{"text": "a"}]})]
    server.answer = lambda path, body: completion("a", "b", prompt_tokens=7)
    endpoint = client(server)
    ask(endpoint, "x")
    assert endpoint.cost.uncounted == 1
    ask(endpoint, "x", n=2)
    cost = endpoint.cost
    assert (cost.requests, cost.retries, cost.prompt_tokens, cost.completion_tokens) == (3, 1, 7, 2)


# --------------------------------------------------------------------------------------------------- key and address


def test_key_comes_from_the_environment_and_stays_there(server, monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", "sk-secret")
    server.script = [error(401, "Incorrect API key provided: sk-secret."), (200, {}, b"sk-secret " * 100)]
    endpoint = client(server, api_key_variable="A_KEY", max_retries=0)
    with pytest.raises(RequestRefused, match=r"provided: \[key\]") as refused:
        ask(endpoint, "x")
    with pytest.raises(BadAnswer) as bad:
        ask(endpoint, "x")
    assert server.requests[0][2]["Authorization"] == "Bearer sk-secret"
    for text in (str(refused.value), str(bad.value), repr(endpoint), caplog.text):
        assert "sk-s" not in text


def test_no_key_is_sent_unless_its_variable_is_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    ask(client(server), "x")
    assert "Authorization" not in server.requests[0][2]


@pytest.mark.parametrize("value", [None, "", "a\nb", "ключ"])
def test_invalid_keys(server, monkeypatch, value):
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(ValueError, match="A_KEY") as caught:
        client(server, api_key_variable="A_KEY")
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "must be an address"),
        ({"base_url": "ftp://x/v1"}, "must be an address"),
        ({"base_url": "http://me:word@x/v1"}, "contains a password"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"extra_body": {"stream": True, "min_p": 0}}, "extra_body has stream, which"),
        ({"backoff": math.nan}, "backoff"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(**{"base_url": "http://x/v1", "model": "m", **settings})
    assert "word" not in str(caught.value).replace("password", "")


# ------------------------------------------------------------------------------------------------------------ proxies


@pytest.fixture
def proxy():
    made = ScriptedServer(lambda path, body: completion("by the proxy"))
    yield made
    made.close()


@pytest.fixture
def environment(monkeypatch, proxy):
    """Sets the environment's proxies to those in `names`, and `NO_PROXY` to `no_proxy`."""

    def set_proxies(*names, no_proxy=""):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name.lower(), raising=False)
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1") if name in names else "")
        monkeypatch.setenv("NO_PROXY", no_proxy)

    return set_proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_requests_go_through_the_proxy_of_the_environment(proxy, environment, name):
    """A proxy of plain HTTP is sent the whole address in place of the path (RFC 9112, 3.2.2)."""
    environment(name)
    endpoint = Endpoint("http://model.invalid:8000/v1", "m")  # a host that has no address
    assert [ask(endpoint, "x")[0].text for _ in range(2)] == ["by the proxy"] * 2
    assert [path for path, *_ in proxy.requests] == ["http://model.invalid:8000/v1/completions"] * 2
    assert proxy.connections == 1


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_secure_requests_ask_the_proxy_for_a_tunnel(proxy, environment, name):
    environment(name)
    with pytest.raises(EndpointUnreachable, match=r"the connection failed .*403 No tunnels here"):
        ask(Endpoint("https://model.invalid/v1", "m", max_retries=0), "x")
    assert proxy.tunnels == ["model.invalid:443"] and not proxy.requests


def test_hosts_in_no_proxy_are_reached_directly(server, proxy, environment):
    environment("HTTP_PROXY", no_proxy="other.invalid, 127.0.0.1")
    assert ask(client(server), "x")[0].text == "ok"
    assert not proxy.requests
    environment("HTTP_PROXY", no_proxy="other.invalid")
    assert ask(client(server), "x")[0].text == "by the proxy"
    environment("HTTPS_PROXY")  # for other addresses than this one
    assert ask(client(server), "x")[0].text == "ok"


@pytest.mark.skipif(bool(find_spec("socksio")), reason="only where the package for SOCKS is not installed")
def test_a_socks_proxy_needs_a_package(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ImportError, match=r"pip install 'httpx2\[socks\]', or unset"):
        Endpoint("https://model.invalid/v1", "m")


# ------------------------------------------------------------------------------------------------ requests and answers


def test_requests_of_both_endpoints(server):
    endpoint = client(server, extra_body={"min_p": 0.0})
    ask(endpoint, [1, 2], n=3, max_tokens=5, logprobs=4, by_id=True, temperature=0.5)
    path, body, _ = server.requests[0]
    assert path == "/v1/completions"
    assert body == {
        "model": "m",
        "prompt": [1, 2],
        "n": 3,
        "max_tokens": 5,
        "logprobs": 4,
        "temperature": 0.5,
        "return_tokens_as_token_ids": True,
        "min_p": 0.0,
    }
    messages = [{"role": "user", "content": "q"}]
    server.answer = lambda path, body: {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    [answer] = ask(endpoint, messages, partial="so", logprobs=4)
    path, body, _ = server.requests[1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [*messages, {"role": "assistant", "content": "so"}]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 4)
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
    assert (answer.text, answer.ended) == ("", True)
    ask(endpoint, messages)
    assert "continue_final_message" not in server.requests[2][1]


def test_candidates_in_each_form():
    table = {"top_logprobs": [{" a": -1.0, " b": -0.5, "": -0.1, "\ufffd": -3.0}]}
    [answer] = read(completion("x", logprobs=table), "here")
    assert [(c.text, c.logprob, c.id) for c in answer.candidates[0]] == [(" b", -0.5, None), (" a", -1.0, None)]
    assert answer.listed == 4
    [answer] = read(completion("x", logprobs={"top_logprobs": [{"token_id:7": -1.0, "token_id:": -2.0}]}), "here")
    assert [(c.text, c.id) for c in answer.candidates[0]] == [("", 7), ("token_id:", None)]
    entries = [{"token": "a", "logprob": -2, "id": 4}, {"token": "\ufffd", "logprob": -1, "id": 5}]
    [answer] = read(completion("x", logprobs={"content": [{"token": "a", "top_logprobs": entries}]}), "here")
    assert [(c.text, c.id) for c in answer.candidates[0]] == [("", 5), ("a", 4)]


def test_a_sampled_token_that_was_not_requested_is_no_candidate():
    def texts(keep, sampled, **table):
        logprobs = {"tokens": [sampled], "top_logprobs": [table]}
        return [c.text for c in read(completion("x", logprobs=logprobs), "here", keep)[0].candidates[0]]

    table = {"a": -1.0, "b": -2.0, "c": -5.0}
    assert texts(2, "c", **table) == ["a", "b"]
    assert texts(3, "c", **table) == ["a", "b", "c"]
    # Two nameless tokens share an entry: three were requested, and the third here is the sampled one
    assert texts(3, "c", **{"a": -1.0, "": -2.0, "c": -5.0}) == ["a"]
    assert texts(3, "a", **{"a": -1.0, "": -2.0, "c": -5.0}) == ["a", "c"]


SERVERS = {
    # ids in place of texts, and the ids of the answer (`return_token_ids`)
    "vllm": {
        "text": " a",
        "token_ids": [7],
        "finish_reason": "length",
        "logprobs": {"tokens": ["token_id:7"], "top_logprobs": [{"token_id:7": -0.5, "token_id:9": -1.0}]},
    },
    # the same without ids; the bytes of an incomplete character are U+FFFD
    "vllm, by text": {
        "text": " a",
        "finish_reason": "length",
        "logprobs": {"tokens": [" a"], "top_logprobs": [{" a": -0.5, " b": -1.0, "\ufffd": -2.0}]},
    },
    "openai, chat": {
        "message": {"role": "assistant", "content": " a", "refusal": None},
        "finish_reason": "length",
        "logprobs": {
            "content": [
                {
                    "token": " a",
                    "logprob": -0.5,
                    "bytes": [32, 97],
                    "top_logprobs": [
                        {"token": " a", "logprob": -0.5, "bytes": [32, 97]},
                        {"token": " b", "logprob": -1.0, "bytes": [32, 98]},
                        {"token": " \ufffd", "logprob": -9999.0, "bytes": [32, 226]},
                    ],
                }
            ],
            "refusal": None,
        },
    },
    # both endpoints have the list of entries, with ids
    "llama.cpp": {
        "text": " a",
        "finish_reason": "length",
        "logprobs": {
            "content": [
                {
                    "id": 7,
                    "token": " a",
                    "bytes": [32, 97],
                    "logprob": -0.5,
                    "top_logprobs": [
                        {"id": 7, "token": " a", "bytes": [32, 97], "logprob": -0.5},
                        {"id": 9, "token": " b", "bytes": [32, 98], "logprob": -1.0},
                    ],
                }
            ]
        },
    },
    # tokens of one text share an entry; a logprob may be missing
    "sglang": {
        "text": " a",
        "finish_reason": "length",
        "matched_stop": None,
        "logprobs": {
            "tokens": [" a"],
            "token_logprobs": [-0.5],
            "top_logprobs": [{" a": -0.5, " b": -1.0, "\ufffd": None}],
            "text_offset": [-1],
        },
    },
}


@pytest.mark.parametrize("name", SERVERS)
def test_answers_as_servers_write_them(name):
    body = {"choices": [{"index": 0, **SERVERS[name]}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    [answer] = read(body, "here", keep=3, max_tokens=1)
    first, second = answer.candidates[0]
    assert (first.logprob, second.logprob) == (-0.5, -1.0)
    by_id = name in ("vllm", "llama.cpp")
    assert ([first.id, second.id] if by_id else [first.text, second.text]) == ([7, 9] if by_id else [" a", " b"])
    assert (answer.text, answer.ended, answer.prompt_tokens) == (" a", False, 3)
    assert answer.ids == ([7] if name == "vllm" else None)


def test_tokens_that_are_impossible_are_no_candidates():
    """JSON has no infinity: servers write -Infinity all the same, null or -9999."""
    table = {" a": -1.0, " b": None, " c": -math.inf, " d": -9999.0}
    [answer] = read(completion("x", logprobs={"top_logprobs": [table]}), "here")
    assert [candidate.text for candidate in answer.candidates[0]] == [" a"]
    assert answer.listed == 4


@pytest.mark.parametrize(
    ("reason", "text", "counted", "ended"),
    [
        ("stop", "ok", 4, True),
        ("eos_token", "ok", 4, True),
        ("STOP", "ok", 4, True),
        ("tool_calls", "ok", 4, True),
        ("length", "ok", 3, False),
        ("content_filter", "ok", 3, False),
        (None, "ok", 4, False),
        (None, "ok", 3, True),
        (None, "ok", None, False),
        (None, "", None, True),
    ],
)
def test_reasons_for_the_end(reason, text, counted, ended):
    """Without a reason, an answer of fewer tokens than the four that were asked for has ended, and an empty one."""
    body = {"choices": [{"text": text, "finish_reason": reason}], "usage": {"completion_tokens": counted}}
    assert read(body, "here", max_tokens=4)[0].ended == ended


def test_reasoning_that_the_server_takes_out_of_the_answer_is_refused(server):
    message = {"content": None, "reasoning_content": "The user asks"}
    server.answer = lambda path, body: {"choices": [{"message": message, "finish_reason": "length"}]}
    with pytest.raises(RequestRefused, match=r"reasoning out of its answer.*reasoning parser"):
        ask(client(server), [{"role": "user", "content": "x"}])
    assert len(server.requests) == 1


def test_answers_are_sorted_by_index():
    body = completion("a", "b", "c")
    body["choices"].reverse()
    assert [answer.text for answer in read(body, "here")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [3]},
        {"choices": [{"index": 0}]},
        {"choices": [{"text": 5}]},
        {"error": {"message": "overloaded"}},
        completion("x", logprobs={"top_logprobs": [{"a": "likely"}]}),
        completion("x", logprobs={"top_logprobs": [{"a": math.nan}]}),
        completion("x", logprobs={"top_logprobs": [{"a": 0.7}]}),
        completion("x", logprobs={"content": [{"top_logprobs": [{"logprob": -1}]}]}),
        completion("x", logprobs=[1]),
    ],
)
def test_answers_that_do_not_follow_the_protocol(body):
    with pytest.raises(BadAnswer, match="here: "):
        read(body, "here")


def test_whether_a_server_accepts_ids(server):
    server.answer = lambda path, body: completion("x", logprobs={"top_logprobs": [{"token_id:5": -1.0}]})
    assert takes_ids(client(server), [3])
    server.answer = lambda path, body: completion("x", logprobs={"top_logprobs": [{"x": -1.0}]})
    assert not takes_ids(client(server), [3])
    server.answer = lambda path, body: completion("x")
    assert not takes_ids(client(server), [3])
    for status in (400, 422, 500):
        server.answer = lambda path, body, status=status: error(status)
        before = len(server.requests)
        assert not takes_ids(client(server), [3])
        assert len(server.requests) == before + (3 if status == 500 else 1)
    server.script = [error(500), CUT]
    server.answer = lambda path, body: completion("x", logprobs={"top_logprobs": [{"token_id:5": -1.0}]})
    assert takes_ids(client(server, max_retries=0), [3])
    server.answer = lambda path, body: error(429)
    with pytest.raises(EndpointBusy):
        takes_ids(client(server), [3])
    server.answer = lambda path, body: error(503)  # the server's state, which says nothing about ids
    with pytest.raises(EndpointFailed):
        takes_ids(client(server), [3])
