# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The suite about many rows: its jobs train on, sample and score what they say, and its table compares the peaks."""

import json
from pathlib import Path

import pytest
from conftest import LONG

from benchmarks.memory import row_count, row_count_job


def test_prompts_differ():
    prompts = {row_count_job.prompt(number) for number in range(0, 2_000_000, 997)}
    assert len(prompts) == len(range(0, 2_000_000, 997))


def test_a_stream_is_trained_on_once(tmp_path, monkeypatch):
    monkeypatch.setattr(row_count_job, "STEP", 8)
    found = row_count_job.stream(32, tmp_path)
    assert found["rows"] == 32 and len(found["resident_mib"]) == 4
    assert found["first_step_cpu"] > 0


def test_a_round_is_in_two_checkpoints_once(tmp_path):
    found = row_count_job.round_of_all(160, tmp_path)
    assert found["completions"] == 160 and found["checkpoints"] == 2 and len(found["resident_mib"]) == 10
    files = list(tmp_path.glob("run/checkpoint-*/rollouts_0.json"))
    rows = json.loads(files[0].read_text())["rollouts"]
    assert sum(len(row["ids"]) for row in rows.values()) == 160
    assert len(files) == 2 and found["rollouts_mib"] * row_count_job.MIB == files[0].stat().st_size


@pytest.mark.parametrize("generate", [True, False])
def test_all_completions_are_sampled_and_scored(generate, tmp_path):
    found = row_count_job.sample(40, tmp_path, generate=generate)
    assert found == {"rows": 10, "prompts": 10, "completions": 40}
    for line in (tmp_path / "sampled.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["scores"] == [float(text.count("a")) for text in row["completions"]]


def test_the_table_compares_the_peaks(result_of):
    case = row_count.CASES[1]
    few = {"peak_mib": 500, "cpu_seconds": 10.0, "kept_rows": 2600}
    measured = {
        "name": case.name,
        "seed": 0,
        "settings": {"few": case.few, "many": case.many, "what": case.what},
        "metrics": {"few": few, "many": few | {"peak_mib": 520, "kept_rows": 25100}},
        "cost": {},
    }
    result = result_of(row_count.SUITE, measured, seeds=[0], scale=1.0)
    text = row_count.SUITE.report([result])
    [row] = [line for line in text.splitlines() if line.startswith(f"| {case.name}")]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    # 20 MiB for 180,000 completions
    assert cells[:3] == ["500 / 520", "**1.04** [≤ 1.1]", "117"]
    assert cells[5] == "2,600 of 5,000 / 25,100 of 50,000"
    assert text.count("not measured") > 1
    rehearsed = result_of(row_count.SUITE, measured, seeds=[0], scale=0.1)
    assert "500" not in row_count.SUITE.report([rehearsed])


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="ten processes: set TRL_EXT_LONG=1")
def test_what_is_killed_half_way_goes_on(tmp_path: Path):
    """A hundredth of the rows, so that memory says little: no run loses or repeats a row."""
    assert row_count.SUITE.main(["--scale", "0.01", "--output", str(tmp_path)]) == 0
    [file] = tmp_path.glob("*.json")
    cases = {case["settings"]["what"]: case for case in json.loads(file.read_text())["cases"]}
    for what in ("sample", "score"):
        for size, count in (("few", 200), ("many", 2000)):
            found = cases[what]["metrics"][size]
            rows = count // row_count_job.PER_PROMPT
            assert rows // 2 <= found["kept_rows"] < rows
            assert (found["rows"], found["prompts"], found["completions"]) == (rows, rows, count)
