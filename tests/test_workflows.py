# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The workflows of GitHub: what they cover, that their commands exist, and what linters say about them."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY


FOLDER = REPOSITORY / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
JOBS = {(name, job): found for name, workflow in WORKFLOWS.items() for job, found in workflow["jobs"].items()}
# Programs that are on a runner, or that the extra `dev` installs.
PROGRAMS = {"pip", "python", "pytest", "ruff", "mypy", "lint-imports", "echo", "exit", "["}


def scripts(jobs: Any = JOBS) -> Iterator[tuple[str, str]]:
    """Every script of a step, with the name of its job."""
    for (workflow, job), found in jobs.items():
        for step in found["steps"]:
            if "run" in step:
                yield f"{workflow}/{job}", step["run"]


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a script, as words, without assignments and what is in `$(...)` or `${{ ... }}`."""
    plain = re.sub(r"\$\{\{.*?\}\}", "X", script)
    plain = re.sub(r"\"\$\(.*?\)\"", "X", plain, flags=re.DOTALL)
    for line in plain.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "{", "}"):
                if words:
                    yield words
                words = []
            elif not re.fullmatch(r"\w+=\S*", word):
                words.append(word)


def check(words: list[str]) -> None:
    """Fail unless a command and the files, modules and extras that it names exist in the repository."""
    program, *arguments = words
    if program.startswith(".ci/"):
        assert (REPOSITORY / program).stat().st_mode & 0o111, program
        return
    assert program in PROGRAMS, program
    for before, word in zip(words, arguments, strict=False):
        if before == "-c" and program == "pip":
            assert (REPOSITORY / word).is_file(), word
        if before == "-m" and program == "python":
            assert importlib.util.find_spec(word) is not None, word
        for extra in re.findall(r"^\.\[([\w,]+)\]$", word):
            assert set(extra.split(",")) <= EXTRAS.keys(), word
        if program == "pytest" and word.endswith(".py"):
            assert (REPOSITORY / word).is_file(), word


@pytest.mark.parametrize(("job", "script"), list(scripts()), ids=lambda value: value.replace("\n", " ")[:60])
def test_the_commands_of_a_step_exist(job: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))  # `python -m benchmarks...` runs in the root of the clone
    found = list(commands(script))
    assert found, job
    for words in found:
        check(words)


@pytest.mark.parametrize(
    "wrong",
    [
        ".ci/nothing",
        "nothing",
        "python -m benchmarks.nothing",
        'pip install ".[nothing]"',
        "pip install -c nothing.txt x",
    ],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        for words in commands(f"pip check && {wrong}"):
            check(words)


def test_the_arguments_of_the_rehearsals_are_those_of_the_command() -> None:
    from benchmarks.gpu_day.day import parser

    found = [words[3:] for _, script in scripts() for words in commands(script) if "benchmarks.gpu_day" in words]
    assert [parser().parse_args(words).suite for words in found] == ["speed", "chat"]
    assert all(parser().parse_args(words).rehearse for words in found)


def test_ci_covers_what_users_have() -> None:
    """Every Python that is supported, three systems, torch with and without CUDA."""
    jobs = WORKFLOWS["ci"]["jobs"]
    lowest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == [lowest, "3.12", "3.13"]
    systems = jobs["systems"]
    assert systems["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert any("download.pytorch.org/whl/cpu" in step.get("run", "") for step in systems["steps"])
    ran = {job: [step["run"] for step in found["steps"] if "run" in step] for job, found in jobs.items()}
    assert {"ruff format --check .", "ruff check .", "lint-imports", "mypy", ".ci/workflows"} <= set(ran["lint"])
    assert ran["package"] == [".ci/package"] and ran["test"] == [".ci/run"]
    assert any("not slow" in script for script in ran["systems"])
    nightly = WORKFLOWS["nightly"]["jobs"]
    assert any(step.get("env", {}).get("TRL_EXT_LONG") == "1" for step in nightly["long"]["steps"])
    assert ".ci/notebooks" in [script for _, script in scripts({("nightly", "notebooks"): nightly["notebooks"]})]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_checkout_keeps_no_credentials(path: Any) -> None:
    for job in WORKFLOWS[path.stem]["jobs"].values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def found_program(name: str) -> str:
    """A program beside this Python or on the path; without it the test is skipped."""
    beside = shutil.which(name, path=str(REPOSITORY.__class__(sys.executable).parent))
    if not (program := beside or shutil.which(name)):
        pytest.skip(f"{name} is not installed; `.ci/workflows` installs it")
    return program


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run([found_program("actionlint"), *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_finds_nothing() -> None:
    command = [found_program("zizmor"), "--offline", "--no-progress", "--format=json", str(FOLDER)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr
