# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Numbers do not move: short trainings of every method, guided decodings and the quickstart equal their recordings.

`tests/record_trajectories.py` runs them in a process of its own. `tests/trajectories/` has what it wrote when the
numbers were last meant to change: a file for each kind of processor and minor version of torch.

- With a recording for this pair: bit for bit. That is every logged number of every step, every byte of the trained
  weights, and every token and log-probability of a decoding.
- Without one, sums are taken in another order than in the recordings, and trainings drift apart step by step. The
  first two losses and gradient norms of a training have a relative tolerance of 1e-3, the norm of its weights of 1e-3,
  and the norm of their change of 0.1. A sampled token may differ; up to the first that does, log-probabilities have an
  absolute tolerance of 1e-3. If all are within, the test is skipped, and says how to record.

To compare two commits bit for bit on another machine, record there before, and name the file after:

    python tests/record_trajectories.py /tmp/before.json
    TRL_EXT_TRAJECTORIES=/tmp/before.json pytest tests/test_trajectories.py

A commit that means to change numbers runs `python tests/record_trajectories.py` and says why in its message: its diff
shows each number before and after. Recordings of other pairs are then removed, until somebody makes them again.
"""

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG, REPOSITORY
from record_trajectories import FOLDER, RUNS, provenance, record_file


RECORDINGS = sorted(FOLDER.glob("*.json"))
QUICKSTARTS = ["quickstart", "quickstart_whole"]
FIRST = 2  # steps of a training that are compared elsewhere


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def basis() -> Path | None:
    """The file that was named, or the recording for this processor and torch, if there is one."""
    if os.environ.get("TRL_EXT_TRAJECTORIES"):
        return Path(os.environ["TRL_EXT_TRAJECTORIES"])
    here = record_file(provenance())
    return here if here.is_file() else None


def found_now(folder: Path, names: list[str]) -> Any:
    output = folder / "found.json"
    script = str(REPOSITORY / "tests" / "record_trajectories.py")
    # What other tests left in this process must not matter: settings of torch, compiled kernels, random states.
    done = subprocess.run(
        [sys.executable, script, str(output), "--runs", *names],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())["runs"]


def differences(expected: Any, found: Any, where: str) -> list[str]:
    """Where two recordings differ by a bit, in words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [*expected, *(name for name in found if name not in expected)]
        parts = [(f"{where}.{name}", expected.get(name, "nothing"), found.get(name, "nothing")) for name in names]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        parts = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(expected, found, strict=True))]
    else:  # by its digits, which a float has enough of: NaN equals itself, and 1 is no 1.0
        return [] if repr(expected) == repr(found) else [f"{where}: recorded {expected!r}, found {found!r}"]
    return [line for name, mine, its in parts for line in differences(mine, its, name)]


def distances(expected: Any, found: Any, where: str) -> list[str]:
    """Where two recordings differ by more than another processor or version of torch explains, in words."""
    if "logps" in expected:
        return _distances_of_decodings(expected, found, where)
    pairs = []
    for i, (mine, its) in enumerate(zip(expected["log"], found["log"], strict=True)):
        if "loss" in mine and mine["step"] <= FIRST:
            pairs += [(f"{where}.log[{i}].{name}", mine[name], its[name], 1e-3) for name in ("loss", "grad_norm")]
    for name, tolerance in (("norm", 1e-3), ("change", 0.1)):
        pairs.append((f"{where}.weights.{name}", expected["weights"][name], found["weights"][name], tolerance))
    return [
        f"{name}: recorded {mine}, found {its}"
        for name, mine, its, tolerance in pairs
        if not math.isclose(mine, its, rel_tol=tolerance, abs_tol=1e-5)
    ]


def _distances_of_decodings(expected: Any, found: Any, where: str) -> list[str]:
    lines, compared = [], 0
    for i, group in enumerate(expected["ids"]):
        for j, ids in enumerate(group):
            others = found["ids"][i][j]
            same = next((t for t, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), len(ids))
            for t in range(min(same, len(others))):
                mine, its = expected["logps"][i][j][t], found["logps"][i][j][t]
                compared += 1
                if not math.isclose(mine, its, rel_tol=0, abs_tol=1e-3):
                    lines.append(f"{where}.logps[{i}][{j}][{t}]: recorded {mine}, found {its}")
    every = sum(len(ids) for group in expected["ids"] for ids in group)
    if compared < every / 2:
        lines.append(f"{where}: only {compared} of {every} tokens come before the first that differs")
    return lines


def check(folder: Path, names: list[str]) -> None:
    exact, found = basis(), found_now(folder, names)
    for file in RECORDINGS if exact is None else [exact]:
        recorded, compare = read(file), distances if exact is None else differences
        lines = []
        for name in names:
            moved = compare(recorded["runs"][name], found[name], name)
            lines += [f"{name}: {len(moved)} numbers moved", *moved[:5]] if moved else []
        assert not lines, "\n".join([f"Recorded with {recorded['made_with']}, found with {provenance()}.", *lines])
    if exact is None:
        pytest.skip(
            f"within tolerances of {len(RECORDINGS)} recordings, but none is of this processor and torch: "
            f"`python tests/record_trajectories.py` writes {record_file(provenance()).relative_to(REPOSITORY)}"
        )


@pytest.mark.slow
def test_methods_and_decodings(tmp_path: Path) -> None:
    check(tmp_path, [name for name in RUNS if name not in QUICKSTARTS])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICKSTARTS)
def test_the_quickstart(name: str, tmp_path: Path) -> None:
    """Its first three steps with short completions; as the recipe is written in the long form."""
    if name == "quickstart_whole" and not LONG:
        pytest.skip("takes minutes: TRL_EXT_LONG=1 runs it")
    check(tmp_path, [name])


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_every_run_is_recorded_and_trains(file: Path) -> None:
    """Each step has its loss and gradient norm; losses differ, weights change; a decoding has all its answers."""
    recorded = read(file)
    assert record_file(recorded["made_with"]) == file
    assert list(recorded["runs"]) == list(RUNS)
    for name, run in recorded["runs"].items():
        if "log" in run:
            losses = [row["loss"] for row in run["log"] if "loss" in row]
            assert len(set(losses)) == len(losses) > 2, name
            assert all(row["grad_norm"] > 0 for row in run["log"] if "loss" in row), name
            assert run["weights"]["change"] > 0 and re.fullmatch("[0-9a-f]{64}", run["weights"]["sha256"]), name
            if name not in QUICKSTARTS:
                assert [row["step"] for row in run["log"] if "loss" in row] == list(range(1, 9)), name
        else:
            assert sum(map(len, run["ids"])) == sum(map(len, run["logps"])) == 8, name


def test_recordings_of_different_processors_are_within_the_tolerances() -> None:
    first, *others = RECORDINGS
    for other in others:
        for name, run in read(other)["runs"].items():
            assert not distances(read(first)["runs"][name], run, name), (first, other)


def test_where_a_recording_is_kept() -> None:
    """Builds and patches of torch share one; another processor or minor version has its own."""
    made_with = {"processor": "GenuineIntel family 6 model 207, AVX512", "torch": "2.13.0+cpu"}
    file = record_file(made_with)
    assert file.name == "GenuineIntel-family-6-model-207-AVX512-torch-2.13.json"
    assert record_file(made_with | {"torch": "2.13.1"}) == file
    assert file not in (record_file(made_with | {"torch": "2.14.0"}), record_file(made_with | {"processor": "arm"}))


@pytest.mark.parametrize("recorded_here", [True, False])
def test_a_pair_without_a_recording_is_skipped_with_the_command(
    recorded_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself, with a recording in place of a run: bit for bit where it is this pair's, else skipped."""
    recorded = read(RECORDINGS[0])
    moved = copy.deepcopy(recorded["runs"])
    moved["vas"]["log"][5]["loss"] += 1e-5
    here = RECORDINGS[0] if recorded_here else tmp_path / "none.json"
    monkeypatch.delenv("TRL_EXT_TRAJECTORIES", raising=False)
    monkeypatch.setitem(check.__globals__, "record_file", lambda _: here)
    monkeypatch.setitem(check.__globals__, "REPOSITORY", here.parent)
    monkeypatch.setitem(check.__globals__, "found_now", lambda *_: moved)
    if recorded_here:
        check(tmp_path, ["psle"])
        with pytest.raises(AssertionError, match=r"vas\.log\[5\]\.loss: recorded "):
            check(tmp_path, ["vas", "psle"])
    else:
        with pytest.raises(pytest.skip.Exception, match=r"`python tests/record_trajectories\.py` writes none\.json"):
            check(tmp_path, ["vas", "psle"])
        moved["vas"]["log"][0]["loss"] += 1
        with pytest.raises(AssertionError, match=r"vas\.log\[0\]\.loss: recorded "):
            check(tmp_path, ["vas"])


@pytest.mark.parametrize("compare", [differences, distances])
def test_a_number_that_moved_is_named(compare: Any) -> None:
    """The comparison can fail, by a bit where it is exact and by a hundredth elsewhere."""
    runs = read(RECORDINGS[0])["runs"]
    for name in ("rrhf_offline", "vas_decoding"):
        assert compare(runs[name], runs[name], name) == []
    moved = copy.deepcopy(runs)
    loss = moved["rrhf_offline"]["log"][0]["loss"]
    moved["rrhf_offline"]["log"][0]["loss"] = math.nextafter(loss, 9) if compare is differences else loss * 1.01
    [line] = compare(runs["rrhf_offline"], moved["rrhf_offline"], "rrhf_offline")
    assert line.startswith("rrhf_offline.log[0].loss: recorded ")
    moved["vas_decoding"]["logps"][0][1][0] -= 0.01
    [line] = compare(runs["vas_decoding"], moved["vas_decoding"], "vas_decoding")
    assert line.startswith("vas_decoding.logps[0][1][0]: recorded ")
