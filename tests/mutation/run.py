# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Mutation tests: mutmut changes the code, one place at a time, and the tests must notice.

    pip install -c constraints.txt -e ".[test,mutation]"
    python tests/mutation/run.py                                  # what pyproject.toml lists, see [tool.mutmut]
    python tests/mutation/run.py "trl_ext.methods.psle.losses.*"  # again, some of it
    python tests/mutation/run.py --report                         # the report alone, of what ran before

Torch is imported once: each mutant is a fork that runs the tests which call the changed function. The command writes
`report.md`. It fails if under 95 % of the mutants are noticed, or one that is not has no entry in `answers.yaml`,
which says why it computes the same.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent.parent
ANSWERS, REPORT = FOLDER / "answers.yaml", FOLDER / "report.md"
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
class Module:
    """
    The mutants of a module.

    Args:
        noticed (`int`): Number of those that a test noticed.
        answered (`list[Change]`): Those that none noticed, with an entry in `answers.yaml`.
        unanswered (`list[Change]`): Those without.
    """

    noticed: int = 0
    answered: list[Change] = field(default_factory=list)
    unanswered: list[Change] = field(default_factory=list)

    @property
    def mutants(self) -> int:
        """Number of mutants."""
        return self.noticed + len(self.answered) + len(self.unanswered)


def function_of(mutant: str) -> tuple[str, str]:
    """Module and dotted path of the function that a mutant, by mutmut's name for it, changes."""
    found = _NAME.match(mutant)
    if found is None:
        raise ValueError(f"{mutant!r} is no name of a mutant")
    parts = [part for part in (found["module"], found["cls"], found["function"]) if part]
    return found["module"], ".".join(parts)


def change_of(mutant: str, diff: str) -> Change:
    """The change in a diff of `mutmut show`."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    sides = [" ".join(" ".join(line[1:].split()) for line in lines if line.startswith(sign)) for sign in "-+"]
    return Change(function_of(mutant)[1], *sides)


def answers(file: Path = ANSWERS) -> dict[Change, str]:
    """The changes that no test can notice, with the reasons."""
    found = {}
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")) or []:
        for after in entry["to"] if isinstance(entry["to"], list) else [entry["to"]]:
            found[Change(entry["function"], entry["from"], after)] = entry["reason"]
    return found


def modules(results: str, show: Any, known: dict[Change, str]) -> dict[str, Module]:
    """
    The mutants of each module.

    Args:
        results (`str`): What `mutmut results --all true` prints: lines of `NAME: STATUS`.
        show (`Callable`): Returns the diff of a mutant.
        known (`dict`): From [`answers`].
    """
    found: dict[str, Module] = defaultdict(Module)
    for line in results.splitlines():
        mutant, _, status = line.strip().partition(": ")
        if status in ("", "not checked", "skipped"):
            continue
        module = found[function_of(mutant)[0]]
        if status in NOTICED:
            module.noticed += 1
        else:
            change = change_of(mutant, show(mutant))
            (module.answered if change in known else module.unanswered).append(change)
    return dict(sorted(found.items()))


def score(found: dict[str, Module]) -> float:
    """The share of the mutants that tests noticed."""
    return sum(module.noticed for module in found.values()) / max(1, sum(module.mutants for module in found.values()))


def report(found: dict[str, Module], known: dict[Change, str]) -> str:
    """The page."""
    lines = [
        "# Mutation tests",
        "",
        "`python tests/mutation/run.py` writes this page. mutmut changes the code one place at a time; a test must",
        "notice. A change that none notices is answered in `answers.yaml`: why it computes the same.",
        "",
        "| module | mutants | noticed | share | not noticed, answered | not answered |",
        "|---|---|---|---|---|---|",
    ]
    total = Module()
    for name, module in found.items():
        lines.append(_row(f"`{name.removeprefix('trl_ext.')}`", module))
        total.noticed += module.noticed
        total.answered += module.answered
        total.unanswered += module.unanswered
    lines.append(_row("all", total))
    for title, changes in (("Not answered", total.unanswered), ("Answered", total.answered)):
        if changes:
            lines += ["", f"## {title}", ""]
            lines += [
                _item(change, known.get(change, "")) for change in sorted(changes, key=lambda c: (c.function, c.after))
            ]
    return "\n".join([*lines, ""])


def _row(name: str, module: Module) -> str:
    share = f"{module.noticed / max(1, module.mutants):.1%}"
    counts = f"{module.mutants} | {module.noticed} | {share} | {len(module.answered)} | {len(module.unanswered)}"
    return f"| {name} | {counts} |"


def _item(change: Change, reason: str) -> str:
    function = change.function.removeprefix("trl_ext.")
    return f"- `{function}`: ``{change.before}`` became ``{change.after}``" + (f". {reason}" if reason else "")


def mutmut(*words: str) -> str:
    """What a command of mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *words]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mutants", nargs="*", help="Names of mutants, with *; by default all.")
    parser.add_argument("--processes", type=int, default=2, help="How many mutants run at a time.")
    parser.add_argument("--report", action="store_true", help="Run nothing; write the report of what ran before.")
    arguments = parser.parse_args(words)
    if not arguments.report:
        run = [sys.executable, "-m", "mutmut", "run", "--max-children", str(arguments.processes)]
        # hypothesis then takes the same examples each time, and however long they need on a machine that is busy.
        subprocess.run([*run, *arguments.mutants], cwd=REPOSITORY, check=True, env={**os.environ, "CI": "true"})
    known = answers()
    found = modules(mutmut("results", "--all", "true"), lambda mutant: mutmut("show", mutant), known)
    REPORT.write_text(report(found, known), encoding="utf-8")
    unanswered = sum(len(module.unanswered) for module in found.values())
    print(f"{REPORT}: {score(found):.1%} noticed, {unanswered} that are not noticed have no answer")
    return int(score(found) < ENOUGH or unanswered > 0)


if __name__ == "__main__":
    sys.exit(main())
