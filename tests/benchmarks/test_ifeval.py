# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The arms of `chat` on IFEval's prompts: trained as there, prompts as messages, differences prompt by prompt."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from benchmarks.quality import chat_arms, ifeval
from benchmarks.quality.experiment import Job
from benchmarks.quality.quality_bench import QualityBench


ROW = {"key": 7, "prompt": "Say hello.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
KEY = "reward/ifeval_met"


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "ifeval.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return replace(ifeval.Task(), evaluation=str(file))


def evaluation(folder, models):
    """Files of an evaluation: for each model the rewards of the answers to each prompt."""
    folder.mkdir(parents=True)
    file = folder / "evaluation-evaluation.json"
    rows = [
        {"model": name, "row_index": index, "sample": "evaluated", KEY: value}
        for name, values in models.items()
        for index, value in enumerate(values)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file.with_suffix(".parquet"))
    found = [
        {"model": name, KEY: sum(values) / len(values), f"{KEY}_se": 0.1, "completion_length": 9.0, "ended": 1.0}
        for name, values in models.items()
    ]
    file.write_text(json.dumps({"models": found}))
    return file


def test_arms_are_trained_as_in_chat(task):
    of_chat = {arm.name: arm for arm in chat_arms.arms(chat_arms.Task())}
    found = ifeval.arms(task)
    assert {"PSLE", "RRHF, offline", "TRL's GRPO", "base", "samples"} <= {arm.name for arm in found}
    assert all(arm.fields == of_chat[arm.name].fields for arm in found)
    assert found[-1].name == "base"
    same = (
        "train",
        "prompts",
        "passes",
        "num_generations",
        "batch",
        "max_completion_length",
        "learning_rate",
        "reward",
    )
    assert all(getattr(task, name) == getattr(chat_arms.Task(), name) for name in same)


def test_prompts_become_messages(task, tmp_path):
    bench = ifeval.SUITE.bench(task, tmp_path, {})
    (row,) = (json.loads(line) for line in Path(bench.task.evaluation).read_text().splitlines())
    assert row == {**ROW, "prompt": [{"role": "user", "content": "Say hello."}]}
    assert ifeval.as_messages(row) == row


def test_metrics_of_answers(task, tmp_path):
    """By hand: shares of 1, 0.5 and 1 are followed to 5/6, and wholly on two of three prompts."""
    file = evaluation(tmp_path / "psle", {"base": [0.0, 0.0, 1.0], "trained": [1.0, 0.5, 1.0]})
    arms = {arm.name: arm for arm in ifeval.arms(task)}
    bench = ifeval.IFEvalBench(task, tmp_path)
    (found,) = bench.measured(file, arms["PSLE"]).values()
    assert found["reward"] == pytest.approx(5 / 6) and found["all_followed"] == pytest.approx(2 / 3)
    assert found["by_prompt"] == {KEY: [1.0, 0.5, 1.0]}
    (base,) = bench.measured(file, arms["base"]).values()
    assert base["by_prompt"] == {KEY: [0.0, 0.0, 1.0]}


def test_the_base_is_not_asked_twice(task, tmp_path, monkeypatch):
    """Its answers are in the evaluation of an arm that is done."""
    bench = ifeval.SUITE.bench(task, tmp_path, {})
    arms = {arm.name: arm for arm in ifeval.arms(bench.task)}
    asked = []
    monkeypatch.setattr(QualityBench, "_evaluate", lambda self, arm, *_: asked.append(arm.name) or "asked")
    assert bench._evaluate(arms["base"], 0, tmp_path, "evaluation", "p") == "asked"
    job = Job(arms["PSLE"], 0, tmp_path)
    job.write({"cases": [], "asked": job.asked(bench)})
    assert bench._evaluate(arms["base"], 0, tmp_path, "evaluation", "p") == (
        bench.folder("PSLE", 0) / "evaluation-evaluation.json"
    )
    assert asked == ["base"]


def test_the_table_compares_prompt_by_prompt(result_of):
    def case(name, values):
        metrics = {"reward": sum(values) / len(values), "by_prompt": {KEY: values}, "all_followed": 0.25, "ended": 1.0}
        return {"name": name, "seed": 0, "series": name, "settings": {}, "cost": {}, "other": {}, "metrics": metrics}

    cases = case("PSLE", [1.0, 0.5]), case("base", [0.5, 0.0])
    made = result_of(ifeval.SUITE, *cases, preset="cpu", seeds=[0], task={}) | {"failures": [], "skipped": []}
    text = ifeval.SUITE.report([made])
    assert "| PSLE | 0.750 [0.500, 1.000] | 0.500 [0.500, 0.500] | 0.250 | - | 1.00 |" in text
    assert "over 2 prompts" in text


def test_missing_prompts_and_flags_without_effect_are_named(task, tmp_path):
    with pytest.raises(SystemExit, match="there is no file"):
        ifeval.SUITE.require(replace(task, evaluation=str(tmp_path / "none.jsonl")))
    with pytest.raises(SystemExit, match="--second has no effect"):
        ifeval.SUITE.require(replace(task, second=""))
