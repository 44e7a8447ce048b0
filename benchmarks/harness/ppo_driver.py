# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
TRL's PPO as TRL last had it, run by the Python of ppo_environment.py: nothing of `trl_ext` is imported.

    <environment>/bin/python -m benchmarks.harness.ppo_driver <config.json>

The config has the fields of `PPOConfig`, and `model_name_or_path` (the policy), `reward_model_name_or_path` (a
sequence classifier: the reward, and where the value model begins, as in TRL's own example), `dataset_name` (a file of
prompts), `max_completion_length` and, where rounds are timed, `rounds_file`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: TID251 - of trl 1.12.0, pinned, outside the package

from trl_ext.devices import accelerator_count

from .round_clock import RoundClock


def make_trainer(config: dict[str, Any]) -> PPOTrainer:
    """
    The trainer of a config: all parameters of the policy and of a value model of its own are trained, in float32.

    Args:
        config (`dict`): As above.
    """
    model, reward = config.pop("model_name_or_path"), config.pop("reward_model_name_or_path")
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    lines = Path(config.pop("dataset_name")).read_text(encoding="utf-8").strip().split("\n")
    rows = [{"input_ids": tokenizer(json.loads(line)["prompt"])["input_ids"]} for line in lines]
    dataset, rounds_file = Dataset.from_list(rows), config.pop("rounds_file", None)
    config["response_length"] = config.pop("max_completion_length")
    config.pop("top_k", None)  # TRL's PPO samples from the full vocabulary
    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    value, score = (
        AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    return PPOTrainer(
        args=PPOConfig(**config, use_cpu=not accelerator_count()),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=score.eval(),
        value_model=value,
        train_dataset=dataset,
        eval_dataset=dataset,  # TRL makes a data loader of it, whether it is used or not
        callbacks=[RoundClock(Path(rounds_file), steps=1)] if rounds_file else None,
    )


def main(argv: list[str] | None = None) -> int:
    (path,) = sys.argv[1:] if argv is None else argv
    trainer = make_trainer(json.loads(Path(path).read_text(encoding="utf-8")))
    trainer.train()
    folder = Path(trainer.args.output_dir)
    trainer.save_model(str(folder))
    # Trained as well, so that it is counted; a tensor that two names share is kept once.
    state = trainer.accelerator.unwrap_model(trainer.model).value_model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "value_model.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
