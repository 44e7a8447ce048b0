# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
A fault at every operation on a file: a full disk, an input/output error, a permission denied, or SIGKILL.

A run of twenty steps of each method, and a sampling, meet it; the same run is then started again without. It ends with
the same weights, log and completions, bit for bit, as one that met nothing. What had been reported as saved is used
again. An error names a file and says what to do.

Three operations of each are chosen at random by default (`TRL_EXT_SEED`). With `TRL_EXT_LONG=1` each of them, about
1,150 in all, fails once, in about an hour; with `TRL_EXT_OPERATIONS=200-233` beside it those with these numbers.
"""

import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG
from file_faults import FAULTS, SAMPLINGS, TRAININGS, WORKS, FaultServer, Outcome
from run_results import assert_alike, run_results

from trl_ext.training.checkpoints import last_checkpoint


CHOSEN = 3  # operations of a run that fail in the short form
WHAT_TO_DO = re.compile(
    "can be resumed from|start the run again|run the same again|To go on:|start over with overwrite_output|set another"
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WORKS, reason="needs Linux and a C compiler (`cc`)")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    with FaultServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def seed() -> int:
    return int(os.environ.get("TRL_EXT_SEED") or random.SystemRandom().randrange(10**6))


def chosen(count: int, random_seed: int) -> list[int]:
    """Numbers, from 1, of the operations of a run that fail."""
    numbers = range(1, count + 1)
    if not LONG:
        return sorted(random.Random(random_seed).sample(numbers, CHOSEN))
    first, _, last = os.environ.get("TRL_EXT_OPERATIONS", "").partition("-")
    return [number for number in numbers if int(first or 1) <= number <= int(last or count)]


def results(job: str, output: Path) -> Any:
    """What a run came to."""
    if job in TRAININGS:
        return run_results(output, every_checkpoint=False)
    # Temporary files may stay, also the rows of which a complete Parquet file was made.
    files = [path for path in output.glob("sample.*") if path.suffix != ".part" and ".parquet.rows" not in path.name]
    return {path.name: path.read_bytes().replace(os.fsencode(output), b"OUTPUT") for path in files}


def saved(job: str, output: Path) -> int:
    """What can be gone on from: the step of the last checkpoint, or the number of rows."""
    if job in TRAININGS:
        newest = last_checkpoint(output)
        return int(newest.rpartition("-")[2]) if newest else 0
    rows = output / "sample.jsonl"
    return sum(1 for _ in rows.open()) if rows.exists() else 0


def explains(outcome: Outcome, output: Path) -> bool:
    """Whether what was printed names a file below the folder and says what to do."""
    return str(output) in outcome.text and bool(WHAT_TO_DO.search(outcome.text))


def problems(job: str, output: Path, first: Outcome, server: FaultServer, expected: Any) -> list[str]:
    """What is wrong with how a run met a fault and how it was then resumed, in words."""
    found = []
    if first.status == 0:  # the fault was not serious
        return compared(job, output, expected)
    if first.status > 0 and not explains(first, output):
        found.append(f"its error does not name a file and what to do:\n{first.text[-1500:]}")
    if job != "sample.parquet" and saved(job, output) < first.saved:
        found.append(f"{first.saved} was reported as saved, {saved(job, output)} is there")
    second = server.run(job, output)
    if second.status:
        found.append(f"started again, it fails:\n{second.text[-1500:]}")
    else:
        found += compared(job, output, expected)
    return found


def compared(job: str, output: Path, expected: Any) -> list[str]:
    try:
        here = results(job, output)
        if job in TRAININGS:
            assert_alike(expected, here)
        else:
            assert sorted(here) == sorted(expected)
            assert not (differ := [name for name in here if here[name] != expected[name]]), differ
    except (AssertionError, ValueError, OSError) as error:
        return [f"it ends otherwise: {error}"[:1000]]
    return []


@pytest.mark.parametrize("job", [*TRAININGS, *SAMPLINGS])
def test_every_operation_may_fail(job: str, server: FaultServer, tmp_path: Path) -> None:
    random_seed = seed()
    print(f"TRL_EXT_SEED={random_seed}")  # shown if the test fails
    whole = tmp_path / "whole"
    undisturbed = server.run(job, whole)
    assert undisturbed.status == 0, undisturbed.text[-3000:]
    expected, operations = results(job, whole), server.operations()
    numbers = chosen(len(operations), random_seed)
    reports = []
    for number in numbers:
        fault = list(FAULTS)[(number + random_seed) % len(FAULTS)]
        output = tmp_path / f"{number}"
        first = server.run(job, output, number, fault)
        met = len(server.operations()) >= number and (fault != "killed" or first.status == -signal.SIGKILL)
        operation = operations[number - 1].replace(str(whole), "OUTPUT")
        print(f"{job}: {number} of {len(operations)}, {operation}, {fault}: status {first.status}", flush=True)
        found = [f"{number}, {operation}, {fault}: {line}" for line in problems(job, output, first, server, expected)]
        found += [] if met else [f"{number}, {operation}, {fault}: it did not occur"]
        print("\n".join(found) or "ends alike", flush=True)  # so that a run that is stopped has said something
        reports += found
        shutil.rmtree(output, ignore_errors=True)
    assert not reports, "\n\n".join([f"{len(reports)} of {len(numbers)}", *reports])
