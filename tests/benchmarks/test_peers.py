# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Suites that measure processes: what they are asked to do, how their times are read, and what the tables say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY

from benchmarks.harness import ppo_environment, results, round_clock
from benchmarks.harness.round_clock import RoundClock, resident
from benchmarks.harness.text import read_rows
from benchmarks.speed import ppo_round, process_steps, proxy_round, scaling, scaling_processes
from benchmarks.speed.ppo_round import OURS, TRL, Case
from benchmarks.speed.scaling_processes import Processes


TINY = Case("imdb-2m", responses=4, prompt=8, new=4)


def test_rounds_end_every_so_many_steps(tmp_path, monkeypatch):
    """Steps end after 1, 3, 6 and 10 seconds: two rounds of two steps take 3 and 7."""
    times = iter([0.0, 3.0, 10.0])
    monkeypatch.setattr(round_clock, "now", lambda: (seconds := next(times), seconds / 2))
    sizes = iter([5, 9])
    monkeypatch.setattr(round_clock, "resident", lambda name, reset=False: next(sizes))
    clock = RoundClock(tmp_path / "rounds.json", steps=2)
    clock.on_train_begin(None, None, None)
    for step in range(1, 5):
        clock.on_step_end(None, SimpleNamespace(global_step=step), None)
    clock.on_train_end(None, None, None)
    found = json.loads((tmp_path / "rounds.json").read_text())
    assert found == {"wall": [3.0, 7.0], "cpu": [1.5, 3.5], "before": 5, "peak": 9}


@pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from /proc")
def test_the_peak_of_the_resident_size_outlives_what_took_it():
    before = resident("VmRSS", reset=True)
    grown = b"x" * (40 << 20)
    del grown
    assert resident("VmHWM") - before > (39 << 20)


# ------------------------------------------------------------------------------------------------------------ a round


def test_both_variants_are_asked_for_the_same_round(tmp_path):
    models = ("policy", "reward")
    trl, ours = (ppo_round.config_of(name, TINY, tmp_path, models, 2, 0) for name in (TRL, OURS))
    same = ("per_device_train_batch_size", "max_completion_length", "num_ppo_epochs", "num_mini_batches",
            "dataset_name", "reward_model_name_or_path", "seed", "bf16")  # fmt: skip
    assert {name: trl[name] for name in same} == {name: ours[name] for name in same}
    assert trl["total_episodes"] / TINY.responses == ours["max_steps"] / 16 == 3  # one of them is not timed
    assert "stop_token" not in trl


def test_prompts_have_the_length_asked_for(tmp_path):
    ppo_round.write_prompts(ppo_round.CASES[0], tmp_path / "prompts.jsonl")
    tokenizer = ppo_round.AutoTokenizer.from_pretrained(ppo_round.MODELS / "imdb-2m")
    texts = [row["prompt"] for row in read_rows(str(tmp_path / "prompts.jsonl"))]
    assert len(set(texts)) == 64 and {len(tokenizer(text)["input_ids"]) for text in texts} == {24}
    with pytest.raises(ValueError, match="text for 1 prompts"):
        ppo_round.write_prompts(Case("imdb-2m", prompt=2000), tmp_path / "prompts.jsonl")


def test_models_of_the_other_size_are_made(tmp_path):
    policy, reward = ppo_round.write_models(Case("imdb-7m"), tmp_path, seed=0)
    config = ppo_round.AutoConfig.from_pretrained(policy)
    assert (config.hidden_size, config.num_hidden_layers, config.pad_token_id) == (256, 6, 1)
    assert ppo_round.AutoConfig.from_pretrained(reward).num_labels == 1
    assert ppo_round.write_models(TINY, tmp_path, seed=0) == tuple(
        str(REPOSITORY / "recipes/quickstart/models" / name) for name in ("imdb-2m", "imdb-2m-reward")
    )


@pytest.mark.slow
def test_a_round_of_ours_is_timed(tmp_path):
    ppo_round.write_prompts(TINY, tmp_path / "prompts.jsonl")
    config = ppo_round.config_of(OURS, TINY, tmp_path, ppo_round.write_models(TINY, tmp_path, 0), 2, 0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert proxy_round.main([str(tmp_path / "config.json")]) == 0
    found = json.loads((tmp_path / "rounds.json").read_text())
    assert len(found["cpu"]) == 3 and min(found["cpu"]) > 0


@pytest.fixture
def rounds(monkeypatch):
    """In place of processes: a round of TRL's takes 3 seconds, one of ours 2, and the first 100."""
    asked = []

    def run_variant(variant, config, folder):
        asked.append(variant)
        told = {TRL: 3.0, OURS: 2.0}[variant]
        return {
            "cpu": [100.0, told, told],
            "wall": [100.0, 9.0, 9.0],
            "before": 10 << 20,
            "peak": int(told * 100) << 20,
        }

    monkeypatch.setattr(ppo_round, "run_variant", run_variant)
    monkeypatch.setattr(ppo_round, "trainable_parameters", lambda folder: 1000)
    return asked


def test_processes_take_turns_and_the_table_says_what_they_took(rounds, result_of):
    measured = ppo_round.measure(ppo_round.CASES[0], rounds=2, batches=2, seed=0)
    assert rounds == [TRL, OURS, OURS, TRL]
    assert measured["ratios"][f"{TRL} / {OURS}"]["of_medians"] == 1.5
    assert measured["variants"][TRL]["memory"]["resident"] == 290 << 20
    result = result_of(ppo_round.SUITE, measured)
    results.check_result(result)
    text = ppo_round.tables([result])
    assert "| imdb-2m: 64 × (prompt 24, 48 tokens) | **1.50** | **1.5** | 1,000 and 1,000 |" in text
    assert "| 3 s | 290 MiB | 2 s | 190 MiB |" in text and "imdb-7m" in text and "not measured" in text


def test_without_an_environment_the_suite_is_skipped(monkeypatch, capsys, tmp_path):
    def none():
        raise ppo_environment.Unavailable("no index")

    monkeypatch.setattr(ppo_environment, "python", none)
    assert ppo_round.SUITE.main(["--output", str(tmp_path)]) == 0
    assert "skipped. no index" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- processes


def test_every_process_gets_its_share_of_one_batch(tmp_path):
    config = {"method": "rrhf", "batch": 8, "rounds": 1, "seed": 0, "folder": str(tmp_path)}
    one, two = (process_steps.make_trainer(config | {"processes": n}) for n in (1, 2))
    assert (one.args.per_device_train_batch_size, two.args.per_device_train_batch_size) == (8, 4)
    assert one.args.max_steps == 2 and len(one.train_dataset) == 8
    psle = process_steps.make_trainer(config | {"method": "psle", "processes": 2, "batch": 32})
    assert psle.args.per_device_train_batch_size == 16 and psle.args.num_iterations == 2


@pytest.mark.slow
def test_two_processes_are_timed_each():
    found = scaling_processes.launch(Processes("rrhf", "a step", batch=2), 2, rounds=1, seed=0)
    assert [len(f["cpu"]) for f in found] == [2, 2] and found[0]["cpu"] != found[1]["cpu"]


def test_a_step_takes_as_long_as_the_slower_process(monkeypatch, result_of):
    def launch(axis, size, rounds, seed):
        cpu = {1: [[9.0, 4.0]], 2: [[9.0, 2.0], [9.0, 1.0]]}[size]
        return [{"cpu": times, "wall": [x + 1 for x in times]} for times in cpu]

    monkeypatch.setattr(scaling_processes, "launch", launch)
    axis = next(axis for axis in scaling.CASES if axis.name == "cpu/processes/rrhf")
    measured = scaling.measure(axis, rounds=1, batches=2, seed=0)
    cpu, wall = axis.variants
    assert measured["slopes"][cpu] == {"measured": -1.0, "expected": -1.0}
    assert measured["ratios"][wall]["of_medians"] == pytest.approx(3 / 5)
    result = result_of(scaling.SUITE, measured)
    results.check_result(result)
    assert f"| {axis.what} | {cpu} | -1.00 | -1.00 | **0.50** |" in scaling.tables([result])


def test_a_launch_that_becomes_something_else_is_an_error(tmp_path):
    config = {"method": "rrhf", "batch": 2, "rounds": 1, "seed": 0, "folder": str(tmp_path), "processes": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="1 processes, not 2"):
        process_steps.main([str(Path(tmp_path / "config.json"))])
