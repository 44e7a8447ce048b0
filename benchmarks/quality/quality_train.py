# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `quality` runs in processes of their own, for what `trl-ext` has no command for.

    python -m benchmarks.quality.quality_train {dpo,sft,grpo,reward,principle,texts} <config.json>

`dpo`, `sft`, `grpo` and `reward` train with TRL's trainers on what the methods train on; `principle` measures the base
model with a principle in each prompt, and writes what `trl-ext evaluate` writes; `texts` measures how well a model
predicts texts that people wrote.
"""

import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.text import human_texts, read_rows
from trl_ext.data.prompts import load_prompts
from trl_ext.data.tokenization import encode_prompt, encode_row
from trl_ext.devices import accelerator_count
from trl_ext.evaluation.evaluate import Evaluation, evaluate
from trl_ext.evaluation.report import Report
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.psle.data import with_principle
from trl_ext.models.load import load_model, quantization_config_from
from trl_ext.rewards.functions import load_rewards


def preference_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best and the worst completion of each prompt; rows whose scores are all equal are left out."""
    pairs = []
    for row in rows:
        ranked = sorted(zip(row["scores"], row["completions"], strict=True), key=lambda pair: pair[0])
        if ranked[0][0] < ranked[-1][0]:
            pairs.append({"prompt": row["prompt"], "chosen": ranked[-1][1], "rejected": ranked[0][1]})
    return pairs


def best_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best completion of each prompt, the first of equally good ones."""
    found = []
    for row in rows:
        best = max(range(len(row["scores"])), key=lambda i: row["scores"][i])
        found.append({"prompt": row["prompt"], "completion": row["completions"][best]})
    return found


def dpo(config: dict[str, Any]) -> None:
    """TRL's DPO on the best and the worst completion of each prompt."""
    from trl import DPOConfig, DPOTrainer

    _train(DPOTrainer, DPOConfig, config, preference_rows(read_rows(config.pop("dataset_name"))))


def sft(config: dict[str, Any]) -> None:
    """TRL's SFT on the best completion of each prompt: rejection sampling (RAFT) of one round."""
    from trl import SFTConfig, SFTTrainer

    _train(SFTTrainer, SFTConfig, config, best_rows(read_rows(config.pop("dataset_name"))))


def grpo(config: dict[str, Any]) -> None:
    """TRL's GRPO; a step is `per_device_train_batch_size` prompts with `num_generations` completions each."""
    from trl import GRPOConfig, GRPOTrainer

    rewards = [_reward(spec) for spec in config.pop("reward_funcs")]
    config["per_device_train_batch_size"] *= config["num_generations"]  # TRL counts completions
    _train(GRPOTrainer, GRPOConfig, config, read_rows(config.pop("dataset_name")), reward_funcs=rewards)


def reward(config: dict[str, Any]) -> None:
    """TRL's reward model, on the pairs that DPO gets."""
    from trl import RewardConfig, RewardTrainer

    _train(RewardTrainer, RewardConfig, config, preference_rows(read_rows(config.pop("dataset_name"))))


def _train(
    trainer_class: Any, config_class: Any, config: dict[str, Any], rows: list[dict[str, Any]], **more: Any
) -> None:
    """Train as TRL's scripts do: the fields of `ModelConfig` say how the model is loaded and what is trained of it."""
    from trl import ModelConfig, get_peft_config, get_quantization_config

    names = {entry.name for entry in fields(ModelConfig)} & set(config)
    model_args = ModelConfig(**{name: config.pop(name) for name in names})
    quantization = get_quantization_config(model_args)
    loading = {"dtype": model_args.dtype, "quantization_config": quantization} if "dtype" in names else {}
    args = config_class(**config, use_cpu=not accelerator_count(), model_init_kwargs=loading or None)
    trainer = trainer_class(
        model_args.model_name_or_path,
        args=args,
        train_dataset=Dataset.from_list(rows),
        peft_config=get_peft_config(model_args),
        **more,
    )
    trainer.train()
    trainer.save_model()


def _reward(spec: str) -> Any:
    """A reward model's name as it is, which TRL loads; of a function, the function."""
    return spec if "/" in spec else load_rewards([spec])[0].func


def with_prompts(policy: Policy, name: str, other: dict[tuple[int, ...], list[int]]) -> Policy:
    """A policy that reads other prompts than those that it is asked and measured about."""

    def replaced(prompt_ids: list[list[int]]) -> list[list[int]]:
        return [other[tuple(ids)] for ids in prompt_ids]

    generate, logps = policy.generate, policy.logps
    assert logps is not None
    return replace(
        policy,
        name=name,
        generate=lambda ids, settings: generate(replaced(ids), settings),
        logps=lambda ids, completions: logps(replaced(ids), completions),
    )


def principle(config: dict[str, Any]) -> None:
    """Measure the base model, and the same with `principle` in each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(config["model_name_or_path"])
    dtype = getattr(torch, config.get("dtype", "float32"))
    model = AutoModelForCausalLM.from_pretrained(config["model_name_or_path"], dtype=dtype).eval()
    base = model_policy(model, tokenizer, name=config["model_name_or_path"])
    rows, rewards = load_prompts(config["dataset_name"]), load_rewards(config["reward_funcs"])
    names = {entry.name for entry in fields(GenerationSettings)} & set(config)
    settings = GenerationSettings(**{name: config[name] for name in names})
    report = Report(rows, config, base=base.name, path=config["output_file"])
    role, template = "system", "{principle}\n{prompt}"  # as PSLE's defaults have it
    guided = {
        tuple(encode_row(tokenizer, row)): encode_prompt(
            tokenizer, with_principle(row["prompt"], config["principle"], role, template)
        )
        for row in rows
    }

    def measure(policy: Policy) -> Evaluation:
        return evaluate(
            policy,
            rows,
            rewards,
            settings=settings,
            base=base,
            kl_prompts=config.get("kl_prompts"),
            seed=config["seed"],
        )

    for policy in (base, with_prompts(base, f"{base.name} with a principle", guided)):
        report.add(policy.name, measure(policy))


def texts(config: dict[str, Any]) -> None:
    """
    Write the perplexity of a model, or of an adapter on its base, on texts that people wrote.

    `exp` of the mean of -log p over all tokens but the first of each text.
    """
    from trl import ModelConfig

    quantization = quantization_config_from(ModelConfig(load_in_4bit=config.get("load_in_4bit", False)))
    dtype = config.get("dtype", "float32")
    model = load_model(config["model_name_or_path"], quantization_config=quantization, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
    total, tokens = 0.0, 0
    for text in human_texts(config["texts"]):
        ids = torch.tensor([tokenizer(text)["input_ids"][: config["tokens"]]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    found = {"text_perplexity": math.exp(total / tokens), "tokens": tokens}
    Path(config["output_file"]).write_text(json.dumps(found), encoding="utf-8")


TRL_TRAINERS = {"dpo": dpo, "grpo": grpo, "reward": reward, "sft": sft}


def main(argv: list[str] | None = None) -> int:
    name, path = sys.argv[1:] if argv is None else argv
    {**TRL_TRAINERS, "principle": principle, "texts": texts}[name](json.loads(Path(path).read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
