# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Steps of a method's trainer on one process or under `accelerate launch` on several, timed, for `scaling`.

    [accelerate launch ... -m] python -m benchmarks.speed.process_steps <config.json>

The config has `method`, `processes`, `batch` (prompts of a step, over all processes), `rounds` (timed steps, after one
that is not), `seed` and `folder`, where each process leaves `rounds-<its number>.json`.
"""

import json
import os
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks.harness.models import MODELS
from benchmarks.harness.round_clock import RoundClock
from benchmarks.harness.text import PRINCIPLE, PROMPTS, pieces, read_rows


COMPLETIONS, PROMPT, NEW = 6, 24, 48  # of a prompt, and tokens of each


def make_trainer(config: dict[str, Any]) -> Any:
    """The trainer of a method on imdb-2m, with the share of the batch that a process gets."""
    from trl_ext import PSLEConfig, PSLETrainer, RRHFConfig, RRHFTrainer

    model, batch, rounds = str(MODELS / "imdb-2m"), config["batch"], config["rounds"]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": batch // config["processes"],
        "learning_rate": 1e-5,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "bf16": False,
        "disable_tqdm": True,
        "seed": config["seed"],
    }
    if config["method"] == "rrhf":
        tokenizer = AutoTokenizer.from_pretrained(model)
        texts = cycle(pieces(tokenizer, NEW))
        rows = [
            {"prompt": prompt, "completions": list(islice(texts, COMPLETIONS)), "scores": list(range(COMPLETIONS))}
            for prompt in islice(pieces(tokenizer, PROMPT), batch)
        ]
        args = RRHFConfig(config["folder"], max_steps=rounds + 1, **settings)
        return RRHFTrainer(model, args=args, train_dataset=Dataset.from_list(rows))
    prompts = [{"prompt": row["prompt"]} for row in read_rows(str(PROMPTS), batch)]
    sampling: dict[str, Any] = {"max_completion_length": NEW, "top_k": 50, "principles": [PRINCIPLE.strip()]}
    args = PSLEConfig(config["folder"], num_iterations=rounds + 1, **sampling, **settings)
    reward = str(MODELS / "imdb-2m-reward")
    return PSLETrainer(model, reward_funcs=reward, args=args, train_dataset=Dataset.from_list(prompts))


def main(argv: list[str] | None = None) -> int:
    (path,) = sys.argv[1:] if argv is None else argv
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    trainer = make_trainer(config)
    if trainer.accelerator.num_processes != config["processes"]:
        raise RuntimeError(f"{trainer.accelerator.num_processes} processes, not {config['processes']}.")
    file = Path(config["folder"]) / f"rounds-{trainer.accelerator.process_index}.json"
    trainer.add_callback(RoundClock(file, steps=1))
    trainer.train()
    if torch.distributed.is_initialized():
        trainer.accelerator.wait_for_everyone()
        # What is to be known is in the file. At the interpreter's end a thread of gloo that has still to drop a tensor
        # cannot have the GIL, and the process is aborted (torch 2.13, one launch in some hundreds).
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
