# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks of Proxy-RLHF and PSLE measure what they say: variants agree, tables show what was measured."""

import copy

import pytest
import torch

from benchmarks import run
from benchmarks.harness import results
from benchmarks.harness.models import SHAPES
from benchmarks.speed import proxy_decode, proxy_update, psle_step
from benchmarks.speed.proxy_decode import OURS, PLAIN, SEQUENTIAL
from benchmarks.speed.proxy_update import GRADIENT, PPO
from benchmarks.speed.psle_step import GRPO, SEPARATE, SHARED


CPU = torch.device("cpu")
DECODE = proxy_decode.Case("tiny", device="cpu", dtype="float32", batch=2, prompt=6, new=6)
UPDATE = proxy_update.Case("tiny", "cpu", 4, 6, 5, rows=2)
STEP = psle_step.Case("tiny", "cpu", 4, 2, 7, 5)
SUITES = (proxy_decode.SUITE, proxy_update.SUITE, psle_step.SUITE)


@pytest.fixture(scope="module")
def decoding():
    return proxy_decode.Workload(DECODE, batches=1, seed=0)


@pytest.fixture(scope="module")
def updating():
    return proxy_update.Workload(UPDATE, seed=0)


@pytest.fixture(scope="module")
def stepping():
    return psle_step.Workload(STEP, seed=0)


@pytest.fixture(scope="module")
def measured():
    """A case of each suite."""
    cases = zip((proxy_decode, proxy_update, psle_step), (DECODE, UPDATE, STEP), strict=True)
    return {module.SUITE.name: module.measure(case, rounds=1, batches=1, seed=0) for module, case in cases}


@pytest.fixture
def table_of(result_of, measured):
    """The tables of a suite whose first case was measured, with some ratios set."""

    def make(module, **ratios):
        case = copy.deepcopy(measured[module.SUITE.name]) | {"name": module.CASES[0].name}
        for name, middle in ratios.items():
            case["ratios"][name]["of_medians"] = middle
        return module.tables([result_of(module.SUITE, case)])

    return make


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_suite_is_well_formed(suite, measured, result_of, tmp_path):
    assert suite.name in run.SUITES
    assert len({case.name for case in suite.cases}) == len(suite.cases)
    assert {case.device for case in suite.cases} == {"cpu", "cuda"}
    assert {case.model for case in suite.cases} <= SHAPES.keys()
    results.write_result(suite.name, CPU, result_of(suite, measured[suite.name]), tmp_path)
    assert len(results.read_results(suite.name, tmp_path)) == 1


# -------------------------------------------------------------------------------------------------- proxy_decode


def test_a_measured_decoding(measured):
    case = measured["proxy_decode"]
    assert list(case["variants"]) == list(proxy_decode.ORDER) and len(case["ratios"]) == 10  # every pair
    assert case["agreement"] == {"tokens": 0.0}
    counts = {name: variant["counts"] for name, variant in case["variants"].items()}
    assert counts[SEQUENTIAL]["examined"] == counts[OURS[20]]["examined"] > 1
    assert counts[SEQUENTIAL]["forwards"] >= counts[SEQUENTIAL]["examined"]  # rows wait for one another
    assert counts[PLAIN] == {}


@pytest.mark.parametrize("k", [2, 4])
def test_the_sequential_form_takes_the_same_tokens(decoding, k):
    """Also where all candidates are rejected, of which there are few."""
    assert torch.equal(decoding.ours(k, 0) if k in OURS else _ours(decoding, k), decoding.sequential(k, 0))


def _ours(work, k):
    settings = {"max_new_tokens": DECODE.new, "eos_token_id": [], "top_k": k, "seed": work.seed}
    return work.proxy.generate(work.model, work.prompts[0], **settings)[:, DECODE.prompt :]


def test_answers_that_differ_are_not_timed(decoding, monkeypatch):
    monkeypatch.setattr(decoding, "sequential", lambda k, i: decoding.plain(i))
    with pytest.raises(RuntimeError, match="takes other tokens than the sequential form"):
        proxy_decode.check_agreement(decoding)


def test_tables_of_decoding(table_of):
    empty = proxy_decode.tables([])
    assert "≤ 1.35" in empty and "Not measured yet" in empty and "Tokens a second" not in empty
    text = table_of(proxy_decode, **{f"{OURS[4]} / {PLAIN}": 1.21})
    assert "**1.21**" in text and "2026-01-02" in text and "| 0% |" in text


# -------------------------------------------------------------------------------------------------- proxy_update


def test_a_measured_update(measured):
    case = measured["proxy_update"]
    assert list(case["ratios"]) == [f"{GRADIENT} / {PPO}"] and case["agreement"]["logps"] < 1e-5
    assert case["settings"]["tokens"] == 4 * 5 <= case["settings"]["decisions"]
    assert case["settings"]["trainable"][GRADIENT] > 0


def test_an_update_goes_four_times_over_all_decisions(updating, monkeypatch):
    seen = []
    step = updating.trainer.training_step
    monkeypatch.setattr(
        updating.trainer, "training_step", lambda *args: seen.append(args[1]["features"]) or step(*args)
    )
    updating._ppo_step(0)
    assert len(seen) == 16 and sum(map(len, seen)) == 4 * len(updating.decisions)
    everything = torch.cat(seen[:4]).float().sum(0)
    torch.testing.assert_close(everything, updating.decisions.features.float().sum(0), atol=1e-2, rtol=1e-3)


def test_decisions_that_do_not_belong_to_the_proxy_are_not_timed(updating):
    updating.decisions.logps += 1
    with pytest.raises(RuntimeError, match="weighed otherwise than when they were made"):
        proxy_update.check_agreement(updating)
    updating.decisions.logps -= 1


def test_tables_of_updates(table_of):
    assert "≥ 30" in proxy_update.tables([])
    text = table_of(proxy_update, **{f"{GRADIENT} / {PPO}": 12.3})
    assert "**12.30**" in text and "Seconds of an update" in text


# ----------------------------------------------------------------------------------------------------- psle_step


def test_a_measured_step(measured):
    case = measured["psle_step"]
    assert {name.partition(":")[0] for name in case["variants"]} == set(psle_step.PHASES)
    assert len(case["ratios"]) == 4 and max(case["agreement"].values()) < 1e-4
    memory = {name: variant["memory"] for name, variant in case["variants"].items()}
    assert all(bool(found) == name.startswith("update") for name, found in memory.items())


def test_phases_are_of_as_many_answers(stepping):
    ours, theirs = stepping.generate_psle(), stepping.generate_grpo()
    assert len(ours) == len(theirs) == STEP.prompts * STEP.answers == len(stepping.reward_psle())
    assert {len(ids) for ids in ours + theirs} == {STEP.new}
    assert stepping.psle[SHARED].args.num_generations * 2 == stepping.grpo.args.num_generations
    forms = []
    for name in (SHARED, SEPARATE):
        trainer = stepping.psle[name]
        trainer.log_probs.shared_prefix = "always" if name == SHARED else "never"
        forms.append(trainer.log_probs(trainer.model, stepping.prompts, stepping.answers).form)
    assert forms == ["dense", "separate"]


def test_trainers_that_see_other_weights_are_not_timed(stepping):
    with torch.no_grad():
        stepping.grpo.model.lm_head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="the trainers disagree"):
        psle_step.check_agreement(stepping)


def test_tables_of_steps(table_of):
    empty = psle_step.tables([])
    assert "≤ 0.8" in empty and "≤ 0.6" in empty and "≤ 1" in empty and "| not" not in empty
    text = table_of(psle_step, **{f"update: {SHARED} / {GRPO}": 0.55})
    assert "**0.55** [≤ 0.8]" in text and "Milliseconds a prompt" in text
