# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A script for TRL's former PPO trainer, turned into one for Proxy-RLHF. A comment beside each changed line has the old.

PPO held four models: policy, reference, reward and value model. Here the language model stays frozen and a proxy of
1.8 % of its size is trained, which has a critic of its own.

Cost: 60 s of one CPU core with AVX-512, without a network. Prints the log of the training, then the reward on
held-out prompts before and after it, and a completion with and without the proxy.

    python recipes/scripts/ppo_to_proxy_rlhf.py
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

# was: from trl import PPOConfig, PPOTrainer
from trl_ext import ProxyModel, ProxyRLHFConfig, ProxyRLHFTrainer


QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
BASE, REWARD = str(QUICKSTART / "models/imdb-2m"), str(QUICKSTART / "models/imdb-2m-reward")
OUTPUT = "outputs/ppo_to_proxy_rlhf"

parser = argparse.ArgumentParser(description="A script for TRL's former PPO trainer, turned into one for Proxy-RLHF.")
parser.add_argument("--max_steps", type=int, default=480, help="optimizer steps; 16 for each round of 64 prompts")
parser.add_argument("--num_prompts", default="", help="train and measure on the first so many prompts only")
flags = parser.parse_args()

files = {name: str(QUICKSTART / f"prompts_{name}.jsonl") for name in ("train", "eval")}
# was: .map(tokenize), as PPO took token ids
prompts = {name: load_dataset("json", data_files=files, split=f"{name}[:{flags.num_prompts}]") for name in files}

trainer = ProxyRLHFTrainer(  # was: PPOTrainer(
    model=BASE,  # was: model=policy, ref_model=ref_policy,
    reward_funcs=REWARD,  # was: reward_model=reward_model, value_model=value_model,
    args=ProxyRLHFConfig(  # was: PPOConfig(
        output_dir=OUTPUT,
        max_completion_length=48,  # was: response_length=48,
        max_steps=flags.max_steps,  # was: total_episodes=1920, of which each round of 64 is 4 x 4 steps
        per_device_train_batch_size=64,
        num_ppo_epochs=4,
        num_mini_batches=4,
        kl_coef=0.0,
        proxy_layer_sizes=[128],
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        reward_model_init_kwargs={"dtype": "float32"},
        logging_steps=48,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=prompts["train"],
    eval_dataset=prompts["eval"],
)
before = trainer.evaluate()["eval_reward"]
trainer.train()
after = trainer.evaluate()["eval_reward"]
trainer.save_model()  # the proxy alone: the language model is as it was
print(f"reward on held-out prompts: {before:.2f} before, {after:.2f} after")

model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(BASE)
proxy = ProxyModel.from_pretrained(OUTPUT)
prompt = prompts["eval"][0]["prompt"]
set_seed(0)
alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=48, do_sample=True, top_k=20)
print(f"without: {tokenizer.decode(alone[0], skip_special_tokens=True)}")
guided = proxy.generate(model, [prompt], tokenizer=tokenizer, max_new_tokens=48, return_dict=True)
print(f"with: {prompt}{guided.texts[0]}")
