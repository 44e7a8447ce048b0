# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks of VAS measure what they say: variants agree, fallbacks stop them, tables show what was measured."""

import argparse
import functools

import pytest
import torch

from benchmarks import run
from benchmarks.harness import results
from benchmarks.harness.models import SHAPES
from benchmarks.harness.suite import TimedSuite
from benchmarks.harness.tables import newest
from benchmarks.speed import vas_decode, vas_train
from benchmarks.speed.vas_decode import BY_ONE, OURS, PLAIN, TILED
from benchmarks.speed.vas_naive import NaiveValues
from benchmarks.speed.vas_train import REWARD, SEPARATE, SHARED


CPU = torch.device("cpu")


def decode_case(dtype="float32", top_k=5):
    return vas_decode.Case("tiny", "tiny", device="cpu", dtype=dtype, batch=2, prompt=6, new=4, top_k=top_k)


DECODE = decode_case()
TRAIN = vas_train.Case("tiny", "cpu", 4, 2, (12, 12), (3, 6))
SUITES = (vas_decode.SUITE, vas_train.SUITE)


@pytest.fixture(scope="module")
def decoded():
    return vas_decode.measure(DECODE, rounds=1, batches=1, seed=0)


@pytest.fixture(scope="module")
def trained():
    return vas_train.measure(TRAIN, rounds=1, batches=1, seed=0)


@pytest.fixture(scope="module")
def decoding():
    return vas_decode.Workload(DECODE, batches=1, seed=0)


# --------------------------------------------------------------------------------------------------------- decoding


def test_a_measured_decoding(decoded):
    assert list(decoded["variants"]) == list(vas_decode.ORDER)
    assert len(decoded["ratios"]) == 6  # every pair
    assert decoded["agreement"]["values"] < 1e-5
    counts = {name: variant["value_model"] for name, variant in decoded["variants"].items()}
    prompts, steps, k = 2 * 6, 4, 5
    assert counts[PLAIN] == {"calls": 0, "tokens": 0}
    # What was chosen is read again by the naive forms; the last token by none.
    naive = prompts + 2 * (steps - 1) + 2 * steps * k
    assert counts[BY_ONE] == {"calls": steps * (1 + k), "tokens": naive}
    assert counts[TILED] == {"calls": steps * 2, "tokens": naive}
    assert counts[OURS] == {"calls": 1 + steps, "tokens": prompts + 2 * steps * k}


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_naive_form_is_that_of_separate_forwards(decoding, chunk):
    model, ids = decoding.value_model, decoding.prompts[0]
    processor = NaiveValues(model, 2.0, 5, chunk)
    scores = torch.randn(2, SHAPES["tiny"].vocab_size, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        expected = scores.clone()
        for n in range(2):
            candidates = scores[n].topk(5).indices
            rows = torch.cat([ids[n].expand(5, -1), candidates[:, None]], 1)
            values = model(rows).values[:, -1]
            expected[n, candidates] += 2.0 * (values - values.mean())
        found = processor(ids, scores.clone())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        ids, scores = torch.cat([ids, found.argmax(1, keepdim=True)], 1), scores.roll(7, 1)


def test_half_precision_is_judged_by_the_spread_of_values():
    case = decode_case("bfloat16")
    assert vas_decode.check_agreement(vas_decode.Workload(case, 1, 0))["values"] < 0.15


@pytest.mark.parametrize("name", [TILED, OURS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_variant_that_computes_something_else_is_not_timed(monkeypatch, name, dtype):
    work = vas_decode.Workload(decode_case(dtype), 1, 0)
    makers = work.processors()

    class Flipped:
        def __init__(self):
            self.inner = makers[name]()

        def __call__(self, ids, scores):
            return 2 * scores - self.inner(ids, scores.clone())

    monkeypatch.setattr(work, "processors", lambda: makers | {name: Flipped})
    with pytest.raises(RuntimeError, match=f"values of '{name}' differ from"):
        vas_decode.check_agreement(work)


def test_guidance_that_does_nothing_is_not_timed():
    work = vas_decode.Workload(DECODE, 1, 0)
    work.value_model.head.weight.data.zero_()
    with pytest.raises(RuntimeError, match="changes no token"):
        vas_decode.check_agreement(work)


def test_a_fallback_of_decoding_is_not_timed(decoding):
    processor = decoding.processors()[OURS]()
    vas_decode.check_form(processor)
    tree = processor.guides[0].reader.reads.tree
    tree.form, tree.reason = "recompute", "a test"
    with pytest.raises(RuntimeError, match=r"fell back to 'recompute' \(a test\)"):
        vas_decode.check_form(processor)


def test_every_sequence_gets_as_many_tokens(decoding):
    assert decoding.generate(0, []).shape == (DECODE.batch, DECODE.new)
    decoding.policy.generation_config.eos_token_id = first = int(decoding.generate(0, [])[0, 0])
    assert (decoding.generate(0, [])[0, 1:] != first).all()  # an end would have cut the row short
    decoding.policy.generation_config.eos_token_id = None


# --------------------------------------------------------------------------------------------------------- training


def test_a_measured_training_step(trained):
    assert list(trained["variants"]) == list(vas_train.ORDER)
    assert len(trained["ratios"]) == 2 * 3  # every pair, in time and in memory
    assert trained["agreement"]["loss"] < 1e-5 and trained["agreement"]["gradient"] < 1e-5
    positions = {name: variant["positions"] for name, variant in trained["variants"].items()}
    assert positions[REWARD] == positions[SEPARATE] > 1.5 * positions[SHARED]
    assert trained["auto"] == "dense"
    lengths = [len(c) for group in vas_train.Workload(TRAIN, 1, 0).batches[0].completions for c in group]
    assert trained["settings"]["tokens"] == sum(lengths)


def test_trainers_that_see_other_weights_are_not_timed():
    work = vas_train.Workload(TRAIN, 1, 0)
    with torch.no_grad():
        work.trainers[REWARD].model.score.weight.mul_(-1)
    with pytest.raises(RuntimeError, match="the variants disagree"):
        vas_train.check_agreement(work, work.variants())


def test_a_fallback_of_training_is_not_timed():
    work = vas_train.Workload(TRAIN, 1, 0)
    work.watched[SHARED].states.shared_prefix = "never"
    with pytest.raises(RuntimeError, match="fell back to 'separate'"):
        vas_train.check_agreement(work, work.variants())


def test_every_training_step_computes_its_targets():
    work = vas_train.Workload(TRAIN, 1, 0)
    step = {v.name: v.step for v in work.variants()}[SHARED]
    trainer, calls = work.trainers[SHARED], []
    targets_of = trainer._targets_of
    trainer._targets_of = lambda *args: calls.append(1) or targets_of(*args)
    first, second = step(0), step(0)
    assert len(calls) == 2 and not trainer._targets
    assert first == second  # no optimizer


# --------------------------------------------------------------------------------------------------------- suites


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_suite_is_well_formed(suite):
    assert suite.name in run.SUITES
    assert len({case.name for case in suite.cases}) == len(suite.cases)
    assert {case.device for case in suite.cases} == {"cpu", "cuda"}
    for case in suite.cases:
        models = set(case.models) if suite is vas_decode.SUITE else {case.model}
        assert models <= SHAPES.keys()
        assert len({SHAPES[name].vocab_size for name in models}) == 1


def test_a_failing_case_does_not_cost_the_others(tmp_path, capsys, decoded):
    @functools.wraps(vas_decode.measure)
    def measure(case, **settings):
        if case.top_k == 99:
            raise RuntimeError("broken")
        return decoded

    broken = decode_case(top_k=99)
    suite = TimedSuite("vas_decode", "a test", [broken, DECODE], measure, vas_decode.tables)
    assert suite.main(["--devices", "cpu", "--rounds", "1", "--output", str(tmp_path)]) == 1
    (result,) = results.read_results("vas_decode", tmp_path)
    assert [case["name"] for case in result["cases"]] == [DECODE.name]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("name", ["vas_decode", "vas_train"])
def test_without_a_gpu_its_cases_are_left_out_and_that_is_said(tmp_path, capsys, name):
    assert run.main([name, "--devices", "cuda", "--output", str(tmp_path)]) == 0
    assert "no GPU" in capsys.readouterr().out
    assert run.main([name, "--cases", "no such case", "--devices", "cpu", "--output", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_results_of_the_suites_are_well_formed(tmp_path, decoded, trained, result_of):
    for suite, case in zip(SUITES, (decoded, trained), strict=True):
        results.write_result(suite.name, CPU, result_of(suite, case), tmp_path)
        assert len(results.read_results(suite.name, tmp_path)) == 1


# -------------------------------------------------------------------------------------------------------- the tables


def test_the_newest_measurement_counts():
    case = argparse.Namespace(name="a", device="cpu")
    old, new = ({"cases": [{"name": "a", "figure": i}]} for i in range(2))
    assert newest([old, new], [case], "cpu") == [(case, new, new["cases"][0])]
    assert newest([], [case], "cpu") == [(case, None, None)]
    assert newest([old], [case], "cuda") == []


@pytest.fixture
def dated(result_of):
    """Make a result of a suite's first case with one ratio set."""

    def make(suite, case, ratio, middle):
        result = result_of(suite, case | {"name": suite.cases[0].name})
        result["cases"][0]["ratios"][ratio]["of_medians"] = middle
        return result

    return make


def test_tables_of_decoding(decoded, dated):
    empty = vas_decode.tables([])
    assert "≤ 1.75" in empty and "≥ 6.5" in empty and "≥ 5" in empty and "| not" not in empty
    assert "Tokens a second" not in empty
    result = dated(vas_decode.SUITE, decoded, f"{BY_ONE} / {OURS}", 22.22)
    clock = {name: {"cpu": {"median": s}} for name, s in zip(vas_decode.ORDER, (9.0, 5.0, 2.0, 1.0), strict=True)}
    for name, seconds in clock.items():
        result["cases"][0]["variants"][name]["seconds"] = seconds
    result["cases"][0]["settings"]["clock"] = "cpu"
    text = vas_decode.tables([result])
    assert "**22.22** [≥ 5]" in text and "2026-01-02" in text
    assert "| 8.0 |" in text  # (9 - 1) / (2 - 1): guidance alone
    case = vas_decode.CASES[0]
    made = case.batch * case.new
    assert f"| {made} | {made / 9:.0f} | {made / 5:.0f} | {made / 2:.0f} |" in text


def test_tables_of_training(trained, dated):
    empty = vas_train.tables([])
    assert "≥ 0.8" in empty and "| not" not in empty and "Completion tokens" not in empty
    text = vas_train.tables([dated(vas_train.SUITE, trained, f"{REWARD} / {SHARED}", 1.23)])
    assert "**1.23** [≥ 0.8]" in text and "shared prompts" in text and "2026-01-02" in text
    separate = dated(vas_train.SUITE, trained, f"{REWARD} / {SEPARATE}", 0.95)
    separate["cases"][0]["auto"] = "separate"
    assert "**0.95** [≥ 0.8] | separate rows |" in vas_train.tables(
        [separate]
    )  # what the default takes has the target
