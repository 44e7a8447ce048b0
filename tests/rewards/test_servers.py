# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward servers, scripted: the three protocols, failures on the way, and answers that cannot be used."""

import math
import time

import pytest
from conftest import make_tokenizer
from scripted_server import CUT, SILENT, ScriptedServer, free_port

from trl_ext.data.completion import Completion
from trl_ext.rewards.functions import RewardError, load_rewards
from trl_ext.rewards.scoring import score_completions
from trl_ext.rewards.settings import RewardSettings


PROMPTS = ["the film", "a"]
COMPLETIONS = [" is good", " bad"]
QUESTIONS = [[{"role": "user", "content": text}] for text in PROMPTS]
ANSWERS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
MODELS = {"data": [{"id": "judge"}]}


def answers(path, body):
    """Rewards are the lengths of texts; in each protocol's form, and for a list in the opposite order."""
    if path.endswith("/models"):
        return MODELS
    if path.endswith("/get_reward"):
        return {"rewards": [float(len(text)) for text in body.get("query", [])], "extra_logs": {"judged": [1.0]}}
    if path.endswith("/classify"):
        texts = body.get("input") or ["".join(message["content"] for message in body.get("messages", []))]
        data = [{"index": i, "label": "x", "probs": [float(len(text))]} for i, text in enumerate(texts)]
    else:
        pairs = zip(body.get("text_1", []), body.get("text_2", []), strict=True)
        data = [{"index": i, "score": len(a) + len(b) / 100} for i, (a, b) in enumerate(pairs)]
    return {"data": data[::-1], "usage": {"prompt_tokens": 3}}


@pytest.fixture
def server():
    made = ScriptedServer(answers)
    yield made
    made.close()


def rewards_of(server, path, processing_classes=None, head=None, tokenizer=None, **kwargs):
    """The reward of a path, and the requests so far forgotten."""
    settings = RewardSettings(
        reward_batch_size=kwargs.pop("batch_size", 64),
        reward_head=head,
        reward_server_kwargs={"backoff": 0.01, "timeout": 5.0, "max_retries": 2, **kwargs},
    )
    address = server.url.removesuffix("/v1") + path
    [found] = load_rewards(address, processing_classes, settings=settings, policy_tokenizer=tokenizer)
    server.requests.clear()
    return found


def bodies(server):
    return [body for _, body, _ in server.requests]


# ---------------------------------------------------------------------------------------------------------- protocols


def test_openrlhf(server):
    reward = rewards_of(server, "/get_reward")
    assert reward.name == "get_reward"
    metrics = {}
    found = reward(PROMPTS, COMPLETIONS, label=["x", "y"], log_metric=lambda name, x: metrics.setdefault(name, x))
    assert found == [16.0, 5.0] and metrics == {"judged": 1.0}
    assert bodies(server) == [{"query": ["the film is good", "a bad"], "prompts": PROMPTS, "labels": ["x", "y"]}]
    assert [path for path, _, _ in server.requests] == ["/get_reward"]


def test_logs_of_a_server_that_are_no_numbers_are_left_out(server):
    server.answer = lambda path, body: {"rewards": [1.0, 2.0], "extra_logs": {"judge": "v2", "length": [3, None]}}
    metrics = []
    log_metric = lambda *logged: metrics.append(logged)  # noqa: E731
    assert rewards_of(server, "/get_reward")(PROMPTS, COMPLETIONS, log_metric=log_metric) == [1.0, 2.0]
    assert metrics == [("length", 3)]


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_vllm_classify(server, path):
    """The model's name is asked for; answers are sorted by their index; the server is asked for logits."""
    assert rewards_of(server, path)(PROMPTS, COMPLETIONS) == [16.0, 5.0]
    assert bodies(server) == [{"model": "judge", "input": ["the film is good", "a bad"], "use_activation": False}]


def test_vllm_classify_of_conversations(server):
    """One conversation per request; the server's own template renders it."""
    assert rewards_of(server, "/classify")(QUESTIONS, ANSWERS) == [16.0, 5.0]
    sent = sorted(bodies(server), key=str)
    assert [body["messages"] for body in sent] == sorted(
        ([*q, *a] for q, a in zip(QUESTIONS, ANSWERS, strict=True)), key=str
    )


@pytest.mark.parametrize(("prompts", "completions"), [(PROMPTS, COMPLETIONS), (QUESTIONS, ANSWERS)])
def test_vllm_score(server, prompts, completions):
    assert rewards_of(server, "/score", model="mine")(prompts, completions) == [8.08, 1.04]
    wanted = {"model": "mine", "text_1": PROMPTS, "text_2": COMPLETIONS, "use_activation": False}
    assert bodies(server) == [wanted]


def test_conversations_for_a_server_of_texts_are_rendered(server):
    """With the reward's own tokenizer, or else the policy's, as OpenRLHF does."""
    tokenizer = make_tokenizer(chat=True)
    text = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n is good<|im_end|>\n"
    for given in ({"tokenizer": tokenizer}, {"processing_classes": tokenizer}):
        rewards_of(server, "/get_reward", **given)(QUESTIONS[:1], ANSWERS[:1])
        [body] = bodies(server)
        assert body["query"] == [text] and text.startswith(body["prompts"][0])
    with pytest.raises(RewardError, match=r"conversational, but http://.*/get_reward takes text: pass a tokenizer"):
        rewards_of(server, "/get_reward")(QUESTIONS, ANSWERS)
    with pytest.raises(RewardError, match="several messages, but /score compares two texts"):
        rewards_of(server, "/score")([QUESTIONS[0] * 3], ANSWERS[:1])


def test_one_label_of_several(server):
    server.answer = lambda path, body: MODELS if "models" in path else {"data": [{"index": 0, "probs": [0.25, 0.75]}]}
    assert rewards_of(server, "/classify", head=["1"])(PROMPTS[:1], COMPLETIONS[:1]) == [0.75]
    with pytest.raises(RewardError, match=r"the model has 2 labels.*set `reward_head`"):
        rewards_of(server, "/classify")(PROMPTS[:1], COMPLETIONS[:1])
    with pytest.raises(RewardError, match="`reward_head` is 2, but the model has 2 labels"):
        rewards_of(server, "/classify", head=["2"])(PROMPTS[:1], COMPLETIONS[:1])
    with pytest.raises(ValueError, match=r"`reward_head` must be a number for .*: .good."):
        rewards_of(server, "/classify", head=["good"])


def test_requests_have_the_batch_size_and_several_are_in_flight(server):
    """Ten completions in requests of at most 3, of which two are under way at once."""

    def slow(path, body):
        time.sleep(0.02)
        return answers(path, body)

    server.answer = slow
    reward = rewards_of(server, "/get_reward", batch_size=3, max_concurrency=2)
    rows, groups = [{"prompt": "p"}] * 10, [[Completion("x" * i, [], True)] for i in range(10)]
    found = score_completions(rows, groups, [reward])
    assert [scored.score for [scored] in found] == [1.0 + i for i in range(10)]
    assert sorted(len(body["query"]) for body in bodies(server)) == [1, 3, 3, 3]
    assert server.most_at_once == 2


def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    rewards_of(server, "/get_reward", api_key_variable="JUDGE_KEY")(PROMPTS, COMPLETIONS)
    assert server.requests[0][2]["Authorization"] == "Bearer secret"


# ----------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "failure",
    [
        (429, {}, {"error": "slow down"}),
        (500, {}, {"error": "oops"}),
        CUT,
        (200, {}, b"{"),
        (200, {}, {"error": "busy"}),
        (200, {}, {"rewards": []}),
    ],
)
def test_temporary_failures_are_retried(server, failure):
    reward = rewards_of(server, "/get_reward")
    server.script = [failure, failure]
    assert reward(PROMPTS, COMPLETIONS) == [16.0, 5.0] and len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((500, {}, {"error": "out of memory"}), "status 500: .*out of memory.*tried 3 times"),
        ((429, {}, {"error": "slow down"}), "status 429: .*slow down.*tried 3 times"),
        ((422, {}, {"detail": "no field query"}), "status 422: .*no field query"),
        (CUT, "the connection failed.*tried 3 times"),
    ],
)
def test_failures_that_stay_name_the_server(server, failure, message):
    reward = rewards_of(server, "/get_reward")
    server.script = [failure] * 5
    with pytest.raises(RewardError, match=rf"'get_reward' raised \w+: http://127.0.0.1:\d+/get_reward: {message}"):
        reward(PROMPTS, COMPLETIONS)


def test_a_server_that_does_not_answer(server):
    reward = rewards_of(server, "/get_reward", timeout=0.1, max_retries=0)
    server.script = [SILENT]
    with pytest.raises(RewardError, match=r"/get_reward: no answer within 0\.1 s"):
        reward(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/get_reward", {"rewards": [1.0]}, "returned 1 rewards for 2 completions"),
        ("/get_reward", {"rewards": [1.0, 2.0, 3.0]}, "returned 3 rewards for 2 completions"),
        ("/get_reward", {"scores": [1.0, 2.0]}, "the answer has no list `rewards`"),
        ("/get_reward", {"rewards": [1.0, math.nan]}, "the reward of completion 1 is nan"),
        ("/get_reward", {"rewards": [1.0, "2"]}, "the reward of completion 1 is '2', which is not a number"),
        (
            "/get_reward",
            {"rewards": [[1.0, 2.0], [3.0, 4.0]]},
            r"the reward of completion 0 is \[1.0, 2.0\], which is not",
        ),
        ("/classify", {"data": [{"index": 0, "probs": [1.0]}]}, "returned 1 rewards for 2 completions"),
        ("/classify", {"data": [{"index": 0}, {"index": 1}]}, "does not follow the protocol .KeyError: 'probs'"),
        ("/classify", {"error": "no"}, "does not follow the protocol .KeyError: 'data'"),
        ("/score", {"data": None}, "does not follow the protocol .TypeError"),
        ("/score", {"data": [{"score": -math.inf}, {"score": 1.0}]}, "the reward of completion 0 is -inf"),
    ],
)
def test_answers_that_cannot_be_used(server, path, body, message):
    reward = rewards_of(server, path)
    server.answer = lambda *_: body
    with pytest.raises(RewardError, match=rf"http://127.0.0.1:\d+{path}: .*{message}"):
        reward(PROMPTS, COMPLETIONS)


def test_null_is_a_reward_that_does_not_apply(server):
    reward = rewards_of(server, "/get_reward")
    server.answer = lambda *_: {"rewards": [None, [2]]}
    assert reward(PROMPTS, COMPLETIONS) == [None, 2.0]


def test_a_server_that_is_not_there_is_found_at_the_beginning(server):
    for path in ("/get_reward", "/classify"):
        with pytest.raises(ConnectionError, match=rf"The reward server http://127.0.0.1:\d+{path} cannot be"):
            load_rewards(
                f"http://127.0.0.1:{free_port()}{path}", settings=RewardSettings(reward_server_kwargs={"timeout": 5.0})
            )
    server.answer = lambda *_: {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(ConnectionError, match=r"has the models 'a', 'b': name one, `reward_server_kwargs=.'model'"):
        rewards_of(server, "/classify")


@pytest.mark.parametrize(
    "address", ["http://localhost:5000", "https://host/get_reward?key=1", "http://a:b@host/score"]
)
def test_addresses_that_cannot_be_used(address):
    with pytest.raises(ValueError, match=r"needs a path, such as|contains a password"):
        load_rewards(address)
