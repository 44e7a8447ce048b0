# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Many small pieces of work on one GPU: processes forked from one that has imported everything.

Importing torch, transformers and trl takes longer than training a small model does; a fork has them at once. Nothing
may have touched the GPU before, as its state does not survive a fork. What is done is on the disk as soon as it is.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .imdb_arms import Arm, Task
from .imdb_train import KINDS, Bench, slug


WAIT = 0.2  # seconds between two looks for what another process makes


@dataclass(frozen=True)
class Job:
    """
    An arm for one seed.

    Args:
        arm ([`~benchmarks.quality.imdb_arms.Arm`]), seed (`int`): Which.
        folder (`Path`): Where its result goes.
    """

    arm: Arm
    seed: int
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / f"{slug(self.arm.name)}-{self.seed}.json"

    def result(self) -> dict[str, Any] | None:
        """What was found, or what went wrong; `None` if it is not done."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None

    def cases(self) -> list[dict[str, Any]]:
        """All cases that are there, of a job that is not done those that it had when it was ended."""
        found = self.result()
        if found is not None and "cases" in found:
            return list(found["cases"])
        half = self.file.with_suffix(".half")
        return list(json.loads(half.read_text(encoding="utf-8"))) if half.is_file() else []

    def write(self, found: Any, suffix: str = ".json") -> None:
        """Leave something in the job's file, in one piece."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
        part.replace(self.file.with_suffix(suffix))


def asked(job: Job, bench: Bench) -> dict[str, Any]:
    """What a job is about, as it is written beside its result: another one does not count as done."""
    return json.loads(json.dumps({"task": asdict(bench.task), "arm": asdict(job.arm), "overrides": bench.overrides}))


def _is_done(job: Job, bench: Bench) -> bool:
    found = job.result()
    return found is not None and "error" not in found and found["asked"] == asked(job, bench)


def run_all(
    jobs: Sequence[Job], task: Task, work: Path, overrides: dict[str, Any], processes: int, limit: float
) -> bool:
    """
    Do all jobs that are not done, in their order, in several processes.

    Args:
        jobs (`Sequence[Job]`): A job comes after those that it needs.
        task, work, overrides: As for [`~benchmarks.quality.imdb_train.Bench`].
        processes (`int`): At a time; 0 does them in this process, one after another.
        limit (`float`): Seconds after which those that are running are ended (0: none).

    Returns:
        `bool`: Whether the time sufficed.
    """
    bench = Bench(task, work, overrides)
    todo = [job for job in jobs if not _is_done(job, bench)]
    for job in todo:
        for suffix in (".json", ".half"):
            job.file.with_suffix(suffix).unlink(missing_ok=True)
    if not processes:
        for job in todo:
            _do(job, bench)
        return True
    if started := torch.cuda.is_initialized():
        print("something imported has started on the GPU, so each process imports anew", file=sys.stderr, flush=True)
    context: Any = multiprocessing.get_context("spawn" if started else "fork")
    counter = context.Value("i", 0)
    workers = [context.Process(target=_work, args=(todo, bench, counter, n)) for n in range(min(processes, len(todo)))]
    deadline = time.monotonic() + limit if limit else float("inf")
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
    late = [worker for worker in workers if worker.is_alive()]
    for worker in late:
        worker.terminate()
    for worker in late:
        worker.join(5)
        if worker.is_alive():
            worker.kill()
            worker.join()
    return not late


def _work(todo: Sequence[Job], bench: Bench, counter: Any, number: int) -> None:
    """One process: the next job that nobody has, until there is none."""
    log = os.open(bench.work / f"worker-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent has set up: it ends this one when time is up
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
    files = {(job.arm.name, job.seed): job.file for job in todo}
    while True:
        with counter.get_lock():
            index, counter.value = counter.value, counter.value + 1
        if index >= len(todo):
            return
        job = todo[index]
        # What it needs was begun before, and will be done if its process lives; or was done in an earlier run.
        for name in job.arm.needs:
            while (file := files.get((name, job.seed))) is not None and not file.is_file():
                time.sleep(WAIT)
        _do(job, bench)


def _do(job: Job, bench: Bench) -> None:
    """A job, its result or its error in its file."""
    started = time.perf_counter()
    found: dict[str, Any] = {"asked": asked(job, bench)}
    bench.keep = lambda cases: job.write(cases, ".half")
    try:
        found["cases"] = _kind(job.arm)(bench, job.arm, job.seed)
    except Exception as error:  # the other arms' numbers are worth having
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.perf_counter() - started, 1)
    job.write(found)
    sys.stdout.flush()


def _kind(arm: Arm) -> Callable[[Bench, Arm, int], list[dict[str, Any]]]:
    return KINDS[arm.kind]
