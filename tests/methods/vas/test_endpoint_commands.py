# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The commands with a guided server: answers equal to the guide's own, resumed files, evaluation, and bad input."""

import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from scripted_server import ModelServer, ScriptedServer

from trl_ext.cli import chat as cli_chat
from trl_ext.cli import evaluate as cli_evaluate
from trl_ext.cli import generate as cli_generate
from trl_ext.cli import sample as cli_sample
from trl_ext.endpoint.client import Endpoint
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.decoding.endpoint_guide import EndpointGuide
from trl_ext.methods.vas.endpoint_policies import VASEndpointDecoding
from trl_ext.methods.vas.value_model.model import ValueModel


GREEDY = ["--temperature", "0", "--max_completion_length", "6"]
PROMPTS = ["the film was", "I thought it", "a good story with", "we"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def value_dir(tokenizer, tmp_path_factory):
    value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=3), ("reward",)).eval()
    generator = torch.Generator().manual_seed(3)
    value_model.head.weight.data = torch.randn(value_model.head.weight.shape, generator=generator)
    value_model.config.record_tokenizer(tokenizer)
    folder = tmp_path_factory.mktemp("values") / "kind"
    value_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def server(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ScriptedServer(ModelServer(make_model(len(tokenizer)), tokenizer, "ids"))
    yield made
    made.close()


@pytest.fixture
def flags(server, value_dir):
    """Flags for the server and the value model."""
    models = ["--endpoint", server.url, "--endpoint_model", "m", "--value_model_name_or_path", value_dir]
    return [*models, "--guide_top_k", "12", "--endpoint_concurrency", "2"]


def guided(server, value_dir, tokenizer, prompt, beta):
    guide = EndpointGuide(
        Endpoint(server.url, "m"), ValueModel.from_pretrained(value_dir).eval(), beta, tokenizer, top_k=12
    )
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=6)
    return guide.answer(prompt, settings).completion.text


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_prompts():
    Path("in.jsonl").write_text("".join(json.dumps({"prompt": p, "tag": i}) + "\n" for i, p in enumerate(PROMPTS)))


def test_a_prompt_is_answered_as_the_guide_answers_it(server, flags, value_dir, tokenizer, capsys):
    wanted = {beta: guided(server, value_dir, tokenizer, PROMPTS[0], beta) for beta in (0.0, 2.0)}
    assert wanted[0.0] != wanted[2.0]
    for beta, text in wanted.items():
        assert cli_generate.main([*flags, *GREEDY, "--prompt", PROMPTS[0], "--beta", str(beta)]) == 0
        assert capsys.readouterr().out == text + "\n"
    assert cli_generate.main([*flags, *GREEDY, "--prompt", PROMPTS[0], "--beta", "0", "2"]) == 0
    out = capsys.readouterr().out  # several weights answer in turn
    assert out == f"[m + kind, beta 0]\n{wanted[0.0]}\n[m + kind, beta 2]\n{wanted[2.0]}\n"


def test_a_server_without_a_value_model_is_the_baseline(server, value_dir, capsys):
    """One request for the whole answer, without log-probabilities."""
    words = ["--endpoint", server.url, "--endpoint_model", "m", "--endpoint_tokenizer", value_dir, *GREEDY]
    model, answers = server.answer, []
    server.answer = lambda path, body: answers.append(model(path, body)) or answers[-1]
    assert cli_generate.main([*words, "--prompt", PROMPTS[0]]) == 0
    [(path, body, _)] = server.requests
    assert path.endswith("completions") and "logprobs" not in body
    assert (body["prompt"], body["max_tokens"], body["n"], body["temperature"]) == (PROMPTS[0], 6, 1, 0.0)
    assert capsys.readouterr().out == answers[0]["choices"][0]["text"] + "\n"
    with pytest.raises(ValueError, match="`beta` has no effect without `value_model_name_or_path`"):
        cli_generate.main([*words, "--prompt", "we", "--beta", "3"])  # the default


def test_block_mode_the_key_and_the_body(server, flags, value_dir, monkeypatch, capsys):
    monkeypatch.setenv("SERVER_KEY", "secret")
    more = ["--endpoint_mode", "block", "--endpoint_blocks", "3", "--endpoint_block_length", "2"]
    more += ["--endpoint_key_variable", "SERVER_KEY", "--endpoint_body", '{"min_p": 0}']
    assert cli_generate.main([*flags, *more, "--prompt", "we", "--max_completion_length", "4", "--beta", "9"]) == 0
    assert "secret" not in "".join(capsys.readouterr())
    for _, body, headers in server.requests:
        assert (body["model"], body["n"], body["max_tokens"], body["min_p"]) == ("m", 3, 2, 0)
        assert headers["Authorization"] == "Bearer secret"


@pytest.fixture
def chat_flags(server, value_dir, tmp_path):
    """Flags for the chat endpoint of a server whose model has a chat template."""
    chat = make_tokenizer(chat=True)
    chat.save_pretrained(tmp_path / "chat")
    server.answer = ModelServer(make_model(len(chat)), chat, "ids")
    models = ["--endpoint", server.url, "--endpoint_model", "m", "--endpoint_tokenizer", f"{tmp_path}/chat"]
    return [*models, "--endpoint_chat", "true", "--endpoint_concurrency", "2", "--max_completion_length", "5"]


@pytest.mark.parametrize("command", [cli_generate, cli_evaluate, cli_sample])
@pytest.mark.parametrize("guide", [[], ["--endpoint_mode", "answer", "--endpoint_blocks", "3", "--beta", "4"]])
def test_commands_speak_the_chat_protocol(server, chat_flags, value_dir, command, guide, monkeypatch):
    """The messages are sent as they are, and one answer is kept of as many as were asked for."""
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS[:2]]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my_rewards.py").write_text(
        "def length(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    name = "out.json" if command is cli_evaluate else "out.jsonl"
    words = [*chat_flags, "--dataset_name", "in.jsonl", "--output_file", name, *guide]
    words += ["--value_model_name_or_path", value_dir] if guide else []
    words += [] if command is cli_generate else ["--reward_funcs", "my_rewards.py:length"]
    words += ["--num_generations", "2"] if command is cli_sample else []
    assert command.main(words) == 0
    count = {cli_generate: 2, cli_evaluate: 2, cli_sample: 4}[command]
    assert len(server.requests) == count
    for path, body, _ in server.requests:
        assert path == "/v1/chat/completions" and {"prompt": body["messages"]} in rows
        assert body["n"] == (3 if guide else 1) and "continue_final_message" not in body
    if command is not cli_evaluate:
        made = read(name)
        assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
        assert all(each[-1]["role"] == "assistant" for row in made for each in row["completions"])
    if command is cli_sample:
        assert all(len(row["scores"]) == len(row["completion_ids"]) == 2 for row in made)
        assert "m" in Path("out.jsonl.README.md").read_text()


def test_the_chat_protocol_takes_messages(chat_flags):
    write_prompts()
    with pytest.raises(ValueError, match="The chat endpoint takes messages, and a prompt is text"):
        cli_generate.main([*chat_flags, "--dataset_name", "in.jsonl", "--apply_chat_template", "false"])


def test_samples_of_a_server_are_those_of_generate(server, flags, tokenizer, value_dir):
    """Guided and greedy; a failure of the server keeps what is written, and the same command goes on."""
    write_prompts()
    command = [*flags, *GREEDY, "--dataset_name", "in.jsonl", "--output_file", "out.jsonl", "--beta", "2"]
    command += ["--num_generations", "1"]
    model, count = server.answer, []

    def fail(path, body):
        count.append(path)
        return (400, {}, {"error": {"message": "no more"}}) if 18 < len(count) < 60 else model(path, body)

    server.answer = fail
    assert cli_sample.main(command) == 1
    count[:] = range(60)
    assert cli_sample.main(command) == 0
    wanted = [guided(server, value_dir, tokenizer, prompt, 2.0) for prompt in PROMPTS]
    assert [row["completions"] for row in read("out.jsonl")] == [[text] for text in wanted]
    assert [row["tag"] for row in read("out.jsonl")] == [0, 1, 2, 3]


def test_samples_of_a_guided_model(tmp_path, monkeypatch, tokenizer, value_dir):
    """A round of samples under guidance, as `generate` makes them; two weights make two sources."""
    monkeypatch.chdir(tmp_path)
    model = make_model(len(tokenizer))
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    write_prompts()
    guide = ["--model_name_or_path", "base", "--value_model_name_or_path", value_dir, "--beta", "0", "3"]
    common = [*guide, *GREEDY, "--num_generations", "1", "--dataset_name", "in.jsonl"]
    assert cli_sample.main([*common, "--output_file", "sampled.jsonl"]) == 0
    assert cli_generate.main([*common, "--output_file", "generated.jsonl"]) == 0
    sampled, generated = read("sampled.jsonl"), read("generated.jsonl")
    assert [row["completions"] for row in sampled] == [row["completions"] for row in generated]
    assert sampled[0]["sources"] == generated[0]["sources"] == ["base + kind, beta 0", "base + kind, beta 3"]
    assert any(row["completions"][0] != row["completions"][1] for row in sampled)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model_name_or_path", "x"], "the server's model generates: remove --model_name_or_path"),
        (["--use_vllm", "--vllm_mode", "server"], "remove --use_vllm"),
        (["--endpoint_blocks", "4"], "`endpoint_blocks` has no effect in token mode"),
        (
            ["--endpoint_mode", "answer", "--endpoint_block_length", "4"],
            "`endpoint_block_length` has no effect in ans",
        ),
    ],
)
def test_flags_of_sample_that_contradict_each_other(server, flags, more, message):
    write_prompts()
    with pytest.raises(ValueError, match=message):
        cli_sample.main([*flags, *more, "--dataset_name", "in.jsonl", "--output_file", "out.jsonl"])


def test_a_failed_dataset_is_resumed(server, flags, value_dir, tokenizer, capsys):
    wanted = [guided(server, value_dir, tokenizer, prompt, 2.0) for prompt in PROMPTS]
    write_prompts()
    command = [*flags, *GREEDY, "--dataset_name", "in.jsonl", "--output_file", "out.jsonl", "--beta", "2"]
    model, answered = server.answer, []

    def fail_at_the_third(path, body):
        if tokenizer.decode(body["prompt"]).startswith("a good story") if isinstance(body["prompt"], list) else False:
            return 401, {}, {"error": {"message": "no credit"}}
        answered.append(body["prompt"])
        return model(path, body)

    server.answer = fail_at_the_third
    assert cli_generate.main(command) == 1
    assert "no credit" in (error := capsys.readouterr().err) and "has 2 rows; the same command resumes" in error
    server.answer, before = model, len(server.requests)
    assert cli_generate.main(command) == 0
    rows = read("out.jsonl")
    assert [row["completions"] for row in rows] == [[text] for text in wanted]
    assert [row["tag"] for row in rows] == [0, 1, 2, 3]
    later = [tokenizer.decode(b["prompt"]) for _, b, _ in server.requests[before:] if isinstance(b["prompt"], list)]
    assert not any(text.startswith(tuple(PROMPTS[:2])) for text in later)  # no request is repeated
    capsys.readouterr()
    assert cli_generate.main(command) == 0 and "is complete" in capsys.readouterr().out


def test_evaluate_has_a_row_per_weight(server, flags, tiny_model_dir, capsys):
    write_prompts()
    files = ["--dataset_name", "in.jsonl", "--output_file", "out.json"]
    judged = ["--perplexity_model_name_or_path", tiny_model_dir]
    assert cli_evaluate.main([*flags, *files, *judged, "--max_completion_length", "6", "--beta", "0", "4"]) == 0
    rows = json.loads(Path("out.json").read_text())["models"]
    assert [row["model"] for row in rows] == ["m + kind, beta 0", "m + kind, beta 4"]
    assert [row["extras"]["beta"] for row in rows] == [0.0, 4.0]
    # Tokens that the server does not list are never sampled, which costs nats at a weight of 0, too.
    assert 0 < rows[0]["kl"] < rows[1]["kl"] and all(row["perplexity"] > 1 for row in rows)

    with_base = ["--base_model_name_or_path", tiny_model_dir]
    assert cli_evaluate.main([*flags, *files, *with_base, "--max_completion_length", "6", "--beta", "0"]) == 0
    rows = json.loads(Path("out.json").read_text())["models"]
    assert [row["model"] for row in rows] == [tiny_model_dir, "m + kind, beta 0"]  # one row, beside the base model


def test_a_server_that_fails_does_not_affect_the_results_of_other_models(server, flags, tiny_model_dir, capsys):
    write_prompts()
    server.answer = lambda path, body: (401, {}, {"error": {"message": "no credit"}})
    files = ["--dataset_name", "in.jsonl", "--output_file", "out.json", "--max_completion_length", "4"]
    assert cli_evaluate.main([*flags, *files, "--model_name_or_path", tiny_model_dir]) == 1
    good, bad = json.loads(Path("out.json").read_text())["models"]
    assert good["model"] == tiny_model_dir and "no credit" in bad["error"]


def test_refused(server, flags, value_dir, tiny_model_dir, monkeypatch):
    def fails(message, *changes, without=()):
        given = [w for flag, value in pairwise([*flags, ""]) if flag.startswith("--") and flag not in without
                 for w in (flag, value)]  # fmt: skip
        with pytest.raises(ValueError, match=message):
            cli_generate.main([*given, "--prompt", "we", *changes])

    fails("remove --model_name_or_path", "--model_name_or_path", tiny_model_dir)
    fails("eos_token has no effect on a server", "--eos_token", "<|im_end|>", "--beta", "1")
    fails("`guide_top_k` has no effect without `value_model_name", without=["--value_model_name_or_path"])
    fails("pass --endpoint_tokenizer", without=["--value_model_name_or_path", "--guide_top_k"])
    fails("pass --endpoint_model", without=["--endpoint_model"])
    local = ["--model_name_or_path", tiny_model_dir]
    fails("`endpoint_model` has no effect without `endpoint`", *local, without=["--endpoint"])
    fails("endpoint_body` must be a mapping in JSON", "--endpoint_body", "{")
    fails("endpoint_body` must be a mapping", "--endpoint_body", "[1]")
    fails("must be at least 1, got 0", "--endpoint_concurrency", "0")
    fails("NO_SUCH_KEY", "--endpoint_key_variable", "NO_SUCH_KEY")
    fails("temperature 0", "--endpoint_mode", "block", "--temperature", "0")
    fails("repetition_penalty", "--repetition_penalty", "2")
    with pytest.raises(ValueError, match="endpoint_mode` must be one of token, block, answer, got 'words'"):
        VASEndpointDecoding([value_dir], endpoint=server.url, endpoint_model="m", endpoint_mode="words").check()
    assert server.requests == []  # all before anything is sent


def test_a_value_model_without_a_tokenizer_needs_the_servers(server, flags, value_dir, tokenizer, tmp_path, capsys):
    bare = tmp_path / "bare"
    ValueModel.from_pretrained(value_dir).save_pretrained(bare)
    flags[flags.index("--value_model_name_or_path") + 1] = str(bare)
    with pytest.raises(ValueError, match="pass --endpoint_tokenizer"):
        cli_generate.main([*flags, "--prompt", "we"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert cli_generate.main([*flags, *GREEDY, "--prompt", "we", "--endpoint_tokenizer", f"{tmp_path}/tokenizer"]) == 0


def test_a_conversation_of_two_turns(server, flags, value_dir, tmp_path, monkeypatch, capsys):
    chat = make_tokenizer(chat=True)
    chat.save_pretrained(tmp_path / "chat")
    monkeypatch.setattr("sys.stdin", io.StringIO("the film\n/beta 5\na story\n"))
    more = [*GREEDY, "--endpoint_tokenizer", f"{tmp_path}/chat"]
    assert cli_chat.main([*flags, *more]) == 0
    sent = [chat.decode(body["prompt"]) for _, body, _ in server.requests if isinstance(body["prompt"], list)]
    first, last = sent[1], sent[-1]  # the very first request finds out whether ids are accepted
    assert "the film" in first and "a story" not in first
    assert last.startswith(first) and "a story" in last
    assert "reward 5\n" in capsys.readouterr().out
