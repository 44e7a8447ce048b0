# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A reward function of your own, in five lines, and RRHF trained with it.

The function prefers reviews that speak to their reader: it counts the word "you", up to three times. It has the
signature of TRL's GRPO, so the same function trains every method here. `log_metric` and `log_extra` add to the log and
to the table of completions.

Cost: 95 s of one CPU core with AVX-512, without a network. Prints the log of the training, and the mean reward on
held-out prompts before and after it.

    python recipes/scripts/own_reward.py
"""

import argparse
import re
from pathlib import Path

from datasets import load_dataset

from trl_ext import RRHFConfig, RRHFTrainer


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"


def speaks_to_you(completions, log_metric=None, **kwargs):
    counts = [len(re.findall(r"\byou\b", text, re.IGNORECASE)) for text in completions]
    if log_metric is not None:
        log_metric("with_you", sum(count > 0 for count in counts) / len(counts))
    return [float(min(count, 3)) for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description="RRHF with a reward function of your own.")
    parser.add_argument("--num_prompts", default="", help="train and measure on the first so many prompts only")
    flags = parser.parse_args()
    files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
    data = {name: load_dataset("json", data_files=files, split=f"{name}[:{flags.num_prompts}]") for name in files}
    trainer = RRHFTrainer(
        model=str(QUICKSTART / "models/imdb-2m"),
        reward_funcs=speaks_to_you,
        args=RRHFConfig(
            output_dir="outputs/own_reward",
            num_generations=8,
            max_completion_length=48,
            resample_epochs=1,  # new completions of the current model for each epoch
            num_train_epochs=3,
            learning_rate=1e-4,
            per_device_train_batch_size=8,
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["eval"],
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    print(f'"you" in a completion, on average: {before:.2f} before, {after:.2f} after')


if __name__ == "__main__":
    main()
