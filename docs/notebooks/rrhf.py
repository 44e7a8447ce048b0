# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # RRHF: rank what the model wrote
#
# A language model of 1.85 M parameters continues film reviews. A second small model scores their sentiment. RRHF
# samples several completions of each prompt, ranks them by that reward, and trains the model until its own
# probabilities rank them the same way.
#
# Offline, in about two minutes on two CPU cores. What each setting means is in
# [the tutorial](../tutorials/rrhf.md); what the loss does is in [the explanation](../explanation/losses.md).

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import GenerationSettings, RRHFConfig, RRHFTrainer, evaluate_model
from trl_ext.cli.config_file import recipes_folder


NUM_PROMPTS = os.environ.get("TRL_EXT_NOTEBOOK_PROMPTS", "")  # a number for a quick try; empty: all
QUICKSTART = recipes_folder() / "quickstart"  # models and prompts come with the package
BASE, REWARD = str(QUICKSTART / "models" / "imdb-2m"), str(QUICKSTART / "models" / "imdb-2m-reward")
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{NUM_PROMPTS}]") for name in files}
prompts["train"][0]

# %% [markdown]
# ## Train
#
# `resample_epochs=1` generates new completions with the current model before each epoch. The reward model is given by
# name; a function of your own goes in the same place.

# %%
trainer = RRHFTrainer(
    model=BASE,
    reward_funcs=REWARD,
    args=RRHFConfig(
        output_dir="outputs/rrhf",
        num_generations=4,
        max_completion_length=48,
        top_k=50,
        resample_epochs=1,
        num_train_epochs=3,
        learning_rate=1e-4,
        per_device_train_batch_size=8,
        reward_model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        logging_steps=5,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        seed=42,
    ),
    train_dataset=prompts["train"],
)
_ = trainer.train()

# %% [markdown]
# Every run writes its metrics to `metrics.jsonl`. A healthy run: the ranking loss falls, the accuracy with which the
# model orders its own completions rises, and the reward of each new round of completions is higher than that of the
# last.

# %%
metrics = pd.read_json("outputs/rrhf/metrics.jsonl", lines=True)
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
titles = {"loss/rank": "ranking loss", "rewards/accuracies": "pairs in order", "reward": "reward of a round"}
for panel, (column, title) in zip(axes, titles.items(), strict=True):
    known = metrics.dropna(subset=[column])
    panel.plot(known["step"], known[column], "o-")
    panel.set(title=title, xlabel="step")

# %% [markdown]
# ## Before and after
#
# Held-out prompts, four completions each. KL says how far the model moved from the base; perplexity is that of the
# completions under the base; distinct-2 is their diversity. Each has its standard error over prompts.

# %%
tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(trainer.model.device).eval()
settings = GenerationSettings(num_generations=4, max_completion_length=48, top_k=50)
rows = list(prompts["eval"])
found = {
    name: evaluate_model(model, tokenizer, rows, trainer.rewards, settings=settings, base_model=base)
    for name, model in (("base", base), ("RRHF", trainer.model.eval()))
}
columns = ["reward/imdb-2m-reward", "kl", "perplexity", "distinct_2"]
pd.DataFrame(
    {
        name: {key: f"{each.metrics[key] or 0:.2f} ± {each.metrics[f'{key}_se'] or 0:.2f}" for key in columns}
        for name, each in found.items()
    }
).T

# %% [markdown]
# The first completion of five prompts, from the base and from the trained model.

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
# Next: [a reward function of your own](../how_to/reward_function.md), [your own data](../how_to/own_data.md), or the
# same task with [a frozen model](vas.ipynb).
