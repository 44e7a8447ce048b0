# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Run by test_distributed.py through `accelerate launch`: trains, leaves weights, metrics and the process count."""

import json
import sys
from pathlib import Path

import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset

from trl_ext import ValueModel, VASConfig, VASTrainer


WORDS = ["good", "very bad", "dull and not great", "worst ever seen", "best"]
ROWS = [
    {
        "prompt": f"{start} film",
        "completions": [f" {WORDS[(i + j) % 5]}" for j in range(1 + i % 4)],
        "scores": [float((i + j) % 3) for j in range(1 + i % 4)],
    }
    for i, start in enumerate(["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"])
]


def main(folder: str, sampling: str, batch_size: str) -> None:
    online = sampling == "online"
    args = VASConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        per_device_eval_batch_size=int(batch_size),
        num_train_epochs=2,
        num_epochs_per_batch=1 if online else 2,
        normalize_rewards=True,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        num_iterations=2 if online else 1,
        sampling_beta=1.0 if online else 0.0,
        calibration_rollouts=2 if online else 0,
        num_generations=2,
        max_completion_length=4,
    )
    tokenizer = make_tokenizer()
    trainer = VASTrainer(
        make_model(len(tokenizer)),
        letter_reward if online else None,
        args,
        Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS] if online else ROWS),
        Dataset.from_list(ROWS),
        tokenizer,
        value_model=ValueModel.from_backbone(make_model(len(tokenizer), seed=1)),
    )
    trainer.train()
    metrics = trainer.evaluate()
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(folder) / f"{args.process_index}.pt")
    config = trainer.model.config
    (Path(folder) / f"{args.process_index}.json").write_text(json.dumps([config.reward_mean, config.reward_std]))
    if trainer.is_world_process_zero():
        result = {
            "processes": trainer.accelerator.num_processes,
            "type": str(trainer.accelerator.distributed_type),
            "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
            "tokens": [log["num_tokens"] for log in trainer.state.log_history if "num_tokens" in log],
            "metrics": {k: v for k, v in metrics.items() if not k.endswith(("time", "runtime", "per_second"))},
        }
        (Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
