# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings of RRHF for tests/test_two_processes.py."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import letter_reward
from datasets import Dataset
from peft import LoraConfig
from two_processes import model_of

from trl_ext import RRHFConfig, RRHFTrainer


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


def make(folder: str, batch_size: int, *, online: bool = False, lora: bool = False, **changes: Any) -> RRHFTrainer:
    settings: dict[str, Any] = {
        "output_dir": folder,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": lora,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "num_generations": 2,
        "max_completion_length": 4,
    }

    def reward(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
        with Path(folder, f"asked_{os.environ.get('RANK', '0')}").open("a") as file:
            file.write(json.dumps(prompts) + "\n")
        return letter_reward(completions)

    return RRHFTrainer(
        model_of(folder),
        args=RRHFConfig(**settings | changes),
        train_dataset=Dataset.from_list(PROMPTS if online else ROWS),
        eval_dataset=Dataset.from_list(PROMPTS if online else ROWS),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None,
        reward_funcs=reward if online else None,
    )


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, torch.nan)


def make_spoilt(folder: str, batch_size: int) -> RRHFTrainer:
    """A trainer in whose second step the last process has a NaN gradient under a finite loss."""
    trainer = make(folder, batch_size, nan_loss="skip")
    inner, last = trainer.compute_loss, trainer.accelerator.is_last_process

    def compute_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = inner(*args, **kwargs)
        return _NoGradient.apply(loss) if last and trainer.state.global_step == 1 and trainer.model.training else loss

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    return trainer


# Most tokens end an answer, so that processes are done at different times.
ENDS = {"eos_token_id": list(range(1, 120))}
CASES = {
    "full": partial(make, save_strategy="steps", save_steps=2),
    "lora": partial(make, lora=True),
    "reference": partial(make, ranking_loss="listwise_dpo", ranking_reference="policy"),
    "lora reference": partial(make, lora=True, ranking_loss="listwise_dpo", ranking_reference="policy"),
    "spoilt": make_spoilt,
    "parts": partial(make, completions_per_forward=2, gradient_accumulation_steps=2, num_train_epochs=3),
    "parts with lora": partial(make, lora=True, completions_per_forward=1),
    # With one candidate per token, completions do not depend on the RNG, nor on the process.
    "online": partial(make, online=True, resample_epochs=2, top_k=1, beta=0.1),
}
SAMPLED = {"generation_kwargs": ENDS, "generation_batch_size": 2, "beta": 0.1, "max_completion_length": 8}
TWO_ONLY = {
    "sampled": partial(make, online=True, resample_steps=1, **SAMPLED),
    "sampled while sharded": partial(make, online=True, resample_steps=1, ds3_gather_for_generation=False, **SAMPLED),
    "sampled in parts": partial(make, online=True, resample_steps=1, completions_per_forward=3, **SAMPLED),
}


def cases_of(kind: str) -> list[str]:
    uneven = TWO_ONLY if kind in ("fsdp2", "zero3") else {}
    cases = [*CASES, *uneven]
    if not kind.startswith("zero"):
        return cases
    # DeepSpeed takes its step before anybody can leave it out, and with the first of several backward passes.
    return [name for name in cases if name != "spoilt" and "parts" not in name]


def check(two: dict[str, Any], one_folder: Path, two_folder: Path) -> None:
    """Each process scored its own prompts, each with all of its completions; together they scored all."""
    asked = [(two_folder / "online" / f"asked_{rank}").read_text().splitlines()[0] for rank in range(2)]
    first, second = (json.loads(line) for line in asked)
    assert first[::2] == first[1::2] and second[::2] == second[1::2]
    assert sorted(first[::2] + second[::2]) == sorted(row["prompt"] for row in PROMPTS)
    for name in TWO_ONLY.keys() & two.keys():
        assert len(two[name]["logs"]) == 4
