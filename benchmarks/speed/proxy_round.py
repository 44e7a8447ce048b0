# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Rounds of Proxy-RLHF in a process of its own, timed, for `ppo_round`.

    python -m benchmarks.speed.proxy_round <config.json>

The config has the fields of `ProxyRLHFConfig`, those of ppo_driver.py for models and prompts, and `rounds_file`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.round_clock import RoundClock
from benchmarks.harness.text import read_rows
from trl_ext.devices import accelerator_count
from trl_ext.methods.proxy_rlhf.config import ProxyRLHFConfig
from trl_ext.methods.proxy_rlhf.trainer import ProxyRLHFTrainer


def make_trainer(config: dict[str, Any]) -> ProxyRLHFTrainer:
    """A trainer whose responses end at `max_completion_length` and not before, as TRL's PPO without a stop token."""
    model, reward = config.pop("model_name_or_path"), config.pop("reward_model_name_or_path")
    rows, rounds_file = read_rows(config.pop("dataset_name")), config.pop("rounds_file")
    args = ProxyRLHFConfig(**config, use_cpu=not accelerator_count())
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = tokenizer.pad_token  # which a model does not write
    trainer = ProxyRLHFTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward,
        args,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[RoundClock(Path(rounds_file), steps=args.updates_per_round)],
    )
    trainer.language_model.generation_config.eos_token_id = None
    return trainer


def main(argv: list[str] | None = None) -> int:
    (path,) = sys.argv[1:] if argv is None else argv
    trainer = make_trainer(json.loads(Path(path).read_text(encoding="utf-8")))
    trainer.train()
    trainer.save_model()
    lengths = {row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row}
    if lengths != {trainer.args.max_completion_length}:
        raise RuntimeError(f"Responses of {sorted(lengths)} tokens: the rounds are not those that were asked for.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
