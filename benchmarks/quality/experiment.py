# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Experiments: arms that are trained and measured for several seeds, in processes that keep what is done.

Processes are forked from one that has imported everything: importing torch, transformers and trl takes longer than
training a small model does. Nothing may have touched the GPU before, as its state does not survive a fork. The result
of each arm and seed is a file as soon as it is done; a later call goes on from there. The file also has the code,
versions and processor that measured it, and which results of other arms it was given: what a later commit collects
stays a result of the commit that measured it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.harness.results import ROOT, device_name, environment, refuse_dirty, write_result
from benchmarks.harness.suite import Suite, names_chosen, names_help
from trl_ext.devices import accelerator_started, allow_tf32, default_device


METRICS = ("reward", "kl", "perplexity", "distinct_2", "completion_length", "ended")
# Reasons in a result for an arm that has none.
NOT_BEGUN = "not done in the time that was given"
OTHER_WORK = "done with other settings, or on other results of what it needs"
WAIT = 0.2  # seconds between two looks for the file of another process


class Skipped(RuntimeError):
    """An arm cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Arm:
    """
    One piece of work for one seed.

    Args:
        name (`str`): In tables and file names.
        needs (`tuple[str, ...]`, *optional*): Names of the arms whose files (of the same seed) it reads.
    """

    name: str
    needs: tuple[str, ...] = field(default=(), kw_only=True)


def _forget(cases: list[dict[str, Any]]) -> None:
    """Nobody asked for cases before an arm is done."""


@dataclass
class Bench:
    """
    Does the arms of a task.

    Args:
        task: Models, prompts and lengths, a dataclass.
        work (`Path`): Where arms leave what others read.
        overrides (`dict`, *optional*): Fields that replace those of trained arms (short runs).
        keep (`Callable`, *optional*): Called with the cases so far whenever an arm that goes on has a new one.
        environment (`dict`, *optional*): Code, versions and hardware that measure now; see
            [`~benchmarks.harness.results.environment`].
    """

    task: Any
    work: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    keep: Callable[[list[dict[str, Any]]], None] = _forget
    environment: dict[str, Any] = field(default_factory=dict)

    def do(self, arm: Any, seed: int) -> list[dict[str, Any]]:
        """
        Train and measure an arm: a case for each of its settings.

        Raises:
            [`Skipped`]: It cannot run here.
        """
        raise NotImplementedError

    def folder(self, name: str, seed: int) -> Path:
        """Where an arm leaves what others read."""
        return self.work / f"{slug(name)}-{seed}"


def slug(name: str) -> str:
    """A name as part of a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


# ---------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """
    An arm for one seed.

    Args:
        arm ([`Arm`]), seed (`int`): Which.
        folder (`Path`): Where its result goes.
    """

    arm: Arm
    seed: int
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / f"{slug(self.arm.name)}-{self.seed}.json"

    def result(self) -> dict[str, Any] | None:
        """Its cases, the error that ended it or the reason to skip it; `None` if it is not done."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None

    def half(self) -> dict[str, Any] | None:
        """As [`Job.result`], of a job that was ended: the cases that it had by then; `None` without any."""
        half = self.file.with_suffix(".half")
        return json.loads(half.read_text(encoding="utf-8")) if half.is_file() else None

    def write(self, found: Any, suffix: str = ".json") -> None:
        """Write the job's file atomically."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
        part.replace(self.file.with_suffix(suffix))

    def asked(self, bench: Bench) -> dict[str, Any]:
        """The work that its result belongs to: a result of other work does not count as done."""
        work = {"task": asdict(bench.task), "arm": asdict(self.arm), "overrides": bench.overrides}
        return dict(json.loads(json.dumps(work)))

    @property
    def needs(self) -> list["Job"]:
        """The jobs of the same seed that leave what it reads."""
        return [Job(Arm(name), self.seed, self.folder) for name in self.arm.needs]

    def given(self) -> dict[str, str]:
        """A digest of the result of each arm that it reads: another result gives it something else."""
        found = {}
        for need in self.needs:
            result = need.file.read_bytes() if need.file.is_file() else b""
            found[need.arm.name] = hashlib.sha256(result).hexdigest()[:16]
        return found

    def is_done(self, bench: Bench) -> bool:
        """Whether its result is of the work that is asked for now, on what its needs give now."""
        found = self.result()
        return found is not None and "cases" in found and self.is_current(found, bench)

    def is_current(self, found: dict[str, Any], bench: Bench) -> bool:
        """Whether a result of it, whole or half, is of the work that is asked for now."""
        given = self.given()
        if found.get("given", given) != given:  # results from before these digests have none
            return False
        # A field that is newer than the result had its default then.
        newer = {entry.name: _default(entry) for entry in fields(self.arm) if entry.name not in found["asked"]["arm"]}
        arm = json.loads(json.dumps(newer)) | found["asked"]["arm"]
        return bool(found["asked"] | {"arm": arm} == self.asked(bench))


def _default(entry: Field[Any]) -> Any:
    """The default of a dataclass's field; `None` if it has none."""
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return None if entry.default is MISSING else entry.default


def now() -> float:
    """Seconds on the clock of time limits."""
    return time.monotonic()


def run_all(jobs: Sequence[Job], bench: Bench, processes: int, limit: float = 0.0) -> bool:
    """
    Do all jobs that are not done, in their order, in several processes.

    Args:
        jobs (`Sequence[Job]`): A job comes after those that it needs.
        bench ([`Bench`]): Does them.
        processes (`int`): At a time; 0 does them in this process, one after another.
        limit (`float`, *optional*, defaults to `0.0`): Seconds after which those that are running are ended (0: none).

    Returns:
        `bool`: Whether the time sufficed.
    """
    todo: list[Job] = []
    for job in jobs:
        again = any(other.seed == job.seed and other.arm.name in job.arm.needs for other in todo)
        if again or not job.is_done(bench):
            todo.append(job)
    for job in todo:
        if job.file.is_file():  # it failed, or was other work: nothing of that may pass for what is asked for now
            shutil.rmtree(bench.folder(job.arm.name, job.seed), ignore_errors=True)
        for suffix in (".json", ".half"):
            job.file.with_suffix(suffix).unlink(missing_ok=True)
    if not processes:
        for job in todo:
            _do(job, bench)
        return True
    if started := accelerator_started():
        print(
            "an import has started on the GPU, so each process imports everything again", file=sys.stderr, flush=True
        )
    context: Any = multiprocessing.get_context("spawn" if started else "fork")
    counter = context.Value("i", 0)
    workers = [context.Process(target=_work, args=(todo, bench, counter, n)) for n in range(min(processes, len(todo)))]
    deadline = now() + (limit or float("inf"))
    for worker in workers:
        worker.start()
    while (late := [worker for worker in workers if worker.is_alive()]) and now() < deadline:
        time.sleep(WAIT)
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
    # When time is up: as an exception, so that a command that the job has started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(1)
    allow_tf32()
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
    """Do a job; its file gets the cases, the error or the reason to skip it."""
    started = time.perf_counter()
    found: dict[str, Any] = {"asked": job.asked(bench), "given": job.given(), "environment": bench.environment}
    bench.keep = lambda cases: job.write(found | {"cases": cases}, ".half")
    try:
        _require_needs(job)
        found["cases"] = bench.do(job.arm, job.seed)
    except Skipped as reason:
        found["skipped"] = str(reason)
    except Exception as error:  # the other arms' numbers are worth having
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.perf_counter() - started, 1)
    job.write(found)
    sys.stdout.flush()


def _require_needs(job: Job) -> None:
    """
    Stop before a job reads what an earlier run of an arm that it needs has left.

    Raises:
        [`Skipped`]: The arm was skipped.
        `RuntimeError`: It failed, or was not done.
    """
    for need in job.needs:
        found = need.result() or {"error": NOT_BEGUN}
        if "skipped" in found:
            raise Skipped(f"it needs “{need.arm.name}”, which was skipped: {found['skipped']}")
        if "cases" not in found:
            raise RuntimeError(f"it needs “{need.arm.name}”, which has no result: {found['error']}")


# ----------------------------------------------------------------------------------------------------------- the suite


class Experiment(Suite):
    """
    A suite whose arms are trained and measured.

    Attributes:
        task (`type`): Dataclass of the models, prompts and lengths; each field is a flag.
        jobs (`int`): Processes at a time.
        places (`tuple[str, ...]`): Fields of the task that say where a user keeps something. Of them, only the last
            part is in results.
    """

    task: Any
    jobs: int
    places: ClassVar[tuple[str, ...]] = ()

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Add flags of the suite's own."""

    def task_of(self, options: argparse.Namespace) -> Any:
        """The task before flags of its fields change it."""
        return self.task()

    def arms_of(self, task: Any, options: argparse.Namespace) -> list[Any]:
        """All arms, each after those that it needs."""
        raise NotImplementedError

    def work_of(self, options: argparse.Namespace) -> Path:
        """The folder of what is done, unless `--work` names one."""
        return ROOT / "outputs" / self.name

    def seeds_of(self, options: argparse.Namespace) -> list[int]:
        """The seeds of all arms."""
        return list(options.seeds)

    def bench(self, task: Any, work: Path, overrides: dict[str, Any]) -> Bench:
        """What does the arms."""
        raise NotImplementedError

    def settings(self, options: argparse.Namespace, task: Any) -> dict[str, Any]:
        """The settings of a result, beside its seeds."""
        names = {name: Path(getattr(task, name)).name for name in self.places}
        return {"fields": options.fields, "task": asdict(task) | names}

    def newest(self, results: Sequence[dict[str, Any]], arms: Sequence[Any]) -> dict[str, Any]:
        """The results of the newest task as one; see [`merged`]."""
        task = results[-1]["settings"]["task"]
        return merged([result for result in results if result["settings"]["task"] == task], arms)

    def by_task(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results of each task, which have all settings but the seeds in common, as one; the newest task first."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for result in results:
            same = {key: value for key, value in result["settings"].items() if value and key not in ("seeds", "jobs")}
            groups.setdefault(json.dumps(same, sort_keys=True), []).append(result)
        newest = sorted(groups.values(), key=lambda group: group[-1]["time"], reverse=True)
        return [merged(group, ()) for group in newest]

    def require(self, task: Any) -> None:
        """
        Stop before each arm fails for the same reason.

        Raises:
            `SystemExit`: A file or model of the task is missing.
        """
        require_files(task)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Do what was asked for and write one result file; arms that fail are named and do not cost the others."""
        options = self._options(argv)
        refuse_dirty(options.allow_dirty)
        # Whether there is a GPU must be asked without starting on it, or no fork could.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if default_device().type != "cpu":
            sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # its import starts on the GPU
        changed = {}
        for each in fields(self.task):
            value = getattr(options, each.name)
            if value is not None:
                changed[each.name] = value
        task = replace(self.task_of(options), **changed)
        if not options.collect:
            self.require(task)
        work = (options.work or self.work_of(options)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        facts = environment(torch.device("cpu"), self.measures())
        # The arms that others need come first, for all seeds.
        arms, seeds = needed_arms(self.arms_of(task, options), options.arms), self.seeds_of(options)
        jobs = [Job(arm, seed, work) for arm in arms for seed in seeds]
        bench = self.bench(task, work, options.fields)
        bench.environment = facts
        if not options.collect and not run_all(jobs, bench, options.jobs, options.time_limit):
            print(f"stopped after {options.time_limit:g} seconds", file=sys.stderr)
        return self._write(jobs, bench, self.settings(options, task) | {"seeds": seeds}, options.output)

    def _options(self, argv: Sequence[str] | None) -> argparse.Namespace:
        parser = self.parser()
        parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        parser.add_argument("--arms", nargs="+", default=[""], help=names_help("arms"))
        parser.add_argument("--jobs", type=int, default=self.jobs, help="processes at a time; 0: all in this one")
        parser.add_argument("--time_limit", type=float, default=0.0, help="seconds after which to stop (0: none)")
        parser.add_argument("--work", type=Path, default=None, help="folder of what is done (in outputs/)")
        parser.add_argument("--collect", action="store_true", help="run nothing; write a result of what is done")
        parser.add_argument("--fields", type=json.loads, default={}, help="JSON: fields of all training configs")
        for entry in fields(self.task):
            parser.add_argument(f"--{entry.name}", type=entry.type, help="instead of the task's")
        self.flags(parser)
        return parser.parse_args(argv)

    def _write(self, jobs: Sequence[Job], bench: Bench, settings: dict[str, Any], output: Path) -> int:
        """The result files of what is done, one for all that the same code has measured; 1 if something is not."""
        failures, skipped = [], []
        now = _Measured(bench.environment)
        by_code = {now.code: now}
        for job in jobs:
            found = job.result() or {"error": NOT_BEGUN}
            place = {"arm": job.arm.name, "seed": job.seed}
            if "cases" in found and not job.is_current(found, bench):
                found = {"error": OTHER_WORK}
            if "error" in found:
                failures.append({**place, "error": found["error"]})
                print(f"{job.arm.name}, seed {job.seed}: {found['error']}", file=sys.stderr)
            elif "skipped" in found:
                skipped.append({**place, "reason": found["skipped"]})
                print(f"{job.arm.name}, seed {job.seed}: skipped. {found['skipped']}", file=sys.stderr)
            half = None if "cases" in found else job.half()
            if half is not None and job.is_current(half, bench):
                found = half
            if cases := found.get("cases"):
                if "environment" not in found:  # older than these records
                    print(f"{job.arm.name}, seed {job.seed}: no record says which code measured it", file=sys.stderr)
                of = _Measured(found.get("environment") or bench.environment)
                of = by_code.setdefault(of.code, of)
                of.cases += [{**case, "job_seconds": found.get("seconds")} for case in cases]
                of.given += of.given_by_others(job)
        groups = [of for of in (*list(by_code.values())[1:], now) if of.cases]
        for of in groups:
            _show(of.cases)
            if of is not now:
                print(f"these {len(of.cases)} cases are of commit {of.environment['commit']}: a file of their own")
            missing = (
                {"failures": failures, "skipped": skipped} if of is groups[-1] else {"failures": [], "skipped": []}
            )
            device = default_device()
            of.environment["hardware"]["gpu"] = device_name(device)  # asked for when no process is forked any more
            result = {"settings": settings, "environment": of.environment, "cases": of.cases, "given": of.given}
            # Runs of clones in different places are of one task.
            result = json.loads(json.dumps(result | missing).replace(f"{ROOT}/", ""))
            print("wrote", write_result(self.name, device, result, output))
        return int(bool(failures))


@dataclass
class _Measured:
    """
    What one state of the code has measured.

    Args:
        environment (`dict`): Code, versions and hardware.
        cases (`list[dict]`, *optional*): The cases.
        given (`list[dict]`, *optional*): What other code had left for them: `arm`, `seed`, `need` and its `commit`.
    """

    environment: dict[str, Any]
    cases: list[dict[str, Any]] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)

    @property
    def code(self) -> str:
        """What makes measurements comparable: the code, the versions of packages and the processor."""
        facts = self.environment
        return json.dumps([facts["sources"]["digest"], facts["versions"], facts["hardware"]["cpu"]], sort_keys=True)

    def given_by_others(self, job: Job) -> list[dict[str, Any]]:
        """Which of a job's needs other code has done."""
        found = []
        for need in job.needs:
            facts = (need.result() or {}).get("environment")
            if facts and _Measured(facts).code != self.code:
                place = {"arm": job.arm.name, "seed": job.seed, "need": need.arm.name}
                found.append({**place, "commit": facts["commit"], "code": facts["sources"]["digest"]})
        return found


def _show(cases: Sequence[dict[str, Any]]) -> None:
    """Print the metrics of cases."""
    for case in cases:
        shown = {}
        for name, value in case["metrics"].items():
            if isinstance(value, int | float) and value and "_se" not in name:
                shown[name] = round(value, 3)
        print(f"{case['name']}, seed {case['seed']}: {shown}, {case['cost'].get('seconds')} s", flush=True)


def require_files(task: Any) -> None:
    """
    Stop before each arm fails for the same reason.

    Raises:
        `SystemExit`: A file of prompts or a folder of a model is missing; the flag that names another is named.
    """
    for each in fields(task):
        value = getattr(task, each.name)
        if not isinstance(value, str) or Path(value).exists():
            continue
        if value.endswith(".jsonl"):
            made = "`python -m benchmarks.quality.imdb_prompts` makes the prompts of the IMDB task"
            raise SystemExit(f"--{each.name}: there is no file {value}. {made}; the flag names other prompts.")
        if Path(value).is_absolute():  # not a name on the Hub
            raise SystemExit(f"--{each.name}: there is no model {value}. The flag names another.")


def needed_arms(arms: Sequence[Any], parts: Sequence[str]) -> list[Any]:
    """The arms that names or parts of names ask for, and those that they need, in order."""
    by_name = {arm.name: arm for arm in arms}
    wanted: set[str] = set()
    for text in parts:
        these = names_chosen(by_name, text)
        if not these:
            raise SystemExit(f"--arms: no arm's name has `{text}`. There are: {', '.join(by_name)}")
        wanted |= these
    while more := {need for name in wanted for need in by_name[name].needs} - wanted:
        wanted |= more
    return [arm for arm in arms if arm.name in wanted]


# --------------------------------------------------------------------------------------------------------- the results


def merged(results: Sequence[dict[str, Any]], arms: Sequence[Any]) -> dict[str, Any]:
    """
    Results of one task as one, so that a later file may bring an arm or a seed.

    Of each arm and seed the cases of the newest file that has any count, and none of an arm whose needs, a value model
    for example, have come out otherwise since.

    Args:
        results (`Sequence[dict]`): Oldest first.
        arms (`Sequence[Arm]`): Those of the suite.

    Returns:
        `dict`: `cases`, in the order of the arms, each with the `processor` that it ran on; `failures` and `skipped`
            without those done since; under `from` the results that cases come from, and under `arms` the names of the
            arms of each; `settings` of the newest.
    """
    needs = {arm.name: arm.needs for arm in arms}
    order = list(needs)
    came: list[dict[tuple[str, int], list[Any]]] = [{} for _ in results]  # by file, what came out of an arm
    for i, result in enumerate(results):
        for case in result["cases"]:
            came[i].setdefault((arm_of(case["name"], order), case["seed"]), []).append(case["metrics"])
    newest = {key: i for i, found in enumerate(came) for key in found}

    def is_current(arm: str, seed: int, i: int) -> bool:
        if newest[arm, seed] != i:
            return False
        for key in ((need, seed) for need in needs.get(arm, ())):
            # What the arm was given: of its own file, or of the last one before that has it.
            given = next((j for j in range(i, -1, -1) if key in came[j]), None)
            if given is not None and came[given][key] != came[newest[key]][key]:
                return False
        return True

    def is_missing(entry: dict[str, Any], i: int) -> bool:
        return newest.get((entry["arm"], entry["seed"]), i) <= i

    def place(case: dict[str, Any]) -> tuple[int, list[Any]]:
        arm = arm_of(case["name"], order)
        return order.index(arm) if arm in order else len(order), _natural(case["name"])

    kept = [
        (case, result)
        for i, result in enumerate(results)
        for case in result["cases"]
        if is_current(arm_of(case["name"], order), case["seed"], i)
    ]
    kept.sort(key=lambda pair: place(pair[0]))
    sources = [result for result in results if any(result is source for _, source in kept)]
    cases = [{**case, "processor": _processor(result)} for case, result in kept]
    found: dict[str, Any] = {"cases": cases, "from": sources, "settings": results[-1]["settings"]}
    found["arms"] = [list(dict.fromkeys(arm_of(c["name"], order) for c, s in kept if s is of)) for of in sources]
    for kind in ("failures", "skipped"):
        entries = {(e["arm"], e["seed"]): (e, i) for i, result in enumerate(results) for e in result.get(kind, [])}
        found[kind] = [entry for entry, i in entries.values() if is_missing(entry, i)]
    return found


def _processor(result: dict[str, Any]) -> str:
    """The GPU, or else the processor, that a result was measured on."""
    hardware = result["environment"]["hardware"]
    return str(hardware["gpu"] or hardware["cpu"])


def arm_of(case: str, arms: Sequence[str]) -> str:
    """The arm of a case, whose name may go on with a setting: "VAS, beta 2.0"."""
    return max((arm for arm in arms if case == arm or case.startswith(f"{arm}, ")), key=len, default=case)


def _natural(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]
