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
from typing import Any

import pytest
from conftest import REPOSITORY
from docs_build import made_with_the_site
from pages import DOCUMENTS

from trl_ext.method import discover


PLOTS = REPOSITORY / "docs" / "assets" / "losses"  # made with the site, which checks links to them


def command(name: str) -> str:
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(rf"<!-- command: {name} -->\n```bash\n(.+?)\n```", text, flags=re.DOTALL)
    assert found is not None, f"README.md has no command {name!r}"
    return found.group(1)


def example(language: str) -> str:
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(rf"<!-- example: {language} -->\n```{language}\n(.+?)\n```", text, flags=re.DOTALL)
    assert found is not None, f"README.md has no example in {language}"
    return found.group(1)


def test_the_python_example_trains(tiny_model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model of the same kind, and rows in the form of the dataset that it names."""
    from datasets import Dataset

    pair = {
        name: [{"role": "user", "content": "a question"}, {"role": "assistant", "content": text}]
        for name, text in (("chosen", "the best answer"), ("rejected", "no answer"))
    }
    loaded = []

    def load_dataset(name: str, split: str) -> Dataset:
        loaded.append((name, split))
        return Dataset.from_list([pair | {"score_chosen": 8.0, "score_rejected": 3.0}] * 2)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    code = example("python")
    assert len(code.splitlines()) <= 11
    run: dict[str, Any] = {}
    exec(code.replace("Qwen/Qwen2.5-0.5B-Instruct", tiny_model_dir), run)
    assert loaded == [("trl-lib/ultrafeedback_binarized", "train")]
    assert run["trainer"].state.global_step == 3


def test_the_yaml_example_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_ext.cli.train import make_parser

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "proxy.yaml"
    path.write_text(example("yaml"))
    assert len(path.read_text().splitlines()) == 5
    parser = make_parser(discover().methods["proxy_rlhf"].method)
    parser.build(parser.parse_flags(["--config", str(path)]))


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
    text = path.read_text()
    pictures = [(target, "") for target in re.findall(r"<[^>]+ src(?:set)?=\"([^\"]+)\"", text)]
    for target, anchor in [*re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text), *pictures]:
        if target.startswith("http"):
            continue
        page = (path.parent / target).resolve() if target else path
        if page in made_with_the_site():
            continue
        assert page.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(page), f"{path.name} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_documented_recipes_exist(path: Path) -> None:
    # A path is from a clone, or in a package that `trl-ext new-method` has written.
    folders = (REPOSITORY, REPOSITORY / "recipes" / "new_method")
    for name in re.findall(r"--config (\S+\.yaml)", path.read_text()):
        is_the_readers = "/" not in name or name.endswith("/config.yaml")
        is_there = any((folder / name).is_file() for folder in folders)
        assert is_the_readers or is_there, f"{path.name} names {name}"
