# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks measure what they say; results are well formed; the committed tables are what the results give."""

import argparse
import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from oracles.logprobs import flash_backward, flash_forward

from benchmarks import report, run
from benchmarks.harness import results, timing
from benchmarks.harness.batches import make_batch
from benchmarks.harness.memory import needed_memory, peak_memory
from benchmarks.harness.models import SHAPES
from benchmarks.harness.suite import TimedSuite, selected
from benchmarks.harness.tables import Column, Table
from benchmarks.speed import rrhf_step
from benchmarks.speed.rrhf_workload import CASCADE, CASES, DENSE, DPO, NAIVE, OUR_ROWS, TRL_ROWS, Case, Workload
from trl_ext.logprobs.shared_prefix import Layout


CPU = torch.device("cpu")
# Prompts long enough that sharing them takes more than a third off the positions.
TINY = Case("tiny", "cpu", 4, 2, (12, 12), (3, 6))
ON_CPU = [DPO, NAIVE, TRL_ROWS, OUR_ROWS, DENSE]


@pytest.fixture(scope="module")
def measured():
    return rrhf_step.measure(TINY, rounds=1, batches=1, seed=0)


def counting(name, log):
    return timing.Variant(name, lambda i: log.append(f"{name}{i}"), lambda: log.append(f"prepare {name}"))


# ----------------------------------------------------------------------------------------------------------- harness


def test_variants_take_turns_on_the_same_batch():
    log = []
    seconds = timing.alternate([counting("a", log), counting("b", log)], rounds=2, batches=1, device=CPU)
    steps = [entry for entry in log if not entry.startswith("prepare")]
    assert steps == ["a0", "b0", "b0", "a0", "a0", "b0"]  # one round of warm-up, and the order rotates
    assert [len(clocks[clock]) for clocks in seconds.values() for clock in timing.CLOCKS] == [2, 2, 2, 2]
    assert log[::2] == [f"prepare {step[0]}" for step in steps]


def test_ratio_and_spread():
    assert timing.ratio([2.0, 8.0, 6.0], [1.0, 2.0, 4.0]) == {"of_medians": 3.0, "min": 1.5, "max": 4.0}
    assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_peak_memory_is_of_what_lives_at_once():
    mebibyte = 2**20

    def step(_):
        first = torch.ones(3 * mebibyte // 4)
        second = first + 1  # 6 MiB live
        del first, second
        torch.ones(mebibyte)  # 4 MiB more, but not at the same time
        return 0.0

    memory = peak_memory(timing.Variant("step", step), 0, CPU)
    assert memory["above"] == pytest.approx(6 * mebibyte, rel=1e-3)  # and a scalar or two
    assert needed_memory({"above": 1}) == 1
    assert needed_memory({"above": 1, "resident": 2}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from /proc")
def test_resident_growth_leaves_out_what_is_never_touched():
    def step(_):
        torch.empty(2**26)  # 256 MiB
        torch.ones(2**24)  # 64 MiB
        return 0.0

    memory = peak_memory(timing.Variant("step", step), 0, CPU)
    assert memory["above"] == pytest.approx(2**28, rel=1e-3)
    if "resident" in memory:  # a container may forbid it
        assert 0.9 * 2**26 <= memory["resident"] < 2**27


def test_results_are_added_and_never_overwritten(tmp_path, measured, result_of):
    files = [results.write_result("rrhf_step", CPU, result_of(rrhf_step.SUITE, measured), tmp_path) for _ in range(2)]
    assert files[0] != files[1]
    assert files[0].name.endswith("-rrhf_step-cpu.json") and files[1].name.endswith("-rrhf_step-cpu-2.json")
    assert [r["suite"] for r in results.read_results("rrhf_step", tmp_path)] == ["rrhf_step"] * 2
    assert results.read_results("another", tmp_path) == []
    assert next(iter(json.loads(files[0].read_text())["cases"][0])) == "ratios"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 99, "schema 99"),
        (("settings", "seed"), None, "settings: seed missing"),
        (("environment", "hardware"), None, "environment: hardware missing"),
        (("cases",), [], "cases: there are none"),
        (("cases", 0, "variants", NAIVE, "seconds", "cpu", "median"), -1.0, "is not a spread"),
        (("cases", 0, "ratios", f"{NAIVE} / {DENSE}", "max"), None, "max missing"),
    ],
)
def test_a_malformed_result_is_refused(measured, result_of, path, value, message):
    result = result_of(rrhf_step.SUITE, measured)
    results.check_result(result)
    place = result
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        results.check_result(result)


# --------------------------------------------------------------------------------------------------------- the suite


def test_a_measured_case(measured):
    assert list(measured["variants"]) == ON_CPU
    assert len(measured["ratios"]) == 2 * 10  # every pair, in time and in memory
    assert measured["agreement"]["loss"] < 1e-5 and measured["agreement"]["gradient"] < 1e-5
    positions = {name: variant["positions"] for name, variant in measured["variants"].items()}
    assert positions[NAIVE] == positions[TRL_ROWS] == positions[DPO]
    assert positions[NAIVE] - positions[OUR_ROWS] == 8  # ours leave out the last token of a row
    assert positions[OUR_ROWS] / positions[DENSE] > 1.5
    memory = {name: variant["memory"]["above"] for name, variant in measured["variants"].items()}
    assert 0 < memory[DENSE] < memory[OUR_ROWS] < memory[NAIVE]


def test_qlora_with_an_optimizer_runs_through_the_same_code():
    case = Case("tiny", "cpu", 2, 2, (12, 12), (3, 6), qlora=True, optimizer=True)
    found = rrhf_step.measure(case, rounds=1, batches=1, seed=0)
    assert list(found["variants"]) == ON_CPU
    assert found["agreement"]["gradient"] < 0.1  # on some processors the variants agree to the last bit


def test_the_gpu_variants_run_on_a_mock_of_flash_attention(monkeypatch):
    monkeypatch.setattr("trl_ext.logprobs.prefix_attention.flash_forward", flash_forward)
    monkeypatch.setattr("trl_ext.logprobs.prefix_attention.flash_backward", flash_backward)
    monkeypatch.setattr("trl_ext.logprobs.shared_prefix.supported_layout", lambda model: Layout("cascade", "a mock"))
    work = Workload(TINY, batches=1, seed=0)
    variants = work.variants()
    assert [v.name for v in variants] == [*ON_CPU, CASCADE]
    assert rrhf_step.check_agreement(work, variants)["gradient"] < 1e-5
    assert work.chosen_form() == "cascade"
    assert work.positions[CASCADE] <= work.positions[DENSE]


def test_a_variant_that_computes_something_else_is_not_timed():
    work = Workload(TINY, batches=1, seed=0)
    *right, wrong = work.variants()

    def flipped(i):
        loss = wrong.step(i)
        for parameter in work.model.parameters():
            parameter.grad.neg_()
        return loss

    with pytest.raises(RuntimeError, match="disagrees with 'naive'"):
        rrhf_step.check_agreement(work, [*right, timing.Variant(wrong.name, flipped, wrong.prepare)])


def test_a_fallback_is_not_timed():
    work = Workload(TINY, batches=1, seed=0)
    work.log_probs[DENSE].shared_prefix = "never"
    with pytest.raises(RuntimeError, match="fell back to 'separate'"):
        rrhf_step.check_agreement(work, work.variants())


def test_batches_are_ragged_and_repeatable():
    case = CASES[0]
    batch = make_batch(case, 3)
    assert make_batch(case, 3) == batch != make_batch(case, 4)
    lengths = [len(c) for group in batch.completions for c in group]
    assert len(lengths) == len(batch.scores) == case.prompts * case.completions
    low, high = case.completion_length
    assert low <= min(lengths) < max(lengths) <= high
    assert {len(p) for p in batch.prompts} == {case.prompt_length[0]}


def test_a_failing_case_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    broken = Case("tiny", "cpu", 2, 1, (4, 4), (0, 0))
    options = argparse.Namespace(rounds=1, batches=1, seed=0, output=tmp_path, label="")
    assert not rrhf_step.SUITE.run([broken, TINY], CPU, options)
    (result,) = results.read_results("rrhf_step", tmp_path)
    assert [case["name"] for case in result["cases"]] == [TINY.name]
    printed = capsys.readouterr().err
    assert "Traceback" in printed and f"not measured: {broken.name}: " in printed


class Killed(BaseException):
    """What ends a process in the middle of a case."""


@dataclass(frozen=True)
class Numbered:
    number: int
    device: str = "cuda"
    size: int = 1000
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.device}/{self.number}-{self.size}"

    def tiny(self) -> "Numbered":
        return replace(self, device="cpu", size=1)


def numbered_suite(measured, log, *, killed_at=None):
    def measure(case, **_):
        log.append((case.name, case.variants))
        if case.number == killed_at:
            raise Killed
        return measured | {"name": case.name}

    return timed_suite("numbered", "Cases.", [Numbered(n) for n in range(3)], measure, lambda results: "")


def timed_suite(*args):
    suite = TimedSuite(*args)
    object.__setattr__(suite, "measures", lambda: {rrhf_step.measure})
    return suite


def test_a_killed_run_keeps_its_cases_and_goes_on_under_its_label(tmp_path, measured):
    words = ["--rehearse", "--label", "a day", "--output", str(tmp_path)]
    with pytest.raises(Killed):
        numbered_suite(measured, [], killed_at=1).main(words)
    (first,) = results.read_results("numbered", tmp_path)
    assert [case["name"] for case in first["cases"]] == ["cpu/0-1"] and first["label"] == "a day"
    log = []
    assert numbered_suite(measured, log).main([*words, "--variants", "ours"]) == 0
    assert log == [("cpu/1-1", ("ours",)), ("cpu/2-1", ("ours",))]
    assert results.measured_names("numbered", "a day", tmp_path) == {"cpu/0-1", "cpu/1-1", "cpu/2-1"}
    assert numbered_suite(measured, log).main(words) == 0 and len(log) == 2  # nothing is left
    assert numbered_suite(measured, log).main([*words[:-3], "other", *words[-2:]]) == 0 and len(log) == 5


def test_some_variants_of_a_step_give_a_table_with_gaps(result_of):
    """Two are measured on the CPU; the second takes the place of the GPU's, which is not here, at the same speed."""
    found = rrhf_step.measure(replace(TINY, variants=("TRL's head", "dense")), rounds=1, batches=1, seed=0)
    assert list(found["variants"]) == [TRL_ROWS, DENSE] and found["agreement"]["gradient"] < 1e-5
    case = next(case for case in CASES if case.qlora and case.targets.get("rows") == 1.85)
    found["name"], found["variants"][CASCADE] = case.name, found["variants"][DENSE]
    found["variants"][CASCADE]["memory"]["reserved"] = 2**30
    for kind in ("", "memory: "):
        found["ratios"][f"{kind}{TRL_ROWS} / {CASCADE}"] = found["ratios"].pop(f"{kind}{TRL_ROWS} / {DENSE}")
    ratio = found["ratios"][f"{TRL_ROWS} / {CASCADE}"]["of_medians"]
    text = rrhf_step.tables([result_of(rrhf_step.SUITE, found, gpu="a GPU")])
    [row, *_] = [line for line in text.splitlines() if line.startswith("| llama-8b, nf4 + LoRA + checkpointing: 8")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["-", f"**{ratio:.2f}** [≥ 1.85]", "-", "-"]


def test_variants_are_chosen_by_parts_of_their_names():
    variants = [counting(name, []) for name in ("plain", "ours", "ours, every 4")]
    assert [v.name for v in selected(variants, ["ours"])] == ["ours", "ours, every 4"]
    assert selected(variants, []) == variants
    with pytest.raises(ValueError, match="there are plain, ours, ours, every 4"):
        selected(variants, ["plain"])


def test_a_result_file_grows_and_no_other_is_overwritten(tmp_path, measured, result_of):
    whole = result_of(rrhf_step.SUITE, measured, measured)
    files = [results.ResultFile("rrhf_step", CPU, tmp_path) for _ in range(2)]
    for file in files:
        file.write(whole | {"cases": whole["cases"][:1]})
    grown = files[0].write(whole)
    assert grown == files[0].path != files[1].path
    assert [len(json.loads(file.path.read_text())["cases"]) for file in files] == [2, 1]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_its_cases_are_left_out_and_that_is_said(tmp_path, capsys):
    assert rrhf_step.SUITE.main(["--devices", "cuda", "--output", str(tmp_path)]) == 0
    assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_cases_have_names_of_their_own_and_known_models():
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.model for case in CASES} <= SHAPES.keys()
    assert {case.device for case in CASES} == {"cpu", "cuda"}


# -------------------------------------------------------------------------------------------------------- the tables


def test_the_committed_tables_are_what_the_committed_results_give():
    assert report.main(["--check"]) == 0, "run `python -m benchmarks.report`"


def test_committed_results_are_well_formed():
    found = [result for suite in run.SUITES for result in results.read_results(suite)]
    assert len(found) == len(list(results.RESULTS.glob("*.json"))) > 0
    for result in found:
        results.check_result(result)
        if result["suite"] == "ppo_round":  # its variants learn different things
            continue
        exact = [case for case in result["cases"] if case["settings"].get("dtype") == "float32"]
        assert all(value <= 1e-4 for case in exact for value in case["agreement"].values())


def test_tables_show_the_newest_result_and_say_what_was_not_measured(measured, result_of):
    case = measured | {"name": CASES[0].name}
    old, new = (result_of(rrhf_step.SUITE, case, time=f"2026-01-0{day}T00:00:00+00:00") for day in (1, 2))
    name = f"{TRL_ROWS} / {DENSE}"
    old["cases"][0]["ratios"][name]["of_medians"] = 11.11
    new["cases"][0]["ratios"][name]["of_medians"] = 22.22
    text = rrhf_step.tables([old, new])
    assert "**22.22**" in text and "11.11" not in text
    assert "2026-01-02" in text and "2026-01-01" not in text
    assert "| not measured |" in text  # beside what was
    assert "Not measured yet:" in text and "≥ 1.75" in text and "≤ 7.5" in text
    assert not [line for line in text.splitlines() if line.startswith("| llama-1b")]


def test_tables_are_renewed_between_the_markers_alone():
    page = "above\n<!-- a: begin -->\nstale\n<!-- a: end -->\nbelow\n"
    once = report.renewed(page, "a", "new\n", "a.md")
    assert once == page.replace("stale", "new") and report.renewed(once, "a", "new", "a.md") == once
    with pytest.raises(ValueError, match=r"a\.md has no lines <!-- b: begin -->"):
        report.renewed(page, "b", "new", "a.md")


def test_suites_run_by_name(capsys, tmp_path):
    assert run.main([]) == 0
    assert "rrhf_step" in capsys.readouterr().out
    assert run.main(["rrhf_stop"]) == 2
    said = capsys.readouterr().err
    assert "Suites: " in said and "rrhf_step" in said
    assert run.main(["rrhf_step", "--cases", "no such case", "--devices", "cpu", "--output", str(tmp_path)]) == 0


def test_a_table_without_a_measurement_is_a_list_of_goals():
    def goal(case, measured):
        return ">= 2" if case == "small" else ""

    columns = [
        Column("time", lambda case, measured: measured, goal),
        Column("memory", lambda case, measured: "-", goal),
    ]
    nothing = [("small", None, None), ("large", None, None)]
    table = Table("case", str, columns, "heading")
    goals = ["- small; goals: time >= 2, memory >= 2", "- large"]
    assert table.lines(nothing) == ["heading", "", "Not measured yet:", "", *goals]
    some = table.lines([*nothing, ("other", {}, "2.1")])
    assert some[4:] == [
        "| small | not measured [>= 2] | not measured [>= 2] |",
        "| large | not measured | not measured |",
        "| other | 2.1 | - |",
    ]
    assert Table("case", str, columns, "heading", measured_only=True).lines(nothing) == []
