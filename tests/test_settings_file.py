# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings in a file: absolute paths, no secrets, notes about what YAML cannot hold."""

import pytest
import yaml

from trl_ext.settings_file import RunSettings, plain, versions


def test_paths_are_absolute_where_they_name_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "none").mkdir()
    settings = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "reward_funcs": ["model", "org/reward", "think_format_reward"],
        "datasets": [{"path": "rows.jsonl", "data_files": ["rows.jsonl"], "split": "train"}],
        "output_dir": "out",
        "report_to": "none",  # also the name of a folder here
    }
    here = str(tmp_path)
    assert RunSettings.of(settings).values == {
        "model_name_or_path": f"{here}/model",
        "dataset_name": f"{here}/rows.jsonl",
        "reward_funcs": [f"{here}/model", "org/reward", "think_format_reward"],
        "datasets": [{"path": f"{here}/rows.jsonl", "data_files": [f"{here}/rows.jsonl"], "split": "train"}],
        "output_dir": f"{here}/out",
        "report_to": "none",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"hub_token": "secret"},
        {"model_init_kwargs": {"token": "secret", "dtype": "auto"}},
        {"model_init_kwargs": '{"token": "secret", "dtype": "auto"}'},
        {"reward_server_kwargs": {"extra_body": {"headers": {"Authorization": "Bearer secret"}}}},
        {"reward_server_kwargs": {"api_key": "secret"}},
        {"env": {"WANDB_API_KEY": "secret", "HF_TOKEN": "secret", "TOKENIZERS_PARALLELISM": "false"}},
        {"reward_funcs": ["http://me:secret@host:5000/get_reward"]},
        {"generation_kwargs": {"note": "hf_secretsecretsecretsecret"}},
    ],
)
def test_secrets_are_not_written(settings):
    text = RunSettings.of(settings).text("A run")
    assert "secret" not in text.replace("a secret", "") and "# Not expressed by these settings:" in text
    values = yaml.safe_load(text) or {}
    assert values.get("model_init_kwargs", {"dtype": "auto"}) == {"dtype": "auto"}
    assert values.get("env", {"TOKENIZERS_PARALLELISM": "false"}) == {"TOKENIZERS_PARALLELISM": "false"}


def test_names_that_only_look_like_secrets_are_written():
    settings = {
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "reward_server_kwargs": {"api_key_variable": "MY_KEY"},
        "hub_token": None,
    }
    found = RunSettings.of(settings)
    assert found.values == settings and not found.notes


def test_objects_become_notes_and_the_text_is_read_back(tmp_path, monkeypatch):
    import torch
    from transformers.trainer_utils import IntervalStrategy

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").touch()
    found = RunSettings.of(
        {
            "learning_rate": 2e-5,
            "eval_strategy": IntervalStrategy.EPOCH,
            "model_init_kwargs": {"dtype": torch.bfloat16},
            "principles": ["Sei freundlich: 100 % möglich.", "no"],
            "callbacks": object(),
            "reward_funcs": ["rewards.mine"],
        }
    )
    text = found.text("RRHF", "trl-ext rrhf --config /out/config.yaml")
    assert yaml.safe_load(text) == {
        "learning_rate": 2e-5,
        "eval_strategy": "epoch",
        "model_init_kwargs": {"dtype": "bfloat16"},
        "principles": ["Sei freundlich: 100 % möglich.", "no"],
        "reward_funcs": ["rewards.mine"],
    }
    assert "#   trl-ext rrhf --config /out/config.yaml\n" in text and f"trl {versions()['trl']}" in text
    assert "`callbacks` is a Python object" in text and f"imported from {tmp_path}: run the command there" in text
    with pytest.raises(TypeError, match="object has no form"):
        plain([object()])
