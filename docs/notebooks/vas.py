# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # VAS: guide a model without training it
#
# The language model stays as it is. A value model learns, from scored samples, which reward to expect at the end of an
# unfinished text. While the language model generates, the values of the candidate tokens are added to its logits;
# their weight, beta, is chosen for each request.
#
# Offline, in about three minutes on two CPU cores. What each setting means is in [the tutorial](../tutorials/vas.md).

# %%
import html
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, set_seed

from trl_ext import GenerationSettings, ValueAugmentedLogitsProcessor, ValueModel, VASConfig, VASTrainer
from trl_ext.cli.config_file import recipes_folder
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy


NUM_PROMPTS = os.environ.get("TRL_EXT_NOTEBOOK_PROMPTS", "")  # a number for a quick try; empty: all
QUICKSTART = recipes_folder() / "quickstart"  # models and prompts come with the package
BASE, REWARD = str(QUICKSTART / "models" / "imdb-2m"), str(QUICKSTART / "models" / "imdb-2m-reward")
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{NUM_PROMPTS}]") for name in files}

# %% [markdown]
# ## Train a value model
#
# It is a small model with a head for the value, here the backbone of the reward model. A larger language model may
# have a much smaller value model; both need the same tokenizer.

# %%
trainer = VASTrainer(
    model=BASE,
    reward_funcs=REWARD,
    args=VASConfig(
        output_dir="outputs/vas",
        num_generations=16,
        max_completion_length=48,
        top_k=50,
        learning_rate=1e-3,
        num_epochs_per_batch=1,
        per_device_train_batch_size=4,
        reward_model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        logging_steps=5,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        seed=42,
    ),
    train_dataset=prompts["train"],
    value_model=REWARD,
)
_ = trainer.train()
trainer.save_model()

# %%
metrics = pd.read_json("outputs/vas/metrics.jsonl", lines=True)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for panel, column in zip(axes, ("loss", "explained_variance"), strict=True):
    known = metrics.dropna(subset=[column])
    panel.plot(known["step"], known[column], "o-")
    panel.set(title=column.replace("_", " "), xlabel="step")

# %% [markdown]
# ## What the value model thinks of each token
#
# Two sentences that turn. Each token is coloured by the value of the text that ends with it: green is above the mean
# reward of the training samples, red below. The number appears when the pointer rests on a token.
#
# One word can move the value by a standard deviation. A value model as small as this one judges words more than
# sentences: "terrible" weighs more than the turn that follows it.

# %%
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(BASE)
value_model = ValueModel.from_pretrained("outputs/vas", dtype="float32").eval()
[(mean, deviation)] = value_model.reward_statistics.values()


class Coloured:
    """Texts whose tokens have a background of the colour of their value."""

    def __init__(self, *texts):
        self.rows = [(ids := tokenizer(text, return_tensors="pt")["input_ids"], self.values(ids)) for text in texts]

    @torch.no_grad()
    def values(self, ids):
        return ((value_model(ids).values[0] - mean) / deviation).tolist()

    def _repr_html_(self):
        return "".join(f"<p>{''.join(map(self.token, ids[0].tolist(), values))}</p>" for ids, values in self.rows)

    def token(self, token, value):
        colour = "46, 156, 110" if value > 0 else "214, 69, 65"
        style = f"background: rgba({colour}, {min(abs(value), 2) / 2.5:.2f})"
        return f'<span style="{style}" title="{value:+.1f}">{html.escape(tokenizer.decode([token]))}</span>'


TURNS = (
    "This film starts as a wonderful story with great actors, but then it gets boring and the ending is awful.",
    "I thought this would be another terrible waste of time, but it is one of the best films I have ever seen.",
)
Coloured(*TURNS)

# %%
figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
for style, (ids, values) in zip(("o-", "s--"), Coloured(*TURNS).rows, strict=True):
    axes.plot(values, style, label=tokenizer.decode(ids[0, :4]) + " ...")
axes.axhline(0, color="grey", linewidth=0.8)
axes.set(xlabel="token", ylabel="value, in standard deviations\nof the reward")
_ = axes.legend()

# %% [markdown]
# ## Guide the model
#
# One batch, one prompt, a weight for each row. Zero is the language model alone; negative weights guide away from what
# the reward likes.

# %%
betas = [-4.0, 0.0, 2.0, 4.0]
guide = ValueAugmentedLogitsProcessor(value_model, beta=betas, top_k=20, tokenizer=tokenizer)
set_seed(1)
inputs = tokenizer([prompts["eval"][0]["prompt"]] * len(betas), return_tensors="pt")
ids = model.generate(**inputs, do_sample=True, max_new_tokens=48, logits_processor=LogitsProcessorList([guide]))
guided = tokenizer.batch_decode(ids, skip_special_tokens=True)
pd.DataFrame({"beta": betas, "text": guided}).style.format(precision=0).hide(axis="index").set_properties(
    **{"text-align": "left"}
)

# %%
Coloured(*guided)

# %% [markdown]
# ## Measure it
#
# Held-out prompts, two completions each: more weight gives more reward, and more KL to the language model alone.

# %%
settings = GenerationSettings(num_generations=2, max_completion_length=48, top_k=50)
base = model_policy(model, tokenizer, name="beta 0")
policies = [base, *(guided_policy(model, tokenizer, value_model, beta, name=f"beta {beta:g}") for beta in (2.0, 4.0))]
table = {}
for policy in policies:
    found = evaluate(policy, list(prompts["eval"]), trainer.rewards, settings=settings, base=base).metrics
    columns = ["reward/imdb-2m-reward", "kl", "perplexity", "distinct_2"]
    table[policy.name] = {key: f"{found[key] or 0:.2f} ± {found[f'{key}_se'] or 0:.2f}" for key in columns}
pd.DataFrame(table).T

# %% [markdown]
# Next: [several rewards, weighed when the model answers](../how_to/several_rewards.md), or the same for
# [a model behind an API](../how_to/guide_an_api.md).
