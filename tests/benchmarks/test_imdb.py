# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Runs of the suite `imdb`: what is done is kept, what fails is named, tables say what results say."""

import copy
import json
import pickle
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY

from benchmarks.harness import results
from benchmarks.harness.text import read_rows
from benchmarks.quality import experiment, imdb, imdb_train, tables
from benchmarks.quality.experiment import Job, needed_arms, run_all, slug
from benchmarks.quality.imdb_arms import BETAS, METHODS, Arm, Task, chosen, tuned
from benchmarks.quality.imdb_train import KINDS, ImdbBench, Milestones
from trl_ext.methods.rrhf.ranking_registry import OWN


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
    names = [arm.name for arm in needed_arms(chosen("vas"), ["2 M value, k = 20"])]
    assert names == ["samples 0", "samples 1", "samples 2", "samples 3", "2 M value", "2 M value, k = 20"]
    with pytest.raises(SystemExit, match="--arms: no arm's name has `no such arm`"):
        needed_arms(chosen("psle"), ["base", "no such arm"])


def test_a_whole_name_asks_for_one_arm_and_a_part_for_all_that_have_it():
    assert [arm.name for arm in needed_arms(chosen("psle"), ["PSLE"])] == ["PSLE"]
    names = [arm.name for arm in needed_arms(chosen("psle"), ["PSLE,", "PSLE as"])]
    assert len(names) == 3 and all(name.startswith(("PSLE, ", "PSLE as ")) for name in names)


# ----------------------------------------------------------------------------------------------------------- training


def test_milestones_measure_after_parts_of_a_training_and_leave_their_time_out():
    """A step takes 1 second and measuring 100: half of the training has taken 5, all of it 10."""
    seconds = 0.0

    def measure():
        nonlocal seconds
        seconds += 100
        return {"metrics": {}}

    milestones = Milestones((0.5, 1.0), measure, clock=lambda: seconds)
    state = SimpleNamespace(max_steps=10)
    milestones.on_train_begin(None, state, None)
    for state.global_step in range(1, 11):
        seconds += 1
        milestones.on_step_end(None, state, None)
    assert [(mark, trained) for mark, _, trained in milestones.found] == [(0.5, 5.0), (1.0, 10.0)]


@pytest.mark.parametrize(
    "arm",
    [arm for arm in chosen("psle") if arm.name in ("PSLE", "best-of-4 SFT")]
    + [arm for arm in chosen("proxy_rlhf") if arm.name in ("sampled, context", "descending, candidate")],
    ids=lambda arm: arm.name,
)
def test_a_trained_arm_gives_a_case_at_each_mark(arm, tmp_path):
    fields = SHORT | ({"num_ppo_epochs": 1, "num_mini_batches": 1} if arm.kind == "proxy_rlhf" else {})
    half, whole = KINDS[arm.kind](ImdbBench(TASK, tmp_path, fields), arm, 0)
    assert half["name"] == f"{arm.name}, 0.5 of the training" and whole["name"] == arm.name
    assert whole["cost"]["steps"] == 2 and half["cost"]["steps"] == 1
    assert half["metrics"]["kl"] != whole["metrics"]["kl"]  # the model as it was then, not as it became
    assert all(whole["metrics"][name] is not None for name in experiment.METRICS)
    assert ("other" in whole) == (arm.kind == "psle")
    share = whole["cost"]["trainable_share"]
    assert share == 1 if arm.kind == "psle" else 0 < share < 0.2
    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize("arm", [chosen("rrhf")[-1], chosen("proxy_rlhf")[-1]], ids=lambda arm: arm.name)
def test_grpo_is_measured_as_it_is_after_its_training(arm, tmp_path):
    half, whole = KINDS["grpo"](ImdbBench(TASK, tmp_path, SHORT), arm, 0)
    assert half["metrics"]["kl"] != whole["metrics"]["kl"] != 0
    assert (whole["cost"]["trainable_share"] == 1) == ("LoRA" not in arm.name)


def test_a_judge_is_measured_that_is_not_the_reward(tmp_path, imdb_result):
    (case,) = KINDS["base"](ImdbBench(TASK, tmp_path, {}), chosen("rrhf")[0], 0)
    found = case["metrics"]
    assert found["judge"] != found["reward"] and found["judge_se"] > 0
    text = imdb.tables([imdb_result("rrhf", case)], "rrhf")
    assert text.count("| judge |") == 1 and f"| {found['judge']:.2f} |" in text
    del found["judge"]
    assert "judge" not in imdb.tables([imdb_result("rrhf", case)], "rrhf")


def test_a_proxy_with_more_candidates_than_the_tasks_top_k_is_measured_with_all_of_them(tmp_path, monkeypatch):
    asked = []

    def measured(*_, settings, kl_prompts, **__):
        asked.append((settings.top_k, kl_prompts))
        return SimpleNamespace(metrics={}, seconds=0.0)

    monkeypatch.setattr(imdb_train, "evaluate", measured)
    arms = {arm.fields["top_k"]: arm for arm in chosen("proxy_rlhf") if arm.kind == "proxy_rlhf"}
    for top_k in (50, 200):
        arm, task = replace(arms[top_k], marks=(1.0,)), replace(TASK, top_k=50)
        KINDS["proxy_rlhf"](ImdbBench(task, tmp_path, SHORT | {"num_ppo_epochs": 1, "num_mini_batches": 1}), arm, 0)
    assert asked == [(50, None), (0, imdb_train.KL_PROMPTS)]


def test_values_learn_from_all_parts_and_guide(tmp_path):
    bench = ImdbBench(TASK, tmp_path, {"per_device_train_batch_size": 4})
    arms = {arm.name: arm for arm in needed_arms(chosen("vas"), ["2 M value, k = 10", "reward model as value"])}
    for name, arm in arms.items():
        if arm.kind == "samples":
            assert KINDS["samples"](bench, arm, 0) == []
            rows = read_rows(str(bench.folder(name, 0) / "samples.jsonl"))
            assert len(rows) == 2 and all(len(row["scores"]) == len(row["ended"]) == 2 for row in rows)
    (value,) = KINDS["value"](bench, arms["2 M value"], 0)
    assert value["cost"]["samples"] == 16 and value["metrics"]["r2"] <= 1
    cases = KINDS["guide"](bench, arms["2 M value, k = 10"], 0)
    assert [case["settings"]["betas"] for case in cases] == list(BETAS)
    assert cases[-1]["metrics"]["kl"] != cases[0]["metrics"]["kl"]


@pytest.mark.parametrize("name", [*OWN, "SFT on the best"])
def test_every_ranking_loss_trains_on_given_and_on_new_completions(name, tmp_path):
    """Equal samples for all losses: the file of one arm, which each of those on given completions reads."""
    bench = ImdbBench(TASK, tmp_path, {**SHORT, "num_generations": 2})
    given, new = (f"{name}, {kind} completions" for kind in ("given", "new"))
    arms = {arm.name: arm for arm in needed_arms(chosen("rrhf"), [given, new])}
    assert list(arms) == ["samples of the base", given, new]
    KINDS["samples"](bench, arms["samples of the base"], 0)
    assert [len(row["scores"]) for row in bench.read_samples("samples of the base", 0)] == [4] * 8
    for arm in (arms[given], arms[new]):
        half, whole = KINDS["rrhf"](bench, arm, 0)
        assert (half["cost"]["steps"], whole["cost"]["steps"]) == (1, 2) and whole["name"] == arm.name
        assert half["metrics"]["kl"] != whole["metrics"]["kl"]
        assert all(whole["metrics"][metric] is not None for metric in experiment.METRICS)


def test_grpo_has_the_completions_and_steps_of_the_losses_on_new_ones():
    ranked, grpo = (next(arm.fields for arm in chosen("rrhf") if arm.name == name)
                    for name in ("rrhf, new completions", "TRL's GRPO, new completions"))  # fmt: skip
    own = ("ranking_loss", "resample_steps")
    assert {key: value for key, value in ranked.items() if key not in own} == grpo


def test_arms_of_ranking_losses_differ_in_the_loss_alone():
    """But for the SFT term and the reference, as far as a paper has them."""
    arms = [arm.fields for arm in chosen("rrhf") if arm.kind == "rrhf"]
    own = ("ranking_loss", "ranking_reference", "sft_weight", "rank_weight")
    rest = [{key: value for key, value in fields.items() if key not in own} for fields in arms]
    assert len({json.dumps(fields, sort_keys=True) for fields in rest}) == 2  # on given and on new completions
    assert {fields["ranking_loss"] for fields in arms} == set(OWN)


def test_the_reward_model_as_value_says_what_the_reward_model_says(tmp_path):
    bench = ImdbBench(TASK, tmp_path)
    arm = next(arm for arm in chosen("vas") if arm.name.startswith("reward model as value"))
    value = imdb_train._value_model(bench, arm, 0)
    text = "A film that I would see again"
    ids = bench.tokenizer(text, return_tensors="pt")["input_ids"]
    assert value(ids).values[0, -1].item() == pytest.approx(bench.reward([text], [""])[0], abs=1e-4)


def test_rows_with_separators_inside_of_texts_are_read_whole(tmp_path):
    rows = [{"prompt": "one\u2028two\x85three"}, {"prompt": "four"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    assert read_rows(str(file)) == rows and read_rows(str(file), 1) == rows[:1]


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
        time.sleep(600)

    for name, function in {"good": good, "bad": bad, "slow": slow}.items():
        monkeypatch.setitem(KINDS, name, function)


def jobs_of(folder, *kinds, seeds=(0,)):
    return [Job(Arm(kind, kind), seed, folder) for kind in kinds for seed in seeds]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_failing_arm_does_not_cost_the_others_and_is_run_again(kinds, tmp_path, processes):
    jobs = jobs_of(tmp_path, "bad", "good", seeds=(0, 1))
    bench = ImdbBench(TASK, tmp_path)
    assert run_all(jobs, bench, processes)
    found = [job.result() for job in jobs]
    assert [("error" in f) for f in found] == [True, True, False, False]
    assert "out of luck" in found[0]["error"] and found[3]["cases"][0]["metrics"] == {"reward": 1}
    ran = [path.read_text() for path in sorted(tmp_path.glob("ran-*"))]
    assert [job.is_done(bench) for job in jobs] == [False, False, True, True]
    run_all(jobs, bench, processes)
    assert [path.read_text() for path in sorted(tmp_path.glob("ran-*"))] == ran  # what was done was kept
    run_all(jobs, ImdbBench(TASK, tmp_path, {"learning_rate": 1.0}), processes)
    assert [path.read_text() for path in sorted(tmp_path.glob("ran-*"))] != ran  # with other fields it is other work


def test_at_the_limit_what_runs_is_ended_and_what_is_done_is_there(kinds, monkeypatch, tmp_path):
    """The clock jumps over the limit when one job is done and the other has its first case."""
    jobs = jobs_of(tmp_path, "good", "slow")
    monkeypatch.setattr(experiment, "now", lambda: 9.0 if jobs[0].result() and jobs[1].half() else 0.0)
    assert not run_all(jobs, ImdbBench(TASK, tmp_path), 2, limit=5.0)
    assert jobs[0].result()["cases"] and jobs[1].result() is None
    assert [case["metrics"] for case in jobs[1].half()["cases"]] == [
        {"reward": 0.5}
    ]  # what it had measured until then


def test_what_workers_are_given_can_be_sent_to_another_process(tmp_path):
    assert pickle.loads(pickle.dumps(ImdbBench(TASK, tmp_path))).task == TASK
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
    assert run_all(jobs, ImdbBench(TASK, tmp_path), 2)
    assert "error" not in jobs[1].result()


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("outcome", ["error", "skipped"])
def test_an_arm_whose_need_has_no_result_reads_no_leftover_of_it(kinds, monkeypatch, tmp_path, processes, outcome):
    """What an earlier run has left in the folder of an arm is not what the arm was asked for now."""

    def need(bench, arm, seed):
        raise (experiment.Skipped if outcome == "skipped" else RuntimeError)("out of luck")

    monkeypatch.setitem(KINDS, "need", need)
    bench = ImdbBench(TASK, tmp_path)
    jobs = [Job(Arm("need", "need"), 0, tmp_path), Job(Arm("reader", "good", needs=("need",)), 0, tmp_path)]
    run_all(jobs, bench, processes)
    assert "it needs “need”, which" in jobs[1].result()[outcome] and "out of luck" in jobs[1].result()[outcome]
    assert not list(tmp_path.glob("ran-reader*"))


def test_work_that_is_done_again_begins_with_an_empty_folder(kinds, monkeypatch, tmp_path):
    def sampled(bench, arm, seed):
        folder = bench.folder(arm.name, seed)
        folder.mkdir(exist_ok=True)
        with (folder / "samples.jsonl").open("x"):  # as `trl-ext sample`, which refuses a file of other settings
            return []

    monkeypatch.setitem(KINDS, "sampled", sampled)
    jobs = jobs_of(tmp_path, "sampled")
    for fields in ({}, {"learning_rate": 1.0}):
        run_all(jobs, ImdbBench(TASK, tmp_path, fields), 0)
        assert jobs[0].result()["cases"] == [], jobs[0].result()


def test_another_value_model_is_measured_again_though_nothing_else_has_changed(kinds, tmp_path):
    """Its settings have changed, or it was trained again on its own: what was measured is of the one before."""

    def jobs(learning_rate):
        value = Arm("value", "good", {"learning_rate": learning_rate})
        return [Job(value, 0, tmp_path), Job(Arm("guide", "good", needs=("value",)), 0, tmp_path)]

    def runs():
        return [(tmp_path / f"ran-{name}-0").read_text() for name in ("value", "guide")]

    bench = ImdbBench(TASK, tmp_path)
    run_all(jobs(1.0), bench, 0)
    first = runs()
    run_all(jobs(1.0), bench, 0)
    assert runs() == first
    run_all(jobs(2.0), bench, 0)
    second = runs()
    assert second[0] != first[0] and second[1] != first[1]
    run_all(jobs(3.0)[:1], bench, 0)  # the value model alone
    assert not jobs(3.0)[1].is_done(bench)
    run_all(jobs(3.0), bench, 0)
    assert runs()[1] != second[1]


def test_the_command_writes_a_result_and_names_what_is_missing(kinds, monkeypatch, tmp_path, capsys):
    arms = [Arm("base", "good"), Arm("PSLE", "bad")]
    monkeypatch.setattr(imdb, "chosen", lambda method: arms)
    command = ["--method", "psle", "--jobs", "0", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    command += ["--allow_dirty", "--seeds", "0", "1"]
    for name in ("train", "evaluation"):  # which a clone has once they are made
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p"}\n')
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    assert imdb.SUITE.main(command) == 1
    assert "PSLE, seed 1: RuntimeError: out of luck" in capsys.readouterr().err
    (file,) = (tmp_path / "out").glob("*.json")
    result = json.loads(file.read_text())
    results.check_result(result)
    assert [case["seed"] for case in result["cases"]] == [0, 1] and len(result["failures"]) == 2
    assert imdb.SUITE.main([*command, "--collect"]) == 1 and len(list((tmp_path / "out").glob("*.json"))) == 2


def test_what_other_code_has_measured_is_a_result_of_that_code(kinds, monkeypatch, tmp_path, capsys):
    """A run that goes on with another commit: its cases are of two commits, and so are its files."""
    arms = [Arm("base", "good"), Arm("PSLE", "good", needs=("base",))]
    monkeypatch.setattr(imdb, "chosen", lambda method: arms)
    command = ["--method", "psle", "--jobs", "0", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    command += ["--allow_dirty", "--seeds", "0"]
    for name in ("train", "evaluation"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p"}\n')
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]

    def files():
        found = results.read_results("imdb", tmp_path / "out")
        return [(r["environment"]["commit"], [case["name"] for case in r["cases"]], r["given"]) for r in found]

    assert imdb.SUITE.main([*command, "--arms", "base"]) == 0
    monkeypatch.setattr(results, "current_commit", lambda: "ba9876543210")
    assert imdb.SUITE.main([*command, "--arms", "base"]) == 0  # the same code in another commit
    assert files() == [("0123456789ab", ["base"], []), ("ba9876543210", ["base"], [])]
    monkeypatch.setattr(results, "reached", lambda measures, root: {"0a1b2c3d": "a definition that has changed"})
    assert imdb.SUITE.main(command) == 0
    code = json.loads((tmp_path / "work" / "base-0.json").read_text())["environment"]["sources"]["digest"]
    given = {"arm": "PSLE", "seed": 0, "need": "base", "commit": "0123456789ab", "code": code}
    assert files()[2:] == [("0123456789ab", ["base"], []), ("ba9876543210", ["PSLE"], [given])]
    assert "these 1 cases are of commit 0123456789ab" in capsys.readouterr().out
    found = results.read_results("imdb", tmp_path / "out")
    text = tables.sources({"from": found, "arms": [["PSLE"]] * len(found)})
    assert text.count(f"What they read is of commit 0123456789ab, code {code}: base.") == 1


def test_a_collected_result_has_no_cases_of_other_settings(kinds, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(imdb, "chosen", lambda method: [Arm("base", "good")])
    command = ["--method", "psle", "--jobs", "0", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    command += ["--allow_dirty", "--seeds", "0"]
    for name in ("train", "evaluation"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p"}\n')
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    assert imdb.SUITE.main(command) == 0
    assert imdb.SUITE.main([*command, "--collect", "--evaluated", "7"]) == 1
    assert len(list((tmp_path / "out").glob("*.json"))) == 1 and "done with other settings" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def imdb_result(result_of):
    """Make a result of a method."""

    def make(method, *cases, tune=False, **more):
        result = result_of(imdb.SUITE, *cases, method=method, tune=tune, seeds=[0, 1], **more)
        return result | {"failures": []}

    return make


def case(name, seed, reward, perplexity=20.0, **more):
    metrics = {"reward": reward, "kl": 1.0, "perplexity": perplexity, "distinct_2": 0.5, "completion_length": 40.0}
    given = {"name": name, "seed": seed, "settings": {}, "metrics": {**metrics, "ended": 0.1}}
    return {**given, "cost": {"seconds": 7.0, "trainable_share": 0.025}, **more}


def test_tables_have_mean_spread_and_perplexity_in_bases(imdb_result):
    cases = [case("base", 0, 0.0), case("base", 1, 0.0, 10.0), case("a", 0, 1.0, 30.0), case("a", 1, 3.0, 15.0)]
    text = imdb.tables([imdb_result("proxy_rlhf", *cases)], "proxy_rlhf")
    (row,) = [line for line in text.splitlines() if line.startswith("| a |")]
    assert "2.00 ± 1.00" in row and "1.50 ± 0.00" in row and "2.5%" in row
    assert imdb.tables([], "psle") == "not measured"


def test_tables_merge_files_by_name_and_seed_and_value_models_apart(imdb_result):
    """A later file may bring an arm, a seed or a better run; another task has a table of its own."""
    failed = {"arm": "k = 20", "seed": 1, "error": "RuntimeError: out of luck"}
    old = imdb_result("vas", case("k = 20", 0, 1.0), case("k = 10", 0, 4.0), time="2026-01-01T00:00:00+00:00")
    old["failures"] = [failed, {**failed, "seed": 2}]
    value = {"name": "7 M value", "seed": 0, "settings": {}, "metrics": {"r2": 0.81, "correlation": 0.9}, "cost": {}}
    new = imdb_result("vas", case("k = 20", 0, 3.0), case("k = 20", 1, 5.0), value)
    tried, small = imdb_result("vas", case("tried", 0, 1.0), tune=True), imdb_result("vas", case("small", 0, 1.0))
    small["settings"] |= {"task": {"model": "imdb-2m"}, "fields": {"prompts": 256}}
    text = imdb.tables([old, new, tried, small], "vas")
    (row,) = [line for line in text.splitlines() if line.startswith("| k = 20 |")]
    assert "4.00 ± 1.00" in row and "| k = 10 | 4.00 |" in text and "0.810" in text
    assert "Not done (seed): k = 20 (2): “RuntimeError: out of luck”." in text
    assert text.count("2026-01-0") == 4
    assert "imdb-2m, all with prompts: 256:" in text
    assert text.index("| k = 20 |") < text.index("Settings tried, one seed") < text.index("| tried |")
    assert "not measured" in imdb.SUITE.report([new]) and "2 rows" in imdb.SUITE.report([new])


def test_a_smaller_task_is_shown_for_what_the_larger_lacks(imdb_result):
    arms = ("base", "7 M value, k = 50, beta 2", "7 M value, k = 50, beta 3")
    large, same, further = (
        imdb_result("vas", *(case(name, 0, 1.0) for name in names)) for names in (arms, arms[:2], arms)
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
    found = imdb.by_task([same, measured, other, further, large], "vas", False)
    assert [result["settings"]["task"]["prompts"] for result in found] == [6000, 1500, 800, 700]


def test_an_arm_done_again_is_not_mixed_with_what_it_was(imdb_result):
    """A value trained otherwise has weights of guidance of its own: no row of the earlier one stays beside them."""
    first = imdb_result("vas", *(case(f"7 M value, k = 50, beta {beta}", 0, 1.0) for beta in (1, 2)))
    first["failures"] = [{"arm": "7 M value, k = 50", "seed": 0, "error": "no time"}]
    [alone] = imdb.by_task([first], "vas", False)
    again = imdb_result("vas", case("7 M value, k = 50, beta 1", 0, 2.0), case("7 M value, k = 20, beta 1", 0, 2.0))
    [found] = imdb.by_task([first, again], "vas", False)
    assert len(alone["cases"]) == 2 and len(alone["failures"]) == 1
    assert [c["name"] for c in found["cases"]] == ["7 M value, k = 50, beta 1", "7 M value, k = 20, beta 1"]
    assert found["failures"] == [] and found["from"] == [again]


def test_guidance_by_a_value_that_was_trained_otherwise_since_is_not_shown(imdb_result):
    first = imdb_result("vas", case("7 M value", 0, 1.0), case("7 M value, k = 50, beta 1", 0, 1.0))
    same = imdb_result("vas", case("7 M value", 0, 1.0), case("7 M value, k = 20, beta 1", 0, 2.0))
    [found] = imdb.by_task([first, same], "vas", False)
    assert len(found["cases"]) == 3
    other = imdb_result("vas", case("7 M value", 0, 3.0))
    other["failures"] = [{"arm": "7 M value, k = 50", "seed": 0, "error": "out of memory"}]
    [found] = imdb.by_task([first, other], "vas", False)
    assert [each["name"] for each in found["cases"]] == ["7 M value"] and found["failures"] == other["failures"]
    alone = imdb_result("vas", case("7 M value, k = 20, beta 1", 0, 2.0))  # guided by the first one's value
    [found] = imdb.by_task([first, alone, other], "vas", False)
    assert [each["name"] for each in found["cases"]] == ["7 M value"]
