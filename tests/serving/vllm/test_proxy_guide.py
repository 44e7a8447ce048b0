# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A proxy in a mock of vLLM's engine, against loops over candidates, orders and outcomes, and our own decoding."""

import logging
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_model
from oracles.proxy import greedy_completion, next_tokens
from vllm_mock_engine import VERSIONS, MockEngine, Request, config_with

from trl_ext.methods.proxy_rlhf import engine_decoding
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.proxy_rlhf.policies import proxy_logps
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.serving.vllm import processor, proxy_guide
from trl_ext.vllm import ProxyGuide


V = 60
PROMPTS = [[5, 9, 11, 3], [7, 2], [30, 31, 32, 33, 34, 35, 36], [8]]
ON = {"proxy": 1}
CONTEXT = DecisionProcess(top_k=4, feature="context")


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM's loggers write for themselves once it is imported, from a level of their own; pytest is to see them."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level("WARNING", "vllm.trl_ext")


@pytest.fixture
def model() -> Any:
    return make_model(V, tie_word_embeddings=False)


def make_proxy(model: Any, process: DecisionProcess = CONTEXT) -> ProxyModel:
    """A proxy whose decisions differ between candidates, and are mostly unsure."""
    torch.manual_seed(4)
    proxy = ProxyModel.for_model(model, process).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.normal_(0, 2 / proxy.config.layer_sizes[-1] ** 0.5)
    return proxy


def config_of(model: Any, proxy: ProxyModel, folder: Path, **settings: Any) -> Any:
    proxy.save_pretrained(folder)
    return config_with({"proxy": str(folder), **settings}, model)


def engine(version: str, model: Any, proxy: ProxyModel, folder: Path, monkeypatch: Any, **settings: Any) -> MockEngine:
    chunk = settings.pop("chunk", 99)
    config = config_of(model, proxy, folder, **settings)
    return MockEngine(version, model, config, monkeypatch, chunk, kind=ProxyGuide)


def plain(model: Any, prompt: list[int], length: int) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False, eos_token_id=None)
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


# ------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("forced", ["first", "last"])
@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_tokens_are_those_of_a_loop_and_of_generate(
    version: str, forced: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and guided requests in one batch; the proxy was trained with the sampled order."""
    proxy = make_proxy(model, replace(CONTEXT, forced=forced))
    server = engine(version, model, proxy, tmp_path, monkeypatch)
    switches = [ON, None, {"proxy": "1"}, {"proxy": 0}]
    requests = [Request(p, extra=extra) for p, extra in zip(PROMPTS, switches, strict=True)]
    found = server.run(requests)
    for request, tokens, guided in zip(requests, found, (True, False, True, False), strict=True):
        if not guided:
            assert tokens == plain(model, request.prompt, 8)
            continue
        assert tokens == greedy_completion(model, proxy, proxy.config.decision_process, request.prompt, 8)
        ours = proxy.generate(
            model, torch.tensor([request.prompt]), greedy=True, order="descending", max_new_tokens=8, eos_token_id=[]
        )
        assert tokens == ours[0, len(request.prompt) :].tolist()
    assert found[0] != plain(model, PROMPTS[0], 8), "the proxy changes the completion"


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_that_come_go_move_and_are_preempted(
    version: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks of 3 tokens."""
    proxy = make_proxy(model)
    server = engine(version, model, proxy, tmp_path, monkeypatch, chunk=3)
    rng = random.Random(0)
    requests = [
        Request(rng.choice(PROMPTS) * rng.choice([1, 2]), None, rng.randint(1, 9), extra=rng.choice([ON, ON, None]))
        for _ in range(14)
    ]
    expected = [
        greedy_completion(model, proxy, CONTEXT, each.prompt, each.length)
        if each.extra
        else plain(model, each.prompt, each.length)
        for each in requests
    ]
    assert server.run(requests, rng) == expected
    assert not server.processor.requests or version == "V2"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_aborted_request_leaves_nothing_to_the_next(
    version: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_proxy(model)
    config = config_of(model, proxy, tmp_path)
    config.scheduler_config.max_num_seqs = 1
    server = MockEngine(version, model, config, monkeypatch, kind=ProxyGuide)
    aborted = Request(PROMPTS[2], None, 20, extra=ON)
    server.add(aborted)
    server.step()
    server.remove(aborted)
    for extra, expected in ((None, plain(model, PROMPTS[0], 8)), (ON, None)):
        expected = expected or greedy_completion(model, proxy, CONTEXT, PROMPTS[0], 8)
        assert server.run([Request(PROMPTS[0], extra=extra)]) == [expected]


# ------------------------------------------------------------------------------------------------------ probabilities

PROCESSES = {
    "sampled": CONTEXT,
    "descending": replace(CONTEXT, order="descending"),
    "the last is forced": replace(CONTEXT, forced="last"),
    "descending, the last is forced": replace(CONTEXT, order="descending", forced="last"),
    "temperature and top_p": replace(CONTEXT, temperature=1.7, top_p=0.7, top_k=5),
    "min_p": replace(CONTEXT, min_p=0.3, top_k=5),
    "max_candidates": replace(CONTEXT, order="descending", top_k=5, max_candidates=2),
    "repetition penalty": replace(CONTEXT, repetition_penalty=1.8, top_k=5),
    "one candidate": replace(CONTEXT, top_p=1e-6),
}


def check_step(request: Request, t: int, expected: dict[int, float]) -> None:
    """The distribution of a token equals an expected one; all other tokens are impossible."""
    found = request.logprobs[t].exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    for token in range(V):
        assert float(found[token]) == pytest.approx(expected.get(token, 0.0), abs=2e-5)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_distribution_is_that_of_all_orders_and_outcomes(
    version: str, process: DecisionProcess, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By enumeration; and the log-probabilities are those that evaluation reports for our own decoding."""
    proxy = make_proxy(model, process)
    server = engine(version, model, proxy, tmp_path, monkeypatch)
    requests = [Request(PROMPTS[2], None, 3, extra=ON, temperature=1.0), Request(PROMPTS[0], None, 2)]
    requests.append(Request(PROMPTS[1], None, 2, extra=ON, temperature=1.0))
    server.run(requests)
    for request in (requests[0], requests[2]):
        for t in range(request.length):
            ids = request.text[: len(request.prompt) + t]
            expected = next_tokens(model, proxy, process, ids)
            check_step(request, t, expected)
            [logps] = proxy_logps(
                BackboneAndHead(model), proxy, process, [ids], [[[token] for token in expected]], pad_token_id=0
            )
            for token, [logp] in zip(expected, logps, strict=True):
                assert float(request.logprobs[t][token]) == pytest.approx(float(logp), abs=1e-4)
    assert requests[1].output == plain(model, PROMPTS[0], 2)


@pytest.mark.parametrize("order", ["sampled", "descending"])
def test_sampling_settings_of_requests(order: str, model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Temperatures are multiplied, the fewer candidates count, and a temperature of 0 is greedy; in one batch."""
    process = replace(CONTEXT, order=order, temperature=1.3)
    proxy = make_proxy(model, process)
    server = engine("V1", model, proxy, tmp_path, monkeypatch)
    cases = [(0.6, 0, 0.78, 4), (1.0, 3, 1.3, 3), (1.6, 50, 2.08, 4), (1.0, -1, 1.3, 4), (1e-6, 0, None, 4)]
    requests = [Request(PROMPTS[2], None, 1, extra=ON, temperature=t, top_k=k) for t, k, *_ in cases]
    server.run(requests)
    for request, (*_, temperature, k) in zip(requests, cases, strict=True):
        now = replace(process, temperature=temperature or 1.3, top_k=k)
        check_step(request, 0, next_tokens(model, proxy, now, PROMPTS[2], greedy=temperature is None))


def test_settings_of_the_engine(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top_k` and `order` take the place of those of training."""
    proxy = make_proxy(model)
    server = engine("V2", model, proxy, tmp_path, monkeypatch, top_k=3, order="descending")
    request = Request(PROMPTS[0], None, 1, extra=ON, temperature=1.0)
    server.run([request])
    check_step(request, 0, next_tokens(model, proxy, replace(CONTEXT, top_k=3, order="descending"), PROMPTS[0]))


def test_another_sign_of_the_proxy_is_another_distribution(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The oracle of a proxy with opposite decisions does not fit: the tests above would notice a flipped sign."""
    proxy = make_proxy(model)
    server = engine("V1", model, proxy, tmp_path, monkeypatch)
    request = Request(PROMPTS[2], None, 1, extra=ON, temperature=1.0)
    server.run([request])
    with torch.no_grad():
        proxy.actor[-1].weight.neg_()
        proxy.actor[-1].bias.neg_()
    with pytest.raises(AssertionError):
        check_step(request, 0, next_tokens(model, proxy, CONTEXT, PROMPTS[2]))


def test_tokens_that_the_engine_excludes_stay_excluded(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Tokens whose logits a grammar or a minimum length has set to -inf are no candidates."""
    proxy = make_proxy(model)
    server = engine("V1", model, proxy, tmp_path, monkeypatch)
    server.run([Request(PROMPTS[0], None, 1)])
    server.processor.update_state(
        SimpleNamespace(
            removed=[], added=[(0, Request(PROMPTS[0], extra=ON, temperature=1.0).params, [], [])], moved=[]
        )
    )
    hidden = model.model(torch.tensor([PROMPTS[0]])).last_hidden_state[:, -1].detach()
    logits = server.served.compute_logits(hidden)
    allowed = logits[0].topk(3).indices[1:]
    masked = torch.full_like(logits, -torch.inf)
    masked[0, allowed] = logits[0, allowed].detach()
    probabilities = server.processor.apply(masked).softmax(-1)[0]
    assert sorted(probabilities.nonzero().squeeze(1).tolist()) == sorted(allowed.tolist())
    assert float(probabilities.sum()) == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_without_it_cost_nothing(
    version: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = engine(version, model, make_proxy(model), tmp_path, monkeypatch)
    monkeypatch.setattr(server.processor.decoder, "next_scores", None)
    server.run([Request(p, extra=extra) for p in PROMPTS for extra in (None, {}, {"proxy": 0}, {"other": 1})])
    logits = torch.zeros(2, V)
    assert server.processor.apply(logits) is logits


def test_the_language_model_is_run_once_for_each_token(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Candidates cost no forward pass of it: 5 tokens of a prompt in one piece are 5 forward passes."""
    server = engine("V1", model, make_proxy(model), tmp_path, monkeypatch)
    calls: list[Any] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    server.run([Request(PROMPTS[2], None, 5, extra=ON, temperature=1.0)])
    assert len(calls) == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_every_rank_computes_the_same(
    version: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks are passed the same: bit for bit the same logits, whatever their random number generators drew."""
    logprobs = []
    for rank in range(2):
        server = engine(version, model, make_proxy(model), tmp_path, monkeypatch, chunk=3)
        torch.manual_seed(rank)
        requests = [Request(p, None, 4, extra=extra, temperature=0.8) for p in PROMPTS for extra in (ON, None)]
        server.run(requests, random.Random(0))
        logprobs.append([row for request in requests for row in request.logprobs])
    assert all(torch.equal(*pair) for pair in zip(*logprobs, strict=True))


# ----------------------------------------------------------------------------------------------------------- mistakes


def make(config: Any, **changes: Any) -> ProxyGuide:
    """A processor of V1 in an engine whose config has some changes, `part.name` of it as `part__name`."""
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(config, part) if part else config, field, value)
    return ProxyGuide(config, torch.device("cpu"), False)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProxyModel, "from_pretrained", None)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": "draft"}, "does not work with speculative decoding: leave out"),
        ({"parallel_config__enable_batch_sharded_sampling": True}, "leave out `--enable-batch-sharded-sampling`"),
        ({"parallel_config__pipeline_parallel_size": 2}, "leave out `--pipeline-parallel-size`"),
        ({"additional_config": {}}, r'is missing. Write, for example, .*{"trl_ext": {"proxy": "outputs/proxy"}}'),
        ({"additional_config": {"trl_ext": {"top_k": 4}}}, "`proxy` is missing. Write"),
        ({"additional_config": {"trl_ext": {"proxy": ""}}}, "`proxy` is empty"),
        ({"additional_config": {"trl_ext": {"proxy": "x", "top_k": 1}}}, "`top_k` must be at least 2, got 1"),
        ({"additional_config": {"trl_ext": {"proxy": "x", "order": "up"}}}, "`order` must be one of sampled, desc"),
        ({"additional_config": {"trl_ext": {"value_model": "x"}}}, "unknown key 'value_model'"),
    ],
)
def test_what_an_engine_cannot_have(changes: Any, message: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(config_of(model, make_proxy(model), tmp_path), **changes)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("process", "settings", "message"),
    [
        (DecisionProcess(top_k=4), {}, "feature='candidate'.*Train one with feature='context' .`--feature context`."),
        (replace(CONTEXT, propose_rejected=True), {}, "may propose a rejected candidate again"),
        (replace(CONTEXT, max_candidates=3), {}, "examines 3 candidates in a sampled order.*`order` to 'descending'"),
        (replace(CONTEXT, order="descending", max_candidates=3), {"order": "sampled"}, "examines 3 candidates"),
    ],
)
def test_proxies_that_cannot_be_in_an_engine(
    process: DecisionProcess, settings: Any, message: str, model: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make(config_of(model, make_proxy(model, process), tmp_path, **settings))


def test_a_proxy_that_is_not_there(model: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        make(config_with({"proxy": str(tmp_path / "nowhere")}, model))


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_model_of_another_hidden_size_is_refused(model: Any, tmp_path: Path) -> None:
    other = make_model(V, hidden_size=32)
    with pytest.raises(ValueError, match="whose hidden size is 64; that of 'served' is 32"):
        make(config_of(other, make_proxy(model), tmp_path))


@pytest.mark.usefixtures("nothing_is_loaded")
def test_embeddings_that_a_model_scales_are_refused(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    class Scaled(torch.nn.Embedding):
        pass

    monkeypatch.setattr(engine_decoding, "_embedding", lambda llm: Scaled(2, 2))
    with pytest.raises(ValueError, match="embeddings of the type Scaled, which may scale them"):
        make(config_of(model, make_proxy(model), tmp_path))


def test_another_model_is_refused_when_it_is_first_run(
    model: Any, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM runs it before it takes requests. The embeddings and the last norm are compared."""
    proxy, other = make_proxy(model), make_model(V, seed=1, tie_word_embeddings=False)
    server = engine("V1", other, proxy, tmp_path, monkeypatch)
    message = "is used with 'served', which has other weights.*pass `\"allow_other_model\": true`"
    with pytest.raises(ValueError, match=message):
        server.served.compute_logits(torch.zeros(1, 64))
    server = engine("V1", other, proxy, tmp_path, monkeypatch, allow_other_model=True)
    found = server.run([Request(PROMPTS[0], extra=ON)])
    assert found == [greedy_completion(other, proxy, CONTEXT, PROMPTS[0], 8)]
    assert "what it learned may not transfer" in caplog.text


def test_prompts_without_tokens_and_a_penalty(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The text is needed for a repetition penalty only."""
    monkeypatch.setattr(processor, "watch_vllm_hidden_states", lambda watcher: None)
    make(config_of(model, make_proxy(model), tmp_path / "a"), model_config__enable_prompt_embeds=True)
    penalized = make_proxy(model, replace(CONTEXT, repetition_penalty=1.2))
    with pytest.raises(ValueError, match=r"`--enable-prompt-embeds` .* repetition penalty .* leave it out"):
        make(config_of(model, penalized, tmp_path / "b"), model_config__enable_prompt_embeds=True)


def test_a_version_of_vllm_that_calls_otherwise(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    server = engine("V1", model, make_proxy(model), tmp_path, monkeypatch)
    monkeypatch.setattr(proxy_guide, "vllm_model_of_caller", lambda: None)
    with pytest.raises(RuntimeError, match="No model was found from which vLLM computes logits"):
        server.served.compute_logits(torch.zeros(1, 64))


def test_without_a_method_that_has_proxies(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(proxy_guide, "engine_decodings", dict)
    with pytest.raises(ValueError, match="No installed package has proxies"):
        make(config_of(model, make_proxy(model), tmp_path))


@pytest.mark.parametrize("given", [2, -1, 0.5, "yes", "", [1], float("nan")])
def test_a_bad_switch_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match=r"`proxy` must be 1, which lets .*, or 0, the model alone, got "):
        ProxyGuide.validate_params(SimpleNamespace(extra_args={"proxy": given}, temperature=1.0, top_k=0))


def test_a_single_candidate_is_refused(model: Any, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """Where a request reaches the engine unchecked, the engine goes on without the proxy and says so."""
    params = SimpleNamespace(extra_args=ON, temperature=1.0, top_k=1)
    with pytest.raises(ValueError, match="`top_k` is 1, which leaves nothing for the proxy to decide"):
        ProxyGuide.validate_params(params)
    server = engine("V1", model, make_proxy(model), tmp_path, monkeypatch)
    found = server.run([Request(PROMPTS[0], extra=ON, temperature=1.0, top_k=1)])
    assert found == [plain(model, PROMPTS[0], 8)] and "A request is not guided: `top_k` is 1" in caplog.text


def test_good_requests_pass() -> None:
    for extra in (None, {}, {"beta": 2.0}, {"proxy": 0}, {"proxy": True}, {"proxy": 1.0}, {"proxy": "0"}):
        ProxyGuide.validate_params(SimpleNamespace(extra_args=extra, temperature=1.0, top_k=0))
    ProxyGuide.validate_params(SimpleNamespace(extra_args=ON, temperature=0.0, top_k=1))
    ProxyGuide.validate_params(SimpleNamespace(extra_args=None, temperature=1.0, top_k=1))
