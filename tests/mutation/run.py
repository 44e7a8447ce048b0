# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Mutation tests: mutmut changes the code, one place at a time, and the tests must notice.

    pip install -c constraints.txt -e ".[test,mutation]"
    python tests/mutation/run.py                        # the files of modules.yaml; those that are done are left out
    python tests/mutation/run.py --files losses         # some of them
    python tests/mutation/run.py --per_module 60        # a sample of the changes of each file
    python tests/mutation/run.py --survivors            # again, what was not noticed and has no answer
    python tests/mutation/run.py --again                # also what is done
    python tests/mutation/run.py --report               # the report alone, of what ran before

A file is done if neither it nor its tests have changed since it ran, with the same sample or all changes. An
interrupted run goes on where it stopped, and its end names the files that have changed since they ran. `results.json`
has what each file came to, and `report.md` the table; both are committed. The command fails if under 95 % of the
changes are noticed, or one that is not has no entry in `answers.yaml`, which says why it computes the same.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml


FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent.parent
FILES, ANSWERS = FOLDER / "modules.yaml", FOLDER / "answers.yaml"
RESULTS, REPORT = FOLDER / "results.json", FOLDER / "report.md"
ENOUGH = 0.95
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}
_NAME = re.compile(r"(?P<module>[\w.]+)\.x(?:ǁ(?P<cls>\w+)ǁ|_)(?P<function>\w+)__mutmut_\d+$")


@dataclass(frozen=True)
class Change:
    """
    What mutmut changed in a function: lines before and after, without indentation.

    Args:
        function (`str`): Its dotted path.
        before (`str`), after (`str`): The changed lines, joined by spaces.
    """

    function: str
    before: str
    after: str


@dataclass
class Outcome:
    """
    What a file came to.

    Args:
        contents (`str`): A hash of the file and of its tests.
        date (`str`): When it ran.
        mutants (`int`): Number of changes that mutmut can make.
        tried (`int`): Number of those that were made.
        seed (`int`): Of the sample, if it is one.
        noticed (`int`): Number of those that a test noticed.
        survivors (`dict[str, dict[str, str]]`): The others, as [`Change`], by mutmut's name.
        code (`str`, *optional*): A hash of the file alone, by which mutmut numbers its changes.
    """

    contents: str
    date: str
    mutants: int
    tried: int
    seed: int
    noticed: int
    survivors: dict[str, dict[str, str]] = field(default_factory=dict)
    code: str = ""

    def changes(self) -> dict[str, Change]:
        """The changes that no test noticed, by mutmut's name."""
        return {name: Change(**change) for name, change in self.survivors.items()}

    def covers(self, contents: str, per_module: int, seed: int) -> bool:
        """Whether it is of these contents and has all changes, or the sample that is asked for."""
        asked = min(per_module, self.mutants) if per_module else self.mutants
        whole = self.tried == self.mutants
        return self.contents == contents and (whole or (self.tried, self.seed) == (asked, seed))


# ---------------------------------------------------------------------------------------------------- what mutmut says


def function_of(mutant: str) -> str:
    """Dotted path of the function that a mutant, by mutmut's name for it, changes."""
    found = _NAME.match(mutant)
    if found is None:
        raise ValueError(f"{mutant!r} is no name of a mutant")
    return ".".join(part for part in (found["module"], found["cls"], found["function"]) if part)


def change_of(mutant: str, diff: str) -> Change:
    """The change in a diff of mutmut."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    sides = [" ".join(" ".join(line[1:].split()) for line in lines if line.startswith(sign)) for sign in "-+"]
    return Change(function_of(mutant), *sides)


def outcome(
    found: dict[str, Any], contents: str, seed: int, earlier: Outcome | None = None, code: str = ""
) -> Outcome:
    """
    What a file came to.

    Args:
        found (`dict`): What `mutate.py` wrote: `mutants` and `results` (mutant -> `status`, `diff`).
        contents (`str`), seed (`int`), code (`str`, *optional*): As for [`Outcome`].
        earlier ([`Outcome`], *optional*): Of the same code, of which only some survivors ran again. What was noticed
            then was noticed by the tests of then, so the whole stays of their contents.
    """
    results = {name: result for name, result in found["results"].items() if result["status"] != "skipped"}
    survivors = {
        name: asdict(change_of(name, result["diff"]))
        for name, result in results.items()
        if result["status"] not in NOTICED
    }
    tried = len(results)
    if earlier is not None:
        kept = {name: change for name, change in earlier.survivors.items() if name not in results}
        survivors, tried, contents = kept | survivors, earlier.tried, earlier.contents
    date = datetime.now(UTC).date().isoformat()
    return Outcome(contents, date, found["mutants"], tried, seed, tried - len(survivors), survivors, code)


# ----------------------------------------------------------------------------------------------------------- our files


def files() -> dict[str, list[str]]:
    """The files to change, and the tests of each."""
    return dict(yaml.safe_load(FILES.read_text(encoding="utf-8")))


def contents_of(file: str, tests: Iterable[str], root: Path = REPOSITORY) -> str:
    """A hash of a file and of the files of its tests."""
    digest = hashlib.sha256()
    for name in [file, *sorted({test.partition("::")[0] for test in tests})]:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()[:16]


def changed(results: dict[str, Outcome]) -> list[str]:
    """The files that have changed since they ran, or whose tests have."""
    listed = files()
    return [
        name
        for name, found in results.items()
        if name not in listed or contents_of(name, listed[name]) != found.contents
    ]


def answers(file: Path = ANSWERS) -> dict[Change, str]:
    """The changes that no test can notice, with the reasons."""
    found = {}
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")) or []:
        for after in entry["to"] if isinstance(entry["to"], list) else [entry["to"]]:
            found[Change(entry["function"], entry["from"], after)] = entry["reason"]
    return found


def read_results(file: Path) -> dict[str, Outcome]:
    """What each file came to."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: Outcome(**value) for name, value in stored.items()}


def write_results(file: Path, results: dict[str, Outcome]) -> None:
    """Write `results.json`."""
    stored = {name: asdict(results[name]) for name in sorted(results)}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)


# ---------------------------------------------------------------------------------------------------------- the report


def share(results: Iterable[Outcome]) -> float:
    """The share of the changes that tests noticed."""
    counts = [(each.noticed, each.tried) for each in results]
    return sum(noticed for noticed, _ in counts) / max(1, sum(tried for _, tried in counts))


def report(results: dict[str, Outcome], known: dict[Change, str]) -> str:
    """The page."""
    lines = [
        "# Mutation tests",
        "",
        "`python tests/mutation/run.py` writes this page. mutmut changes the code one place at a time; a test must",
        "notice. A change that none notices is answered in `answers.yaml`: why it computes the same. Where fewer",
        "changes were tried than there are, they are a sample by the seed. A row is of code and tests of its date;",
        "`python tests/mutation/run.py --report` names the files that have changed since.",
        "",
        "| file | changes | tried | noticed | share | not noticed, answered | not answered | seed | ran on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    every = dict(sorted(results.items()))
    for name, found in every.items():
        seed = f"{found.seed}" if found.tried < found.mutants else ""
        lines.append(_row(f"`{name.removeprefix('trl_ext/')}`", [found], known, f"{seed} | {found.date}"))
    missing = [name for name in files() if name not in results]
    lines.append(_row("all", list(every.values()), known, " | "))
    if missing:
        lines += ["", f"Not run yet: {', '.join(f'`{name}`' for name in missing)}."]
    changes = [change for found in every.values() for change in found.changes().values()]
    for title, some in (
        ("Not answered", [change for change in changes if change not in known]),
        ("Answered", [change for change in changes if change in known]),
    ):
        if some:
            lines += ["", f"## {title}", ""]
            lines += [
                _item(change, known.get(change, "")) for change in sorted(some, key=lambda c: (c.function, c.after))
            ]
    return "\n".join([*lines, ""])


def _row(name: str, found: list[Outcome], known: dict[Change, str], end: str) -> str:
    changes = [change for each in found for change in each.changes().values()]
    answered = sum(change in known for change in changes)
    mutants, tried, noticed = (sum(getattr(each, key) for each in found) for key in ("mutants", "tried", "noticed"))
    counts = f"{mutants} | {tried} | {noticed} | {share(found):.1%} | {answered} | {len(changes) - answered}"
    return f"| {name} | {counts} | {end} |"


def _item(change: Change, reason: str) -> str:
    function = change.function.removeprefix("trl_ext.")
    return f"- `{function}`: ``{change.before}`` became ``{change.after}``" + (f". {reason}" if reason else "")


# ------------------------------------------------------------------------------------------------------------- running


def chosen(names: list[str], number: int, seed: int) -> list[str]:
    """A sample of mutants, the same for the same names and seed. `0`: all."""
    names = sorted(names)
    return sorted(random.Random(seed).sample(names, number)) if 0 < number < len(names) else names


def run_file(file: str, tests: list[str], names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Change a file, in a process of its own; what `mutate.py` found."""
    with tempfile.TemporaryDirectory() as folder:
        task, results = Path(folder) / "task.json", Path(folder) / "results.json"
        settings = {"per_module": options.per_module, "seed": options.seed, "processes": options.processes}
        contents = {"file": file, "tests": tests, "contents": contents_of(file, tests)}
        task.write_text(json.dumps({**contents, **settings, "names": list(names), "results": str(results)}))
        # hypothesis then takes the same examples each time, and however long they need on a machine that is busy.
        command = [sys.executable, str(FOLDER / "mutate.py"), str(task)]
        subprocess.run(command, cwd=REPOSITORY, check=True, env={**os.environ, "CI": "true"})
        found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[""], help="Parts of names of files (default: all).")
    parser.add_argument("--per_module", type=int, default=0, help="Changes of a file to try (0: all).")
    parser.add_argument("--seed", type=int, default=0, help="Of the sample that --per_module takes.")
    parser.add_argument("--processes", type=int, default=2, help="How many changes are tried at a time.")
    parser.add_argument("--survivors", action="store_true", help="Try again what was not noticed and has no answer.")
    parser.add_argument("--again", action="store_true", help="Run files that are done as well.")
    parser.add_argument("--report", action="store_true", help="Run nothing; write the report of what ran before.")
    options = parser.parse_args(words)
    known, results = answers(), read_results(RESULTS)
    some = {file: tests for file, tests in files().items() if any(part in file for part in options.files)}
    for file, tests in {} if options.report else some.items():
        contents, code, earlier = contents_of(file, tests), contents_of(file, ()), results.get(file)
        names: list[str] = []
        if options.survivors:
            names = [n for n, change in earlier.changes().items() if change not in known] if earlier else []
            if not names:
                continue
            if earlier and earlier.code != code:  # the same names are of other changes
                print(f"{file}: has changed since {earlier.date}, so all of its changes run", flush=True)
                names = []
        elif earlier and not options.again and earlier.covers(contents, options.per_module, options.seed):
            print(f"{file}: done on {earlier.date}", flush=True)
            continue
        found = run_file(file, tests, names, options)
        seed = earlier.seed if earlier and names else options.seed
        results[file] = outcome(found, contents, seed, earlier if names else None, code)
        write_results(RESULTS, results)
        REPORT.write_text(report(results, known), encoding="utf-8")
    REPORT.write_text(report(results, known), encoding="utf-8")
    unanswered = sum(change not in known for found in results.values() for change in found.changes().values())
    if others := changed(results):
        print(f"Changed since they ran: {', '.join(others)}.")
    print(f"{REPORT}: {share(results.values()):.1%} noticed, {unanswered} that are not noticed have no answer")
    return int(share(results.values()) < ENOUGH or unanswered > 0)


if __name__ == "__main__":
    sys.exit(main())
