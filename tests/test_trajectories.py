# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Numbers do not move: short trainings of every method, guided decodings and the quickstart equal their recordings.

`tests/record_trajectories.py` runs them in a process of its own; `tests/trajectories/recorded.json` is what it wrote
when the numbers were last meant to change.

- On the kind of processor and the version of torch that recorded: bit for bit. That is every logged number of every
  step, every byte of the trained weights, and every token and log-probability of a decoding.
- Elsewhere sums are taken in another order, and trainings drift apart step by step. The first two losses and gradient
  norms of a training have a relative tolerance of 1e-3, the norm of its weights of 1e-3, and the norm of their change
  of 0.1. A sampled token may differ; up to the first that does, log-probabilities have an absolute tolerance of 1e-3.

To compare two commits bit for bit on another machine, record there before, and name the file after:

    python tests/record_trajectories.py /tmp/before.json
    TRL_EXT_TRAJECTORIES=/tmp/before.json pytest tests/test_trajectories.py

A commit that means to change numbers runs `python tests/record_trajectories.py` and says why in its message.
"""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG, REPOSITORY
from record_trajectories import RECORDED, RUNS, provenance


BASIS = Path(os.environ.get("TRL_EXT_TRAJECTORIES") or RECORDED)
QUICKSTARTS = ["quickstart", "quickstart_whole"]
FIRST = 2  # steps of a training that are compared elsewhere


def recorded() -> Any:
    return json.loads(BASIS.read_text())


def exact(basis: Any) -> bool:
    """Whether this is the kind of processor and the version of torch that recorded."""
    return all(basis["made_with"][name] == provenance()[name] for name in ("processor", "torch"))


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
    basis = recorded()
    compare = differences if exact(basis) else distances
    found = found_now(folder, names)
    lines = []
    for name in names:
        moved = compare(basis["runs"][name], found[name], name)
        lines += [f"{name}: {len(moved)} numbers moved", *moved[:5]] if moved else []
    assert not lines, "\n".join([f"Recorded with {basis['made_with']}, found with {provenance()}.", *lines])


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


def test_every_run_is_recorded_and_trains() -> None:
    """Losses differ from step to step, gradients are not 0 and weights change; a decoding has all its answers."""
    basis = recorded()["runs"]
    assert list(basis) == list(RUNS)
    for name, run in basis.items():
        if "log" in run:
            losses = [row["loss"] for row in run["log"] if "loss" in row]
            assert len(set(losses)) == len(losses) > 2, name
            assert all(row["grad_norm"] > 0 for row in run["log"] if "loss" in row), name
            assert run["weights"]["change"] > 0, name
        else:
            assert sum(map(len, run["ids"])) == sum(map(len, run["logps"])) == 8, name


@pytest.mark.parametrize("compare", [differences, distances])
def test_a_number_that_moved_is_named(compare: Any) -> None:
    """The comparison can fail, by a bit where it is exact and by a hundredth elsewhere."""
    basis = recorded()["runs"]
    for name in ("rrhf_offline", "vas_decoding"):
        assert compare(basis[name], basis[name], name) == []
    moved = copy.deepcopy(basis)
    loss = moved["rrhf_offline"]["log"][0]["loss"]
    moved["rrhf_offline"]["log"][0]["loss"] = math.nextafter(loss, 9) if compare is differences else loss * 1.01
    [line] = compare(basis["rrhf_offline"], moved["rrhf_offline"], "rrhf_offline")
    assert line.startswith("rrhf_offline.log[0].loss: recorded ")
    moved["vas_decoding"]["logps"][0][1][0] -= 0.01
    [line] = compare(basis["vas_decoding"], moved["vas_decoding"], "vas_decoding")
    assert line.startswith("vas_decoding.logps[0][1][0]: recorded ")
