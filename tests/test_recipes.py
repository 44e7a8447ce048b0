# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Every recipe is what the command takes, each method has the four of them, and the quickstarts run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LONG, REPOSITORY

from trl_ext.cli.launch import launcher_options
from trl_ext.cli.main import main
from trl_ext.cli.train import make_parser
from trl_ext.method import discover


FOLDER = REPOSITORY / "recipes"
# Guide files have tests of their own, tests/guides/test_presets.py.
RECIPES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in ("accelerate", "decoding"))
METHODS = ("rrhf", "vas", "psle", "proxy_rlhf")
TRAINED = "full|lora|qlora|frozen|frozen4bit"
HARDWARE = r"cpu|1gpu|24gb|8gpu"


def header_of(path: Path) -> str:
    return path.read_text().split("\n\n")[0]


def method_of(path: Path) -> Any:
    found = re.search(r"^#   trl-ext (\w+) --config", header_of(path), flags=re.MULTILINE)
    assert found is not None, f"the header of {path} has no command"
    return found.group(1)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipe_is_parsed_strictly(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is a field (or a flag of accelerate), of the right type; the header says what, how and on what."""
    header = header_of(path)
    assert f"--config {path.relative_to(REPOSITORY)}" in header
    assert "Hardware:" in header and ("UNTESTED" in header or "easured" in header)
    if method_of(path) == "evaluate":
        from trl_ext.cli.evaluate import make_parser as make_evaluate_parser

        make_evaluate_parser().parse_args_and_config(["--config", str(path)])
        return
    parser = make_parser(discover().methods[method_of(path)].method)
    monkeypatch.chdir(tmp_path)
    if not _has_accelerator() and yaml.safe_load(path.read_text()).get("bf16"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rewards = re.search(r"--reward_\w+", header)  # the reward model is the user's, in the command of some recipes
    flags = parser.parse_flags(["--config", str(path), *([rewards[0], "r"] if rewards else [])])
    parser.build(flags)
    assert set(launcher_options(parser.other_flags(flags))) <= {"num_processes", "config_file"}


def test_a_key_that_nobody_knows_is_noticed(tmp_path: Path) -> None:
    """The test above can fail."""
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_ratee: 1\n")
    parser = make_parser(discover().methods["rrhf"].method)
    with pytest.raises(ValueError, match="unknown key 'learning_ratee'; did you mean 'learning_rate'"):
        parser.parse_flags(["--config", str(path)])


def _has_accelerator() -> bool:
    from trl_ext.devices import accelerator_count

    return accelerator_count() > 0


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_the_four_recipes(method: str) -> None:
    assert (FOLDER / "quickstart" / f"{method}.yaml").is_file()
    names = [path.name for path in (FOLDER / method).glob("*.yaml")]
    for pattern in (
        r"qwen2\.5-0\.5b_(lora|frozen)_.*_1gpu",
        r".*[78]b_(qlora|frozen4bit)_.*_24gb",
        r".*[78]b_.*_8gpu",
    ):
        assert any(re.fullmatch(rf"{pattern}\.yaml", name) for name in names), f"{pattern} in {names}"


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name != "quickstart"], ids=lambda path: path.name)
def test_a_name_says_what_the_file_does(path: Path) -> None:
    found = re.fullmatch(rf"[^_]+_({TRAINED})_[^_]+_({HARDWARE})(_\w+)?", path.stem)
    assert found is not None, f"{path.name} is not <model>_<{TRAINED}>_<dataset>_<{HARDWARE}>.yaml"
    settings, (trained, hardware) = yaml.safe_load(path.read_text()), found.groups()[:2]
    assert method_of(path) == path.parent.name
    assert settings.get("use_peft", False) == (trained in ("lora", "qlora"))
    assert settings.get("load_in_4bit", False) == (trained in ("qlora", "frozen4bit"))
    assert settings.get("num_processes", 1) == (8 if hardware == "8gpu" else 1)
    if hardware == "8gpu":
        assert settings["accelerate_config"] == "fsdp2"


def test_the_list_has_all_of_them() -> None:
    """Once each; a recipe that its header calls UNTESTED has no result there."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    for path in RECIPES:
        named = [line for line in lines if line.startswith("|") and f"({path.relative_to(FOLDER)})" in line]
        assert len(named) == 1, f"{path} is named in {len(named)} rows of recipes/README.md"
        assert ("UNTESTED" in header_of(path)) == ("UNTESTED" in named[0]), f"{path}: the header and the list disagree"


# Fewer steps of the same settings; the whole of it, which a change of the results would be seen in, in the long form.
SHORT = {
    "rrhf": ["--num_train_epochs", "1", "--resample_epochs", "0", "--resample_steps", "1", "--max_steps", "3"],
    "vas": ["--num_generations", "2", "--max_steps", "3"],
    "psle": ["--resample_steps", "1", "--max_steps", "3"],
    "proxy_rlhf": ["--max_steps", "18", "--logging_steps", "6"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_quickstart_runs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written in the long form; otherwise with few steps, and without the evaluations before and after."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "recipes").symlink_to(FOLDER)
    monkeypatch.chdir(tmp_path)
    # A folder of checkpoints holds the trainer's log, which is what says how it went.
    words = ["--save_strategy", "steps", "--save_steps", "1000000", "--disable_tqdm", "true"]
    if not LONG:
        words += [*SHORT[method], "--logging_steps", "1"] if method != "proxy_rlhf" else SHORT[method]
        words += ["--eval_strategy", "no", "--eval_on_start", "false", "--max_completion_length", "16"]
    assert main([method, "--config", f"recipes/quickstart/{method}.yaml", *words]) == 0
    output = Path(yaml.safe_load((FOLDER / "quickstart" / f"{method}.yaml").read_text())["output_dir"])
    assert (output / "model.safetensors").is_file()
    (state,) = output.glob("checkpoint-*/trainer_state.json")
    logs = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert logs and all(math.isfinite(entry["loss"]) for entry in logs)
    if LONG and method != "vas":  # which trains no language model: its reward is that of the samples
        rewards = [entry["reward"] for entry in logs if "reward" in entry]
        assert rewards[-1] > rewards[0] + 0.5
