# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The scripts of `recipes/scripts/` run, on few prompts, and print what their headers say."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from datasets import load_dataset


SCRIPTS = REPOSITORY / "recipes" / "scripts"
LONGEST = 90  # lines: a screen or two


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in this process, which has imported what it imports."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.py")), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_a_script_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_a_header_has_command_and_cost(path: Path) -> None:
    header = path.read_text().split('"""')[1]
    assert f"python recipes/scripts/{path.name}" in header
    assert path.name == "toy_server.py" or ("Cost:" in header and "rints" in header)
    assert path.name in (SCRIPTS / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "words", "printed"),
    [
        ("dpo_to_rrhf.py", ["--num_prompts", "2"], "RRHF: reward"),
        ("dpo_to_rrhf.py", ["--num_prompts", "2", "--all"], "RRHF: reward"),
        ("ppo_to_proxy_rlhf.py", ["--max_steps", "1", "--num_prompts", "2"], "with: I rented this"),
        ("own_reward.py", ["--num_prompts", "2"], '"you" in a completion'),
        ("several_rewards.py", ["--num_prompts", "2"], "2, -2: "),
        ("compare.py", ["--num_prompts", "2"], "base best of 16"),
    ],
)
def test_a_script_runs(
    name: str, words: list[str], printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, *words, monkeypatch=monkeypatch)
    assert printed in capsys.readouterr().out
    if name == "compare.py":
        assert {path.name for path in Path("outputs/compare").iterdir()} >= {"frontier.png", "evaluation.json"}


def test_a_model_is_guided_here_and_on_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"run steer_local\.py first"):
        run("steer_api.py", monkeypatch=monkeypatch)
    run("steer_local.py", "--num_prompts", "4", monkeypatch=monkeypatch)
    assert "beta -4: This film" in capsys.readouterr().out
    for mode, requests in (("token", 5), ("block", 1)):
        words = ["--max_completion_length", "4", "--beta", "4", "--mode", mode]
        run("steer_api.py", *words, monkeypatch=monkeypatch)
        out = capsys.readouterr().out
        assert "beta 4, KL " in out and f"{requests} requests" in out


def test_the_fifth_method_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package on the path, as an editable installation has it; tests/test_plugin.py is about entry points."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "fifth_method"))
    import torch
    from awr import METHOD
    from awr.losses import weighted_nll, weights

    # By hand: scores 2, 0, 1 differ from their mean by 1, -1, 0; at temperature 0.5 that is e^2 = 7.39 (cut at 5),
    # e^-2 = 0.1353 and 1. The loss is -(5 * -3 + 0.1353 * -6 + 1 * -1) / 3.
    weights_K = weights(torch.tensor([2.0, 0.0, 1.0]), 0.5, 5.0)
    torch.testing.assert_close(weights_K, torch.tensor([5.0, 0.1353353, 1.0]))
    torch.testing.assert_close(weighted_nll(torch.tensor([-3.0, -6.0, -1.0]), weights_K), torch.tensor(5.6040039))
    for name in ("weight_temperature", "max_weight"):
        with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
            METHOD.config_class()(**{"output_dir": "out", name: 0.0})

    recipe = yaml.safe_load((SCRIPTS / "fifth_method" / "awr.yaml").read_text())
    fields = {key: value for key, value in recipe.items() if not key.endswith("name_or_path")}
    fields = {key: value for key, value in fields.items() if key not in ("dataset_name", "eval_dataset_name")}
    folder = SCRIPTS / "fifth_method"
    rows = load_dataset("json", data_files=str(folder / recipe["dataset_name"]), split="train[:4]")
    trainer = METHOD.trainer_class()(
        str(folder / recipe["model_name_or_path"]),
        str(folder / recipe["reward_model_name_or_path"]),
        METHOD.config_class()(**fields | {"max_completion_length": 4}),
        rows,
        rows,
    )
    trainer.train()
    logged = trainer.state.log_history
    assert any("eval_reward" in line and "eval_weight/max" in line for line in logged)
