# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # The reward-KL frontier
#
# A reward alone says little: a model can buy any reward with enough distance from where it started. The frontier
# shows reward against KL to the base model, for a trained model (RRHF), a guided one (VAS, at several weights) and
# best-of-n. Further up at the same KL is better.
#
# Offline, in under five minutes on two CPU cores. For models that are saved, `trl-ext evaluate` and `trl-ext frontier`
# do the same: [evaluate and compare](../evaluation.md).

# %%
import dataclasses
import os
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import GenerationSettings, RRHFConfig, RRHFTrainer, VASConfig, VASTrainer
from trl_ext.cli.config_file import recipes_folder
from trl_ext.evaluation.completions import DESCRIPTION
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.evaluation.frontier import frontier, write_frontier
from trl_ext.evaluation.report import Report
from trl_ext.inference.best_of_n import best_of_n_policies
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy


NUM_PROMPTS = os.environ.get("TRL_EXT_NOTEBOOK_PROMPTS", "")  # a number for a quick try; empty: all
QUICKSTART = recipes_folder() / "quickstart"  # models and prompts come with the package
BASE, REWARD = str(QUICKSTART / "models" / "imdb-2m"), str(QUICKSTART / "models" / "imdb-2m-reward")
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{NUM_PROMPTS}]") for name in files}

shared = {
    "max_completion_length": 48,
    "top_k": 50,
    "reward_model_init_kwargs": {"dtype": "float32"},
    "gradient_checkpointing": False,
    "logging_steps": 25,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 42,
}

# %% [markdown]
# ## Train
#
# A trained model is one point. A guided one is a line, as its weight is chosen when it answers.

# %%
args = RRHFConfig(
    "outputs/rrhf", resample_epochs=1, num_train_epochs=2, learning_rate=1e-4, per_device_train_batch_size=8, **shared
)
rrhf = RRHFTrainer(BASE, args=args, train_dataset=prompts["train"], reward_funcs=REWARD)
_ = rrhf.train()

# %%
args = VASConfig(
    "outputs/vas",
    num_generations=16,
    learning_rate=1e-3,
    num_epochs_per_batch=1,
    per_device_train_batch_size=4,
    **shared,
)
values = VASTrainer(BASE, REWARD, args, prompts["train"], value_model=REWARD)
_ = values.train()
value_model = values.accelerator.unwrap_model(values.model).eval()

# %% [markdown]
# ## Measure
#
# Whatever generates is a policy. All are measured on the same prompts with the same settings; KL is always that of the
# full vocabulary at temperature 1. That of best-of-n is an upper bound.

# %%
tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(value_model.device).eval()
settings = GenerationSettings(num_generations=2, max_completion_length=48, top_k=50)
rows = list(prompts["eval"])
base = model_policy(model, tokenizer, name="base")
policies = [base, *best_of_n_policies(base, rows, values.rewards, [2, 4, 16])]
policies.append(dataclasses.replace(model_policy(rrhf.model.eval(), tokenizer, name="RRHF"), method="RRHF"))
for beta in (1.0, 2.0, 4.0):
    named = {"name": f"VAS, beta {beta:g}", "series": "VAS", "extras": {"beta": beta}}
    policies.append(guided_policy(model, tokenizer, value_model, beta, **named))

report = Report(rows, dataclasses.asdict(settings), base="base", path="outputs/evaluation.json", num_completions=1)
for policy in policies:
    found = evaluate(policy, rows, values.rewards, settings=settings, base=base)
    report.add(policy.name, found, **{key: getattr(policy, key) for key in DESCRIPTION})
report.show()

# %% [markdown]
# ## Plot

# %%
write_frontier(frontier(report.rows, "base", dataclasses.asdict(settings)), "outputs/frontier.png")


class Picture:
    """A PNG file, as notebooks show it."""

    def _repr_png_(self):
        return Path("outputs/frontier.png").read_bytes()


Picture()

# %% [markdown]
# Bars are standard errors over prompts. The lines say which method reaches more reward at the same distance, on this
# task and with few samples; another model, reward or number of samples can change the order. Larger comparisons, with
# DPO, GRPO and PPO: [results](../../benchmarks/results/quality.md).
