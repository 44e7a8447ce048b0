# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guided requests in vLLM itself, where it is installed (`tests/generation/test_vllm.py` says how); the other tests of
this folder use a mock of the engine.

    pytest tests/serving/vllm/test_engine.py

takes about six minutes on two cores. With vLLM 0.31 or newer these tests are about the first model runner: on a CPU,
vLLM takes no other.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HANGS, REPOSITORY
from scripted_server import free_port
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_engine_cases import MODELS, TEXTS, ProxyReference, Reference, random_proxy, random_value_model


pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'trl-ext[vllm]')")
pytestmark = pytest.mark.slow

CASES = ["plain and guided", "chunked prefill", "prefix caching", "n > 1", "preemption", "after aborted requests"]


def environment() -> dict[str, str]:
    known = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    return {**os.environ, **known, "OMP_NUM_THREADS": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}


@pytest.fixture(scope="module", params=["state", "action", "policy", "proxy"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an engine with a value model of each form, or a proxy, generated, and what our own decoding did."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(REPOSITORY / "tests" / "vllm_engine_cases.py"), request.param, str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=2 * HANGS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_generate(found: Any, case: str) -> None:
    assert found[case]["found"] == found[case]["expected"]
    assert len(found[case]["found"]) >= len(TEXTS)


def test_requests_were_preempted(found: Any) -> None:
    """Otherwise the case would test nothing."""
    assert found["preemptions"] > 0


def test_log_probabilities_are_those_of_the_guided_distribution(found: Any) -> None:
    """Of the likeliest tokens after guidance; `-inf` is not a number of JSON that another program reads."""
    engine, guided, plain = zip(*found["logprobs"], strict=True)
    assert engine == pytest.approx(guided, abs=1e-3) and len(engine) >= 10
    assert max(abs(x - y) for x, y in zip(guided, plain, strict=True)) > 0.1


# --------------------------------------------------------------------------------------------------------------- HTTP


class Server:
    """vLLM's server of a model with a value model or a proxy, and the reference for its completions."""

    def __init__(self, folder: Path, proxy: bool = False) -> None:
        path, guide = str(MODELS / "imdb-2m"), folder / "guide"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.reference: Any
        if proxy:
            self.reference = ProxyReference(policy, random_proxy(policy, guide), guide)
        else:
            value = random_value_model("state", policy, self.tokenizer, guide)
            self.reference = Reference(policy, value, guide)
        self.port, settings = free_port(), json.dumps({"trl_ext": self.reference.settings})
        # `vllm serve` does not start in the third party's build for CPUs.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--dtype", "float32"]
        command += ["--max-model-len", "256", "--enforce-eager", "--logprobs-mode", "processed_logprobs"]
        command += ["--logits-processors", self.reference.processor, "--additional-config", settings]
        (folder / "template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        command += ["--chat-template", str(folder / "template.jinja")]
        command += ["--port", str(self.port), "--served-model-name", "guided"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it answers. Three processes import vLLM, and compile, which takes minutes on a busy machine."""
        for _ in range(2 * HANGS):
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except OSError:
                time.sleep(1)
        raise TimeoutError(self.log.read_text()[-4000:])

    def post(self, route: str, **fields: Any) -> tuple[int, str]:
        body = {"model": "guided", "temperature": 0, "max_tokens": 16, "ignore_eos": True} | fields
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/{route}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=HANGS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def expected(self, prompt: list[int], beta: dict[str, float]) -> str:
        return self.tokenizer.decode(self.reference(prompt, beta, 16))


def running(made: Server) -> Iterator[Server]:
    try:
        made.wait()
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running(Server(tmp_path_factory.mktemp("server")))


@pytest.fixture(scope="module")
def proxy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running(Server(tmp_path_factory.mktemp("proxy_server"), proxy=True))


def test_completions_are_guided_by_request(server: Server) -> None:
    for text, beta, weights in (
        (TEXTS[0], "helpful=2", {"helpful": 2.0}),
        (TEXTS[0], None, {}),
        (TEXTS[1], "helpful=1,concise=-1", {"helpful": 1.0, "concise": -1.0}),
    ):
        prompt = server.tokenizer(text).input_ids
        xargs = {} if beta is None else {"vllm_xargs": {"beta": beta}}
        status, answer = server.post("completions", prompt=prompt, **xargs)
        assert status == 200, answer
        assert json.loads(answer)["choices"][0]["text"] == server.expected(prompt, weights)


def test_streams_have_the_same_text(server: Server) -> None:
    prompt = server.tokenizer(TEXTS[0]).input_ids
    _, answer = server.post("completions", prompt=prompt, stream=True, vllm_xargs={"beta": "helpful=2"})
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert len(events) > 8
    assert "".join(event["choices"][0]["text"] for event in events) == server.expected(prompt, {"helpful": 2.0})


def test_chat_with_several_answers_and_log_probabilities(server: Server) -> None:
    fields = {"messages": [{"role": "user", "content": TEXTS[2]}]}
    settings = {"n": 2, "temperature": 1.0, "top_k": 1, "logprobs": True, "top_logprobs": 2}
    status, answer = server.post("chat/completions", vllm_xargs={"beta": "helpful=2"}, **fields, **settings)
    assert status == 200, answer
    prompt = server.tokenizer(TEXTS[2], add_special_tokens=False).input_ids
    for choice in json.loads(answer)["choices"]:
        assert choice["message"]["content"] == server.expected(prompt, {"helpful": 2.0})
        # After top-k 1, the only token has all of the probability; without guidance it would be another one.
        assert choice["logprobs"]["content"][0]["logprob"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        ("tasty=1", "`beta` has a weight for 'tasty', which does not exist; there is 'helpful', 'concise'"),
        (2.0, "`beta` is one number for helpful, concise: say which"),
        ("helpful=nan", "`beta` must be a finite number"),
    ],
)
def test_a_bad_weight_is_a_400_that_names_it(server: Server, beta: Any, message: str) -> None:
    status, answer = server.post("completions", prompt=[5, 6], vllm_xargs={"beta": beta})
    assert status == 400 and message in json.loads(answer)["error"]["message"]
    status, _ = server.post("completions", prompt=[5, 6], max_tokens=1)
    assert status == 200, "the server goes on"


def test_the_log_says_what_the_cache_takes(server: Server) -> None:
    assert "The value models' cache takes" in server.log.read_text()


# ------------------------------------------------------------------------------------------------------------- a proxy


def test_a_proxy_is_switched_on_by_request(proxy_server: Server) -> None:
    texts = []
    for xargs in ({"vllm_xargs": {"proxy": 1}}, {}, {"vllm_xargs": {"proxy": 0}}):
        prompt = proxy_server.tokenizer(TEXTS[0]).input_ids
        status, answer = proxy_server.post("completions", prompt=prompt, **xargs)
        assert status == 200, answer
        switch = {"proxy": 1} if xargs.get("vllm_xargs") == {"proxy": 1} else None
        expected = proxy_server.reference.expected(prompt, switch, 16, certain=False)
        texts.append(json.loads(answer)["choices"][0]["text"])
        assert texts[-1] == proxy_server.tokenizer.decode(expected)
    assert texts[0] != texts[1] == texts[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vllm_xargs": {"proxy": 2}}, "`proxy` must be 1, which lets the proxy accept or reject tokens, or 0"),
        ({"vllm_xargs": {"proxy": "yes"}}, "the model alone, got 'yes'"),
        ({"vllm_xargs": {"proxy": 1}, "temperature": 1.0, "top_k": 1}, "`top_k` is 1, which leaves nothing for the"),
    ],
)
def test_a_bad_switch_is_a_400_that_names_it(proxy_server: Server, fields: Any, message: str) -> None:
    status, answer = proxy_server.post("completions", prompt=[5, 6], **fields)
    assert status == 400 and message in json.loads(answer)["error"]["message"]
    status, _ = proxy_server.post("completions", prompt=[5, 6], max_tokens=1)
    assert status == 200, "the server goes on"
