# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `quality` runs in processes of their own, for what `trl-ext` has no command for.

    python -m benchmarks.quality.quality_train {dpo,grpo,principle} <config.json>

`dpo` and `grpo` train with TRL's trainers on what the methods train on; `principle` measures the base model with a
principle in front of each prompt, and writes what `trl-ext evaluate` writes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.text import read_rows
from trl_ext.data.prompts import load_prompts
from trl_ext.data.tokenization import encode_prompt
from trl_ext.devices import accelerator_count
from trl_ext.evaluation.evaluate import Evaluation, evaluate
from trl_ext.evaluation.report import Report
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.rewards.functions import load_rewards


def preference_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The best and the worst completion of each prompt; rows whose scores are all equal are left out."""
    pairs = []
    for row in rows:
        ranked = sorted(zip(row["scores"], row["completions"], strict=True), key=lambda pair: pair[0])
        if ranked[0][0] < ranked[-1][0]:
            pairs.append({"prompt": row["prompt"], "chosen": ranked[-1][1], "rejected": ranked[0][1]})
    return pairs


def dpo(config: dict[str, Any]) -> None:
    """TRL's DPO on the best and the worst completion of each prompt."""
    from trl import DPOConfig, DPOTrainer

    model, rows = config.pop("model_name_or_path"), preference_rows(read_rows(config.pop("dataset_name")))
    trainer = DPOTrainer(model, args=DPOConfig(**_on_this_device(config)), train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()


def grpo(config: dict[str, Any]) -> None:
    """TRL's GRPO; a step is `per_device_train_batch_size` prompts with `num_generations` completions each."""
    from trl import GRPOConfig, GRPOTrainer

    model, reward = config.pop("model_name_or_path"), config.pop("reward_model_name_or_path")
    rows = [{"prompt": row["prompt"]} for row in read_rows(config.pop("dataset_name"))]
    config["per_device_train_batch_size"] *= config["num_generations"]  # TRL counts completions
    trainer = GRPOTrainer(
        model, reward_funcs=reward, args=GRPOConfig(**_on_this_device(config)), train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    trainer.save_model()


def _on_this_device(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "use_cpu": not accelerator_count()}


def with_text_before(policy: Policy, text: str) -> Policy:
    """A policy that reads a text before each prompt; what it is asked and measured about are the plain prompts."""
    before = encode_prompt(policy.tokenizer, text)

    def longer(prompt_ids: list[list[int]]) -> list[list[int]]:
        return [[*before, *ids] for ids in prompt_ids]

    generate, logps = policy.generate, policy.logps
    assert logps is not None
    return replace(
        policy,
        name=f"{policy.name} with a principle",
        generate=lambda ids, settings: generate(longer(ids), settings),
        logps=lambda ids, completions: logps(longer(ids), completions),
    )


def principle(config: dict[str, Any]) -> None:
    """Measure the base model, and the same with `principle` in front of each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(config["model_name_or_path"])
    model = AutoModelForCausalLM.from_pretrained(config["model_name_or_path"], dtype=torch.float32).eval()
    base = model_policy(model, tokenizer, name=config["model_name_or_path"])
    rows, rewards = load_prompts(config["dataset_name"]), load_rewards([config["reward_funcs"]])
    names = ("num_generations", "max_completion_length", "top_k")
    settings = GenerationSettings(**{name: config[name] for name in names})
    report = Report(rows, config, base=base.name, path=config["output_file"])

    def measure(policy: Policy) -> Evaluation:
        return evaluate(policy, rows, rewards, settings=settings, base=base, seed=config["seed"])

    for policy in (base, with_text_before(base, config["principle"])):
        report.add(policy.name, measure(policy))


def main(argv: list[str] | None = None) -> int:
    name, path = sys.argv[1:] if argv is None else argv
    {"dpo": dpo, "grpo": grpo, "principle": principle}[name](json.loads(Path(path).read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
