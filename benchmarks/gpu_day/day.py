# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The run: parts in order, each in a process of its own with a time limit.

    python -m benchmarks.gpu_day [--minutes 10] [--suite chat] [--rehearse] [-- MORE ARGUMENTS OF THE PARTS]

Results are files that grow with each case, and the state of each part is in a result file of its own, so a crash loses
nothing. The same command goes on with what is not measured.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .parts import SUITES, Part


ROOT = Path(__file__).resolve().parents[2]
NAME = "gpu_day"
RESERVE = 5.0  # seconds at the end in which nothing is measured: to end processes and write files
GRACE = 5.0  # seconds that a process has to end by itself
REHEARSAL = 20.0  # times as long as on a GPU parts may take on a CPU
# The states of a part.
DONE, INCOMPLETE, STOPPED, SKIPPED = "done", "incomplete", "stopped", "skipped"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day",
        description="Measure on one GPU what is not measured yet, most important first, in a given time.",
    )
    found.add_argument("--minutes", type=float, default=0.0, help="of this call (0: 10, 60 for a rehearsal)")
    found.add_argument("--suite", choices=SUITES, default="speed", help="speed and memory, or the chat comparison")
    found.add_argument("--parts", nargs="+", default=[""], help="parts of the names of those to run (default: all)")
    found.add_argument("--rehearse", action="store_true", help="everything at tiny sizes on the CPU")
    found.add_argument("--output", type=Path, default=None, help="folder of the result files")
    found.add_argument("--work", type=Path, default=None, help="folder of the logs")
    found.add_argument("--archive", type=Path, default=None, help="a .tar.gz of all of it, renewed after each part")
    found.add_argument("--fresh", action="store_true", help="measure everything again")
    found.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done; 1 if something could not be measured."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    options = parser().parse_args(words[:at])
    work = ROOT / "outputs" / NAME
    options.work = (options.work or (work / "rehearsal" if options.rehearse else work)).resolve()
    results = options.work if options.rehearse else ROOT / "benchmarks" / "results"
    options.output = (options.output or results).resolve()
    day = Day(options, words[at + 1 :])
    # As an exception, so that the process of a part is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return day.run()


class Worker:
    """
    The process of a part.

    Args:
        part ([`Part`]): Which.
        log (`Path`): Where its output goes.
    """

    command = (sys.executable, "-m", "benchmarks.gpu_day.worker")

    def __init__(self, part: Part, log: Path) -> None:
        self.part, self.log = part, log
        log.parent.mkdir(parents=True, exist_ok=True)
        # Offline: a machine without a network would spend the day on waiting for the Hub, of which nothing is needed.
        env = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [*self.command, part.suite],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                text=True,
                start_new_session=True,  # what it starts ends with it
            )

    @property
    def input(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def run(self, arguments: Sequence[str], limit: float) -> int | None:
        """
        Let it measure.

        Returns:
            `int | None`: Its exit status; `None` if it was ended at the limit.
        """
        try:
            self.input.write(json.dumps(list(arguments)) + "\n")
            self.input.flush()
        except BrokenPipeError:  # it has failed before its turn
            return self.process.wait()
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """End it and what it has started, whether it has begun or not."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                break
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:  # one that hangs in the driver ends later, or never
                continue
        with contextlib.suppress(BrokenPipeError):
            self.input.close()

    def failures(self) -> list[str]:
        """What its log says about cases that failed, or its last line."""
        from benchmarks.harness.suite import FAILED

        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        found = [line.removeprefix(FAILED) for line in lines if line.startswith(FAILED)]
        return found or [line for line in lines if line][-1:]


class Day:
    """
    One day: its parts and their states.

    Args:
        options (`argparse.Namespace`): See [`parser`].
        more (`Sequence[str]`, *optional*): Arguments for the suite of each part.
        clock (`Callable[[], float]`, *optional*): Seconds.
    """

    def __init__(
        self, options: argparse.Namespace, more: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options, self.more, self.clock = options, list(more), clock
        self.minutes = options.minutes or (60.0 if options.rehearse else 10.0)
        self.end = clock() + 60 * self.minutes
        self.parts = [p for p in SUITES[options.suite] if any(text in p.name for text in options.parts)]
        if not self.parts:
            names = ", ".join(part.name for part in SUITES[options.suite])
            raise SystemExit(f"--parts {' '.join(options.parts)}: there are {names}.")
        self.file, self.result = (None, None) if options.fresh else self._interrupted()
        self.label = self.result["label"] if self.result else _new_label()
        self.states = {case["name"]: case for case in self.result["cases"]} if self.result else {}

    def _interrupted(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The newest day of this kind, unless it is of another commit."""
        found = []
        for file in self.options.output.glob(f"*-{NAME}-*.json"):
            result = json.loads(file.read_text(encoding="utf-8"))
            if result["settings"]["kind"] == self._kind:
                found.append((result["time"], file, result))
        return max(found, key=lambda entry: entry[0])[1:] if found else (None, None)

    @property
    def _kind(self) -> dict[str, Any]:
        return {"suite": self.options.suite, "rehearsal": self.options.rehearse}

    def run(self) -> int:
        """Run the parts that are not done."""
        worker: Worker | None = self._start((self._todo() or self.parts)[0])
        try:
            self._begin()
            todo = self._todo()
            if worker is not None and worker.part not in todo[:1]:
                worker.end()
                worker = None
            if not todo:
                print("everything is measured; --fresh measures it again")
                return 0
            worker = self._do_all(todo, worker)
            # Those that their own limit has ended, in the time that is left.
            worker = self._do_all([part for part in todo if self._state(part) == STOPPED], worker)
        finally:
            if worker is not None:
                worker.end()
        print(f"wrote {self.file}; then: python -m benchmarks.report")
        return int(any(self._state(part) != DONE for part in self.parts))

    def _todo(self) -> list[Part]:
        return [part for part in self.parts if self._state(part) != DONE]

    def _state(self, part: Part) -> str:
        """The state of a part, empty before it has one."""
        return str(self.states[part.name]["metrics"]["state"]) if part.name in self.states else ""

    def _do_all(self, parts: Sequence[Part], worker: Worker | None) -> Worker | None:
        """Run parts in order. `worker`, if there is one, is the process of the first."""
        queue = list(parts)
        while queue:
            part = queue.pop(0)
            worker = self._do(part, worker or self._start(part), queue)
        return worker

    def _start(self, part: Part) -> Worker:
        return Worker(part, self.options.work / f"{part.name}.log")

    def left(self) -> float:
        """Seconds in which something can be measured."""
        return self.end - RESERVE - self.clock()

    def _do(self, part: Part, worker: Worker, queue: Sequence[Part]) -> Worker | None:
        """Run a part, or skip it; returns the process of the next part, which imports meanwhile."""
        least = 1.0 if self.options.rehearse else part.least
        if self.left() < least:
            worker.end()
            if self._state(part) in ("", SKIPPED):
                reason = f"needs about {least:.0f} s, and {max(0.0, self.left()):.0f} s were left"
                self._note(part, SKIPPED, reason, 0.0)
            return None
        limit = min(self.left(), part.most * (REHEARSAL if self.options.rehearse else 1))
        print(f"{part.name}: {part.question} (at most {limit:.0f} s)", flush=True)
        begun, following = self.clock(), self._start(queue[0]) if queue else None
        try:
            status = worker.run(self.arguments(part, limit), limit)
        except BaseException:  # Ctrl-C or the end of the process
            worker.end()
            if following is not None:
                following.end()
            raise
        self._note(part, *_outcome(status, limit, worker), self.clock() - begun)
        return following

    def arguments(self, part: Part, limit: float) -> list[str]:
        """The command line of a part's suite."""
        places = {"seconds": f"{max(1.0, limit - 4 * GRACE):.0f}", "work": str(self.options.work)}
        words = [*part.arguments, *(part.rehearsal if self.options.rehearse else ())]
        words = [word.format(**places) for word in words] + ["--output", str(self.options.output)]
        if not part.rehearsal:
            kind = ["--rehearse"] if self.options.rehearse else ["--devices", "cuda"]
            words += [*kind, "--label", f"{self.label}{f' {part.name}' if part.again else ''}"]
        # The day has asked whether the tree is that of its commit. A file that is edited meanwhile must not cost the
        # parts that follow: their results say `-dirty`.
        return [*words, "--allow_dirty", *self.more]

    # ------------------------------------------------------------------------------------------------------ the result

    def _begin(self) -> None:
        """The result file of the day. The first process imports torch at the same time."""
        from benchmarks.harness.results import ResultFile, environment, refuse_dirty
        from trl_ext.devices import CPU, default_device

        refuse_dirty(self.options.allow_dirty)
        device = CPU if self.options.rehearse else default_device()
        if device.type == "cpu" and not self.options.rehearse:
            raise SystemExit("There is no GPU here. `--rehearse` runs all parts at tiny sizes on the CPU.")
        facts = environment(device, {Day, Worker})
        settings = {"seeds": [0], "kind": self._kind, "minutes": self.minutes}
        if self.result and self.result["environment"]["commit"] != facts["commit"]:
            print(f"{self.file} is of another commit: everything is measured again", flush=True)
            self.file, self.states = None, {}
            self.label = _new_label()
        if self.options.rehearse and any(part.rehearsal for part in self.parts):
            from . import tiny_chat

            tiny_chat.write(self.options.work / "tiny", ROOT / "recipes" / "instructions" / "prompts_train.jsonl")
        self._writer = ResultFile(NAME, device, self.options.output, self.file)
        self._head = {"settings": settings, "environment": facts, "label": self.label}

    def _note(self, part: Part, state: str, reason: str, seconds: float) -> None:
        """Write the state of a part."""
        from benchmarks.harness.results import measured_names

        label = f"{self.label} {part.name}" if part.again else self.label
        metrics = {
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 1),
            "measured": sorted(measured_names(part.suite, label, self.options.output)),
        }
        settings = {name: value for name, value in asdict(part).items() if value != float("inf")}
        self.states[part.name] = {"name": part.name, "seed": 0, "settings": settings, "metrics": metrics, "cost": {}}
        print(f"{part.name}: {state}{f': {reason}' if reason else ''} ({seconds:.0f} s)", flush=True)
        order = [p.name for p in SUITES[self.options.suite]]
        cases = sorted(self.states.values(), key=lambda case: order.index(case["name"]))
        self.file = self._writer.write(self._head | {"cases": cases})
        if self.options.archive is not None:
            self._archive(self.options.archive)

    def _archive(self, path: Path) -> None:
        """All result files of the day, and the logs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with tarfile.open(part, "w:gz") as archive:
            for file in sorted(self.options.output.glob("*.json")):
                if self.label in file.read_text(encoding="utf-8"):
                    archive.add(file, file.name)
            for file in sorted(self.options.work.rglob("*")):
                if file.suffix in (".log", ".half") or (file.suffix == ".json" and file.parent != self.options.output):
                    archive.add(file, f"work/{file.relative_to(self.options.work)}")
        part.replace(path)


def _new_label() -> str:
    return f"{NAME} {datetime.now(UTC).isoformat(timespec='seconds')}"


def _outcome(status: int | None, limit: float, worker: Worker) -> tuple[str, str]:
    """The state of a part whose process has ended, and the reason if it is not done."""
    if status is None:
        return STOPPED, f"ended after {limit:.0f} s"
    if status == 0:
        return DONE, ""
    found = worker.failures()
    if status < 0:
        found.insert(0, f"killed by signal {-status}")
    return INCOMPLETE, "; ".join(found) or f"exit status {status}"
