# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
How the suite `imdb` does an arm: trains through the public trainers and measures in the same process.

Everything is float32: the models are so small that what counts is the number of kernels, which autocast adds to.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from benchmarks.harness.process import trainable_parameters
from benchmarks.harness.text import read_rows
from trl_ext.data.prompts import load_prompts
from trl_ext.data.tokenization import encode_prompt
from trl_ext.devices import default_device
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.proxy_rlhf.policies import proxy_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.rewards.functions import Reward, load_rewards
from trl_ext.rewards.scoring import score_completions
from trl_ext.rewards.settings import RewardSettings

from .experiment import METRICS, Bench
from .imdb_arms import PARTS, Arm, Task


QUIET: dict[str, Any] = {
    "logging_steps": 100,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "bf16": False,
    "dataloader_pin_memory": False,
}

KL_PROMPTS = 64  # on which the KL of a proxy with many candidates is measured


@dataclass
class ImdbBench(Bench):
    """Trains and measures arms on this process's device; what several arms use is loaded once."""

    task: Task

    def do(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        return KINDS[arm.kind](self, arm, seed)

    @cached_property
    def device(self) -> torch.device:
        return default_device()

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.task.model)

    @cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.task.model, dtype=torch.float32).eval().to(self.device)

    @cached_property
    def base(self) -> Policy:
        return model_policy(self.model, self.tokenizer, name="base", batch_size=self.task.batch)

    @cached_property
    def rewards(self) -> list[Reward]:
        """The reward, and the judge where the task has one."""
        return load_rewards(
            [self.task.reward, self.task.judge] if self.task.judge else [self.task.reward],
            # float32, as in the results so far; the weights are saved in bfloat16
            settings=RewardSettings(self.task.batch, reward_model_init_kwargs={"dtype": "float32"}),
            device=self.device,
        )

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return load_prompts(self.task.evaluation)[: self.task.evaluated]

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        return [{"prompt": row["prompt"]} for row in read_rows(self.task.train, self.task.prompts)]

    def read_samples(self, name: str, seed: int) -> list[dict[str, Any]]:
        """The scored samples that an arm left."""
        return read_rows(str(self.folder(name, seed) / "samples.jsonl"))

    def reward(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """The task's reward as a function, whose model is in memory once."""
        return self.rewards[0].func(prompts, completions)

    def settings(self, **changes: Any) -> GenerationSettings:
        """How completions are generated."""
        task = self.task
        given = GenerationSettings(1, task.max_completion_length, top_k=task.top_k)
        return replace(given, **changes)

    def fields(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Of an arm's config, all that is not the method's alone."""
        sampling = {"max_completion_length": self.task.max_completion_length, "top_k": self.task.top_k}
        folder = self.folder(arm.name, seed) / "run"
        return {**QUIET, **sampling, **arm.fields, **self.overrides, "seed": seed, "output_dir": str(folder)}

    def measure(self, policy: Policy, seed: int, other: bool = False, **how: Any) -> dict[str, Any]:
        """A policy's metrics on the evaluation prompts, and on those of another kind."""
        found = {"metrics": self._measure(policy, self.rows, seed, **how)}
        if other:
            found["other"] = self._measure(policy, load_prompts(self.task.other), seed, **how)
        return found

    def _measure(
        self, policy: Policy, rows: list[dict[str, Any]], seed: int, kl_prompts: int | None = None, **changes: Any
    ) -> dict[str, Any]:
        """The metrics on some rows; `changes` are of [`settings`]."""
        settings = self.settings(**changes)
        found = evaluate(
            policy, rows, self.rewards, settings=settings, base=self.base, kl_prompts=kl_prompts, seed=seed
        )
        named: dict[str, Any] = {}
        for name, reward in zip(("reward", "judge"), self.rewards, strict=False):
            named |= {f"{name}{se}": found.metrics.get(f"reward/{reward.name}{se}") for se in ("", "_se")}
        kept = {key: found.metrics.get(key) for name in METRICS[1:] for key in (name, f"{name}_se")}
        return {**named, **kept, "seconds": round(found.seconds, 2)}


class Milestones(TrainerCallback):
    """
    Calls a function after parts of a training, whose time is not counted as training's.

    Args:
        marks (`tuple[float, ...]`): The parts, of at most 1.
        measure (`Callable[[], dict]`): What is called.
        clock (`Callable[[], float]`, *optional*): Seconds; by default of the wall clock.
    """

    def __init__(
        self,
        marks: tuple[float, ...],
        measure: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.marks, self.measure, self.clock = marks, measure, clock
        self.found: list[tuple[float, dict[str, Any], float]] = []
        self.started, self.spent = clock(), 0.0
        self.after: Callable[[], None] = lambda: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = {max(1, round(mark * state.max_steps)): mark for mark in self.marks}
        self.started = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            now = self.clock()
            trained = now - self.started - self.spent
            self.found.append((self.steps[state.global_step], self.measure(), round(trained, 1)))
            self.after()
            self.spent += self.clock() - now


def _cases(
    arm: Arm, seed: int, milestones: Milestones, trainer: Any, trained: int, total: int
) -> list[dict[str, Any]]:
    """A case for each part of a training."""
    logged = trainer.state.log_history[-1] if trainer.state.log_history else {}
    return [
        {
            "name": arm.name if mark == 1 else f"{arm.name}, {mark:g} of the training",
            "seed": seed,
            "settings": arm.fields,
            **measured,
            "cost": {"seconds": seconds, "steps": round(mark * trainer.state.max_steps),
                     "trainable_parameters": trained, "trainable_share": round(trained / total, 5)},
            "logged": {key: value for key, value in logged.items() if isinstance(value, int | float)},
        }
        for mark, measured, seconds in milestones.found
    ]  # fmt: skip


def _train(
    bench: ImdbBench, trainer: Any, arm: Arm, seed: int, measure: Callable[[], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Train, and measure at the arm's marks: a case for each."""
    milestones = Milestones(arm.marks, measure)
    sizes = _parameters(trainer.model), bench.model.num_parameters()
    milestones.after = lambda: bench.keep(_cases(arm, seed, milestones, trainer, *sizes))
    trainer.add_callback(milestones)
    trainer.train()
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return _cases(arm, seed, milestones, trainer, *sizes)


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# ------------------------------------------------------------------------------------------------------------- arms


def base(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """The untrained policy."""
    return [
        {"name": arm.name, "seed": seed, "settings": {}, "cost": {}, **bench.measure(bench.base, seed, other=True)}
    ]


def psle(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """PSLE and its baselines."""
    from trl_ext import PSLEConfig, PSLETrainer

    fields = bench.fields(arm, seed)
    rows = bench.prompts[: fields.pop("prompts")]
    args = PSLEConfig(generation_batch_size=bench.task.batch, **fields)
    trainer = PSLETrainer(bench.task.model, bench.reward, args, Dataset.from_list(rows))
    policy = model_policy(trainer.model, bench.tokenizer, name=arm.name, batch_size=bench.task.batch)
    return _train(bench, trainer, arm, seed, lambda: bench.measure(policy, seed, other=True))


def rrhf(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """RRHF with one of the ranking losses, on completions that an arm left or on its own."""
    from trl_ext import RRHFConfig, RRHFTrainer

    args = RRHFConfig(generation_batch_size=bench.task.batch, **bench.fields(arm, seed))
    given = [row for name in arm.needs for row in bench.read_samples(name, seed)]
    trainer = RRHFTrainer(
        bench.task.model,
        args=args,
        train_dataset=Dataset.from_list(given or bench.prompts),
        reward_funcs=None if given else bench.reward,
    )
    policy = model_policy(trainer.model, bench.tokenizer, name=arm.name, batch_size=bench.task.batch)
    return _train(bench, trainer, arm, seed, lambda: bench.measure(policy, seed))


def proxy_rlhf(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Proxy-RLHF."""
    from trl_ext import ProxyRLHFConfig, ProxyRLHFTrainer

    args = ProxyRLHFConfig(generation_batch_size=bench.task.batch, **bench.fields(arm, seed))
    trainer = ProxyRLHFTrainer(bench.model, bench.reward, args, Dataset.from_list(bench.prompts))
    policy = proxy_policy(bench.model, bench.tokenizer, trainer.model, name=arm.name, batch_size=bench.task.batch)
    # The task's top-k would take candidates away from a proxy that has more, and its KL reads all of them.
    how: dict[str, Any] = {"top_k": 0, "kl_prompts": KL_PROMPTS} if args.top_k > bench.task.top_k else {}
    return _train(bench, trainer, arm, seed, lambda: bench.measure(policy, seed, **how))


def grpo(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """TRL's GRPO, with an adapter if `lora_r` is set; `per_device_train_batch_size` counts prompts, as ours does."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    fields = bench.fields(arm, seed)
    rank = fields.pop("lora_r", 0)
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    fields["per_device_train_batch_size"] *= fields["num_generations"]  # TRL counts completions
    args = GRPOConfig(use_cpu=bench.device.type == "cpu", **fields)
    trainer = GRPOTrainer(
        bench.task.model,
        reward_funcs=bench.reward,
        args=args,
        train_dataset=Dataset.from_list(bench.prompts),
        peft_config=adapter if rank else None,
    )
    return _train(bench, trainer, arm, seed, lambda: bench.measure(_copied(bench, trainer.model, arm.name), seed))


def _copied(bench: ImdbBench, trained: Any, name: str) -> Policy:
    """A model of its own, an adapter merged: TRL's forward of the one in training is not for measuring."""
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    copy = AutoModelForCausalLM.from_pretrained(bench.task.model, dtype=torch.float32).to(bench.device)
    if isinstance(trained, PeftModel):
        adapted = get_peft_model(copy, trained.peft_config["default"])
        set_peft_model_state_dict(adapted, get_peft_model_state_dict(trained))
        copy = adapted.merge_and_unload()
    else:
        copy.load_state_dict(trained.state_dict())
    return model_policy(copy.eval(), bench.tokenizer, name=name, batch_size=bench.task.batch)


def samples(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Scored samples of the frozen policy, a part of the prompts; they are a file, not a case."""
    part = arm.fields["part"]
    rows = bench.prompts[part :: arm.fields.get("parts", PARTS)]
    settings = bench.settings(num_generations=arm.fields.get("num_generations", bench.task.samples))
    torch.manual_seed(seed * 1_000 + part)
    ids = [encode_prompt(bench.tokenizer, row["prompt"]) for row in rows]
    completions = generate(bench.model, bench.tokenizer, ids, settings, batch_size=2 * bench.task.batch)
    scored = [
        {
            "prompt": row["prompt"],
            "completions": [x.text for x in group],
            # An empty completion has ended, and a truncated one has not.
            "ended": [x.completion.ended for x in group],
            "scores": [x.score for x in group],
        }
        for row, group in zip(rows, score_completions(rows, completions, bench.rewards[:1]), strict=True)
    ]
    lines = map(json.dumps, scored)
    folder = bench.folder(arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return []


def value(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """A value model, left in a folder, and how well it foresees what half a completion leads to."""
    from trl_ext import VASConfig, VASTrainer

    fields = {"num_generations": 4, **bench.fields(arm, seed)}
    trunk = fields.pop("trunk")
    args = VASConfig(
        generation_batch_size=bench.task.batch, calibration_rollouts=10, per_device_eval_batch_size=128,
        value_model_name_or_path=getattr(bench.task, trunk) if trunk else None, **fields,
    )  # fmt: skip
    rows = [row for name in arm.needs for row in bench.read_samples(name, seed)]
    policy = bench.model if not trunk else bench.task.model
    held_out = Dataset.from_list([{"prompt": row["prompt"]} for row in bench.rows[:256]])
    trainer = VASTrainer(policy, bench.reward, args, Dataset.from_list(rows), held_out)
    started = time.perf_counter()
    trainer.train()
    seconds = round(time.perf_counter() - started, 1)
    found = trainer.evaluate()
    shutil.rmtree(args.output_dir, ignore_errors=True)
    folder = bench.folder(arm.name, seed) / "value"
    trainer.save_model(str(folder))
    metrics = {"r2": found["eval_calibration/r2"], "correlation": found["eval_calibration/correlation"]}
    cost = {"seconds": seconds, "steps": trainer.state.global_step, "samples": sum(len(r["scores"]) for r in rows),
            "trainable_parameters": trainable_parameters(folder)}  # fmt: skip
    return [{"name": arm.name, "seed": seed, "settings": arm.fields, "metrics": metrics, "cost": cost}]


def guide(bench: ImdbBench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """The policy under guidance, for several weights."""
    values = _value_model(bench, arm, seed)
    cases = []
    for beta in arm.fields["betas"]:
        policy = guided_policy(
            bench.model, bench.tokenizer, values, beta, arm.fields["k"], name=arm.name, batch_size=bench.task.batch
        )
        settings = {**arm.fields, "betas": beta}
        measured = bench.measure(policy, seed)
        cases.append(
            {"name": f"{arm.name}, beta {beta:g}", "seed": seed, "settings": settings, "cost": {}, **measured}
        )
        bench.keep(cases)
    return cases


def _value_model(bench: ImdbBench, arm: Arm, seed: int) -> ValueModel:
    if arm.needs:
        config = json.loads((bench.folder(arm.needs[0], seed) / "value" / "config.json").read_text())
        shared = {"backbone": bench.model} if config["form"] == "policy" else {}
        made = ValueModel.from_pretrained(str(bench.folder(arm.needs[0], seed) / "value"), **shared)
        return made.eval().to(bench.device)
    # The reward model as it is: its own trunk and its own head, as if its logit for half a text were its value.
    classifier = AutoModelForSequenceClassification.from_pretrained(bench.task.reward, dtype=torch.float32)
    made = ValueModel.from_backbone(bench.task.reward, dtype=torch.float32)
    made.head.weight.data.copy_(classifier.score.weight.data)
    return made.eval().to(bench.device)


KINDS: dict[str, Callable[[ImdbBench, Arm, int], list[dict[str, Any]]]] = {
    function.__name__: function for function in (base, psle, rrhf, proxy_rlhf, grpo, samples, value, guide)
}
