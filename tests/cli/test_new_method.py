# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext new-method`: the package that it writes passes its own test and trains."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from stranger import write_metadata

from trl_ext.cli import new_method
from trl_ext.cli.main import main


RUN = """
import sys

import pytest
from trl_ext.cli.main import main

status = pytest.main(["-q", "-p", "no:cacheprovider", "tests"])
few = "--max_steps 2 --resample_steps 1 --num_generations 2 --max_completion_length 8 --eval_on_start false"
sys.exit(status or main(f"plackett_luce --config recipes/quickstart.yaml {few} --eval_strategy no".split()))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "my-package"
    assert main(["new-method", "Plackett-Luce", str(folder)]) == 0
    return folder


def test_it_has_its_files_under_its_name(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    module = {f"plackett_luce/{name}.py" for name in ("__init__", "config", "data", "losses", "trainer")}
    assert module < files
    assert files - module >= {
        "README.md",
        "pyproject.toml",
        ".gitignore",
        "recipes/quickstart.yaml",
        "recipes/evaluate.yaml",
        "recipes/models/imdb-2m/model.safetensors",
        "recipes/prompts_train.jsonl",
        "tests/test_plackett_luce.py",
    }
    for name in files:
        if not name.startswith("recipes/models"):
            text = (package / name).read_text(encoding="utf-8").lower()
            assert not any(word in text for word in ("my_method", "my-method", "mymethod", "trl-ext authors")), name
    pyproject = (package / "pyproject.toml").read_text()
    assert 'name = "plackett-luce"' in pyproject
    assert 'plackett_luce = "plackett_luce:METHOD"' in pyproject
    assert "class PlackettLuceTrainer(OnlineTrainer)" in (package / "plackett_luce" / "trainer.py").read_text()


def test_caches_beside_the_template_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody ran Python or a linter there."""
    recipes = tmp_path / "recipes"
    shutil.copytree(REPOSITORY / "recipes" / "new_method", recipes / "new_method")
    shutil.copytree(REPOSITORY / "recipes" / "quickstart", recipes / "quickstart")
    for name in (".ruff_cache/0.17/1", "my_method/__pycache__/losses.pyc", ".DS_Store"):
        (recipes / "new_method" / name).parent.mkdir(parents=True, exist_ok=True)
        (recipes / "new_method" / name).write_bytes(b"\x89")  # not UTF-8
    monkeypatch.setattr(new_method, "recipes_folder", lambda: recipes)
    new_method.write_package("listwise", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".gitignore", "README.md", "listwise", "pyproject.toml", "recipes", "tests",
    }  # fmt: skip
    assert not list((tmp_path / "out").rglob("__pycache__"))


@pytest.mark.slow
def test_its_test_passes_and_its_recipe_trains(package: Path) -> None:
    write_metadata(package, "plackett-luce", {"plackett_luce": "plackett_luce:METHOD"})
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=package,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},  # whose -q would hide the count
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 passed" in result.stdout
    assert (package / "outputs" / "plackett_luce" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["listwise"], "takes a name and a directory"),
        (["listwise", "a", "b"], "takes a name and a directory"),
        (["1st", "x"], "cannot name a method"),
        (["a.b", "x"], "cannot name a method"),
        (["sample", "x"], "is a command of trl-ext"),
        (["class", "x"], "is a word of Python"),
        (["rrhf", "x"], "there is a method 'rrhf' already"),
        (["json", "x"], "there is a Python module 'json' already"),
    ],
)
def test_what_cannot_be_written_is_an_error(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", *words]) == 2
    assert error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("")
    for folder in (tmp_path, tmp_path / "mine.py"):
        assert main(["new-method", "listwise", str(folder)]) == 2
        assert "name another one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert main(["new-method"]) == 0
    assert "trl-ext new-method NAME DIRECTORY" in capsys.readouterr().out
