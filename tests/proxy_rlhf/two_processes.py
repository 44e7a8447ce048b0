# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Run by test_distributed.py through `accelerate launch`: trains, leaves weights, metrics and the process count."""

import json
import sys
from pathlib import Path

import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset

from trl_ext import ProxyRLHFConfig, ProxyRLHFTrainer


STARTS = ["the", "a", "one", "this", "that", "no", "we liked the", "I hated this"]


def main(folder: str, batch_size: str) -> None:
    args = ProxyRLHFConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=int(batch_size),
        per_device_eval_batch_size=int(batch_size),
        num_train_epochs=2,
        num_ppo_epochs=2,
        num_mini_batches=1,
        max_completion_length=6,
        top_k=6,
        kl_coef=0.1,
        target_kl=0.5,
        proxy_layer_sizes=[16],
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    tokenizer = make_tokenizer()
    trainer = ProxyRLHFTrainer(
        make_model(len(tokenizer)),
        letter_reward,
        args,
        Dataset.from_list([{"prompt": f"{start} film"} for start in STARTS]),
        processing_class=tokenizer,
    )
    trainer.train()
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(folder) / f"{args.process_index}.pt")
    if trainer.is_world_process_zero():
        logs = [log for log in trainer.state.log_history if "loss" in log]
        result = {
            "processes": trainer.accelerator.num_processes,
            "losses": [log["loss"] for log in logs],
            "rewards": [log["reward"] for log in logs if "reward" in log],
            "episodes": [log["episode"] for log in logs],
        }
        (Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
