# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A script for TRL's DPO, turned into one for RRHF. A comment beside each changed line has the old one.

RRHF reads DPO's data as it is. Where a prompt has more than two scored completions, it ranks all of them: `--all`
trains on the four that were sampled instead of the best and the worst.

Cost: about a minute on two CPU cores, without a network. Prints the log of the training, then the reward of the base
and the trained model on held-out prompts, the KL between them, and a completion of each.

    python recipes/scripts/dpo_to_rrhf.py
"""

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

# was: from trl import DPOConfig, DPOTrainer
from trl_ext import (
    GenerationSettings,
    RewardSettings,
    RRHFConfig,
    RRHFTrainer,
    best_of_n,
    evaluate_model,
    from_scored_rows,
    load_rewards,
)


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
BASE, REWARD = str(QUICKSTART / "models/imdb-2m"), str(QUICKSTART / "models/imdb-2m-reward")
SAMPLING = GenerationSettings(num_generations=4, max_completion_length=48, top_k=50)

parser = argparse.ArgumentParser(description="A script for TRL's DPO, turned into one for RRHF.")
parser.add_argument("--num_prompts", default="", help="train and measure on the first so many prompts only")
parser.add_argument("--all", action="store_true", help="rank all four completions, not only the best and the worst")
flags = parser.parse_args()

# Preference data: here it is sampled from the base model; yours comes from a file or the Hub.
rewards = load_rewards(REWARD, settings=RewardSettings(reward_model_init_kwargs={"dtype": "float32"}))
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
data = {name: load_dataset("json", data_files=files, split=f"{name}[:{flags.num_prompts}]") for name in files}
prompts = data["train"]["prompt"]
sampled = best_of_n(BASE, prompts, rewards, n=4, settings=SAMPLING)
scored = Dataset.from_dict(
    {
        "prompt": prompts,
        "completions": [[one.completion.text for one in four] for four in sampled],
        "scores": [[one.score for one in four] for four in sampled],
        "ended": [[one.completion.ended for one in four] for four in sampled],  # most were cut at 48 tokens
    }
)
pairs = from_scored_rows(scored, "pairs")  # prompt, chosen, rejected

trainer = RRHFTrainer(  # was: DPOTrainer(
    model=BASE,
    args=RRHFConfig(  # was: DPOConfig(
        output_dir="outputs/dpo_to_rrhf",
        learning_rate=1e-4,
        per_device_train_batch_size=8,
        num_train_epochs=2,
        # was: beta=0.1, loss_type="sigmoid",  RRHF has no reference model and no temperature: remove both
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=scored if flags.all else pairs,
)
trainer.train()

rows = list(data["eval"])
tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(trainer.model.device)
for name, model in (("base", base), ("RRHF", trainer.model.eval())):
    found = evaluate_model(model, tokenizer, rows, rewards, settings=SAMPLING, base_model=base)
    reward, kl = found.metrics["reward/imdb-2m-reward"], found.metrics["kl"]
    print(f"{name}: reward {reward:.2f}, KL {kl:.1f}: {rows[0]['prompt']} ...{found.completions[0][0].text}")
