# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`--vllm_mode server` of `trl-ext sample`, against a scripted server with vLLM's dialect over a tiny model."""

import json
import threading
import time

import pytest
from conftest import make_model, make_tokenizer
from scripted_server import ModelServer, ScriptedServer, completion, free_port

from trl_ext.cli.sample import main
from trl_ext.endpoint import vllm_server
from trl_ext.endpoint.vllm_server import VLLMServer
from trl_ext.generation.generate import generate
from trl_ext.generation.vllm_settings import VLLMSettings
from trl_ext.generation_settings import GenerationSettings


PROMPTS = [{"prompt": f"the {word} film"} for word in ("good", "bad", "great", "dull")]
GREEDY = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=8)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(len(tokenizer))


@pytest.fixture
def server(model, tokenizer, monkeypatch):
    monkeypatch.setattr(vllm_server, "_POLL_SECONDS", 0.05)
    made = ScriptedServer(ModelServer(model, tokenizer, "ids", name="org/tiny"))
    yield made
    made.close()


def address(server):
    return server.url.removesuffix("/v1")


def vllm(server, tokenizer, settings=GREEDY, name="org/tiny", **args):
    args = {"vllm_server_base_url": address(server), **args}
    return VLLMServer(name, tokenizer, settings, VLLMSettings(use_vllm=True, vllm_mode="server", **args))


def test_completions_are_those_of_generate(server, model, tokenizer):
    """Greedy text, token ids with the end of sequence, and whether it ended: equal to transformers' own."""
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 2  # likelier
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in PROMPTS]
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=10)
    found = vllm(server, tokenizer, settings)(prompts)
    assert found == generate(model, tokenizer, prompts, settings)
    assert len({completion.ended for [completion] in found}) == 2  # some end before the limit, some do not


def test_one_request_for_all_prompts(server, tokenizer):
    settings = GenerationSettings(
        num_generations=3, max_completion_length=5, top_k=4, min_p=0.1, generation_kwargs={"presence_penalty": 0.5}
    )
    sampler = vllm(server, tokenizer, settings)
    found = sampler([[5], [6, 7]])
    assert [len(group) for group in found] == [3, 3]
    assert len({tuple(completion.ids) for completion in found[0]}) > 1
    assert [path for path, *_ in server.requests] == ["/v1/models", "/v1/completions"]
    body = server.requests[1][1]
    assert body == {
        "model": "org/tiny",
        "prompt": [[5], [6, 7]],
        "n": 3,
        "max_tokens": 5,
        "temperature": 1.0,
        "top_k": 4,
        "top_p": 1.0,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.5,
        "return_token_ids": True,
    }
    assert sampler([]) == [] and len(server.requests) == 2


def test_settings_that_are_off_are_sent_too(server, tokenizer):
    """vLLM takes what is missing from the model's generation config, such as a top-k."""
    vllm(server, tokenizer)([[5]])
    assert {name: server.requests[1][1][name] for name in ("temperature", "top_k", "min_p")} == {
        "temperature": 0.0,
        "top_k": 0,
        "min_p": 0.0,
    }


def test_a_server_that_starts_late_is_waited_for(model, tokenizer, monkeypatch):
    monkeypatch.setattr(vllm_server, "_POLL_SECONDS", 0.05)
    port, started = free_port(), []

    def start():
        time.sleep(0.3)
        started.append(ScriptedServer(ModelServer(model, tokenizer, "ids", name="tiny"), port=port))
        started[0].script = [(503, {}, {"error": "still loading"})]

    thread = threading.Thread(target=start)
    thread.start()
    try:
        args = VLLMSettings(use_vllm=True, vllm_mode="server", vllm_server_host="127.0.0.1", vllm_server_port=port)
        assert len(VLLMServer("org/tiny", tokenizer, GREEDY, args)([[5]])) == 1
    finally:
        thread.join()
        started[0].close()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("gone", r"cannot be used: .*Connection refused.*vllm serve org/tiny.*vllm_server_timeout, now 0\.2 s"),
        ((401, {}, {"error": "Unauthorized"}), "cannot be used: .*status 401: .*Unauthorized"),
        ((200, {}, {"models": []}), "cannot be used: .*not a list of models"),
    ],
    ids=["nobody there", "key needed", "another protocol"],
)
def test_a_server_that_cannot_be_used(server, tokenizer, step, message):
    if step == "gone":
        server.close()
    else:
        server.script = [step]
    with pytest.raises(ConnectionError, match=f"the vLLM server at {address(server)} {message}"):
        vllm(server, tokenizer, vllm_server_timeout=0.2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda path, body: (400, {}, {"error": {"message": "too long"}}), "status 400: .*too long"),
        (lambda path, body: completion("a", "b"), "2 completions came for 1 prompts, 1 for each were asked"),
        (lambda path, body: completion("a"), "returns no token ids"),
    ],
    ids=["refused", "too many", "no ids"],
)
def test_answers_that_cannot_be_used(server, tokenizer, answer, message):
    sampler = vllm(server, tokenizer)
    server.answer = answer
    with pytest.raises(ConnectionError, match=f"the vLLM server at {address(server)}: .*{message}"):
        sampler([[5]])


def test_a_server_may_know_the_model_by_another_path(server, tokenizer, tmp_path):
    """The last part of the name counts; for a trainer's checkpoint-N, the directory above it too."""
    this = tmp_path / "run" / "checkpoint-10"
    this.mkdir(parents=True)
    for served, name in (
        ("org/model", "/models/model/"),
        ("elsewhere/run/checkpoint-10", str(this)),
        ("run", str(tmp_path / "run" / ".")),
    ):
        server.answer.model_name = served
        assert vllm(server, tokenizer, name=name).endpoint.model == served
    server.answer.model_name = "other/checkpoint-10"
    message = r"has 'other/checkpoint-10', not '.*'\. If .* `--served-model-name run/checkpoint-10`"
    with pytest.raises(ValueError, match=message):
        vllm(server, tokenizer, name=str(this))


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path, tiny_model_dir):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    flags = ["--model_name_or_path", tiny_model_dir, "--dataset_name", str(prompts), "--output_file", str(out)]
    return [*flags, "--num_generations", "2", "--max_completion_length", "5", "--use_vllm", "--vllm_mode", "server"]


def test_sample_from_a_server(server, command, tiny_model_dir, tmp_path, capsys):
    server.answer.model_name = tiny_model_dir
    assert main([*command, "--vllm_server_base_url", address(server)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS]
    assert all(len(row["completions"]) == len(row["ended"]) == 2 for row in rows)
    assert len({text for row in rows for text in row["completions"]}) > 4
    # The address may change while a file is written.
    port = str(server.server.server_port)
    assert main([*command, "--vllm_server_host", "127.0.0.1", "--vllm_server_port", port]) == 0
    assert "is complete" in capsys.readouterr().out


def test_the_end_of_an_answer_reaches_the_server(server, command, tiny_model_dir):
    server.answer.model_name = tiny_model_dir
    more = ["--vllm_server_base_url", address(server), "--eos_token", "<|im_end|>", "--max_num_prompts", "1"]
    assert main([*command, *more]) == 0
    assert server.requests[-1][1]["stop_token_ids"] == [make_tokenizer().convert_tokens_to_ids("<|im_end|>")]


def test_sample_refuses(server, command):
    there = ["--vllm_server_base_url", address(server)]
    with pytest.raises(ValueError, match=r"has 'org/tiny', not .* `--served-model-name tiny-llama`"):
        main([*command, *there])
    server.requests.clear()
    for wrong, message in (
        (["--seed", "1"], "seed has no effect on a vLLM server"),
        (["--num_beams", "4"], "no beam search"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*command, *there, *wrong])
    assert not server.requests
