# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # Proxy-RLHF: accept or reject what the model proposes
#
# The language model stays frozen and proposes tokens. A proxy of 1.8 % of its size reads its hidden states and accepts
# or rejects each proposal. It is trained by PPO; the updates do not run the language model.
#
# Offline, in about three minutes on two CPU cores. What each setting means is in
# [the tutorial](../tutorials/proxy_rlhf.md).

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import GenerationSettings, ProxyModel, ProxyRLHFConfig, ProxyRLHFTrainer
from trl_ext.cli.config_file import recipes_folder
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.inference.policy import model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy


NUM_PROMPTS = os.environ.get("TRL_EXT_NOTEBOOK_PROMPTS", "")  # a number for a quick try; empty: all
QUICKSTART = recipes_folder() / "quickstart"  # models and prompts come with the package
BASE, REWARD = str(QUICKSTART / "models" / "imdb-2m"), str(QUICKSTART / "models" / "imdb-2m-reward")
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{NUM_PROMPTS}]") for name in files}

# %% [markdown]
# ## Train a proxy
#
# A round is a completion for each of 64 prompts, then 4 x 4 updates on the decisions that were taken in it.

# %%
trainer = ProxyRLHFTrainer(
    model=BASE,
    reward_funcs=REWARD,
    args=ProxyRLHFConfig(
        output_dir="outputs/proxy_rlhf",
        order="sampled",
        top_k=20,
        max_completion_length=48,
        per_device_train_batch_size=64,
        max_steps=16 if NUM_PROMPTS else 400,
        proxy_layer_sizes=[128],
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        reward_model_init_kwargs={"dtype": "float32"},
        logging_steps=16,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        seed=42,
    ),
    train_dataset=prompts["train"],
)
_ = trainer.train()
trainer.save_model()

# %% [markdown]
# A healthy run: the reward rises from round to round. The share of proposals that are accepted stays away from 0 and
# 1, where nothing is decided. The KL starts at 20 nats, the price of choosing among 20 candidates, and grows little.

# %%
metrics = pd.read_json("outputs/proxy_rlhf/metrics.jsonl", lines=True).dropna(subset=["reward"])
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for panel, column in zip(axes, ("reward", "accept_rate", "objective/kl"), strict=True):
    panel.plot(metrics["step"], metrics[column], "o-")
    panel.set(title=column, xlabel="step")

# %% [markdown]
# ## Before and after
#
# Held-out prompts, two completions each. The proxy chooses among 20 candidates, which alone is a good part of its KL.

# %%
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(BASE)
proxy = ProxyModel.from_pretrained("outputs/proxy_rlhf")
settings = GenerationSettings(num_generations=2, max_completion_length=48, top_k=50)
base = model_policy(model, tokenizer, name="base")
rows = list(prompts["eval"])
found = {
    policy.name: evaluate(policy, rows, trainer.rewards, settings=settings, base=base)
    for policy in (base, proxy_policy(model, tokenizer, proxy, name="with proxy"))
}
columns = ["reward/imdb-2m-reward", "kl", "perplexity", "distinct_2"]
pd.DataFrame(
    {
        name: {key: f"{each.metrics[key] or 0:.2f} ± {each.metrics[f'{key}_se'] or 0:.2f}" for key in columns}
        for name, each in found.items()
    }
).T

# %%
side_by_side = pd.DataFrame(
    {
        "prompt": [row["prompt"] for row in rows],
        **{f"{name}": [group[0].text for group in each.completions] for name, each in found.items()},
        **{
            f"reward, {name}": [values[0] for values in each.rewards["imdb-2m-reward"]] for name, each in found.items()
        },
    }
)
side_by_side[:5].style.format(precision=1).hide(axis="index").set_properties(**{"text-align": "left"})

# %% [markdown]
# ## How often it rejects
#
# `generate` returns how many candidates were examined and rejected for each completion.

# %%
output = proxy.generate(
    model, [row["prompt"] for row in rows], tokenizer=tokenizer, max_new_tokens=48, return_dict=True
)
share = output.rejected.sum() / output.examined.sum()
print(f"rejected: {share:.0%} of the candidates that were examined")

# %% [markdown]
# Next: [which method should I use?](../explanation/which_method.md), or all of them in
# [one plot](frontier.ipynb).
