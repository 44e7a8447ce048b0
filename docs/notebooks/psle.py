# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # PSLE: learn from a principle
#
# A principle is a sentence in front of the prompt: "The following is a positive movie review." PSLE generates with and
# without it. Where the principle raised the reward by more than a threshold, the pair is ranked; every other pair is
# imitated, the better completion with the larger weight. Afterwards the model does without the principle what it did
# with it.
#
# Offline, in about two minutes on two CPU cores. What each setting means is in [the tutorial](../tutorials/psle.md).

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import GenerationSettings, PSLEConfig, PSLETrainer, evaluate_model
from trl_ext.cli.config_file import recipes_folder


NUM_PROMPTS = os.environ.get("TRL_EXT_NOTEBOOK_PROMPTS", "")  # a number for a quick try; empty: all
QUICKSTART = recipes_folder() / "quickstart"  # models and prompts come with the package
BASE, REWARD = str(QUICKSTART / "models" / "imdb-2m"), str(QUICKSTART / "models" / "imdb-2m-reward")
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{NUM_PROMPTS}]") for name in files}

# %% [markdown]
# ## Train
#
# Four iterations over the prompts. Each generates with the model as it is then, and lowers the threshold.

# %%
trainer = PSLETrainer(
    model=BASE,
    reward_funcs=REWARD,
    args=PSLEConfig(
        output_dir="outputs/psle",
        principles=["The following is a positive movie review."],
        num_iterations=4,
        threshold=0.2,
        threshold_decay=0.9,
        rank_weight=10.0,
        num_generations=1,
        max_completion_length=48,
        top_k=50,
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
# A healthy run: both rewards rise. A larger model follows its principle, so that the guided completions lead at first.
# This small one hardly does: its plain completions are as good, and it learns from whichever pairs differ.

# %%
metrics = pd.read_json("outputs/psle/metrics.jsonl", lines=True)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
curves = (("rewards/plain", "o-"), ("rewards/guided", "s--")), (("loss/rank", "o-"), ("loss/sft", "s--"))
for panel, lines in zip(axes, curves, strict=True):
    for column, style in lines:
        known = metrics.dropna(subset=[column])
        panel.plot(known["step"], known[column], style, label=column)
    panel.set(xlabel="step")
    panel.legend()

# %% [markdown]
# ## Before and after
#
# Held-out prompts without the principle, four completions each.

# %%
tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(trainer.model.device).eval()
settings = GenerationSettings(num_generations=4, max_completion_length=48, top_k=50)
rows = list(prompts["eval"])
found = {
    name: evaluate_model(model, tokenizer, rows, trainer.rewards, settings=settings, base_model=base)
    for name, model in (("base", base), ("PSLE", trainer.model.eval()))
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
# Next: [what each loss does](../explanation/losses.md), or all methods in [one plot](frontier.ipynb).
