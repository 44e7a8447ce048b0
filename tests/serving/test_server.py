# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The routes of the server over raw HTTP, with tiny models: answers, guidance, limits and errors."""

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import HANGS, make_model, make_tokenizer


pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running_server import Running, make_value_model, running

from trl_ext import ProxyModel
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.rewards.functions import load_rewards
from trl_ext.serving.models import ServedModels


GREEDY = {"temperature": 0, "max_tokens": 8}
TEXT, IDS = "the film was", [5, 6, 7, 8]
CHAT = [{"role": "user", "content": "the film"}]


def shortest(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def make_models() -> ServedModels:
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    value_model = make_value_model(tokenizer)
    plain = model_policy(model, tokenizer, name="tiny", batch_size=16)
    guided = guided_policy(model, tokenizer, value_model, 2.0, name="tiny + value, beta 2", series="tiny + value")
    proxy = proxy_policy(model, tokenizer, make_proxy(model), name="tiny + proxy", series="tiny + proxy")
    return ServedModels(plain, [guided, proxy], rewards=load_rewards([shortest]))


def make_proxy(model: Any) -> ProxyModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ProxyModel.for_model(model).eval()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_models(), defaults=GenerationSettings(num_generations=1, max_completion_length=16)) as found:
        yield found


def greedy(policy: Policy, prompt: list[int], length: int = 8) -> list[int]:
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=length)
    return policy.generate([prompt], settings)[0][0].ids


def ids_of(answer: Any) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


# ------------------------------------------------------------------------------------------------------------ answers


def test_models_are_listed_with_their_weights(server: Running) -> None:
    status, _, body = server.send("GET", "/v1/models")
    assert status == 200 and body["object"] == "list"
    assert {each["id"]: each["beta"] for each in body["data"]} == {
        "tiny": None,
        "tiny+value": {"reward": 2.0},
        "tiny+proxy": None,
    }
    for path in ("/v1/models/tiny+value", "/v1/models/tiny%2Bvalue"):
        status, _, one = server.send("GET", path)
        assert status == 200 and one == body["data"][1] and one["id"] == "tiny+value"
    status, _, answer = server.send("GET", "/v1/models/none")
    assert status == 404 and answer["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["tiny", "tiny+value"])
def test_greedy_tokens_are_those_of_the_policy(server: Running, name: str) -> None:
    """Also in a stream, for text, ids and lists of both, and whatever shares the batch."""
    policy = server.app.models.by_name[name]
    text_ids = policy.encode(TEXT)
    expected = [greedy(policy, IDS), greedy(policy, text_ids)]
    assert expected[0] != expected[1]
    common = {"model": name, "return_token_ids": True, **GREEDY}
    found = [server.post(common | {"prompt": prompt})[1] for prompt in (IDS, TEXT)]
    assert [ids for answer in found for ids in ids_of(answer)] == expected
    assert found[0]["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    assert ids_of(server.post(common | {"prompt": [IDS, text_ids]})[1]) == expected
    assert ids_of(server.post(common | {"prompt": [TEXT, TEXT], "n": 2})[1]) == [expected[1]] * 4
    events = server.events(common | {"prompt": IDS, "stream": True})
    assert events[-1] == "[DONE]"
    assert [i for event in events[:-1] for i in event["choices"][0]["token_ids"]] == expected[0]
    texts = [event["choices"][0]["text"] for event in events[:-1]]
    assert "".join(texts) == found[0]["choices"][0]["text"] and len(texts) > 3
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(texts) - 1) + ["length"]
    several = server.events(common | {"prompt": [IDS, text_ids], "stream": True})[:-1]
    for index, ids in enumerate(expected):
        mine = [event["choices"][0] for event in several if event["choices"][0]["index"] == index]
        assert [i for choice in mine for i in choice["token_ids"]] == ids


def test_chat(server: Running) -> None:
    policy = server.app.models.by_name["tiny"]
    expected = greedy(policy, policy.encode(CHAT))
    body = {"model": "tiny", "messages": CHAT, "return_token_ids": True, **GREEDY}
    status, answer = server.post(body, chat=True)
    assert status == 200 and answer["object"] == "chat.completion" and ids_of(answer) == [expected]
    content = answer["choices"][0]["message"]["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": " film"}]}]
    assert server.post(body | {"messages": parts}, chat=True)[1]["choices"] == answer["choices"]
    events = server.events(body | {"stream": True, "stream_options": {"include_usage": True}}, chat=True)
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert events[-2]["choices"] == [] and events[-2]["usage"] == answer["usage"]
    assert all(event["usage"] is None for event in events[:-2])


def test_an_unfinished_answer_is_continued(server: Running) -> None:
    policy = server.app.models.by_name["tiny"]
    messages = [*CHAT, {"role": "assistant", "content": "it was"}]
    prompt = policy.encode(messages, add_generation_prompt=False, continue_final_message=True)
    body = {"model": "tiny", "messages": messages, "continue_final_message": True, "return_token_ids": True, **GREEDY}
    assert ids_of(server.post(body, chat=True)[1]) == [greedy(policy, prompt)]
    assert policy.tokenizer.decode(prompt).endswith("it was")


@pytest.mark.parametrize("name", ["tiny", "tiny+value"])
def test_logprobs_are_those_of_the_policy(server: Running, name: str) -> None:
    """`Policy.logps` computes them in one forward pass over the finished text."""
    policy = server.app.models.by_name[name]
    assert policy.logps is not None
    body = {"model": name, "prompt": IDS, "max_tokens": 6, "seed": 5, "logprobs": 3, "return_token_ids": True}
    choice = server.post(body)[1]["choices"][0]
    [[expected]] = policy.logps([IDS], [[choice["token_ids"]]])
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    for name_of, own, table in zip(
        *(choice["logprobs"][k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=False
    ):
        assert 3 <= len(table) <= 4 and table[name_of] == pytest.approx(own)
        assert sorted(table.values(), reverse=True)[:3] == list(table.values())[:3]
    streamed = server.events(body | {"stream": True})[:-1]
    tokens = [t for event in streamed for t in (event["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert tokens == choice["logprobs"]["tokens"]
    assert "".join(tokens) == choice["text"]
    offsets = [
        o for event in streamed for o in (event["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
    ]
    assert offsets == choice["logprobs"]["text_offset"]
    chat = {"model": "tiny", "messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    content = server.post(chat, chat=True)[1]["choices"][0]["logprobs"]["content"]
    assert len(content) == 3 and all(len(token["top_logprobs"]) == 2 for token in content)
    assert all(bytes(token["bytes"]).decode() == token["token"] for token in content)


def test_stop_texts_are_cut(server: Running) -> None:
    body = {"model": "tiny", "prompt": IDS, **GREEDY}
    text = server.post(body)[1]["choices"][0]["text"]
    stop = text[3:5]
    expected = text[: text.index(stop)]
    _status, answer = server.post(body | {"stop": ["neverthere", stop]})
    assert answer["choices"][0]["text"] == expected and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 8
    events = server.events(body | {"stop": stop, "stream": True})[:-1]
    assert "".join(event["choices"][0]["text"] for event in events) == expected


def test_the_end_of_sequence_stops() -> None:
    """The third token of the greedy completion becomes the end of sequence: the completion has three tokens then."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    ids = greedy(model_policy(model, tokenizer), IDS)
    end = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    model.generation_config.eos_token_id = ids[end]
    with running(ServedModels(model_policy(model, tokenizer, name="ends"))) as own:
        body = {"prompt": IDS, **GREEDY, "return_token_ids": True}
        choice = own.post(body)[1]["choices"][0]
        last = own.events(body | {"stream": True})[-2]["choices"][0]
    assert choice["finish_reason"] == last["finish_reason"] == "stop"
    assert choice["token_ids"] == ids[: end + 1]


@pytest.mark.parametrize("name", ["tiny", "tiny+value", "tiny+proxy"])
def test_a_seed_gives_the_same_completions_in_any_batch(server: Running, name: str) -> None:
    body = {"model": name, "prompt": IDS, "max_tokens": 8, "return_token_ids": True}
    alone = ids_of(server.post(body | {"seed": 7, "n": 3})[1])
    assert len({tuple(ids) for ids in alone}) == 3  # differ from one another
    assert ids_of(server.post(body | {"seed": 7, "n": 3})[1]) == alone
    assert ids_of(server.post(body | {"seed": 8, "n": 3})[1]) != alone
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: ids_of(server.post(body | {"seed": seed, "n": 3})[1]), [1, 7, 2, 7, 3, 7]))
    assert found[1] == found[3] == found[5] == alone
    assert ids_of(server.post(body)[1]) != ids_of(server.post(body)[1])  # without a seed


# ----------------------------------------------------------------------------------------------------------- guidance


def test_beta_changes_the_weights(server: Running) -> None:
    models = server.app.models
    guided, plain = models.by_name["tiny+value"], models.plain
    assert guided.weights is not None
    body = {"model": "tiny+value", "prompt": IDS, "return_token_ids": True, **GREEDY}
    strong = greedy(guided.weights.change({"reward": -3.0}), IDS)
    assert strong != greedy(guided, IDS)
    assert ids_of(server.post(body | {"beta": -3})[1]) == [strong]
    assert ids_of(server.post(body | {"beta": {"reward": -3.0}})[1]) == [strong]
    assert ids_of(server.post(body)[1]) == [greedy(guided, IDS)]
    for zero in (0, {"reward": 0.0}):
        assert ids_of(server.post(body | {"beta": zero})[1]) == [greedy(plain, IDS)]
    for weight in (1, 0):
        status, answer = server.post(body | {"beta": {"kindness": weight}})
        assert status == 400 and answer["error"]["param"] == "beta" and "reward" in answer["error"]["message"]
    status, answer = server.post(body | {"model": "tiny", "beta": 1})
    assert status == 400 and "no guides" in answer["error"]["message"]
    assert server.post(body | {"model": "tiny", "beta": 0})[0] == 200


def test_best_of_n_keeps_the_best(server: Running) -> None:
    """The reward prefers short texts: the kept one is the shortest of those that the same seed gives without it."""
    body = {"model": "tiny", "prompt": IDS, "max_tokens": 8, "seed": 3}
    all_four = server.post(body | {"n": 4})[1]
    four = [choice["text"] for choice in all_four["choices"]]
    answer = server.post(body | {"best_of_n": 4})[1]
    assert answer["usage"] == all_four["usage"]  # completions that are not kept were generated, too
    assert [choice["text"] for choice in answer["choices"]] == [min(four, key=len)]
    two = server.post(body | {"best_of_n": 2, "n": 2})[1]["choices"]
    assert [c["text"] for c in two] == [min(four[:2], key=len), min(four[2:], key=len)]
    assert [c["index"] for c in two] == [0, 1]
    assert server.post(body | {"best_of_n": 2, "stream": True})[1]["error"]["param"] == "stream"
    with running(ServedModels(server.app.models.plain)) as bare:
        status, answer = bare.post(body | {"best_of_n": 2})
        assert status == 400 and "--reward_funcs" in answer["error"]["message"]


def count_e(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("e")) for text in completions]


def test_weights_of_rewards_are_chosen_per_request(server: Running) -> None:
    """By hand: the best of the four texts that the same seed gives, by the weighted sum of two rewards."""
    models = ServedModels(
        server.app.models.plain, rewards=load_rewards([shortest, count_e]), reward_weights=[1.0, 0.0]
    )
    body = {"model": "tiny", "prompt": IDS, "max_tokens": 12, "seed": 3}
    with running(models) as own:
        four = [choice["text"] for choice in own.post(body | {"n": 4})[1]["choices"]]
        kept = set()
        for given in (None, {"shortest": 2}, {"shortest": -1}, {"count_e": -1}, {"shortest": -0.5, "count_e": 3}):
            weights = given or {"shortest": 1.0}
            first, second = weights.get("shortest", 0), weights.get("count_e", 0)
            scores = [first * shortest([text])[0] + second * count_e([text])[0] for text in four]
            answer = own.post(body | {"best_of_n": 4, "reward_weights": given})[1]
            assert answer["choices"][0]["text"] == four[scores.index(max(scores))], given
            kept.add(answer["choices"][0]["text"])
        assert len(kept) > 1
        for given, message in (
            ({"length": 1}, "'length', which is no reward here. There are: shortest, count_e"),
            ({"shortest": 0}, "no weight but 0"),
            ({"shortest": "much"}, "an object of a number for each reward"),
            (2, "an object of a number for each reward"),
        ):
            status, answer = own.post(body | {"best_of_n": 4, "reward_weights": given})
            assert status == 400 and message in answer["error"]["message"]
            assert answer["error"]["param"] == "reward_weights"
        status, answer = own.post(body | {"reward_weights": {"shortest": 1}})
        assert status == 400 and "`best_of_n`: set it above 1" in answer["error"]["message"]
        assert own.send("GET", "/v1/models/tiny")[2]["rewards"] == {"shortest": 1.0, "count_e": 0.0}


def test_a_completion_without_a_reward_is_never_the_best(server: Running) -> None:
    """Rewards are `None` where they do not apply."""

    def only_long(completions: list[str], **_: Any) -> list[float | None]:
        middle = sorted(map(len, completions))[len(completions) // 2]
        return [-float(len(text)) if len(text) >= middle else None for text in completions]

    body = {"model": "tiny", "prompt": IDS, "max_tokens": 8, "seed": 3}
    with running(ServedModels(server.app.models.plain, rewards=load_rewards([only_long]))) as own:
        four = [choice["text"] for choice in own.post(body | {"n": 4})[1]["choices"]]
        assert len(set(map(len, four))) > 2
        kept = own.post(body | {"best_of_n": 4})[1]["choices"][0]["text"]
    assert len(kept) == sorted(map(len, four))[2]


def test_a_completion_ends_where_the_context_does(server: Running) -> None:
    """The default is cut to what the prompt leaves; a length that is asked for and does not fit is an error."""
    context = server.app.models.plain.context
    prompt = [5] * (context - 5)
    status, answer = server.post({"model": "tiny", "prompt": prompt, "temperature": 0})
    assert status == 200 and answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    status, answer = server.post({"model": "tiny", "prompt": prompt, "max_tokens": 6})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"


def test_a_proxy_has_no_logprobs(server: Running) -> None:
    body = {"model": "tiny+proxy", "prompt": IDS, "max_tokens": 4}
    assert server.post(body)[0] == 200
    status, answer = server.post(body | {"logprobs": 1})
    assert status == 400 and answer["error"]["param"] == "logprobs"


# ----------------------------------------------------------------------------------------------------------- batching


def blocked(server: Running, name: str = "tiny") -> Any:
    """A policy whose first call waits for an event, so that requests pile up behind it."""
    policy, go = server.app.models.by_name[name], threading.Event()
    first = threading.Event()

    def generate(prompts: Any, settings: Any, *, observer: Any = None) -> Any:
        if not first.is_set():
            first.set()
            assert go.wait(HANGS)
        return policy.generate(prompts, settings, observer=observer)

    return replace(policy, generate=generate), first, go


def test_waiting_requests_share_a_batch_with_the_same_greedy_answers(server: Running) -> None:
    prompts = [IDS, [9, 10], [11, 12, 13, 14, 15, 16], [20], [21, 22, 23], [30, 31]]
    lengths = [8, 3, 5, 8, 1, 7]
    expected = [greedy(server.app.models.plain, p, n) for p, n in zip(prompts, lengths, strict=True)]
    policy, first, go = blocked(server)
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(8) as pool:
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        bodies = [
            {"prompt": p, "max_tokens": n, "temperature": 0, "return_token_ids": True}
            for p, n in zip(prompts, lengths, strict=True)
        ]
        answers = [pool.submit(own.post, body) for body in bodies]
        until(lambda: own.app.engine.waiting == len(prompts))
        go.set()
        found = [ids_of(answer.result()[1])[0] for answer in answers]
        assert leader.result()[0] == 200
        assert found == expected
        assert own.app.metrics.value("batches_total") == 2
        assert own.app.metrics.value("batch_rows_total") == 1 + len(prompts)


def test_prompts_that_do_not_fit_together_are_generated_apart(server: Running) -> None:
    """256 positions: a long prompt with few tokens, and a short one with many, padded to one length do not fit."""
    policy, first, go = blocked(server)
    long, short = [5 + i % 60 for i in range(250)], [9, 10]
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(4) as pool:
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        answers = [
            pool.submit(own.post, {"prompt": p, "max_tokens": n, "temperature": 0, "return_token_ids": True})
            for p, n in ((long, 4), (short, 40))
        ]
        until(lambda: own.app.engine.waiting == 2)
        go.set()
        found = [ids_of(answer.result()[1])[0] for answer in answers]
        assert leader.result()[0] == 200
        assert own.app.metrics.value("batches_total") == 3
    assert found == [greedy(policy, long, 4), greedy(policy, short, 40)]


@pytest.mark.parametrize(
    ("name", "statuses"), [("tiny", [200, 200, 200]), ("tiny+value", [200, 200, 200]), ("tiny+proxy", [200, 400, 400])]
)
def test_requests_with_and_without_logprobs_share_a_batch(server: Running, name: str, statuses: list[int]) -> None:
    """Each gets as many as it asked for; where a policy has none, those that ask for none are answered."""
    policy, first, go = blocked(server, name)
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(4) as pool:
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        body = {"prompt": IDS, "max_tokens": 4, "temperature": 0, "return_token_ids": True}
        answers = [pool.submit(own.post, body | ({"logprobs": n} if n else {})) for n in (0, 1, 3)]
        until(lambda: own.app.engine.waiting == 3)
        go.set()
        found = [answer.result() for answer in answers]
        assert leader.result()[0] == 200
    assert [status for status, _ in found] == statuses
    expected = greedy(policy, IDS, 4)
    for (status, answer), asked in zip(found, (0, 1, 3), strict=True):
        if status == 400:
            assert answer["error"]["param"] == "logprobs"
            continue
        assert ids_of(answer) == [expected]
        tables = (answer["choices"][0]["logprobs"] or {"top_logprobs": []})["top_logprobs"]
        assert [len(table) for table in tables] == ([asked] * 4 if asked else [])  # greedy: its own token is on top


def until(condition: Any) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_two_hundred_requests_at_once(server: Running) -> None:
    """None is lost or mixed up with another."""
    prompts = [[5 + i % 50, 6 + i // 50] for i in range(200)]
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=3)
    expected = [group[0].ids for group in server.app.models.plain.generate(prompts, settings)]

    def ask(prompt: list[int]) -> Any:
        return server.post(
            {"model": "tiny", "prompt": prompt, "max_tokens": 3, "temperature": 0, "return_token_ids": True}
        )

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, prompts))
    assert [status for status, _ in answers] == [200] * 200
    assert [ids_of(answer)[0] for _, answer in answers] == expected


# ------------------------------------------------------------------------------------------------------------- limits


def test_a_full_queue_is_429(server: Running) -> None:
    policy, first, go = blocked(server)
    with running(ServedModels(policy), limits={"max_waiting": 2}) as own, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(own.post, {"prompt": [40], "max_tokens": 1})]
        assert first.wait(HANGS)
        answers += [pool.submit(own.post, {"prompt": [41], "max_tokens": 1}) for _ in range(2)]
        until(lambda: own.app.engine.waiting == 2)
        status, headers, body = own.send("POST", "/v1/completions", {"prompt": [42], "max_tokens": 1})
        assert status == 429 and int(headers["retry-after"]) > 0 and body["error"]["type"] == "rate_limit_error"
        assert "trl_ext_waiting_requests 2" in own.send("GET", "/metrics")[2]
        go.set()
        assert [answer.result()[0] for answer in answers] == [200] * 3


def test_a_request_that_takes_too_long_is_504(server: Running) -> None:
    policy, _first, go = blocked(server)
    with running(ServedModels(policy), limits={"request_timeout": 0.3}) as own:
        status, body = own.post({"prompt": [40], "max_tokens": 1})
        assert status == 504 and "0.3 s" in body["error"]["message"]
        go.set()


def slow(policy: Policy, seconds: float, seen: list[int]) -> Policy:
    """The policy with a pause after each token; `seen` counts them."""

    def generate(prompts: Any, settings: Any, *, observer: Any = None) -> Any:
        see = observer.see

        def paused(step: Any) -> Any:
            seen.append(len(step.rows))
            time.sleep(seconds)
            return see(step)

        observer.see = paused
        return policy.generate(prompts, settings, observer=observer)

    return replace(policy, generate=generate)


def test_a_stream_that_takes_too_long_ends_with_an_error(server: Running) -> None:
    seen: list[int] = []
    with running(ServedModels(slow(server.app.models.plain, 0.05, seen)), limits={"request_timeout": 0.5}) as own:
        events = own.events({"prompt": IDS, "max_tokens": 200, "stream": True, "stop": "\x00"})
        assert "longer than 0.5 s" in events[-1]["error"]["message"]
        assert events[0]["choices"]
        until(lambda: own.app.engine.running == 0)
        assert len(seen) < 60


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_place(server: Running, stream: bool) -> None:
    """Generation stops long before its 200 tokens, and the next request is answered."""
    seen: list[int] = []
    with running(ServedModels(slow(server.app.models.plain, 0.03, seen)), limits={"max_batch_size": 1}) as own:
        body = json.dumps({"prompt": IDS, "max_tokens": 200, "stream": stream, "seed": 1}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", own.port)) as raw:
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: len(seen) >= 3)
            if stream:
                assert b"200 OK" in raw.recv(1000)
        until(lambda: own.app.engine.running == 0)
        assert len(seen) < 100
        assert own.post({"prompt": IDS, "max_tokens": 2})[0] == 200
        until(lambda: own.app.metrics.value("cancelled_total") == 1)


def test_a_client_that_vanishes_from_the_queue_leaves_it(server: Running) -> None:
    policy, first, go = blocked(server)
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(1) as pool:
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        body = json.dumps({"prompt": IDS, "max_tokens": 200}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", own.port)) as raw:
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: own.app.engine.waiting == 1)
        until(lambda: own.app.engine.waiting == 0)
        go.set()
        assert leader.result()[0] == 200
        assert own.app.metrics.value("batches_total") == 1


def test_a_vanished_client_leaves_the_rest_of_its_batch(server: Running) -> None:
    seen: list[int] = []
    policy = slow(server.app.models.plain, 0.02, seen)
    expected = greedy(server.app.models.plain, [9, 10], 60)
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(2) as pool:
        body = json.dumps({"prompt": [IDS, IDS], "max_tokens": 60, "temperature": 0, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        first = pool.submit(own.post, {"prompt": [40], "max_tokens": 20})
        until(lambda: seen)
        with socket.create_connection(("127.0.0.1", own.port)) as raw:
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            other = pool.submit(
                own.post, {"prompt": [9, 10], "max_tokens": 60, "temperature": 0, "return_token_ids": True}
            )
            assert first.result()[0] == 200
            until(lambda: 3 in seen)
        assert ids_of(other.result()[1]) == [expected]
        assert 3 in seen and seen[-1] == 1


def test_a_failing_request_does_not_take_its_batch_with_it(server: Running) -> None:
    policy, first, go = blocked(server)
    inner = policy.generate

    def generate(prompts: Any, settings: Any, *, observer: Any = None) -> Any:
        if [66] in prompts:
            raise FloatingPointError("broken prompt")
        return inner(prompts, settings, observer=observer)

    with running(ServedModels(replace(policy, generate=generate))) as own, ThreadPoolExecutor(4) as pool:
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        answers = [pool.submit(own.post, {"prompt": p, **GREEDY, "return_token_ids": True}) for p in ([66], IDS, [9])]
        until(lambda: own.app.engine.waiting == 3)
        go.set()
        found = [answer.result() for answer in answers]
        assert leader.result()[0] == 200
    assert [status for status, _ in found] == [500, 200, 200]
    assert "broken" not in json.dumps(found[0][1])  # what failed is for the log
    assert [ids_of(body)[0] for _, body in found[1:]] == [greedy(server.app.models.plain, p) for p in (IDS, [9])]


def test_settings_that_a_policy_refuses_are_400(server: Running) -> None:
    """As those of guides that choose blocks, which need a temperature above 0."""

    def generate(prompts: Any, settings: Any) -> Any:
        if settings.temperature == 0:
            raise ValueError("raise `temperature`")
        return server.app.models.plain.generate(prompts, settings)

    with running(ServedModels(replace(server.app.models.plain, generate=generate))) as own:
        status, body = own.post({"prompt": IDS, **GREEDY})
        assert status == 400 and "raise `temperature`" in body["error"]["message"]
        assert own.post({"prompt": IDS, "max_tokens": 2})[0] == 200


def test_a_policy_that_shows_no_tokens(server: Running) -> None:
    """One of a plug-in, whose `generate` has no observer: the same answers, at the end; seeds hold."""
    plain = server.app.models.plain

    def generate(prompts: Any, settings: Any) -> Any:
        return plain.generate(prompts, settings)

    with running(ServedModels(replace(plain, generate=generate))) as own:
        body = {"prompt": [IDS, [9, 10]], "max_tokens": 5, "return_token_ids": True}
        expected = [greedy(plain, IDS, 5), greedy(plain, [9, 10], 5)]
        assert ids_of(own.post(body | {"temperature": 0})[1]) == expected
        events = own.events(body | {"temperature": 0, "prompt": IDS, "stream": True})
        assert events[-1] == "[DONE]" and sum(len(e["choices"][0]["token_ids"]) for e in events[:-1]) == 5
        assert ids_of(own.post(body | {"seed": 3})[1]) == ids_of(own.post(body | {"seed": 3})[1])
        assert own.post(body | {"logprobs": 1})[1]["error"]["param"] == "logprobs"


def test_a_seed_holds_beside_others_where_a_batch_has_one(server: Running) -> None:
    """Requests with one seed wait together, as those of a loop over prompts: each gets what it gets alone."""
    policy, first, go = blocked(server)

    def generate(prompts: Any, settings: Any) -> Any:
        return policy.generate(prompts, settings)

    prompts = [IDS, [9, 10], [11, 12, 13]]
    with running(ServedModels(replace(policy, generate=generate))) as own, ThreadPoolExecutor(4) as pool:
        body = {"max_tokens": 6, "seed": 3, "n": 2, "return_token_ids": True}
        leader = pool.submit(own.post, {"prompt": [40], "max_tokens": 1})
        assert first.wait(HANGS)
        answers = [pool.submit(own.post, body | {"prompt": p}) for p in prompts]
        until(lambda: own.app.engine.waiting == len(prompts))
        go.set()
        together = [ids_of(answer.result()[1]) for answer in answers]
        assert leader.result()[0] == 200
        assert together == [ids_of(own.post(body | {"prompt": p})[1]) for p in prompts]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [10**6]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": "\ud800"}, 400, "prompt"),
        ({"prompt": [5] * 256}, 400, "prompt"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 254}, 400, "max_tokens"),
        ({"max_completion_tokens": 300}, 400, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_length": 4}, 400, "max_completion_length"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"n": 65}, 400, "n"),
        ({"n": 33, "prompt": ["a", "b"]}, 400, "n"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 1e-9}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"top_k": 1.5}, 400, "top_k"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": 5}, 400, "stop"),
        ({"seed": 0.5}, 400, "seed"),
        ({"seed": 2**70}, 400, "seed"),
        ({"logprobs": 1000}, 400, "logprobs"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"beta": "much"}, 400, "beta"),
        ({"model": "tiny+value", "beta": 1e39}, 400, "beta"),
        ({"echo": True}, 400, "echo"),
        ({"best_of": 3}, 400, "best_of"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"logit_bias": {"5": 10}}, 400, "logit_bias"),
        ({"messages": CHAT}, 400, "messages"),
        ({"chat_template": "{{ x }}"}, 400, "chat_template"),
        ({"guided_json": {}}, 400, "guided_json"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_named(server: Running, change: dict[str, Any], status: int, param: str) -> None:
    found, body = server.post({"model": "tiny", "prompt": IDS, "max_tokens": 2} | change)
    assert found == status
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] == param and param in body["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[1].tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"documents": [1]}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": {"y": 1}}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"prompt": "x"}, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_of_a_chat_is_named(server: Running, change: dict[str, Any], param: str) -> None:
    found, body = server.post({"model": "tiny", "messages": CHAT, "max_tokens": 2} | change, chat=True)
    assert found == 400 and body["error"]["param"] == param


def test_fields_that_change_nothing_are_accepted(server: Running) -> None:
    body = {"model": "tiny", "prompt": IDS, "return_token_ids": True, **GREEDY}
    more = {
        "user": "me",
        "echo": False,
        "best_of": 1,
        "presence_penalty": 0,
        "logit_bias": {},
        "suffix": None,
        "top_k": -1,
    }
    assert ids_of(server.post(body | more)[1]) == ids_of(server.post(body)[1])
    chat = {"model": "tiny", "messages": CHAT, "return_token_ids": True, **GREEDY}
    theirs = [
        CHAT[0] | {"tool_calls": [], "annotations": [], "refusal": None}
    ]  # as answers of other servers have them
    sent_back = server.post(chat | {"messages": theirs, "tools": [], "store": True}, chat=True)[1]
    assert ids_of(sent_back) == ids_of(server.post(chat, chat=True)[1])


def test_templates_that_fail_are_400(server: Running) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    model = make_model(len(tokenizer))
    for template, message in (("{{ raise_exception('roles must alternate') }}", "must alternate"), (None, "template")):
        tokenizer.chat_template = template
        with running(ServedModels(model_policy(model, tokenizer, name="tiny"))) as own:
            status, body = own.post({"messages": CHAT}, chat=True)
            assert status == 400 and message in body["error"]["message"] and body["error"]["param"] == "messages"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"n": NaN}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:10]),
)
def test_malformed_bodies_are_400(server: Running, body: bytes) -> None:
    status, answer = server.post(body)
    assert status == 400 and answer["error"]["message"]


def test_other_routes_and_methods(server: Running) -> None:
    assert server.send("GET", "/health")[::2] == (200, {"status": "ok"})
    assert server.send("GET", "/v1/other")[0] == 404
    status, headers, _body = server.send("GET", "/v1/completions")
    assert (status, headers["allow"]) == (405, "POST")
    status, headers, _body = server.send("POST", "/v1/models", {})
    assert (status, headers["allow"]) == (405, "GET")
    assert server.send("OPTIONS", "/v1/completions")[0] == 405  # no web page of another server may ask
    status, _, _body = server.send("POST", "/v1/completions", {"prompt": "x"}, {"Content-Type": "text/plain"})
    assert status == 415
    for path in ("/../etc/passwd", "/v1/models/../../x", "/%2e%2e/x"):
        assert server.send("GET", path)[0] == 404


def test_a_page_with_a_name_that_points_here_is_refused(server: Running) -> None:
    models = ServedModels(server.app.models.plain)
    with running(models, local_only=True) as own:
        assert own.send("GET", "/v1/models")[0] == 200
        for name in ("localhost", f"localhost:{own.port}", "[::1]:80", "127.0.0.1"):
            assert own.send("GET", "/v1/models", headers={"Host": name})[0] == 200
        for name in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example"):
            assert own.send("GET", "/v1/models", headers={"Host": name})[0] == 403


def test_the_key(server: Running) -> None:
    with running(ServedModels(server.app.models.plain), api_key="secret") as own:
        body = {"prompt": IDS, "max_tokens": 1}
        assert own.post(body, Authorization="Bearer secret")[0] == 200
        for wrong in ("Bearer secret2", "Bearer", "secret", "Basic secret", "Bearer s\xe9cret"):
            status, headers, answer = own.send("POST", "/v1/completions", body, {"Authorization": wrong})
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert answer["error"]["type"] == "authentication_error" and "secret" not in json.dumps(answer)
        assert own.post(body)[0] == own.send("GET", "/v1/models")[0] == own.send("GET", "/metrics")[0] == 401
        assert own.send("GET", "/health")[0] == 200


def test_a_body_has_a_limit(server: Running) -> None:
    with running(ServedModels(server.app.models.plain), limits={"max_body_bytes": 1000}) as own:
        assert own.post({"prompt": "x" * 900, "max_tokens": 1})[0] in (200, 400)
        assert own.post({"prompt": "x" * 1000})[0] == 413

        def chunks() -> Iterator[bytes]:  # without a length
            for _ in range(20):
                yield b" " * 100

        connection = own.connect()
        connection.request(
            "POST", "/v1/completions", chunks(), {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/v1/completions", "application/json", 413),
        ("/v1/completions", "text/plain", 415),
        ("/nowhere", "text/plain", 404),
    ],
)
def test_a_refused_request_gets_its_answer_though_it_sends_a_long_body(
    server: Running, path: str, kind: str, status: int
) -> None:
    """A client reads when it has sent all: a server that closes before would reset the connection, answer and all."""
    with running(ServedModels(server.app.models.plain), limits={"max_body_bytes": 1000}) as own:
        connection = own.connect()
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(2**23))
        connection.endheaders()
        for _ in range(2**23 // 2**16):
            connection.send(b" " * 2**16)
        assert connection.getresponse().status == status
        connection.close()


def test_a_body_without_an_end_is_refused_at_the_limit(server: Running) -> None:
    """It is not read on until `body_timeout`, which would be a 408, nor kept in memory."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        running(ServedModels(server.app.models.plain), limits={"max_body_bytes": 1000, "body_timeout": 20.0}) as own,
        socket.create_connection(("127.0.0.1", own.port), timeout=HANGS) as raw,
    ):
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n")
        assert b" 413 " in raw.recv(1000).splitlines()[0]


def test_a_client_that_waits_for_a_permission_gets_the_refusal_instead(server: Running) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
    )
    with (
        running(ServedModels(server.app.models.plain), limits={"max_body_bytes": 1000}) as own,
        socket.create_connection(("127.0.0.1", own.port), timeout=HANGS) as raw,
    ):
        raw.sendall(head)
        assert b" 413 " in raw.recv(1000).splitlines()[0]


def test_a_body_that_does_not_arrive_is_408(server: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    models = ServedModels(server.app.models.plain)
    with (
        running(models, limits={"body_timeout": 0.2}) as own,
        socket.create_connection(("127.0.0.1", own.port), timeout=HANGS) as raw,
    ):
        raw.sendall(head + b'{"prompt"')
        assert b" 408 " in raw.recv(1000)


def test_metrics(server: Running) -> None:
    with running(ServedModels(server.app.models.plain)) as own:
        own.post({"prompt": [IDS, IDS], "max_tokens": 3, "temperature": 0})
        own.post({"prompt": "x", "n": 0})
        text = own.send("GET", "/metrics")[2]
    lines = text.splitlines()
    assert 'trl_ext_requests_total{route="/v1/completions",status="200"} 1' in lines
    assert 'trl_ext_requests_total{route="/v1/completions",status="400"} 1' in lines
    assert "trl_ext_prompt_tokens_total 8" in lines and "trl_ext_completion_tokens_total 6" in lines
    assert "trl_ext_batches_total 1" in lines and "trl_ext_batch_rows_total 2" in lines
    assert 'trl_ext_request_seconds_bucket{le="+Inf"} 1' in lines and "trl_ext_request_seconds_count 1" in lines
    assert all(line.startswith("#") or math.isfinite(float(line.split()[-1])) for line in lines)


# ----------------------------------------------------------------------------------------------------------- shutdown


def test_shutdown_finishes_what_runs(server: Running) -> None:
    policy, first, go = blocked(server)
    with running(ServedModels(policy)) as own, ThreadPoolExecutor(2) as pool:
        answer = pool.submit(own.post, {"prompt": IDS, **GREEDY})
        assert first.wait(HANGS)
        own.server.stop()
        until(lambda: own.app.draining)
        status, headers, _body = own.send("POST", "/v1/completions", {"prompt": IDS})
        assert status == 503 and "retry-after" in headers
        assert own.send("GET", "/health")[0] == 503
        go.set()
        assert answer.result()[0] == 200


def test_shutdown_has_a_limit(server: Running) -> None:
    seen: list[int] = []
    policy = slow(server.app.models.plain, 0.05, seen)
    with running(ServedModels(policy), limits={"shutdown_timeout": 0.2}) as own, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(own.post, {"prompt": IDS, "max_tokens": 200}) for _ in range(3)]
        until(lambda: seen)
        own.server.stop()
        until(lambda: not own.app.engine.alive)
        assert len(seen) < 150
        assert [answer.result()[0] for answer in answers] == [503] * 3
