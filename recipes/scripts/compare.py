# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Compares methods in one table and one plot: RRHF and TRL's DPO on the same samples, and best-of-n of the base.

All are measured on the same prompts, with the same settings. Add yours to `policies`: anything that generates is a
policy, such as `guided_policy` of VAS in `several_rewards.py`. For models that are saved, `trl-ext evaluate` and
`trl-ext frontier` do the same.

Cost: 140 s of one CPU core with AVX-512, without a network. Prints the logs of both trainings, some completions and
the table; writes outputs/compare/evaluation.json, evaluation.parquet and frontier.png.

    python recipes/scripts/compare.py
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from trl_ext import (
    GenerationSettings,
    RewardSettings,
    RRHFConfig,
    RRHFTrainer,
    best_of_n,
    from_scored_rows,
    load_rewards,
)
from trl_ext.evaluation.completions import DESCRIPTION
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.evaluation.frontier import frontier, write_frontier
from trl_ext.evaluation.report import Report
from trl_ext.inference.best_of_n import best_of_n_policies
from trl_ext.inference.policy import model_policy


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
BASE, REWARD = str(QUICKSTART / "models/imdb-2m"), str(QUICKSTART / "models/imdb-2m-reward")
SAMPLING = GenerationSettings(num_generations=4, max_completion_length=48, top_k=50)
OUTPUT = "outputs/compare"

parser = argparse.ArgumentParser(description="RRHF, DPO and best-of-n in one table and one plot.")
parser.add_argument("--num_prompts", default="", help="train and measure on the first so many prompts only")
flags = parser.parse_args()

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
shared = {"per_device_train_batch_size": 8, "num_train_epochs": 3, "bf16": False}
shared |= {"logging_steps": 10, "save_strategy": "no", "report_to": "none", "gradient_checkpointing": False}
shared |= {"learning_rate": 1e-4, "use_cpu": not torch.cuda.is_available()}
rrhf = RRHFTrainer(BASE, args=RRHFConfig(f"{OUTPUT}/rrhf", **shared), train_dataset=scored)
dpo = DPOTrainer(BASE, args=DPOConfig(f"{OUTPUT}/dpo", **shared), train_dataset=from_scored_rows(scored, "pairs"))
for trainer in (rrhf, dpo):
    trainer.train()

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(rrhf.model.device)
rows = list(data["eval"])
base = model_policy(model.eval(), tokenizer, name="base")
policies = [
    base,
    *best_of_n_policies(base, rows, rewards, [2, 4, 16]),
    dataclasses.replace(model_policy(rrhf.model.eval(), tokenizer, name="RRHF"), method="RRHF"),
    dataclasses.replace(model_policy(dpo.model.eval(), tokenizer, name="DPO"), method="DPO"),
]
report = Report(rows, dataclasses.asdict(SAMPLING), base="base", path=f"{OUTPUT}/evaluation.json", num_completions=2)
for policy in policies:
    found = evaluate(policy, rows, rewards, settings=SAMPLING, base=base)
    report.add(policy.name, found, **{key: getattr(policy, key) for key in DESCRIPTION})
report.show()
write_frontier(frontier(report.rows, "base", dataclasses.asdict(SAMPLING)), f"{OUTPUT}/frontier.png")
