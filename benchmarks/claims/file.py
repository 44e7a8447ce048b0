# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reads `claims.yaml`: every key and every name in it is checked, and an error names the claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trl_ext.cli.config_file import read_config

from .figures import Missing, Reference, Sources, Task
from .verdicts import COMPARISONS, Check, Finding, Verdict, judge


FILE = Path(__file__).resolve().parents[1] / "claims.yaml"
_CHECK = ("task", "compare", "column", "left", "right", "rows", "by", "tolerance", "above", "show", "unit")


@dataclass(frozen=True)
class Claim:
    """
    A claim of a paper.

    Args:
        id (`str`): Its name.
        paper (`str`): A key of the file's `papers`.
        claim (`str`): The paper's sentence, in our words.
        source (`str`): Table, section or equation of the paper; or what the sentence was read in.
        checks (`tuple[Check, ...]`, *optional*): All have to hold.
        premise ([`~benchmarks.claims.verdicts.Check`], *optional*): Must hold first; models for which it does not are
            too small to show anything about the claim.
        run (`str`, *optional*): The command that tests it.
        needs (`str`, *optional*): What has to be there before that.
        note (`str`, *optional*): What the figures do not say.
    """

    id: str
    paper: str
    claim: str
    source: str
    checks: tuple[Check, ...] = ()
    premise: Check | None = None
    run: str = ""
    needs: str = ""
    note: str = ""


@dataclass(frozen=True)
class Claims:
    """
    The file.

    Args:
        papers (`dict[str, str]`): Key -> heading and, after a colon, reference.
        tasks (`dict[str, Task]`): Where figures come from, by name.
        claims (`list[Claim]`): All claims.
    """

    papers: Mapping[str, str]
    tasks: Mapping[str, Task]
    claims: Sequence[Claim]


@dataclass(frozen=True)
class Judged:
    """A claim, its verdict, what each check gave, and what is missing."""

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    missing: str = ""


def read_claims(path: Path = FILE) -> Claims:
    """
    The claims of a file.

    Raises:
        `ValueError`: A key is unknown or missing, a name is used twice, or a comparison is not complete.
    """
    found = read_config(str(path))
    _only(found, ("papers", "tasks", "claims"), path.name)
    tasks = {}
    for name, entry in found["tasks"].items():
        _only(entry, [f.name for f in fields(Task)], f"task {name}")
        tasks[name] = Task(**entry)
        if bool(tasks[name].suite) == bool(tasks[name].page):
            raise ValueError(f"task {name}: `suite` or `page` is needed, and not both")
    claims = [_claim(entry, tasks) for entry in found["claims"]]
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"two claims have the id {', '.join(twice)}")
    if unknown := {claim.paper for claim in claims} - set(found["papers"]):
        raise ValueError(f"no paper is named {', '.join(sorted(unknown))}; there are {', '.join(found['papers'])}")
    return Claims(found["papers"], tasks, claims)


def _claim(entry: dict[str, Any], tasks: Mapping[str, Task]) -> Claim:
    place = f"claim {entry.get('id')}"
    optional = ("check", "premise", "run", "needs", "note")
    _only(entry, ("id", "paper", "claim", "source", *optional), place)
    if missing := [key for key in ("id", "paper", "claim", "source") if not entry.get(key)]:
        raise ValueError(f"{place}: {', '.join(missing)} missing")
    checks = entry.get("check", [])
    found = [_check(c, tasks, place) for c in (checks if isinstance(checks, list) else [checks])]
    premise = _check(entry["premise"], tasks, place) if "premise" in entry else None
    words = {key: " ".join(str(entry.get(key, "")).split()) for key in ("claim", "source", "run", "needs", "note")}
    run = words.pop("run") or next((" ".join(check.task.run.split()) for check in found), "")
    if not run and not words["needs"]:
        raise ValueError(f"{place}: `run`, the command that tests it, or `needs`, what is missing for that, is needed")
    return Claim(entry["id"], entry["paper"], checks=tuple(found), premise=premise, run=run, **words)


def _check(entry: dict[str, Any], tasks: Mapping[str, Task], place: str) -> Check:
    _only(entry, _CHECK, place)
    if entry.get("task") not in tasks:
        raise ValueError(f"{place}: `task` is {entry.get('task')!r}, and the tasks are {', '.join(tasks)}")
    compare, column = entry.get("compare"), entry.get("column", "")
    if compare not in COMPARISONS:
        raise ValueError(f"{place}: `compare` is {compare!r}, and there are {', '.join(COMPARISONS)}")
    sides = ("rows",) if compare == "ordered" else ("left", "right")
    if missing := [key for key in sides if key not in entry]:
        raise ValueError(f"{place}: {compare} needs {' and '.join(missing)}")
    left = entry["rows"] if compare == "ordered" else [entry["left"]]
    if compare in ("as_good", "within") and "tolerance" not in entry:
        raise ValueError(f"{place}: {compare} needs a tolerance")
    return Check(
        tasks[entry["task"]],
        compare,
        [_reference(value, column, place) for value in left],
        _reference(entry["right"], column, place) if "right" in sides else None,
        float(entry.get("by", 0.0)),
        float(entry.get("tolerance", 0.0)),
        _reference(entry["above"], column, place) if "above" in entry else None,
        entry.get("show", []),
        entry.get("unit", ""),
    )


def _reference(value: Any, column: str, place: str) -> Reference:
    if isinstance(value, str):
        value = {"row": value}
    elif isinstance(value, int | float):
        value = {"value": float(value)}
    _only(value, [f.name for f in fields(Reference)], place)
    found = Reference(**{"column": column, **value})
    if found.value is None and not (found.column and (found.row or (found.rows and len(found.at) == 1))):
        raise ValueError(f"{place}: {value} needs a `row` and a `column`, `rows` and `at`, or a `value`")
    return found


def _only(entry: Any, known: Sequence[str], place: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: a mapping is needed, got {entry!r}")
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"{place}: {', '.join(map(str, unknown))} unknown; there are {', '.join(known)}")


def verdict_of(claim: Claim, sources: Sources) -> Judged:
    """What the results say about a claim."""
    findings: list[Finding] = []
    missing = ""
    if claim.premise is not None:
        try:
            premise = judge(claim.premise, sources)
        except Missing as reason:
            return Judged(claim, Verdict.NOT_TESTED, missing=str(reason))
        findings.append(premise)
    for check in claim.checks:
        try:
            findings.append(judge(check, sources))
        except Missing as reason:
            missing = str(reason)
    found = [finding.verdict for finding in findings[claim.premise is not None :]]
    if claim.premise is not None and findings[0].verdict is not Verdict.HOLDS:
        verdict = Verdict.NOT_SHOWN
    elif Verdict.DOES_NOT_HOLD in found:
        verdict = Verdict.DOES_NOT_HOLD
    elif missing or not found:
        verdict = Verdict.NOT_TESTED
    else:
        verdict = Verdict.NOT_SHOWN if Verdict.NOT_SHOWN in found else Verdict.HOLDS
    return Judged(claim, verdict, tuple(findings), missing)
