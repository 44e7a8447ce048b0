# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings of Proxy-RLHF for tests/test_two_processes.py."""

from functools import partial
from typing import Any

from conftest import letter_reward
from datasets import Dataset
from two_processes import model_of

from trl_ext import ProxyRLHFConfig, ProxyRLHFTrainer


STARTS = ["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"]


def make(folder: str, batch_size: int, **changes: Any) -> ProxyRLHFTrainer:
    settings: dict[str, Any] = {
        "output_dir": folder,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "num_train_epochs": 2,
        "num_ppo_epochs": 2,
        "num_mini_batches": 1,
        "max_completion_length": 6,
        "top_k": 6,
        "kl_coef": 0.1,
        "target_kl": 0.5,
        "proxy_layer_sizes": [16],
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
    }
    rows = Dataset.from_list([{"prompt": f"{start} film"} for start in STARTS])
    return ProxyRLHFTrainer(
        model_of(folder),
        letter_reward,
        ProxyRLHFConfig(**settings | changes),
        rows,
        rows,
    )


# Each completion has an RNG of its own, whichever process generates it.
CASES = {
    "critic": partial(make, save_strategy="steps", save_steps=2),
    "context": partial(make, advantage_estimator="rloo", num_generations=2, feature="context"),
}


def cases_of(kind: str) -> list[str]:
    return list(CASES)
