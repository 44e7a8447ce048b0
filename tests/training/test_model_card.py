# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a run of each trainer leaves behind; its model card has metadata, and code that runs as it is written there."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from trl_ext import (
    ProxyRLHFConfig,
    ProxyRLHFTrainer,
    PSLEConfig,
    PSLETrainer,
    RRHFConfig,
    RRHFTrainer,
    VASConfig,
    VASTrainer,
)
from trl_ext.cards import link, published, quoted
from trl_ext.training.model_card import _results, dataset_name


ROWS = [{"prompt": "the film", "completions": [" was good", " was bad"], "scores": [1.0, 0.0]}] * 2
PROMPTS = [{"prompt": "the film"}] * 2
SETTINGS = {"report_to": "none", "save_strategy": "no", "max_steps": 1, "learning_rate": 1e-3}
LORA = {"r": 4, "target_modules": ["q_proj"]}


def rrhf(model: Any, **kwargs: Any) -> Any:
    return RRHFTrainer(model, args=RRHFConfig("out", **SETTINGS), train_dataset=rows(), **kwargs)


def psle(model: Any, **kwargs: Any) -> Any:
    args = PSLEConfig("out", **SETTINGS, max_completion_length=2, principles=["Be kind."])
    return PSLETrainer(model, letter_reward, args, Dataset.from_list(PROMPTS), **kwargs)


def vas(model: Any, **kwargs: Any) -> Any:
    if "peft_config" not in kwargs:
        kwargs = {"value_model": model} | kwargs
    return VASTrainer(model, args=VASConfig("out", **SETTINGS), train_dataset=rows(), **kwargs)


def proxy(model: Any, **kwargs: Any) -> Any:
    args = ProxyRLHFConfig("out", **SETTINGS, max_completion_length=2)
    return ProxyRLHFTrainer(model, letter_reward, args, Dataset.from_list(PROMPTS), **kwargs)


def rows() -> Dataset:
    return Dataset.from_list(ROWS)


TRAINERS = {
    "rrhf": (rrhf, {}),
    "rrhf-lora": (rrhf, {"peft_config": LoraConfig(**LORA, task_type="CAUSAL_LM")}),
    "psle": (psle, {}),
    "vas": (vas, {}),
    "vas-lora": (vas, {"peft_config": LoraConfig(**LORA)}),
    "proxy": (proxy, {}),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a language model in `models/lm`."""
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(tmp_path / "models" / "lm")
    tokenizer.save_pretrained(tmp_path / "models" / "lm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(card: str) -> tuple[dict[str, Any], str, str]:
    """Metadata, text and code of a card."""
    _, metadata, text = card.split("---\n", 2)
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return yaml.safe_load(metadata), text, code


@pytest.mark.parametrize("name", TRAINERS)
def test_the_code_of_a_card_runs(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, kwargs = TRAINERS[name]
    trainer = make("models/lm", **kwargs)
    trainer.train()
    trainer.save_model()
    metadata, text, code = parts((folder / "out" / "README.md").read_text())
    assert "Writing model shards" not in capsys.readouterr().err  # a bar of transformers: there is no terminal
    exec(compile(re.sub(r"max_new_tokens=\d+", "max_new_tokens=3", code), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert "None" not in text and "license" not in metadata and "base_model" not in metadata
    assert {"trl", "trl-ext", "generated_from_trainer"} <= set(metadata["tags"])
    guides = name.startswith(("vas", "proxy"))
    assert metadata["library_name"] == ("trl-ext" if guides else "peft" if "lora" in name else "transformers")
    assert ("It writes no text itself" in text) == guides
    assert trainer._paper["id"] in text and "vonwerra2020trl" in text
    assert all(each in text for each in ("- trl-ext: ", "- peft: ", "learning_rate: 0.001", "| `train_loss` | "))
    assert ("`letter_reward` (weight 1)" in text) == name.startswith(("psle", "proxy"))
    assert re.search(r"2 rows with `prompt`", text) and str(folder) not in text.replace(code, "")

    settings = yaml.safe_load((folder / "out" / "config.yaml").read_text())
    assert settings["model_name_or_path"] == str(folder / "models" / "lm")
    assert settings["output_dir"] == str(folder / "out") and settings["max_steps"] == 1 and settings["seed"] == 42
    assert settings.get("use_peft", False) == ("lora" in name)
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == trainer.state.log_history and "train_loss" in lines[-1]


@pytest.mark.parametrize("name", ["rrhf", "vas", "proxy"])
def test_names_on_the_hub(folder: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained("models/lm")
    model.config.name_or_path = "org/policy"
    make, kwargs = TRAINERS[name]
    kwargs = kwargs | {"value_model": make_model(len(make_tokenizer()))} if name == "vas" else kwargs
    trainer = make(model, processing_class=make_tokenizer(), **kwargs)
    trainer.hub_model_id = "me/trained"
    trainer.create_model_card(dataset_name="org/data", tags="mine")
    metadata, text, code = parts((folder / "out" / "README.md").read_text())
    assert metadata["base_model"] in ("org/policy", ["org/policy"])
    assert (metadata["datasets"], metadata["model_name"]) == (["org/data"], "trained")
    assert "mine" in metadata["tags"]
    assert "'me/trained'" in code and str(folder) not in text
    assert "[org/policy](https://huggingface.co/org/policy)" in text
    assert "[org/data](https://huggingface.co/datasets/org/data)" in text


def test_paths_of_this_machine_are_not_published(folder: Path) -> None:
    assert quoted(str(folder / "models" / "lm"), published=True) == "'path/to/lm'"
    assert quoted("models/lm", published=False) == "'models/lm'"
    assert link(str(folder / "models" / "lm")) == "the model `lm`"
    assert link("") == "a language model"
    assert published({"path": ["/home/me/data.jsonl", "org/name"]}) == {"path": ["path/to/data.jsonl", "org/name"]}
    assert published("f is imported from /home/me/work: see https://a.b/c/d.") == (
        "f is imported from path/to/work: see https://a.b/c/d."
    )


def test_the_dataset_is_known_from_where_it_was_loaded() -> None:
    dataset = rows()
    assert dataset_name(dataset) is None
    dataset.info.download_checksums = {"hf://datasets/org/data@1234/train.parquet": {"num_bytes": 3}}
    assert dataset_name(dataset.map(lambda row: row)) == "org/data"


def trained(history: list[dict[str, Any]], step: int, best: int | None = None) -> Any:
    state = SimpleNamespace(log_history=history, global_step=step, best_global_step=best)
    return SimpleNamespace(state=state, args=SimpleNamespace(load_best_model_at_end=best is not None))


def test_the_last_results_of_training_and_evaluation_stand_side_by_side() -> None:
    history = [
        {"step": 1, "loss": 3.0, "learning_rate": 0.1},
        {"step": 2, "loss": 2.0, "epoch": 1.0, "reward": 0.5},
        {"step": 2, "eval_loss": 2.5, "eval_runtime": 9.0, "eval_samples_per_second": 1.0},
    ]
    [said, lines] = _results(trained(history, 2))
    assert lines.splitlines()[2:] == ["| `loss` | 2 | 2.5 |", "| `reward` | 0.5 |  |"] and "at step 2" in said
    assert not _results(trained([], 0))


def test_results_are_those_of_the_step_that_was_taken_back() -> None:
    """`load_best_model_at_end`: the model is that of step 1; while it trains on, a checkpoint has the last step's."""
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 1, "eval_loss": 2.5},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 3.5},
    ]
    [said, lines] = _results(trained(history, 2, best=1))
    assert lines.splitlines()[2:] == ["| `loss` | 1 | 3.5 |"] and "at step 2" in said
    history.append({"step": 2, "train_runtime": 9.0, "train_loss": 1.5})
    [said, lines] = _results(trained(history, 2, best=1))
    assert lines.splitlines()[2:] == ["| `loss` | 2 | 2.5 |"] and "at step 1" in said
    [_, lines] = _results(trained([*history, {"step": 2, "eval_reward": 0.5}], 2, best=1))
    assert lines.splitlines()[2:] == ["| `loss` | 2 | 2.5 |", "| `reward` |  | 0.5 |"]
