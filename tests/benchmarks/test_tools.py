# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Function calls: requests without overlap, calls checked part by part, and a tiny run against a server."""

import json

import pytest
import torch
from conftest import make_model, make_tokenizer
from scripted_server import ModelServer, ScriptedServer

from benchmarks.harness.process import Finished
from benchmarks.harness.text import read_rows
from benchmarks.quality import tools
from benchmarks.quality.tool_calls import TOOLS, call_parts, make_prompts, parts, valid_call
from benchmarks.quality.tools import Task, ToolsBench
from trl_ext.cli.main import main as trl_ext


def test_requests_are_seeded_different_and_held_out_by_their_values():
    train, held_out = make_prompts(90), make_prompts(60, held_out=True)
    assert train == make_prompts(90) != make_prompts(90, seed=1)
    asked = [row["prompt"][-1]["content"] for row in (*train, *held_out)]
    assert len(set(asked)) == len(asked)

    def values(rows):
        return {(row["tool"], *item) for row in rows for item in json.loads(row["values"]).items()}

    assert not values(train) & values(held_out)
    with pytest.raises(ValueError, match="fewer than 100000"):
        make_prompts(100_000)


def test_a_prompt_shows_the_right_function_and_not_the_answer():
    for row in make_prompts(60):
        examples = [json.loads(turn["content"]) for turn in row["prompt"] if turn["role"] == "assistant"]
        assert row["tool"] in [example["name"] for example in examples] and len(examples) == 3
        call = {"name": row["tool"], "arguments": json.loads(row["values"])}
        assert call not in examples and parts(json.dumps(call), row["tool"], row["values"]) == 4


def test_every_example_is_a_valid_call():
    for tool in TOOLS:
        _, turn = tool.example()
        assert parts(turn["content"], tool.name, "{}") == 3


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"name": "set_timer", "arguments": {"minutes": 12}}', 4),
        ('{"name": "set_timer", "arguments": {"minutes": 13}}', 3),
        ('{"name": "set_timer", "arguments": {"minutes": "12"}}', 2),
        ('{"name": "set_timer", "arguments": {"minutes": true}}', 2),
        ('{"name": "set_timer", "arguments": {"minutes": 12, "for": "tea"}}', 2),
        ('{"name": "set_timer", "arguments": {}}', 2),
        ('{"name": "get_weather", "arguments": {"minutes": 12}}', 1),
        ('{"name": "set_timer", "arguments": [12]}', 0),
        ('{"name": "set_timer"}', 0),
        ('["set_timer"]', 0),
        ('Sure! {"name": "set_timer", "arguments": {"minutes": 12}}', 0),
        ("", 0),
    ],
)
def test_parts_of_a_call_by_hand(answer, right):
    columns = {"tool": ["set_timer"], "values": ['{"minutes": 12}']}
    assert parts(answer, "set_timer", '{"minutes": 12}') == right
    assert call_parts(["x"], [answer], **columns) == [right / 4]
    assert valid_call(["x"], [[{"role": "assistant", "content": answer}]], **columns) == [float(right >= 3)]


@pytest.fixture
def in_this_process(monkeypatch):
    """Run commands here instead of in processes of their own: importing everything takes longer than they do."""

    def run(arguments, log):
        assert arguments[:2] == ["-m", "trl_ext"]
        assert not trl_ext(list(map(str, arguments[2:])))
        return Finished({"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": 1}, [])

    monkeypatch.setattr(tools, "run", run)


def test_a_tiny_run_samples_trains_and_measures(tmp_path, in_this_process, result_of):
    tokenizer = make_tokenizer(chat=True)
    model = make_model(len(tokenizer))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    served = ScriptedServer(ModelServer(model.eval(), tokenizer, "ids", name="smollm2"))
    task = Task(
        endpoint=served.url,
        model=str(folder),
        prompts=4,
        num_generations=2,
        held_out=3,
        answers=1,
        max_completion_length=4,
        top_k=4,
        epochs=1,
        batch=2,
        dtype="float32",
    )
    bench = ToolsBench(task, tmp_path, {"use_cpu": True})
    try:
        with torch.random.fork_rng():
            cases = [case for arm in tools.arms(task) for case in bench.do(arm, 0)]
    finally:
        served.close()
    rows = read_rows(str(tmp_path / "samples-0" / "samples.jsonl"))
    assert len(rows) == 4 and all(len(row["completions"]) == len(row["scores"]) == 2 for row in rows)
    assert [case["name"] for case in cases] == ["base", "VAS, beta 4.0"]
    for case in cases:
        assert case["metrics"]["valid"] == 0.0 and len(case["metrics"]["by_prompt"]["valid"]) == 3
    assert not cases[0]["cost"] and cases[1]["cost"]["cpu_seconds"]
    found = result_of(tools.SUITE, *cases, seeds=[0], task={}) | {"failures": [], "skipped": []}
    text = tools.SUITE.report([found])
    assert "| VAS, beta 4.0 | 0.000 [0.000, 0.000] | 0.000 [0.000, 0.000] |" in text
    assert tools.SUITE.report([]) == "not measured"
