# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`EndpointGuide` against a scripted server over a tiny model: equal to local guidance, files, and bad input."""

import json
import math
import os
import random
import threading

import pytest
import torch
from conftest import CHAT_TEMPLATE, make_llama2_tokenizer, make_model, make_tokenizer
from scripted_server import ModelServer, ScriptedServer, completion

from trl_ext.data.tokenization import encode_prompt
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import BadAnswer, EndpointFailed, MissingLogprobs, RequestRefused, TooFewLogprobs
from trl_ext.generation_settings import GenerationSettings
from trl_ext.methods.vas.decoding.endpoint_guide import EndpointGuide
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.progress import Progress


GREEDY = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=10)
PROMPTS = ["the film was", "I thought it", "a good story with"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(chat=True)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(len(tokenizer))


def make_value_model(tokenizer, seed=3, heads=("reward",)):
    value_model = ValueModel.from_backbone(make_model(len(tokenizer), seed=seed), heads).eval()
    generator = torch.Generator().manual_seed(seed)
    value_model.head.weight.data = torch.randn(value_model.head.weight.shape, generator=generator)
    value_model.config.record_tokenizer(tokenizer)
    return value_model


@pytest.fixture(scope="module")
def value_model(tokenizer):
    return make_value_model(tokenizer)


@pytest.fixture
def server():
    made = ScriptedServer()
    yield made
    made.close()


def endpoint(server, **settings):
    return Endpoint(server.url, "m", **{"backoff": 0.01, "timeout": 20.0, "max_retries": 3, **settings})


def guide(server, value_model, tokenizer, beta=1.0, **settings):
    return EndpointGuide(endpoint(server), value_model, beta, tokenizer, **{"top_k": 12, **settings})


def logprobs(**table):
    return {"top_logprobs": [table]}


# ------------------------------------------------------------------------------------------------ equal to `generate`


def by_generate(model, tokenizer, prompt, value_model, beta, top_k):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    processor = ValueAugmentedLogitsProcessor(value_model, beta, top_k)
    made = model.generate(ids, do_sample=False, max_new_tokens=10, logits_processor=[processor], pad_token_id=0)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("beta", [1.0, -2.0])
def test_token_mode_over_ids_equals_generate(server, model, tokenizer, value_model, beta):
    server.answer = ModelServer(model, tokenizer, "ids")
    guided = guide(server, value_model, tokenizer, beta)
    for prompt in PROMPTS:
        wanted = by_generate(model, tokenizer, prompt, value_model, beta, 12)
        assert guided.answer(prompt, GREEDY).completion.ids == wanted
    bodies = [body for _, body, _ in server.requests[1:]]  # the first found out that ids are accepted
    assert all(isinstance(body["prompt"], list) and body["logprobs"] == 12 for body in bodies)
    assert bodies[1]["prompt"][:-1] == bodies[0]["prompt"]


@pytest.mark.parametrize(("every", "when"), [(3, None), ("word", None), (100, None), (2, {"random": 0.5})])
def test_guidance_of_some_tokens_over_ids_equals_generate(server, model, tokenizer, value_model, every, when):
    """Every third token takes two requests, one of them for the two tokens between."""
    server.answer = ModelServer(model, tokenizer, "ids")
    schedule = {"guide_every": every, "guide_when": when}
    guided = guide(server, value_model, tokenizer, -2.0, **schedule)
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        processor = ValueAugmentedLogitsProcessor(
            value_model, -2.0, 12, tokenizer=tokenizer, end_token_ids=[tokenizer.eos_token_id], **schedule
        )
        made = model.generate(ids, do_sample=False, max_new_tokens=10, logits_processor=[processor], pad_token_id=0)
        asked = len(server.requests)
        found = guided.answer(prompt, GREEDY)
        assert found.completion.ids == made[0, ids.shape[1] :].tolist()
        assert [found.guided, found.tokens] == processor.scheduled.counts_2.tolist()
        if every == 3 and found.tokens == 10:
            first = prompt == PROMPTS[0]  # which finds out that ids are accepted
            sizes = [body["max_tokens"] for _, body, _ in server.requests[asked + first :]]
            assert sizes == [1, 2, 1, 2, 1, 2, 1]


def test_guidance_of_some_tokens_over_text(server, model, tokenizer, value_model):
    """Tokens between are the server's, which tokenizes the text again: a loop over texts, greedily."""
    server.answer = ModelServer(model, tokenizer, "text")
    server.answer.never_ends = True
    guided = guide(server, value_model, tokenizer, 2.0, guide_every=4)
    for prompt in PROMPTS:
        text = ""
        for start in range(0, 10, 4):
            text = oracle_over_text(model, tokenizer, prompt, value_model, 2.0, 12, text, 1)
            ids = tokenizer(prompt + text)["input_ids"]
            fresh = []
            for _ in range(min(3, 9 - start)):
                with torch.no_grad():
                    logits = model(torch.tensor([ids + fresh])).logits[0, -1]
                logits[tokenizer.eos_token_id] = -torch.inf
                fresh.append(int(logits.argmax()))
            text += tokenizer.decode(fresh, skip_special_tokens=True)
        assert guided.answer(prompt, GREEDY).completion.text == text


def test_a_margin_over_a_server(server, model, tokenizer, value_model):
    """Between 0 and infinity: the KL falls from that of every token to that of the candidates alone."""
    server.answer = ModelServer(model, tokenizer, "ids")
    settings = GenerationSettings(num_generations=1, max_completion_length=10)
    found = {}
    for margin in (1e-9, 45.0, 1e9):
        guided = guide(server, value_model, tokenizer, 2.0, guide_when={"margin": margin})
        answers = [guided.answer(prompt, settings, seed=1) for prompt in PROMPTS]
        found[margin] = sum(x.guided for x in answers) / sum(x.tokens for x in answers)
    assert found[1e-9] == 1
    assert found[1e9] == 0
    assert 0 < found[45.0] < 1


def test_a_policy_of_a_server_counts_its_guided_tokens(server, model, tokenizer, value_model):
    server.answer = ModelServer(model, tokenizer, "ids")
    guided = guide(server, value_model, tokenizer, 1.0, guide_every=4)
    policy = guided.policy("served")
    assert policy.extras["every"] == 4
    groups = policy.generate([tokenizer(p)["input_ids"] for p in PROMPTS], GREEDY)
    lengths = [len(completion.ids) for [completion] in groups]
    assert (policy.guided.guided, policy.guided.total) == (sum(-(-n // 4) for n in lengths), sum(lengths))
    assert guide(server, value_model, tokenizer).policy("served").guided is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide_when": {"entropy": 1.0}}, "'entropy': a server returns its likeliest tokens only"),
        ({"guide_every": 2, "mode": "block"}, "`guide_every` and `guide_when` are about single tokens"),
        ({"guide_every": 0}, "`guide_every` must be a whole number"),
    ],
)
def test_schedules_that_a_server_does_not_allow(server, tokenizer, value_model, settings, message):
    with pytest.raises(ValueError, match=message):
        guide(server, value_model, tokenizer, **settings)


def oracle_over_text(model, tokenizer, prompt, value_model, beta, top_k, text="", length=10):
    """Greedy answer of a server that tokenizes the text again for each token: plain loops, no caches."""
    names = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    for _ in range(length):
        ids = tokenizer(prompt + text)["input_ids"]
        logps = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).tolist()
        shown = [i for i in range(len(logps)) if i not in tokenizer.all_special_ids]
        best = sorted(range(len(logps)), key=lambda i: -logps[i])[:top_k]
        scores = {}
        for token in best:
            if token in shown:
                value = value_model(torch.tensor([[*ids, token]])).values[0, -1].item()
                scores[token] = logps[token] + beta * value
        text += names[max(scores, key=scores.__getitem__)]
    return text


@torch.no_grad()
@pytest.mark.parametrize("beta", [1.0, -2.0])
def test_token_mode_over_text_equals_plain_loops(server, model, tokenizer, value_model, beta):
    server.answer = ModelServer(model, tokenizer, "text")
    server.answer.never_ends = True  # this server samples the end by itself
    guided = guide(server, value_model, tokenizer, beta)
    for prompt in PROMPTS:
        wanted = oracle_over_text(model, tokenizer, prompt, value_model, beta, 12)
        assert guided.answer(prompt, GREEDY).completion.text == wanted


def test_distribution_over_the_candidates(server, tokenizer, value_model):
    """Sampled frequencies, KL and tail of one token, against p exp(beta V) over the candidates in plain loops."""
    base = {" good": 0.5, " bad": 0.25, " dull": 0.15}
    server.answer = lambda path, body: completion(
        "x", logprobs=logprobs(**{text: math.log(p) for text, p in base.items()})
    )
    guided = guide(server, value_model, tokenizer, 0.7, top_k=3)
    ids = tokenizer("the film was")["input_ids"]
    weights = {}
    for text, p in base.items():
        with torch.no_grad():
            value = value_model(torch.tensor([ids + tokenizer(text)["input_ids"]])).values[0, -1].item()
        weights[text] = p * math.exp(0.7 * value)
    total = sum(weights.values())
    kl = sum(weight / total * math.log(weight / total / base[text]) for text, weight in weights.items())
    settings = GenerationSettings(num_generations=1, max_completion_length=1)
    sampled = [guided.answer("the film was", settings, seed=seed) for seed in range(300)]
    for text, weight in weights.items():
        found = [served for served in sampled if served.completion.text == text]
        p = weight / total
        assert abs(len(found) / 300 - p) < 4 * math.sqrt(p * (1 - p) / 300) + 1e-9
        for served in found:
            assert served.kl == pytest.approx(kl, abs=1e-4)
            assert served.tail == pytest.approx(0.1, abs=1e-5)


def test_a_token_beyond_top_k_is_not_a_candidate(server, tokenizer, value_model):
    """Servers add the token that they sampled to the likeliest: it must not be sampled more often because of it."""
    table = {" good": -0.5, " bad": -1.0, " dull": -9.0}
    server.answer = lambda path, body: completion(" dull", logprobs=logprobs(**table))
    guided = guide(server, value_model, tokenizer, 0.0, top_k=2)
    settings = GenerationSettings(num_generations=1, max_completion_length=30, temperature=50.0)
    assert set(guided.answer("the", settings).completion.text.split()) == {"good", "bad"}


def test_weights_by_head_and_by_call(server, model, tokenizer):
    server.answer = ModelServer(model, tokenizer, "ids")
    models = {"a": make_value_model(tokenizer, 3), "b": make_value_model(tokenizer, 4)}
    guided = guide(server, models, tokenizer, {"a": 1.0})
    only_a = guide(server, models["a"], tokenizer, 1.0)
    assert guided.answer("the film", GREEDY) == only_a.answer("the film", GREEDY)
    wanted = by_generate(model, tokenizer, "the film", models, {"a": -0.5, "b": 2.0}, 12)
    assert guided.answer("the film", GREEDY, beta={"a": -0.5, "b": 2.0}).completion.ids == wanted
    with pytest.raises(ValueError, match="'c', which does not exist"):
        guided.answer("the film", GREEDY, beta={"c": 1.0})


def test_chat_endpoint(server, model, tokenizer, value_model):
    server.answer = ModelServer(model, tokenizer, "ids")
    messages = [{"role": "user", "content": "was it good"}]
    settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=4)
    over_chat = guide(server, value_model, tokenizer, chat=True).answer(messages, settings)
    rendered = guide(server, value_model, tokenizer).answer(messages, settings)
    assert over_chat.completion.text == rendered.completion.text != ""
    assert {path for path, *_ in server.requests} == {"/v1/completions", "/v1/chat/completions"}


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


@pytest.mark.parametrize("mode", ["token", "block"])
def test_settings_of_the_chat_template(server, model, tokenizer, value_model, mode):
    """A chat endpoint is sent them; otherwise they change the prompt that is rendered here."""
    server.answer = ModelServer(model, tokenizer, "ids")
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{% if thinking %}story{% endif %}{% if tools %} plot{% endif %}" + CHAT_TEMPLATE
    messages = [{"role": "user", "content": "was it good"}]
    kwargs = {"thinking": True, "tools": [TOOL]}
    settings = GenerationSettings(num_generations=1, max_completion_length=2)
    guide(server, value_model, tokenizer, mode=mode).answer(messages, settings, chat_template_kwargs=kwargs)
    prompt = server.requests[-1][1]["prompt"]
    assert (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)).startswith("story plot")
    guided = guide(server, value_model, tokenizer, mode=mode, chat=True)
    guided.answer_all([messages], settings, chat_template_kwargs=kwargs)
    _, body, _ = server.requests[-1]
    assert (body["tools"], body["chat_template_kwargs"]) == ([TOOL], {"thinking": True})


def test_settings_of_the_chat_template_in_the_rows_of_a_file(server, model, tokenizer, value_model, tmp_path):
    server.answer = ModelServer(model, tokenizer, "ids")
    row = {"prompt": [{"role": "user", "content": "was it good"}], "chat_template_kwargs": {"thinking": True}}
    settings = GenerationSettings(num_generations=1, max_completion_length=1)
    guide(server, value_model, tokenizer, chat=True).answer_file([row], str(tmp_path / "out.jsonl"), settings)
    assert server.requests[-1][1]["chat_template_kwargs"] == {"thinking": True}


def test_a_file_has_no_scores_of_completions_that_the_dataset_has(server, model, tokenizer, value_model, tmp_path):
    server.answer = ModelServer(model, tokenizer, "ids")
    row = {"prompt": "was it good", "completions": ["yes", "no"], "scores": [1.0, 0.0], "id": 7}
    settings = GenerationSettings(num_generations=2, max_completion_length=1)
    guide(server, value_model, tokenizer).answer_file([row], str(tmp_path / "out.jsonl"), settings)
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert set(found) == {"prompt", "completions", "ended", "kl", "tail", "id", "row_index"}


def test_chat_endpoint_that_starts_another_answer(server, model, tokenizer, value_model):
    serve = ModelServer(model, tokenizer, "ids")

    def starts_another(path, body):
        return serve(path, {k: v for k, v in body.items() if k != "continue_final_message"})

    server.answer = starts_another
    messages = [{"role": "user", "content": "was it good"}]
    with pytest.raises(RequestRefused, match="does not continue an unfinished answer"):
        guide(server, value_model, tokenizer, chat=True).answer(messages, GREEDY)


# ---------------------------------------------------------------------------------------------------------- the end


def test_an_end_among_the_candidates_is_guided(server, tokenizer, value_model):
    table = {" good": -1.0, "<|endoftext|>": -0.5}
    server.answer = lambda path, body: completion("", logprobs=logprobs(**table), ended=True)
    settings = GenerationSettings(num_generations=1, max_completion_length=30)
    sampled = [
        guide(server, value_model, tokenizer, 0.0, top_k=2).answer("the", settings, seed=i).completion
        for i in range(5)
    ]
    assert all(c.ended and c.ids[-1] == tokenizer.eos_token_id and "endoftext" not in c.text for c in sampled)
    assert len({len(c.ids) for c in sampled}) > 1


def test_an_end_that_is_no_candidate_is_sampled_by_the_server(server, tokenizer, value_model):
    bodies = [completion("x", logprobs=logprobs(**{" good": -0.1})), completion("", ended=True)]
    server.answer = lambda path, body: bodies[body["prompt"].count("good") >= 2]
    served = guide(server, value_model, tokenizer, top_k=1).answer("the", GREEDY)
    assert (served.completion.text, served.completion.ended) == (" good good", True)
    assert served.completion.ids[-1] == tokenizer.eos_token_id


def test_an_empty_answer_is_requested_again_if_the_end_can_be_a_candidate(server, tokenizer, value_model):
    table = {" good": -0.1, "<|endoftext|>": -9.0}
    good, empty = completion("x", logprobs=logprobs(**table)), completion("", ended=True)
    server.script = [good, good, empty, empty]
    server.answer = lambda path, body: good
    served = guide(server, value_model, tokenizer, 0.0, top_k=2).answer("the", GREEDY)
    assert served.completion.text == " good" * 10


# ------------------------------------------------------------------------------------------------------------ blocks


def test_a_block_is_chosen_by_softmax_of_beta_times_value(server, tokenizer, value_model):
    texts = [" good story", " bad actor", " dull"]
    server.answer = lambda path, body: completion(*texts)
    guided = guide(server, value_model, tokenizer, 0.3, mode="block", num_blocks=3, block_length=2)
    weights = []
    for text in texts:
        with torch.no_grad():
            ids = tokenizer("the film was" + text)["input_ids"]
            weights.append(math.exp(0.3 * value_model(torch.tensor([ids])).values[0, -1].item()))
    settings = GenerationSettings(num_generations=1, max_completion_length=2)
    sampled = [guided.answer("the film was", settings, seed=seed) for seed in range(300)]
    for text, weight in zip(texts, weights, strict=True):
        found = [served for served in sampled if served.completion.text == text]
        p = weight / sum(weights)
        assert abs(len(found) / 300 - p) < 4 * math.sqrt(p * (1 - p) / 300) + 1e-9
        assert all(served.kl == pytest.approx(math.log(3 * p), abs=1e-4) for served in found)


@pytest.mark.parametrize("chat", [False, True])
def test_one_of_several_answers_is_chosen_by_softmax_of_beta_times_value(server, tokenizer, value_model, chat):
    """In one request, which continues nothing: a server that only chats will do."""
    texts = [" good story", " bad actor", " dull"]

    def answer(path, body):
        made = completion(*texts, ended=True)
        for choice in made["choices"] if chat else ():
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        return made

    server.answer = answer
    messages = [{"role": "user", "content": "was it good"}]
    guided = guide(server, value_model, tokenizer, 0.3, mode="answer", num_blocks=3, block_length=2, chat=chat)
    start, weights = encode_prompt(tokenizer, messages), []
    for text in texts:
        with torch.no_grad():
            ids = [*start, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            weights.append(math.exp(0.3 * value_model(torch.tensor([ids])).values[0, -1].item()))
    settings = GenerationSettings(num_generations=1, max_completion_length=40)
    sampled = [guided.answer(messages, settings, seed=seed) for seed in range(200)]
    assert len(server.requests) == 200
    path, body, _ = server.requests[0]
    assert body["max_tokens"] == 40 and path.endswith("/chat/completions") is chat
    assert body.get("messages") == (messages if chat else None)
    for text, weight in zip(texts, weights, strict=True):
        found = [served for served in sampled if served.completion.text == text]
        p = weight / sum(weights)
        assert abs(len(found) / 200 - p) < 4 * math.sqrt(p * (1 - p) / 200) + 1e-9
        assert all(served.kl == pytest.approx(math.log(3 * p), abs=1e-4) for served in found)
    with pytest.raises(ValueError, match="temperature 0 gives the same answer every time"):
        guided.answer(messages, GREEDY)


def test_the_value_of_a_block_that_ended_includes_the_end(server, tokenizer, value_model):
    ended = completion(" good", ended=True)
    ended["choices"].append({"index": 1, "text": " bad", "finish_reason": "length"})
    server.answer = lambda path, body: ended
    guided = guide(server, value_model, tokenizer, 1.0, mode="block", num_blocks=2)
    ids = tokenizer("the film was good")["input_ids"]
    other = tokenizer("the film was bad")["input_ids"]
    with torch.no_grad():
        a, b = (value_model(torch.tensor([row])).values[0, -1].item() for row in ([*ids, 1], other))
    settings = GenerationSettings(num_generations=1, max_completion_length=1)
    seeds = [seed for seed in range(40) if guided.answer("the film was", settings, seed=seed).completion.ended]
    served = guided.answer("the film was", settings, seed=seeds[0])
    assert served.kl == pytest.approx(math.log(2 / (1 + math.exp(b - a))), abs=1e-4)
    assert served.completion.ids == [*tokenizer(" good")["input_ids"], 1]


@pytest.mark.parametrize("style", ["ids", "text"])
def test_block_mode_with_servers_that_ignore_n(server, model, tokenizer, value_model, style):
    server.answer = ModelServer(model, tokenizer, style)
    server.answer.never_ends = True
    guided = guide(server, value_model, tokenizer, mode="block", num_blocks=3, block_length=4)
    served = guided.answer("the film", GenerationSettings(num_generations=1, max_completion_length=10))
    assert not served.completion.ended
    lengths = [body["max_tokens"] for _, body, _ in server.requests]
    assert lengths == [4, 4, 2] if style == "ids" else [4] * 6 + [2] * 3
    assert all("logprobs" not in body for _, body, _ in server.requests)
    prompts = [body["prompt"] for _, body, _ in server.requests]
    assert prompts[-1].startswith(prompts[0])


def test_block_mode_stops_when_the_context_is_full(server, tokenizer, value_model):
    server.answer = lambda path, body: completion(*[""] * body["n"])
    served = guide(server, value_model, tokenizer, mode="block").answer("the film")
    assert (served.completion.text, served.completion.ended) == ("", False)


# ------------------------------------------------------------------------------------- unsuitable servers, bad input


@pytest.mark.parametrize("mode", ["token", "block"])
def test_an_answer_that_fills_the_servers_context_is_cut(server, model, tokenizer, value_model, mode):
    serve = ModelServer(model, tokenizer, "ids")
    serve.never_ends = True
    full = {"error": {"message": "This model's maximum context length is 8 tokens, you requested 9."}}

    def limited(path, body):
        prompt = body["prompt"]
        length = len(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
        return serve(path, body) if length + body["max_tokens"] <= 8 else (400, {}, full)

    server.answer = limited
    settings = GenerationSettings(num_generations=1, max_completion_length=20)
    guided = guide(server, value_model, tokenizer, mode=mode, num_blocks=2, block_length=2)
    answer = guided.answer("the film", settings).completion
    assert not answer.ended and 2 <= len(tokenizer(answer.text)["input_ids"]) <= 7
    with pytest.raises(RequestRefused, match="maximum context length"):
        guided.answer("the film was good and not dull and not bad", settings)


@pytest.mark.parametrize("mode", ["token", "block"])
def test_values_that_are_not_finite_are_named(server, model, tokenizer, mode):
    server.answer = ModelServer(model, tokenizer, "ids")
    broken = make_value_model(tokenizer)
    broken.head.weight.data[:] = math.nan
    with pytest.raises(ValueError, match="value that is not finite"):
        guide(server, broken, tokenizer, mode=mode).answer("the film")


def test_a_block_that_ends_within_a_character_is_cut_before_it(server, tokenizer, value_model):
    """Sent back, the mark of an incomplete character would stay in the answer for good."""
    server.script = [completion(" good\ufffd", " good\ufffd")]
    server.answer = lambda path, body: completion(" bad", " bad", ended=True)
    guided = guide(server, value_model, tokenizer, mode="block", num_blocks=2, block_length=2)
    served = guided.answer("the film", GenerationSettings(num_generations=1, max_completion_length=4))
    assert server.requests[-1][1]["prompt"] == "the film good"
    assert served.completion.text == " good bad"


def test_missing_logprobs(server, tokenizer, value_model):
    with pytest.raises(MissingLogprobs, match=r"'m' answers without log-probabilities.*use block mode"):
        guide(server, value_model, tokenizer).answer("the")
    server.answer = lambda path, body: (500, {}, {"detail": "logprobs is not supported with logits_all=False"})
    with pytest.raises(MissingLogprobs, match=r"logits_all(.|\n)*use block mode"):
        guide(server, value_model, tokenizer).answer("the")


def test_too_few_logprobs(server, tokenizer, value_model):
    server.answer = lambda path, body: completion("x", logprobs=logprobs(**{" good": -1.0, " bad": -2.0}))
    with pytest.raises(TooFewLogprobs, match=r"asked for the 12 .* returns 2\. .*top_k 2.*use block mode"):
        guide(server, value_model, tokenizer).answer("the")
    message = {"error": {"message": "Requested sample logprobs of 12, which is greater than max allowed: 5"}}
    server.answer = lambda path, body: (400, {}, message)
    with pytest.raises(TooFewLogprobs, match=r"max allowed: 5(.|\n)*--max-logprobs(.|\n)*block mode"):
        guide(server, value_model, tokenizer).answer("the")


def test_few_candidates_once_are_no_error(server, tokenizer, value_model):
    """Incomplete characters share an entry now and then; the server returns as many as requested elsewhere."""
    full = completion("x", logprobs=logprobs(**{" good": -1.0, " bad": -2.0, " dull": -3.0, " great": -4.0}))
    server.script = [full, full]
    server.answer = lambda path, body: completion("x", logprobs=logprobs(**{" good": -1.0, "": -3.0}))
    assert guide(server, value_model, tokenizer, 0.0, top_k=4).answer("the", GREEDY).completion.text == " good" * 10


def test_no_candidate_can_be_sent_back(server, tokenizer, value_model):
    server.answer = lambda path, body: completion("x", logprobs=logprobs(**{"": -1.0, "\ufffd": -2.0}))
    with pytest.raises(BadAnswer, match="none of the 2 tokens"):
        guide(server, value_model, tokenizer, top_k=2).answer("the")


def test_a_server_that_drops_the_space_of_its_tokens_names(server):
    """It decodes each token by itself, so that " film" and "film" have one name."""
    tokenizer = make_llama2_tokenizer()
    table = {"film": -1.0, "good": -2.0}
    server.answer = lambda path, body: completion(" film", logprobs={"tokens": ["film"], "top_logprobs": [table]})
    with pytest.raises(MissingLogprobs, match=r"' film' 'film'.* cannot be told apart.*block mode"):
        guide(server, make_value_model(tokenizer), tokenizer, top_k=2).answer("the")


def test_server_of_another_vocabulary(server, tokenizer, value_model):
    table = {" filmic": -1.0, " cinematic": -2.0, " good": -3.0}
    server.answer = lambda path, body: completion("x", logprobs=logprobs(**table))
    with pytest.raises(ValueError, match="another vocabulary: it returns ' filmic'"):
        guide(server, value_model, tokenizer, top_k=3).answer("the")


def test_value_model_of_another_vocabulary(server, tokenizer):
    stranger = make_value_model(tokenizer)
    stranger.config.vocabulary = "0123"
    with pytest.raises(ValueError, match="another vocabulary"):
        guide(server, stranger, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "word"}, "mode must be"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 10_000}, "top_k"),
        ({"num_blocks": 1}, "num_blocks"),
        ({"block_length": 0}, "block_length"),
        ({"beta": math.nan}, "must be a finite number"),
        ({"beta": {"speed": 1.0}}, "'speed', which does not exist"),
        ({"end_tokens": ["<|stop|>"]}, "end_tokens"),
    ],
)
def test_settings_out_of_range(server, tokenizer, value_model, settings, message):
    with pytest.raises(ValueError, match=message):
        guide(server, value_model, tokenizer, **settings)
    assert not server.requests


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("token", GenerationSettings(num_beams=4), "num_beams"),
        ("token", GenerationSettings(repetition_penalty=1.2), "repetition_penalty"),
        ("token", GenerationSettings(generation_kwargs={"stop_strings": "."}), "generation_kwargs"),
        ("block", GREEDY, "temperature 0"),
    ],
)
def test_settings_that_an_endpoint_lacks(server, tokenizer, value_model, mode, settings, message):
    with pytest.raises(ValueError, match=message):
        guide(server, value_model, tokenizer, mode=mode).answer("the", settings)


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt(server, tokenizer, value_model, prompt):
    with pytest.raises(ValueError, match="has no tokens"):
        guide(server, value_model, tokenizer).answer(prompt)


def test_a_single_prompt_is_not_a_list_of_prompts(server, tokenizer, value_model):
    for prompt in ("the film", [5, 6]):
        with pytest.raises(ValueError, match="`prompts` must be a list of prompts"):
            guide(server, value_model, tokenizer).answer_all(prompt)


# ----------------------------------------------------------------------------------------------------------- batches


def test_answers_do_not_depend_on_the_concurrency(server, model, tokenizer, value_model):
    server.answer = ModelServer(model, tokenizer, "ids")
    settings = GenerationSettings(num_generations=2, max_completion_length=6)
    found = []
    for workers in (1, 5):
        guided = EndpointGuide(endpoint(server, max_concurrency=workers), value_model, 1.0, tokenizer, top_k=12)
        found.append(guided.answer_all(PROMPTS, settings, seed=7))
    assert found[0] == found[1]
    assert len({served.completion.text for row in found[0] for served in row}) > 3


def test_policy(server, model, tokenizer, value_model):
    server.answer = ModelServer(model, tokenizer, "ids")
    policy = guide(server, value_model, tokenizer, 0.5).policy("served", beta=2.0)
    assert (policy.name, policy.extras["beta"], policy.logps) == ("served", 2.0, None)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    settings = GenerationSettings(num_generations=2, max_completion_length=5)
    torch.manual_seed(0)
    completions = policy.generate(ids, settings)
    assert [len(row) for row in completions] == [2, 2, 2]
    torch.manual_seed(0)
    assert policy.generate(ids, settings) == completions
    pieces = []
    completion = policy.stream(ids[0], GREEDY, pieces.append)
    assert "".join(pieces) == completion.text
    assert len(pieces) > 3


@pytest.mark.parametrize(("mode", "own"), [("token", "exact"), ("block", "bound")])
def test_completions_of_a_policy_have_the_kl_of_their_answers(server, model, tokenizer, value_model, mode, own):
    server.answer = ModelServer(model, tokenizer, "ids")
    policy = guide(server, value_model, tokenizer, 2.0, mode=mode, num_blocks=2, block_length=2).policy("served")
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    groups = policy.generate(ids, GenerationSettings(num_generations=2, max_completion_length=4))
    assert policy.own_kl == own
    assert all(isinstance(each.kl, float) and each.kl != 0 for row in groups for each in row)
    if mode == "token":
        assert all(each.kl > 0 for row in groups for each in row)


ROWS = [{"prompt": f"the film {word}", "label": i} for i, word in enumerate("was had and very so not".split())]


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_file(server, tokenizer, value_model, path, workers=2, **kwargs):
    guided = EndpointGuide(
        endpoint(server, max_concurrency=workers, max_retries=0), value_model, 1.0, tokenizer, top_k=12
    )
    settings = GenerationSettings(num_generations=2, max_completion_length=3)
    return guided.answer_file(ROWS, str(path), settings, **kwargs)


def test_file_of_answers(server, model, tokenizer, value_model, tmp_path):
    server.answer = ModelServer(model, tokenizer, "ids")
    path = tmp_path / "out.jsonl"
    assert answer_file(server, tokenizer, value_model, path) == len(ROWS)
    rows = read_rows(path)
    assert [(row["row_index"], row["label"], row["prompt"]) for row in rows] == [
        (i, i, row["prompt"]) for i, row in enumerate(ROWS)
    ]
    assert all(len(row[name]) == 2 for row in rows for name in ("completions", "ended", "kl", "tail"))
    asked = len(server.requests)
    assert answer_file(server, tokenizer, value_model, path) == 0
    assert len(server.requests) == asked


@pytest.mark.parametrize("seed", range(4))
def test_a_resumed_file_equals_an_uninterrupted_one(server, model, tokenizer, value_model, tmp_path, seed):
    """Requests fail at random until the file is complete: no row is lost, repeated or changed."""
    serve = ModelServer(model, tokenizer, "ids")
    server.answer = serve
    uninterrupted = tmp_path / "uninterrupted.jsonl"
    answer_file(server, tokenizer, value_model, uninterrupted)
    rng, lock = random.Random(seed), threading.Lock()

    def unreliable(path, body):
        with lock:
            fails = rng.random() < 0.06
        return (500, {}, {"error": "broken"}) if fails else serve(path, body)

    server.answer = unreliable
    path, made, failures = tmp_path / "out.jsonl", 0, 0
    while True:
        before = len(read_rows(path)) if path.exists() else 0
        try:
            made += answer_file(server, tokenizer, value_model, path, workers=3)
            break
        except EndpointFailed as error:
            failures += 1
            made += len(read_rows(path)) - before
            assert any("the same call resumes there" in note for note in error.__notes__)
            assert any("in row " in note for note in error.__notes__)
    assert read_rows(path) == read_rows(uninterrupted)
    assert made == len(ROWS)
    assert failures or seed


def test_rows_in_progress_at_a_failure_are_kept(server, model, tokenizer, value_model, tmp_path):
    serve = ModelServer(model, tokenizer, "ids")
    begun, failed = threading.Event(), threading.Event()

    def answer(path, body):
        if body["logprobs"] == 1:  # the request that finds out whether ids are accepted
            return serve(path, body)
        if body["prompt"][: len(first)] == first:
            begun.wait(30)  # until another row is in progress
            failed.set()
            return 400, {}, {"error": "the prompt is too long"}
        begun.set()
        failed.wait(30)
        return serve(path, body)

    first = tokenizer(ROWS[0]["prompt"])["input_ids"]
    server.answer = answer
    path = tmp_path / "out.jsonl"
    with pytest.raises(RequestRefused, match="too long") as caught:
        answer_file(server, tokenizer, value_model, path)
    assert "row 0 of 6" in "".join(caught.value.__notes__)
    assert {row["row_index"] for row in read_rows(path)} >= {1}
    server.answer = serve
    answer_file(server, tokenizer, value_model, path)
    assert [row["row_index"] for row in read_rows(path)] == list(range(len(ROWS)))


def test_keyboard_interrupt(server, model, tokenizer, value_model, tmp_path, monkeypatch):
    server.answer = ModelServer(model, tokenizer, "ids")
    path = tmp_path / "out.jsonl"
    seen = []

    def interrupt(phase):
        seen.append(phase)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Progress, "advance", interrupt)
        answer_file(server, tokenizer, value_model, path)
    rows = read_rows(path)
    assert 2 <= len(rows) < len(ROWS) + 1
    answer_file(server, tokenizer, value_model, path)
    assert [row["row_index"] for row in read_rows(path)] == list(range(len(ROWS)))


def test_a_file_of_other_settings_is_refused(server, model, tokenizer, value_model, tmp_path):
    server.answer = ModelServer(model, tokenizer, "ids")
    path = tmp_path / "out.jsonl"
    answer_file(server, tokenizer, value_model, path)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        answer_file(server, tokenizer, value_model, path, seed=1)
    with pytest.raises(ValueError, match="values was"):
        answer_file(server, tokenizer, make_value_model(tokenizer, 4), path)
    state = (tmp_path / "out.jsonl.state.json").read_text()
    assert "api_key" not in state
    assert answer_file(server, tokenizer, value_model, path, seed=1, overwrite=True) == len(ROWS)


# ----------------------------------------------------------------------------------------------------- a real server

URL = os.environ.get("TRL_EXT_TEST_API_URL", "")
TOKENIZER = os.environ.get("TRL_EXT_TEST_API_TOKENIZER", "")


@pytest.fixture(scope="module")
def real():
    from transformers import AutoModelForCausalLM

    from trl_ext.models.tokenizers import load_tokenizer

    name = os.environ.get("TRL_EXT_TEST_API_MODEL", "model")
    tokenizer = load_tokenizer(TOKENIZER)
    local = AutoModelForCausalLM.from_pretrained(TOKENIZER, dtype="float32").eval()
    value_model = ValueModel.from_backbone(TOKENIZER, dtype="float32").eval()
    generator = torch.Generator().manual_seed(0)
    value_model.head.weight.data = torch.randn(value_model.head.weight.shape, generator=generator) * 0.05
    return Endpoint(URL, name, timeout=120, max_concurrency=2), tokenizer, local, value_model


@pytest.mark.skipif(
    not (URL and TOKENIZER),
    reason="needs a server: TRL_EXT_TEST_API_URL=http://...:8000/v1, TRL_EXT_TEST_API_MODEL=its name there and "
    "TRL_EXT_TEST_API_TOKENIZER=the directory of its model",
)
class TestRealServer:
    """Against a real server; the directory of its model is here to compare with."""

    def test_candidates_and_probabilities_equal_the_models(self, real):
        from trl_ext.endpoint.next_tokens import NextTokens

        served, tokenizer, local, _ = real
        tokens = NextTokens(served, tokenizer, 20)
        for prompt in ("The film was", "I went to see this movie because", "It is"):
            options = tokens.after(tokens.text(prompt))
            with torch.no_grad():
                logps_V = local(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
            assert len(options) >= 15
            for option in options:
                assert option.logprob == pytest.approx(float(logps_V[option.id]), abs=0.02)

    def test_token_mode_equals_generate(self, real):
        served, tokenizer, local, value_model = real
        guided = EndpointGuide(served, value_model, 2.0, tokenizer)
        ids = torch.tensor([tokenizer("The film was")["input_ids"]])
        processor = ValueAugmentedLogitsProcessor(value_model, 2.0, 20)
        made = local.generate(
            ids, do_sample=False, max_new_tokens=8, logits_processor=[processor], pad_token_id=tokenizer.pad_token_id
        )
        settings = GenerationSettings(num_generations=1, temperature=0.0, max_completion_length=8)
        wanted = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert guided.answer("The film was", settings).completion.text == wanted

    @pytest.mark.parametrize("mode", ["token", "block"])
    def test_guidance_raises_the_value(self, real, mode):
        """The reward is the value itself at the end of the answer, so that no training is needed."""
        served, tokenizer, _, value_model = real
        prompts = ["The film was", "I went to see", "The plot of this", "My wife and I"]
        settings = GenerationSettings(num_generations=4, max_completion_length=16)
        means = []
        for beta in (-4.0, 4.0):
            guided = EndpointGuide(served, value_model, beta, tokenizer, mode=mode, num_blocks=4, block_length=8)
            texts = [
                prompt + answer.completion.text
                for prompt, row in zip(prompts, guided.answer_all(prompts, settings), strict=True)
                for answer in row
            ]
            with torch.no_grad():
                values = [value_model(torch.tensor([tokenizer(text)["input_ids"]])).values[0, -1] for text in texts]
            means.append(float(torch.stack(values).mean()))
        assert means[1] > means[0] + 0.1
