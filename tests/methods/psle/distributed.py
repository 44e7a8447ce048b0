# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings of PSLE for tests/test_two_processes.py."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import letter_reward
from datasets import Dataset
from peft import LoraConfig
from two_processes import model_of

from trl_ext import PSLEConfig, PSLETrainer


STARTS = ["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"]
SFT_ROWS = [{"prompt": f"{start} film", "completion": f" was {start}"} for start in STARTS]


def make(
    folder: str, batch_size: int, *, lora: bool = False, sft: bool = False, streamed: bool = False, **changes: Any
) -> PSLETrainer:
    settings: dict[str, Any] = {
        "output_dir": folder,
        "bf16": False,
        "principles": ["so good", "no music"],
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": lora,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2 if lora else 4,
        "report_to": [],
        "max_completion_length": 4,
        "num_generations": 2,
        # With one candidate per token, completions do not depend on the RNG, nor on the process.
        "top_k": 1,
    }
    rows = Dataset.from_list([{"prompt": f"{start} film"} for start in STARTS])
    return PSLETrainer(
        model_of(folder),
        letter_reward,
        PSLEConfig(**settings | changes),
        rows,
        rows.to_iterable_dataset() if streamed else rows,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None,
        sft_dataset=Dataset.from_list(SFT_ROWS) if sft else None,
    )


CASES = {
    "full": make,
    "lora": partial(make, lora=True, beta=0.1),
    "warm_up": partial(make, sft=True, sft_epochs=1),
    "parts": partial(make, sft=True, sft_epochs=1, completions_per_forward=3),
    # A stream is evaluated beside rows; of several principles, a row has the same one on either number of processes.
    "resampled": partial(make, resample_steps=1, streamed=True, principles=["so good", "no music", "a story"]),
}
TWO_ONLY = {"sampled": partial(make, resample_steps=1, top_k=0)}


def cases_of(kind: str) -> list[str]:
    cases = [*CASES, *TWO_ONLY]
    return [name for name in cases if name != "parts"] if kind.startswith("zero") else cases  # they refuse it


def states(folder: Path, processes: int) -> list[dict[str, Any]]:
    """The state of the iterations that each process saved in a checkpoint."""
    files = [folder / "checkpoint-4" / f"iterations_{process}.json" for process in range(processes)]
    return [json.loads(file.read_text()) for file in files]


def check(two: dict[str, Any], one_folder: Path, two_folder: Path) -> None:
    for name in CASES:
        [expected] = states(one_folder / name, 1)
        for state in states(two_folder / name, 2):
            assert state["rewards"] == pytest.approx(expected["rewards"], rel=1e-5)
            assert state["threshold"] == expected["threshold"]
    # With different samples on each process, the statistics of the iterations are still the same.
    first, second = states(two_folder / "sampled", 2)
    assert first == second
