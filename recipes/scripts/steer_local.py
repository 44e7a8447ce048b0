# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
VAS on your own machine: trains a value model for a frozen language model, and guides `generate` with it.

The weight of the values (`beta`) is chosen when the model answers; here a batch has a row for each weight. Negative
weights guide away from what the reward likes.

Cost: 55 s of one CPU core with AVX-512, without a network; seconds with `--value_model`. Prints the log of the
training and a completion of the same prompt at each weight. The value model is saved for `steer_api.py`.

    python recipes/scripts/steer_local.py --prompt "This film"
    python recipes/scripts/steer_local.py --value_model outputs/steer_local --beta -4 0 8
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, set_seed

from trl_ext import ValueAugmentedLogitsProcessor, ValueModel, VASConfig, VASTrainer


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
BASE, REWARD = str(QUICKSTART / "models/imdb-2m"), str(QUICKSTART / "models/imdb-2m-reward")
OUTPUT = "outputs/steer_local"

parser = argparse.ArgumentParser(description="Train a value model and guide a frozen language model with it.")
parser.add_argument("--prompt", default="This film")
parser.add_argument("--beta", type=float, nargs="+", default=[-4.0, 0.0, 2.0, 4.0], help="weights of the values")
parser.add_argument("--value_model", help="use this one instead of training one")
parser.add_argument("--num_prompts", default="", help="train on the first so many prompts only")
flags = parser.parse_args()

if flags.value_model is None:
    file = str(QUICKSTART / "prompts_train.jsonl")
    trainer = VASTrainer(
        model=BASE,
        reward_funcs=REWARD,
        args=VASConfig(
            output_dir=OUTPUT,
            num_generations=16,
            max_completion_length=48,
            top_k=50,
            learning_rate=1e-3,
            num_epochs_per_batch=1,
            per_device_train_batch_size=4,  # prompts, each with its 16 completions
            reward_model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=file, split=f"train[:{flags.num_prompts}]"),
        value_model=REWARD,  # its backbone; the head that predicts values is new
    )
    trainer.train()
    trainer.save_model()

model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(BASE)
value_model = ValueModel.from_pretrained(flags.value_model or OUTPUT)
print(value_model.reward_statistics)  # mean and deviation of the reward: the scale of the values
guide = ValueAugmentedLogitsProcessor(value_model, beta=flags.beta, top_k=20, tokenizer=tokenizer)
set_seed(0)
rows = tokenizer([flags.prompt] * len(flags.beta), return_tensors="pt")
ids = model.generate(**rows, do_sample=True, max_new_tokens=48, logits_processor=LogitsProcessorList([guide]))
for beta, text in zip(flags.beta, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
    print(f"beta {beta:g}: {text}")
