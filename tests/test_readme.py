# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The README's commands work as they are written, and the files and headings that pages link to exist."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


FOLDERS = ("trl_ext", "recipes", "benchmarks", "docs")
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md"))]
)


def command(name: str) -> str:
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(rf"<!-- command: {name} -->\n```bash\n(.+?)\n```", text, flags=re.DOTALL)
    assert found is not None, f"README.md has no command {name!r}"
    return found.group(1)


def test_the_test_command_installs_and_runs_pytest() -> None:
    assert command("tests") == 'pip install -c constraints.txt -e ".[test]" && pytest'


@pytest.mark.slow
def test_the_quickstart_raises_the_reward(tmp_path: Path) -> None:
    """As written, in a copy of what a clone holds; the package is installed already, which is its first part."""
    install, *steps = command("quickstart").split(" && ")
    assert install == "pip install -c constraints.txt -e ."
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for step in steps:
        done = subprocess.run(
            step,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed += done.stdout + done.stderr
    base, aligned = json.loads((tmp_path / "outputs/quickstart/evaluation.json").read_text())["models"]
    reward = "reward/imdb-2m-reward"
    assert aligned[reward] > base[reward] + 1
    assert 0 < aligned["kl"] < 15
    assert base["kl"] == 0
    assert "eval_reward" in printed, "no reward was shown"
    assert "prompt" in printed and "KL to base" in printed


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_anchors_exist(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        if target.startswith("http"):
            continue
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(page), f"{path.name} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_documented_recipes_exist(path: Path) -> None:
    # A path is from a clone, or in a package that `trl-ext new-method` has written.
    folders = (REPOSITORY, REPOSITORY / "recipes" / "new_method")
    for name in re.findall(r"--config (\S+\.yaml)", path.read_text()):
        is_of_a_run = name.endswith("/config.yaml")
        assert is_of_a_run or any((folder / name).is_file() for folder in folders), f"{path.name} names {name}"
