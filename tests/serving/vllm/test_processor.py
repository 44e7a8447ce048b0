# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The logits processor in a mock of vLLM's engine, against plain loops over one sequence and one candidate."""

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_model, make_tokenizer
from oracles.guided_decoding import PROMPTS, K, greedy, guided_logits, make_value, run_generate
from vllm_mock_engine import VERSIONS, MockEngine, Request, engine_config

from trl_ext import ValueAugmentedLogitsProcessor
from trl_ext.decoding import slot_tree
from trl_ext.serving.vllm import value_guide as module
from trl_ext.vllm import ValueGuide


FORMS = ["state", "action", "policy"]
VOCABULARY = 64


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM's loggers write for themselves once it is imported, from a level of their own; pytest is to see them."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level("WARNING", "vllm.trl_ext")


@pytest.fixture
def policy() -> Any:
    return make_model(VOCABULARY)


def saved(folder: Path, value: Any) -> str:
    value.save_pretrained(folder)
    return str(folder)


def engine(version: str, policy: Any, folder: Path, monkeypatch: Any, form: str, **settings: Any) -> tuple[Any, Any]:
    """An engine with a value model, and the value model."""
    value = make_value(form, policy)
    chunk = settings.pop("chunk", 99)
    config = engine_config(saved(folder, value), policy, **settings)
    return MockEngine(version, policy, config, monkeypatch, chunk), value


def expected(policy: Any, value: Any, request: Request) -> list[int]:
    """Its completion by a loop."""
    return greedy(policy, [(value, 0, float(request.beta or 0))], request.prompt, request.length, K, eos=None)


# ------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_are_those_of_a_loop_and_of_generate(
    version: str, form: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain requests and others of different weights in one batch."""
    server, value = engine(version, policy, tmp_path, monkeypatch, form)
    requests = [Request(p, beta) for p, beta in zip(PROMPTS, (2.0, None, "-1.5", 0), strict=True)]
    found = server.run(requests)
    assert found == [expected(policy, value, request) for request in requests]
    for request, tokens in zip(requests, found, strict=True):
        guide = ValueAugmentedLogitsProcessor(value, float(request.beta or 0), K)
        [by_generate] = run_generate(policy, guide, [request.prompt], eos_token_id=None)
        assert tokens == by_generate
    assert found[0] != expected(policy, value, Request(PROMPTS[0])), "a weight changes the completion"


@pytest.mark.parametrize("slots", [2, 8], ids=["too few slots", "slots for all"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_requests_that_come_go_move_and_are_preempted(
    version: str, form: str, slots: int, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks of 3 tokens, some equal; with fewer slots than requests, texts are read again."""
    monkeypatch.setattr(slot_tree, "CHUNK", 4)
    server, value = engine(version, policy, tmp_path, monkeypatch, form, chunk=3)
    if slots < 8 and form != "policy":
        server, value = engine(
            version, policy, tmp_path, monkeypatch, form, chunk=3, value_cache_gib=slots * 512 * 71 / (1 << 30)
        )
        assert server.processor.batch.slots == slots
    rng = random.Random(slots)
    requests = [
        Request(rng.choice(PROMPTS) * rng.choice([1, 2]), rng.choice([2.0, None, -1.0]), rng.randint(1, 9))
        for _ in range(14)
    ]
    assert server.run(requests, rng) == [expected(policy, value, request) for request in requests]
    assert not server.processor.requests or version == "V2"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_aborted_request_leaves_nothing_to_the_next(
    version: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, value = engine(version, policy, tmp_path, monkeypatch, "state", texts=1)
    aborted = Request(PROMPTS[2], 2.0, 20)
    server.add(aborted)
    for _ in range(3):
        server.step()
    server.remove(aborted)
    for prompt in (PROMPTS[2][:4], aborted.text, PROMPTS[0]):
        request = Request(prompt, -2.0)
        assert server.run([request]) == [expected(policy, value, request)]


def test_a_request_that_another_moves_over_gives_its_slot_back(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = engine("V1", policy, tmp_path, monkeypatch, "state")
    for prompt in PROMPTS[:2]:
        server.add(Request(prompt, 2.0, 5))
    server.step()
    processor = server.processor
    kept = processor.requests[1]
    assert len(processor.batch._pool) == 2
    moved = [(1, 0, SimpleNamespace(name="UNIDIRECTIONAL"))]
    processor.update_state(SimpleNamespace(removed=[], added=[], moved=moved))
    assert processor.requests == {0: kept} and len(processor.batch._pool) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_several_completions_of_one_prompt_read_it_once(
    version: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`n > 1`: the prompt but for its last token is read once; then that token and its candidates for each."""
    server, _ = engine(version, policy, tmp_path, monkeypatch, "state")
    start = server.processor.batch.tokens
    found = server.run([Request(PROMPTS[2], 2.0, 1) for _ in range(4)])
    assert found == [found[0]] * 4
    assert server.processor.batch.tokens - start == len(PROMPTS[2]) - 1 + 4 * (1 + K)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_log_probabilities_are_those_of_the_guided_distribution(
    version: str, form: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, value = engine(version, policy, tmp_path, monkeypatch, form)
    request = Request(PROMPTS[2], 2.0, 3)
    server.run([request, Request(PROMPTS[0], 1.0, 3)])
    for t in range(3):
        logits = guided_logits(policy, [(value, 0, 2.0)], request.text[: len(request.prompt) + t])
        torch.testing.assert_close(request.logprobs[t], logits.log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_heads_and_value_models_add_up(
    form: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two heads of one value model and another of the form state; weights of a part of them only."""
    first, second = make_value(form, policy, ("helpful", "concise")), make_value("state", policy, seed=9)
    paths = {"a": saved(tmp_path / "a", first), "b": saved(tmp_path / "b", second)}
    server = MockEngine("V2", policy, engine_config(paths, policy), monkeypatch)
    assert server.processor.batch.heads == ("a/helpful", "a/concise", "b")
    cases: list[tuple[Any, Any]] = [
        ("helpful=1,concise=-0.5,b=2", [(first, 0, 1.0), (first, 1, -0.5), (second, 0, 2.0)]),
        ({"a/concise": 2}, [(first, 1, 2.0)]),
        ("b=-1", [(second, 0, -1.0)]),
    ]
    requests = [Request(PROMPTS[2], beta) for beta, _ in cases]
    found = server.run(requests)
    assert found == [greedy(policy, guides, PROMPTS[2], 8, K, eos=None) for _, guides in cases]


def test_a_weight_of_another_guide_only_leaves_its_text_behind(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second value model reads nothing while no request weighs it, and catches up when one does."""
    first, second = make_value("state", policy), make_value("state", policy, seed=9)
    paths = {"a": saved(tmp_path / "a", first), "b": saved(tmp_path / "b", second)}
    server = MockEngine("V1", policy, engine_config(paths, policy), monkeypatch)
    alone, both = Request(PROMPTS[2], "a=2", 12), Request(PROMPTS[0], "a=1,b=1", 3)
    server.add(alone)
    server.step()
    [_, tree] = [tree for scorer in server.processor.batch._scorers.values() for tree in scorer.trees]
    assert tree.tokens == 0
    server.run([both])
    assert both.output == greedy(policy, [(first, 0, 1.0), (second, 0, 1.0)], both.prompt, 3, K, eos=None)
    assert alone.output == greedy(policy, [(first, 0, 2.0)], alone.prompt, 12, K, eos=None)


# --------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_without_a_weight_cost_nothing(
    version: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value model is not asked, and the logits are the same tensor."""
    server, _ = engine(version, policy, tmp_path, monkeypatch, "state")
    monkeypatch.setattr(server.processor.batch, "apply", None)
    server.run([Request(prompt, beta) for prompt in PROMPTS for beta in (None, 0, "0", 0.0)])
    assert server.processor.batch.tokens == 0
    logits = torch.zeros(2, VOCABULARY)
    assert server.processor.apply(logits) is logits


def test_a_prompt_in_chunks_is_not_guided_before_the_last(policy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """V2 says how long the prompt is. V1 does not: the value model reads it early, and its result is not used."""
    server, _ = engine("V2", policy, tmp_path, monkeypatch, "state", chunk=3)
    server.add(Request(PROMPTS[2], 1.0, 2))
    for tokens in (0, 0, len(PROMPTS[2]) - 1 + 1 + K):
        server.step()
        assert server.processor.batch.tokens == tokens


@pytest.mark.parametrize("version", VERSIONS)
def test_a_token_of_many_requests_is_one_forward_pass(
    version: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the form state: one token and K candidates for each request, whatever the lengths of their texts."""
    server, _ = engine(version, policy, tmp_path, monkeypatch, "state")
    for prompt in PROMPTS * 2:
        server.add(Request(prompt, 1.0, 30))
    server.step()
    [tree] = [tree for scorer in server.processor.batch._scorers.values() for tree in scorer.trees]
    calls, tokens = tree.calls, tree.tokens
    server.step()
    assert (tree.calls - calls, tree.tokens - tokens) == (1, 8 * (1 + K))


def test_memory_is_allocated_at_the_start_and_reported(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """512 bytes a column, 64 tokens and 6 candidates: 8 requests take 286,720 bytes, before and after."""
    caplog.set_level("INFO", "vllm.trl_ext")
    server, _ = engine("V1", policy, tmp_path, monkeypatch, "state")
    batch = server.processor.batch
    assert batch.nbytes == 8 * 70 * 512 and batch.slots == 8
    assert "cache takes 0.000267 GiB: 8 texts of up to 64 tokens." in caplog.text
    server.run([Request(prompt * 4, 1.0, 30) for prompt in PROMPTS * 2])
    assert batch.nbytes == 8 * 70 * 512
    server, _ = engine("V1", policy, tmp_path, monkeypatch, "state", value_cache_gib=3.5 * 70 * 512 / (1 << 30))
    assert server.processor.batch.slots == 3 and "3 texts of up to 64 tokens, of at most 8 in a batch" in caplog.text
    server.run([Request(prompt, 1.0, 2) for prompt in PROMPTS])
    assert "4 requests are guided at once, and the value models' cache holds 3 texts" in caplog.text
    server, _ = engine("V1", policy, tmp_path, monkeypatch, "policy")
    assert server.processor.batch.nbytes == 0 and "need no cache" in caplog.text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_rank_computes_the_same(
    version: str, form: str, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks are passed the same: bit for bit the same logits, whatever their random number generators drew."""
    ranks = [engine(version, policy, tmp_path, monkeypatch, form, chunk=3)[0] for _ in range(2)]
    logprobs = []
    for number, server in enumerate(ranks):
        torch.manual_seed(number)
        requests = [Request(p, b, 6) for p, b in zip(PROMPTS * 2, [1.0, None, -2.0] * 3, strict=False)]
        server.run(requests, random.Random(0))
        logprobs.append([row for request in requests for row in request.logprobs])
    assert all(torch.equal(*pair) for pair in zip(*logprobs, strict=True))


# --------------------------------------------------------------------------------------------------------- mistakes


def make(policy: Any, folder: Path, form: str = "state", **changes: Any) -> ValueGuide:
    """A processor of V1 in an engine whose config has some changes, `part.name` of it as `part__name`."""
    config = engine_config(saved(folder, make_value(form, policy)), policy)
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(config, part) if part else config, field, value)
    return ValueGuide(config, torch.device("cpu"), False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": "draft"}, "does not work with speculative decoding: leave out"),
        ({"parallel_config__enable_batch_sharded_sampling": True}, "leave out `--enable-batch-sharded-sampling`"),
        ({"model_config__enable_prompt_embeds": True}, "`--enable-prompt-embeds` .* leave it out"),
        ({"model_config__get_vocab_size": lambda: 70}, "has 70 tokens and the value model 64.*skip-tokenizer-init"),
        ({"additional_config": {}}, r"`trl_ext` in `--additional-config` of vLLM is missing. Write, for example"),
    ],
)
def test_what_an_engine_cannot_have(changes: Any, message: str, policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(policy, tmp_path, **changes)


def test_settings_that_do_not_fit(policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, message in (
        ({"top_k": 65}, "`top_k` is 65, but the model has only 64 tokens"),
        (
            {"value_cache_gib": 1e-6},
            r"one text of 64 tokens takes 3.34e-05 GiB .* raise it, or lower `--max-model-len`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            engine("V1", policy, tmp_path, monkeypatch, "state", **settings)
    with pytest.raises(OSError, match="nowhere"):
        MockEngine("V1", policy, engine_config(str(tmp_path / "nowhere"), policy), monkeypatch)


def test_a_head_of_a_model_of_another_size_is_refused(policy: Any, tmp_path: Path) -> None:
    changes = {"model_config__get_hidden_size": lambda: 96}
    message = "hidden states of size 64, and those of the served model have 96: it was trained on another model"
    with pytest.raises(ValueError, match=message):
        make(policy, tmp_path, "policy", **changes)
    assert make(policy, tmp_path, "state", **changes).batch.nbytes


def test_a_value_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """The served model's tokenizer is compared with the value model's, or with the digest in its config."""
    tokenizer = make_tokenizer()
    policy, other = make_model(len(tokenizer)), make_tokenizer()
    other.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path / "policy")
    value = make_value("state", policy)
    names = {"model_config__skip_tokenizer_init": False, "model_config__tokenizer": str(tmp_path / "policy")}
    value.config.record_tokenizer(other)
    value.save_pretrained(tmp_path / "value")
    config = engine_config(str(tmp_path / "value"), policy)
    for name, setting in names.items():
        setattr(config.model_config, name.rpartition("__")[2], setting)
    with pytest.raises(ValueError, match="trained with another vocabulary") as error:
        ValueGuide(config, torch.device("cpu"), False)
    assert "retokenize" not in str(error.value), "vLLM's guide has no such setting"
    value.config.record_tokenizer(tokenizer)
    value.save_pretrained(tmp_path / "value")
    assert ValueGuide(config, torch.device("cpu"), False).batch.heads == ("reward",)


def test_a_value_model_that_cannot_share_a_cache_is_refused(policy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from trl_ext.methods.vas.decoding import value_guide

    monkeypatch.setattr(value_guide, "slot_unsupported_reason", lambda backbone: "it is a Mamba")
    with pytest.raises(ValueError, match="value model cannot read many texts at once on one KV cache: it is a Mamba"):
        make(policy, tmp_path)


@pytest.mark.parametrize("learned", [False, True])
def test_a_short_context(learned: bool, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A value model of 256 positions beside an engine of longer texts: a warning, or an error if it has a table."""
    from trl_ext.guides import backbone_reader

    policy = make_model(VOCABULARY)
    monkeypatch.setattr(backbone_reader, "learned_positions", lambda backbone: learned)
    if learned:
        with pytest.raises(ValueError, match=r"no position for the last ones\. Set `--max-model-len 256`"):
            make(policy, tmp_path, model_config__max_model_len=300)
        return
    make(policy, tmp_path, model_config__max_model_len=300)
    assert "context of 256 tokens, and texts of the engine may have 300: values beyond" in caplog.text


def test_hidden_states_of_other_rows_are_an_error(policy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    server, _ = engine("V1", policy, tmp_path, monkeypatch, "policy")
    server.watchers[:] = []
    server.add(Request(PROMPTS[0], 1.0))
    with pytest.raises(RuntimeError, match="computed 0 hidden states and passes logits of 1 rows"):
        server.step()


# ------------------------------------------------------------------------------------------------ weights of a request


class Frontend:
    """Where vLLM checks a request: a method of an object that has the engine's config."""

    def __init__(self, config: Any) -> None:
        self.vllm_config = config

    def check(self, beta: Any) -> None:
        ValueGuide.validate_params(SimpleNamespace(extra_args=beta))


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        ("c=1", "`beta` has a weight for 'c', which does not exist; there is 'a', 'b'"),
        (1.5, "`beta` is one number for a, b: say which"),
        ("a=nan", "`beta` must be a finite number from -10000 to 10000, got nan for 'a'"),
        ("a=1e39", r"`beta` must be a finite number from -10000 to 10000, got 1e\+39 for 'a'"),
        ({"a": 1, "b": 1e39}, "got 1e.39 for 'b'"),
        ("a=inf", "finite"),
        ("much", "`beta` must be a number, or name=number,name=number"),
        ("", "`beta` must be a number, or name=number,name=number"),
        ([1.0, 2.0], r"`beta` must be a number or a text .* got \[1.0, 2.0\]; the heads are a, b"),
        (True, "`beta` must be a number or a text"),
    ],
)
def test_a_bad_weight_is_named(beta: Any, message: str, policy: Any, tmp_path: Path) -> None:
    config = engine_config(saved(tmp_path, make_value("state", policy, ("a", "b"))), policy)
    with pytest.raises(ValueError, match=message):
        Frontend(config).check({"beta": beta})


def test_good_weights_and_other_arguments_pass(policy: Any, tmp_path: Path) -> None:
    frontend = Frontend(engine_config(saved(tmp_path, make_value("state", policy, ("a", "b"))), policy))
    for given in (None, {}, {"other": 3}, {"beta": "a=1,b=0.5"}, {"beta": {"a": -2}}, {"beta": "a=0"}):
        frontend.check(given)


def test_without_the_engines_config_only_the_form_is_checked(
    policy: Any, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that does not exist is then found by the engine, which goes on and says so."""
    monkeypatch.setattr(module, "vllm_config_of_caller", lambda: None)
    with pytest.raises(ValueError, match="finite"):
        Frontend(None).check({"beta": "x=nan"})
    Frontend(None).check({"beta": "x=1"})
    server, value = engine("V1", policy, tmp_path, monkeypatch, "state")
    wrong = Request(PROMPTS[0], "x=1")
    assert server.run([wrong]) == [expected(policy, value, Request(PROMPTS[0]))]
    assert "A request is not guided: `beta` has a weight for 'x'" in caplog.text


def test_a_frontend_that_does_not_have_the_value_model(policy: Any, tmp_path: Path, caplog: Any) -> None:
    """It checks what it can: plain requests pass, and others whose weights are finite numbers."""
    frontend = Frontend(engine_config(str(tmp_path / "elsewhere"), policy))
    frontend.check({"other": 1})
    frontend.check(None)
    assert not caplog.text
    frontend.check({"beta": "a=1"})
    assert (
        "names of heads in requests are not checked before they reach the engine" in caplog.text
        and "elsewhere" in caplog.text
    )
    with pytest.raises(ValueError, match="finite"):
        frontend.check({"beta": "a=nan"})
