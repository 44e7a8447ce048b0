# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Runs of the suite `imdb`: what is done is kept, what fails is named, tables say what results say."""

import copy
import json
import pickle
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY


sys.path.insert(0, str(REPOSITORY))  # `benchmarks` is not part of the package

from benchmarks import report
from benchmarks.harness import measure as harness
from benchmarks.quality import imdb, imdb_jobs, imdb_tables, imdb_train
from benchmarks.quality.imdb_arms import BETAS, METHODS, Arm, Task, chosen, tuned
from benchmarks.quality.imdb_jobs import Job, run_all
from benchmarks.quality.imdb_train import KINDS, Bench, Milestones, slug


MODELS = REPOSITORY / "recipes" / "quickstart" / "models"
TASK = Task(
    model=str(MODELS / "imdb-2m"),
    reward=str(MODELS / "imdb-2m-reward"),
    small=str(MODELS / "imdb-2m"),
    train=str(REPOSITORY / "recipes" / "quickstart" / "prompts_train.jsonl"),
    evaluation=str(REPOSITORY / "benchmarks" / "prompts" / "films.jsonl"),
    prompts=8,
    evaluated=4,
    max_completion_length=4,
    samples=2,
    batch=16,
)
SHORT = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0}


# -------------------------------------------------------------------------------------------------------------- arms


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arms_of", [chosen, tuned])
def test_arms_have_names_and_files_of_their_own_and_come_after_what_they_need(method, arms_of):
    arms = arms_of(method)
    assert len({slug(arm.name) for arm in arms}) == len(arms)
    assert {arm.kind for arm in arms} <= KINDS.keys()
    seen = set()
    for arm in arms:
        assert seen.issuperset(arm.needs), arm.name
        seen.add(arm.name)
    assert any(arm.kind == "base" for arm in arms)


def test_what_the_issue_asks_for_is_among_the_arms():
    psle = {arm.name: arm.fields for arm in chosen("psle")}
    assert psle["ranking only"]["sft_weight"] == 0 and psle["weighted SFT only"]["rank_weight"] == 0
    assert psle["constant threshold"]["threshold_decay"] == 1
    assert psle["context distillation"]["sft_target"] == "guided" and psle["best-of-4 SFT"]["num_generations"] == 4
    proxies = {(f.get("order", "sampled"), f.get("feature", "candidate")) for f in _fields("proxy_rlhf", "proxy_rlhf")}
    assert proxies == {(order, feature) for order in ("sampled", "descending") for feature in ("candidate", "context")}
    guides = _fields("vas", "guide")
    assert {g["k"] for g in guides if g["value"] == "2 M value"} == {10, 20, 50} and len(guides[0]["betas"]) == 5


def _fields(method, kind):
    return [arm.fields for arm in chosen(method) if arm.kind == kind]


def test_needed_arms_come_along_and_unknown_ones_are_refused():
    names = [arm.name for arm in imdb.arms_of("vas", False, ["2 M value, k = 20"])]
    assert names == ["samples 0", "samples 1", "samples 2", "samples 3", "2 M value", "2 M value, k = 20"]
    with pytest.raises(SystemExit, match="no arm is named so"):
        imdb.arms_of("psle", False, ["no such arm"])


# ----------------------------------------------------------------------------------------------------------- training


def test_milestones_measure_after_parts_of_a_training_and_leave_their_time_out():
    class State:
        max_steps, global_step = 10, 0

    milestones = Milestones((0.5, 1.0), lambda: time.sleep(0.2) or {"metrics": {}})
    state = State()
    milestones.on_train_begin(None, state, None)
    for state.global_step in range(1, 11):
        milestones.on_step_end(None, state, None)
    assert [mark for mark, _, _ in milestones.found] == [0.5, 1.0]
    assert all(seconds < 0.2 for _, _, seconds in milestones.found)


@pytest.mark.parametrize(
    "arm",
    [arm for arm in chosen("psle") if arm.name in ("PSLE", "best-of-4 SFT")]
    + [arm for arm in chosen("proxy_rlhf") if arm.name in ("sampled, context", "descending, candidate")],
    ids=lambda arm: arm.name,
)
def test_a_trained_arm_gives_a_case_at_each_mark(arm, tmp_path):
    fields = SHORT | ({"num_ppo_epochs": 1, "num_mini_batches": 1} if arm.kind == "proxy_rlhf" else {})
    half, whole = KINDS[arm.kind](Bench(TASK, tmp_path, fields), arm, 0)
    assert half["name"] == f"{arm.name}, 0.5 of the training" and whole["name"] == arm.name
    assert whole["cost"]["steps"] == 2 and half["cost"]["steps"] == 1
    assert half["metrics"]["kl"] != whole["metrics"]["kl"]  # the model as it was then, not as it became
    assert all(whole["metrics"][name] is not None for name in imdb_train.METRICS)
    assert ("other" in whole) == (arm.kind == "psle")
    share = whole["cost"]["trainable_share"]
    assert share == 1 if arm.kind == "psle" else 0 < share < 0.2
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_values_learn_from_all_parts_and_guide(tmp_path):
    bench = Bench(TASK, tmp_path, {"per_device_train_batch_size": 4})
    arms = {arm.name: arm for arm in imdb.arms_of("vas", False, ["2 M value, k = 10", "reward model as value"])}
    for name, arm in arms.items():
        if arm.kind == "samples":
            assert KINDS["samples"](bench, arm, 0) == []
            rows = imdb_train.read_rows(str(bench.folder(name, 0) / "samples.jsonl"))
            assert len(rows) == 2 and all(len(row["scores"]) == len(row["ended"]) == 2 for row in rows)
    (value,) = KINDS["value"](bench, arms["2 M value"], 0)
    assert value["cost"]["samples"] == 16 and value["metrics"]["r2"] <= 1
    cases = KINDS["guide"](bench, arms["2 M value, k = 10"], 0)
    assert [case["settings"]["betas"] for case in cases] == list(BETAS)
    assert cases[-1]["metrics"]["kl"] != cases[0]["metrics"]["kl"]


def test_the_reward_model_as_value_says_what_the_reward_model_says(tmp_path):
    bench = Bench(TASK, tmp_path)
    arm = next(arm for arm in chosen("vas") if arm.name.startswith("reward model as value"))
    value = imdb_train._value_model(bench, arm, 0)
    text = "A film that I would see again"
    ids = bench.tokenizer(text, return_tensors="pt")["input_ids"]
    assert value(ids).values[0, -1].item() == pytest.approx(bench.reward([text], [""])[0], abs=1e-4)


def test_rows_with_separators_inside_of_texts_are_read_whole(tmp_path):
    rows = [{"prompt": "one\u2028two\x85three"}, {"prompt": "four"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    assert imdb_train.read_rows(str(file)) == rows and imdb_train.read_rows(str(file), 1) == rows[:1]


# ------------------------------------------------------------------------------------------------------------ running


@pytest.fixture
def kinds(monkeypatch):
    """Kinds that take no time, and what they were called for."""

    def good(bench, arm, seed):
        (bench.work / f"ran-{slug(arm.name)}-{seed}").write_text(str(time.monotonic()))
        return [{"name": arm.name, "seed": seed, "settings": {}, "metrics": {"reward": seed}, "cost": {}}]

    def bad(bench, arm, seed):
        raise RuntimeError("out of luck")

    def slow(bench, arm, seed):
        bench.keep([{"name": arm.name, "seed": seed, "settings": {}, "metrics": {"reward": 0.5}, "cost": {}}])
        time.sleep(60)

    for name, function in {"good": good, "bad": bad, "slow": slow}.items():
        monkeypatch.setitem(KINDS, name, function)


def jobs_of(folder, *kinds, seeds=(0,)):
    return [Job(Arm(kind, kind), seed, folder) for kind in kinds for seed in seeds]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_failing_arm_does_not_cost_the_others_and_is_run_again(kinds, tmp_path, processes):
    jobs = jobs_of(tmp_path, "bad", "good", seeds=(0, 1))
    assert run_all(jobs, TASK, tmp_path, {}, processes, 0)
    found = [job.result() for job in jobs]
    assert [("error" in f) for f in found] == [True, True, False, False]
    assert "out of luck" in found[0]["error"] and found[3]["cases"][0]["metrics"] == {"reward": 1}
    ran = [path.read_text() for path in sorted(tmp_path.glob("ran-*"))]
    bench = Bench(TASK, tmp_path)
    assert [imdb_jobs._is_done(job, bench) for job in jobs] == [False, False, True, True]
    run_all(jobs, TASK, tmp_path, {}, processes, 0)
    assert [path.read_text() for path in sorted(tmp_path.glob("ran-*"))] == ran  # what was done was kept
    run_all(jobs, TASK, tmp_path, {"learning_rate": 1.0}, processes, 0)
    assert [path.read_text() for path in sorted(tmp_path.glob("ran-*"))] != ran  # with other fields it is other work


def test_at_the_limit_what_runs_is_ended_and_what_is_done_is_there(kinds, tmp_path):
    jobs = jobs_of(tmp_path, "good", "slow")
    started = time.monotonic()
    assert not run_all(jobs, TASK, tmp_path, {}, 2, 2.0)
    assert time.monotonic() - started < 20
    assert jobs[0].result()["cases"] and jobs[1].result() is None
    assert [case["metrics"] for case in jobs[1].cases()] == [{"reward": 0.5}]  # what it had measured until then


def test_what_workers_are_given_can_be_sent_to_another_process(tmp_path):
    assert pickle.loads(pickle.dumps(Bench(TASK, tmp_path))).task == TASK
    assert pickle.loads(pickle.dumps(jobs_of(tmp_path, "base")[0])).file.name == "base-0.json"


def test_an_arm_waits_for_what_it_needs(kinds, monkeypatch, tmp_path):
    def late(bench, arm, seed):
        time.sleep(0.5)
        return []

    def reader(bench, arm, seed):
        assert (bench.work / "late-0.json").is_file()
        return []

    monkeypatch.setitem(KINDS, "late", late)
    monkeypatch.setitem(KINDS, "reader", reader)
    jobs = [Job(Arm("late", "late"), 0, tmp_path), Job(Arm("reader", "reader", needs=("late",)), 0, tmp_path)]
    assert run_all(jobs, TASK, tmp_path, {}, 2, 30.0)
    assert "error" not in jobs[1].result()


def test_the_command_writes_a_result_and_names_what_is_missing(kinds, monkeypatch, tmp_path, capsys):
    arms = [Arm("base", "good"), Arm("PSLE", "bad")]
    monkeypatch.setattr(imdb, "chosen", lambda method: arms)
    command = ["--method", "psle", "--jobs", "0", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    command += ["--allow_dirty", "--seeds", "0", "1"]
    assert imdb.main(command) == 1
    assert "PSLE, seed 1: RuntimeError: out of luck" in capsys.readouterr().err
    (file,) = (tmp_path / "out").glob("*.json")
    result = json.loads(file.read_text())
    harness.check_result(result)
    assert [case["seed"] for case in result["cases"]] == [0, 1] and len(result["failures"]) == 2
    assert imdb.main([*command, "--collect"]) == 1 and len(list((tmp_path / "out").glob("*.json"))) == 2


# ------------------------------------------------------------------------------------------------------------- tables


def result_of(method, *cases, tune=False, when="2026-01-02T00:00:00+00:00"):
    facts = harness.environment(torch.device("cpu"), imdb.measures())
    settings = {"method": method, "tune": tune, "seeds": [0, 1]}
    common = {"schema": harness.SCHEMA, "suite": "imdb", "device": "cpu", "time": when}
    return {**common, "settings": settings, "environment": facts, "cases": list(cases), "failures": []}


def case(name, seed, reward, perplexity=20.0, **more):
    metrics = {"reward": reward, "kl": 1.0, "perplexity": perplexity, "distinct_2": 0.5, "completion_length": 40.0}
    given = {"name": name, "seed": seed, "settings": {}, "metrics": {**metrics, "ended": 0.1}}
    return {**given, "cost": {"seconds": 7.0, "trainable_share": 0.025}, **more}


def test_tables_have_mean_spread_and_perplexity_in_bases():
    cases = [case("base", 0, 0.0), case("base", 1, 0.0, 10.0), case("a", 0, 1.0, 30.0), case("a", 1, 3.0, 15.0)]
    text = imdb_tables.tables([result_of("proxy_rlhf", *cases)], "proxy_rlhf")
    (row,) = [line for line in text.splitlines() if line.startswith("| a |")]
    assert "2.00 ± 1.00" in row and "1.50 ± 0.00" in row and "2.5%" in row
    assert imdb_tables.tables([], "psle") == "not measured"


def test_tables_merge_files_by_name_and_seed_and_value_models_apart():
    """A later file may bring an arm, a seed or a better run; another task has a table of its own."""
    failed = {"arm": "k = 20", "seed": 1, "error": "RuntimeError: out of luck"}
    old = result_of("vas", case("k = 20", 0, 1.0), case("k = 10", 0, 4.0), when="2026-01-01T00:00:00+00:00")
    old["failures"] = [failed, {**failed, "seed": 2}]
    value = {"name": "7 M value", "seed": 0, "settings": {}, "metrics": {"r2": 0.81, "correlation": 0.9}, "cost": {}}
    new = result_of("vas", case("k = 20", 0, 3.0), case("k = 20", 1, 5.0), value)
    tried, small = result_of("vas", case("tried", 0, 1.0), tune=True), result_of("vas", case("small", 0, 1.0))
    small["settings"] |= {"task": {"model": "imdb-2m"}, "fields": {"prompts": 256}}
    text = imdb_tables.tables([old, new, tried, small], "vas")
    (row,) = [line for line in text.splitlines() if line.startswith("| k = 20 |")]
    assert "4.00 ± 1.00" in row and "| k = 10 | 4.00 |" in text and "0.810" in text
    assert "Not done (seed): k = 20 (2): “RuntimeError: out of luck”." in text
    assert text.count("2026-01-0") == 4
    assert "imdb-2m, all with prompts: 256:" in text
    assert text.index("| k = 20 |") < text.index("Settings tried, one seed") < text.index("| tried |")
    assert "not measured" in imdb_tables.overview([new]) and "2 rows" in imdb_tables.overview([new])


def test_a_smaller_task_is_shown_for_what_the_larger_lacks():
    arms = ("base", "7 M value, k = 50, beta 2", "7 M value, k = 50, beta 3")
    large, same, further = (
        result_of("vas", *(case(name, 0, 1.0) for name in names)) for names in (arms, arms[:2], arms)
    )
    further["cases"].append(case("7 M value, action form, k = 50, beta 2", 0, 1.0))
    measured, other = copy.deepcopy(same), copy.deepcopy(same)
    for result, model, prompts, evaluated in (
        (large, "imdb-7m", 6000, 200),
        (same, "imdb-7m", 900, 200),
        (further, "imdb-7m", 1500, 200),
        (measured, "imdb-7m", 800, 600),  # on more prompts than the large one
        (other, "imdb-2m", 700, 200),
    ):
        result["settings"] |= {"task": {"model": model, "prompts": prompts, "evaluated": evaluated}}
    found = imdb_tables.merged([same, measured, other, further, large], "vas", False)
    assert [result["settings"]["task"]["prompts"] for result in found] == [6000, 1500, 800, 700]


def test_an_arm_done_anew_is_not_mixed_with_what_it_was():
    """A value trained otherwise has weights of guidance of its own: no row of the earlier one stays beside them."""
    first = result_of("vas", *(case(f"7 M value, k = 50, beta {beta}", 0, 1.0) for beta in (1, 2)))
    first["failures"] = [{"arm": "7 M value, k = 50", "seed": 0, "error": "no time"}]
    [alone] = imdb_tables.merged([first], "vas", False)
    anew = result_of("vas", case("7 M value, k = 50, beta 1", 0, 2.0), case("7 M value, k = 20, beta 1", 0, 2.0))
    [found] = imdb_tables.merged([first, anew], "vas", False)
    assert len(alone["cases"]) == 2 and len(alone["failures"]) == 1
    assert [c["name"] for c in found["cases"]] == ["7 M value, k = 50, beta 1", "7 M value, k = 20, beta 1"]
    assert found["failures"] == [] and found["from"] == [anew]


def test_guidance_by_a_value_that_was_trained_otherwise_since_is_not_shown():
    first = result_of("vas", case("7 M value", 0, 1.0), case("7 M value, k = 50, beta 1", 0, 1.0))
    same = result_of("vas", case("7 M value", 0, 1.0), case("7 M value, k = 20, beta 1", 0, 2.0))
    [found] = imdb_tables.merged([first, same], "vas", False)
    assert len(found["cases"]) == 3
    other = result_of("vas", case("7 M value", 0, 3.0))
    other["failures"] = [{"arm": "7 M value, k = 50", "seed": 0, "error": "out of memory"}]
    [found] = imdb_tables.merged([first, other], "vas", False)
    assert [each["name"] for each in found["cases"]] == ["7 M value"] and found["failures"] == other["failures"]
    alone = result_of("vas", case("7 M value, k = 20, beta 1", 0, 2.0))  # guided by the first one's value
    [found] = imdb_tables.merged([first, alone, other], "vas", False)
    assert [each["name"] for each in found["cases"]] == ["7 M value"]


def test_every_methods_page_has_its_tables():
    pages = report.render_all()
    for path in imdb.pages():
        assert isinstance(path, Path)
        assert pages[path] == path.read_text(encoding="utf-8"), "run `python -m benchmarks.report`"
