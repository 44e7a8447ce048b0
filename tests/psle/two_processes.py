# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Run by test_distributed.py through `accelerate launch`: trains, leaves weights, metrics and the process count."""

import json
import sys
from pathlib import Path

import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset

from trl_ext import PSLEConfig, PSLETrainer


STARTS = ["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"]


def main(folder: str, schedule: str, batch_size: str, top_k: str) -> None:
    args = PSLEConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        principles=["so good", "no music"],
        per_device_train_batch_size=int(batch_size),
        per_device_eval_batch_size=int(batch_size),
        num_iterations=2,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=1,
        report_to=[],
        resample_steps=int(schedule),
        max_completion_length=4,
        num_generations=2,
        top_k=int(top_k),
    )
    tokenizer = make_tokenizer()
    trainer = PSLETrainer(
        make_model(len(tokenizer)),
        letter_reward,
        args,
        Dataset.from_list([{"prompt": f"{start} film"} for start in STARTS]),
        processing_class=tokenizer,
    )
    trainer.train()
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(folder) / f"{args.process_index}.pt")
    if trainer.is_world_process_zero():
        names = ("loss", "threshold", "reward_scale", "ranked_share", "rewards/plain", "principle_win_rate")
        logs = [log for log in trainer.state.log_history if "loss" in log]
        result = {
            "processes": trainer.accelerator.num_processes,
            "logs": [{name: log[name] for name in names if name in log} for log in logs],
        }
        (Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
