# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings of VAS for tests/test_two_processes.py."""

from functools import partial
from pathlib import Path
from typing import Any

from conftest import letter_reward
from datasets import Dataset
from peft import LoraConfig
from two_processes import model_of

from trl_ext import VASConfig, VASTrainer


WORDS = ["good", "very bad", "dull and not great", "worst ever seen", "best"]
ROWS = [
    {
        "prompt": f"{start} film",
        "completions": [f" {WORDS[(i + j) % 5]}" for j in range(1 + i % 4)],
        "scores": [float((i + j) % 3) for j in range(1 + i % 4)],
    }
    for i, start in enumerate(["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"])
]
PROMPTS = [{"prompt": row["prompt"]} for row in ROWS]


def with_value_prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, whose value model reads a prompt of another length."""
    return [{**row, "value_prompt": "good " * (i % 3) + row["prompt"]} for i, row in enumerate(rows)]


def make(
    folder: str,
    batch_size: int,
    *,
    online: bool = False,
    lora: bool = False,
    own: bool = True,
    value_prompts: bool = False,
    **changes: Any,
) -> VASTrainer:
    train, held_out = PROMPTS if online else ROWS, ROWS
    if value_prompts:
        train, held_out = with_value_prompts(train), with_value_prompts(held_out)
    settings: dict[str, Any] = {
        "output_dir": folder,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "num_train_epochs": 2,
        "num_epochs_per_batch": 1 if online else 2,  # two have targets that each process keeps for its own rows
        "normalize_rewards": True,
        "learning_rate": 1e-3,
        "gradient_checkpointing": lora,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "num_generations": 2,
        "max_completion_length": 4,
        # With one candidate per token, completions do not depend on the process that samples them.
        "top_k": 1,
    }
    return VASTrainer(
        model_of(folder),
        letter_reward if online else None,
        VASConfig(**settings | changes),
        Dataset.from_list(train),
        Dataset.from_list(held_out),
        peft_config=LoraConfig(target_modules="all-linear") if lora else None,
        value_model=model_of(folder, 1) if own else None,
    )


CASES = {
    "full": make,
    "lora": partial(make, lora=True, save_strategy="steps", save_steps=2),
    "online": partial(make, online=True, num_iterations=2, sampling_beta=1.0, calibration_rollouts=2),
    "value prompts": partial(make, online=True, value_prompts=True, num_iterations=2, sampling_beta=1.0),
    # An adapter on the language model's own weights is for DDP only.
    "shared": partial(make, lora=True, own=False, online=True, num_iterations=2, sampling_beta=1.0),
}


def cases_of(kind: str) -> list[str]:
    return [name for name in CASES if name != "shared" or kind == "multi_gpu"]


def check(two: dict[str, Any], one_folder: Path, two_folder: Path) -> None:
    assert "eval_calibration/r2" in two["online"]["metrics"]
