# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Shared by tests of the command: no launcher around them, YAML files, saved models."""

import textwrap

import pytest
from conftest import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """No launcher around the tests, and no `accelerate config` of the person who runs them."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "TRL_EXT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", "/nonexistent/default_config.yaml")


@pytest.fixture
def yaml_file(tmp_path):
    """A factory of YAML files: text -> path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture(scope="session")
def save_model():
    """A factory of saved tiny models whose tokenizer has no chat template: folder -> its name."""

    def save(folder, seed=0):
        tokenizer = make_tokenizer()
        make_model(len(tokenizer), seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def adapter_dir(tiny_model_dir, tmp_path_factory):
    """A LoRA adapter of the tiny model, without a tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("adapters") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    adapted.save_pretrained(path)
    return str(path)
