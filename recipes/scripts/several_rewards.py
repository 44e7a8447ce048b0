# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Several rewards, weighed when the model answers: VAS trains one value model with a head for each reward.

The rewards are the sentiment of a review, by a reward model, and short sentences, by a function. Their values are in
standard deviations (`normalize_rewards`), so that weights of different rewards compare.

Cost: 130 s of one CPU core with AVX-512, without a network. Prints the log of the training, and for each pair of
weights the mean of both rewards on held-out prompts and the KL to the unguided model.

    python recipes/scripts/several_rewards.py
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import GenerationSettings, VASConfig, VASTrainer
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.inference.policy import model_policy
from trl_ext.methods.vas.policies import guided_policy


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
BASE, REWARD = str(QUICKSTART / "models/imdb-2m"), str(QUICKSTART / "models/imdb-2m-reward")
WEIGHTS = [(2.0, 0.0), (1.0, 1.0), (0.0, 2.0), (2.0, -2.0)]


def short_sentences(completions, **kwargs):
    return [float(sum(text.count(end) for end in ".!?")) for text in completions]


parser = argparse.ArgumentParser(description="One value model for two rewards, weighed when answering.")
parser.add_argument("--num_prompts", default="", help="train and measure on the first so many prompts only")
flags = parser.parse_args()
files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
data = {name: load_dataset("json", data_files=files, split=f"{name}[:{flags.num_prompts}]") for name in files}

trainer = VASTrainer(
    model=BASE,
    reward_funcs=[REWARD, short_sentences],
    args=VASConfig(
        output_dir="outputs/several_rewards",
        normalize_rewards=True,
        num_generations=16,
        max_completion_length=48,
        top_k=50,
        learning_rate=1e-3,
        num_epochs_per_batch=1,
        per_device_train_batch_size=4,
        reward_model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=data["train"],
    value_model=REWARD,
)
trainer.train()

value_model = trainer.accelerator.unwrap_model(trainer.model).eval()
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").to(value_model.device).eval()
tokenizer = AutoTokenizer.from_pretrained(BASE)
rows = list(data["eval"])
settings = GenerationSettings(num_generations=4, max_completion_length=48, top_k=50)
base = model_policy(model, tokenizer, name="unguided")
policies = [base]
for sentiment, short in WEIGHTS:
    beta = {"imdb-2m-reward": sentiment, "short_sentences": short}
    policies.append(guided_policy(model, tokenizer, value_model, beta, name=f"{sentiment:g}, {short:g}"))
print("weights (sentiment, short sentences): sentiment, sentences, KL")
for policy in policies:
    found = evaluate(policy, rows, trainer.rewards, settings=settings, base=base).metrics
    means = [found[key] for key in ("reward/imdb-2m-reward", "reward/short_sentences", "kl")]
    print(f"{policy.name}: " + ", ".join(f"{mean:.2f}" for mean in means))
