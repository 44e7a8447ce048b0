# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""`trl-ext recipes`, `trl-ext quickstart`, and the paths in a recipe."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trl_ext.cli import evaluate, train
from trl_ext.cli.config_file import recipes_folder
from trl_ext.cli.main import main
from trl_ext.cli.train import make_parser
from trl_ext.methods.rrhf import METHOD


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_has_every_recipe_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    folder = REPOSITORY / "recipes"
    files = [*folder.glob("*/*.yaml"), *folder.glob("scripts/*.py"), folder / "scripts/fifth_method/awr.yaml"]
    found = {str(path.relative_to(folder)) for path in files}
    assert {line for line in printed.splitlines() if line.endswith((".yaml", ".py"))} == {
        name for name in found if not name.startswith("accelerate/")
    }
    assert "    RRHF on a model small enough for two CPU cores" in printed
    assert "    A reward function of your own, in five lines, and RRHF trained with it." in printed


def test_a_copy_is_complete_and_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "rrhf", "quickstart/vas.yaml"]) == 0
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"recipes/quickstart/vas.yaml", "recipes/quickstart/prompts_train.jsonl"} <= copied
    assert "recipes/quickstart/models/imdb-2m/model.safetensors" in copied
    assert "recipes/quickstart/psle.yaml" not in copied
    assert "recipes/rrhf/llama-7b_full_hh_8gpu.yaml" in copied
    capsys.readouterr()
    assert main(["recipes", "copy", "rrhf"]) == 2
    assert "exists; remove it, or copy --to another folder" in capsys.readouterr().err
    assert main(["recipes", "copy", "rrhf", "--to", "other"]) == 0
    assert Path("other/rrhf/llama-7b_full_hh_8gpu.yaml").is_file()


@pytest.mark.parametrize("name", ["rejection_sampling", "rejection_sampling/imdb-2m_full_imdb_cpu.yaml"])
def test_a_recipe_with_the_model_of_the_quickstarts_comes_with_it(tmp_path: Path, name: str) -> None:
    assert main(["recipes", "copy", name]) == 0
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "recipes/rejection_sampling/imdb-2m_full_imdb_cpu.yaml" in copied
    assert {f"recipes/quickstart/models/{each}/model.safetensors" for each in ("imdb-2m", "imdb-2m-reward")} <= copied
    assert "recipes/quickstart/rrhf.yaml" not in copied


@pytest.mark.parametrize(
    "name",
    [
        "proxy_rlhf/smollm2-135m_frozen_instructions_cpu.yaml",  # names the prompts in its dataset
        "rrhf/smollm2-135m_lora_instructions_cpu.yaml",  # in the command of its header
        "psle",
    ],
)
def test_a_recipe_comes_with_its_prompts(tmp_path: Path, name: str) -> None:
    assert main(["recipes", "copy", name]) == 0
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "recipes/instructions/prompts_train.jsonl" in copied
    assert not any(each.startswith("recipes/quickstart") for each in copied)


def test_every_file_beside_which_a_recipe_looks_is_copied_with_it(tmp_path: Path) -> None:
    """Paths that go through another folder of recipes, which a user without a clone does not have."""
    for source in recipes_folder().glob("*/*.yaml"):
        named = re.findall(r"\.\./\w+/[\w./-]+", source.read_text(encoding="utf-8"))
        if named and source.parent.name != "accelerate":
            target = tmp_path / source.parent.name / source.stem
            assert main(["recipes", "copy", str(source.relative_to(recipes_folder())), "--to", str(target)]) == 0
            assert all((target / source.parent.name / path).exists() for path in named), source


def test_a_script_comes_with_its_model(tmp_path: Path) -> None:
    assert main(["recipes", "copy", "scripts/own_reward.py"]) == 0
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"recipes/scripts/own_reward.py", "recipes/quickstart/models/imdb-2m/model.safetensors"} <= copied
    assert "recipes/scripts/compare.py" not in copied
    assert main(["recipes", "copy", "scripts", "--to", "all"]) == 0
    assert {"scripts/compare.py", "scripts/fifth_method/awr/trainer.py", "quickstart/prompts_train.jsonl"} <= {
        str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*")
    }


@pytest.mark.parametrize("words", [["copy"], ["copy", "--all"], ["remove", "rrhf"], ["copy", "../tests"]])
def test_what_cannot_be_copied_is_an_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *words]) == 2
    assert "trl-ext recipes" in capsys.readouterr().err


def test_the_quickstart_trains_and_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(train, "main", lambda words: ran.append(words) or 0)
    monkeypatch.setattr(evaluate, "main", lambda words: ran.append(words) or 0)
    assert main(["quickstart", "rrhf"]) == 0
    assert main(["quickstart", "vas", "--max_steps", "1"]) == 0
    folder = REPOSITORY / "recipes" / "quickstart"
    assert ran == [
        ["rrhf", "--config", str(folder / "rrhf.yaml")],
        ["--config", str(folder / "rrhf_evaluate.yaml")],
        ["vas", "--config", str(folder / "vas.yaml"), "--max_steps", "1"],
        ["--config", str(folder / "vas_evaluate.yaml")],
    ]
    assert main(["quickstart", "dpo"]) == 2
    for flag in ("--output_dir", "--output-dir", "--config"):
        assert main(["quickstart", "rrhf", flag, "elsewhere"]) == 2


def test_every_method_has_both_recipes_of_the_quickstart() -> None:
    methods = ("rrhf", "psle", "vas", "proxy_rlhf")
    names = {path.stem for path in (recipes_folder() / "quickstart").glob("*.yaml")}
    assert names == {*methods, *(f"{method}_evaluate" for method in methods)}


class TestPathsInARecipe:
    def parse(self, recipe: str, folder: Path) -> dict[str, object]:
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text("output_dir: out\n" + recipe)
        return vars(make_parser(METHOD).parse_flags(["--config", str(folder / "recipe.yaml")]))

    def test_a_file_beside_the_recipe_is_found(self, tmp_path: Path) -> None:
        folder = tmp_path / "mine"
        (folder / "model").mkdir(parents=True)
        (folder / "rows.jsonl").touch()
        found = self.parse("model_name_or_path: model\ndataset_name: rows.jsonl\nreward_funcs: [model, a.b]\n", folder)
        assert found["model_name_or_path"] == str(folder / "model")
        assert found["dataset_name"] == str(folder / "rows.jsonl")
        assert found["reward_funcs"] == [str(folder / "model"), "a.b"]
        assert found["output_dir"] == "out"

    def test_the_working_directory_comes_first(self, tmp_path: Path) -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        for place in (tmp_path, folder):
            (place / "rows.jsonl").touch()
        assert self.parse("dataset_name: rows.jsonl\n", folder)["dataset_name"] == "rows.jsonl"

    def test_a_missing_file_is_an_error_that_names_both_places(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.parse("dataset_name: rows.jsonl\nmodel_name_or_path: m\n", tmp_path / "mine")
        assert main(["rrhf", "--config", str(tmp_path / "mine" / "recipe.yaml")]) == 2
        printed = capsys.readouterr().err
        assert "`dataset_name`: there is no file 'rows.jsonl', neither in the working directory" in printed
        assert f"nor beside the recipe ({tmp_path / 'mine'})" in printed

    def test_a_name_on_the_hub_stays(self, tmp_path: Path) -> None:
        assert self.parse("dataset_name: trl-lib/tldr\n", tmp_path / "mine")["dataset_name"] == "trl-lib/tldr"
