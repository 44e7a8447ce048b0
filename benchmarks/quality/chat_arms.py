# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `chat` compares on a real chat model: the four methods, TRL's DPO, GRPO and SFT on the best sample,
best-of-n, context distillation, and the principle in the prompt.

All trained arms learn an adapter of the same rank from the same prompts and equally many sampled completions. The
reward is computed by code, so no arm can please a learned judge: it is the share of a request's constraints that an
answer meets. Kinds of constraints that no arm was trained on are the judge.
"""

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.results import ROOT

from . import quality_arms
from .quality_arms import SAMPLES, TRAINING, Arm


REWARDS = "trl_ext.instructions"
PROMPTS = ROOT / "recipes" / "instructions"
PRINCIPLE = (
    "Follow every instruction about the length, the format and the words of the answer to the letter. "
    "Check each one before you answer, and write nothing else."
)
KL_PROMPTS = 64  # on which the KL is measured
# One adapter for all arms that train the model. Rank and targets are TRL's recipe for LoRA without regret, with a
# rank for 135 M parameters; alpha is twice the rank, as in PEFT's examples.
ADAPTER: dict[str, Any] = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["all-linear"]}

# The base, and one arm of each trainer that trains the model, have a second form, to see what 4 bits cost.
IN_FOUR_BITS = ("base", "TRL's SFT", "TRL's DPO", "TRL's GRPO", "RRHF, offline", "PSLE")


@dataclass(frozen=True)
class Task(quality_arms.Task):
    """
    The task "instructions" for a chat model; see [`~benchmarks.quality.quality_arms.Task`] for the other fields.

    Args:
        second (`str`): A reward that is measured and never trained on.
        temperature (`float`): Of all sampling.
        dtype (`str`): Of the model, in training and in measuring.
        texts (`int`), text_tokens (`int`): Human texts on which forgetting is measured, and their longest length.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    reward: str = f"{REWARDS}.constraints.constraints_met"
    value: str = ""
    train: str = str(PROMPTS / "prompts_train.jsonl")
    evaluation: str = str(PROMPTS / "prompts_eval.jsonl")
    other: str = str(PROMPTS / "prompts_transfer.jsonl")
    prompts: int = 256
    passes: int = 1
    num_generations: int = 4
    answers: int = 2
    batch: int = 16
    max_completion_length: int = 48
    top_k: int = 0
    learning_rate: float = 5e-4
    second: str = f"{REWARDS}.readability.readability"
    temperature: float = 0.7
    dtype: str = "bfloat16"
    texts: int = 200
    text_tokens: int = 128

    @property
    def sampling(self) -> dict[str, Any]:
        return {"max_completion_length": self.max_completion_length, "temperature": self.temperature}

    @property
    def training(self) -> dict[str, Any]:
        return {**TRAINING, "dtype": self.dtype, "bf16": self.dtype == "bfloat16"}

    @property
    def loading(self) -> dict[str, Any]:
        return {"dtype": self.dtype}

    def measuring(self, place: str) -> dict[str, Any]:
        # Log-probabilities take most of the time, and the KL on the other prompts is in no table.
        return {"kl_prompts": KL_PROMPTS if place == "evaluation" else 0, "completion_logps": "false"}

    @property
    def rewards(self) -> list[str]:
        return [self.reward, self.second] if self.second else [self.reward]

    @property
    def principle(self) -> str:
        return PRINCIPLE

    @property
    def other_answers(self) -> int:
        return self.answers


PRESETS = {
    # Two cores with bfloat16 instructions.
    "cpu": Task(),
    # Ten minutes of one large GPU: more completions, and larger n of best-of-n.
    "gpu": Task(passes=4, num_generations=8, batch=32, answers=4, texts=500),
}


def arms(task: Task) -> list[Arm]:
    """All arms of a task, those that the others are compared with first."""
    adapted = {**ADAPTER, "learning_rate": task.learning_rate, "per_device_train_batch_size": task.batch}
    sampling = {"num_generations": task.num_generations}
    two_epochs = {**adapted, "num_train_epochs": 2}  # of samples that are there, which cost nothing more
    # TRL's GRPO holds the logits of a whole batch: 64 completions took 19 GiB.
    pieces = {"per_device_train_batch_size": task.batch // 4, "gradient_accumulation_steps": 4}
    large = task.budget > PRESETS["cpu"].budget
    best = f"TRL's SFT on the best of {task.num_generations}"
    psle = {
        **adapted,
        "principles": [task.principle],
        "num_generations": 1,
        "num_iterations": task.num_generations // 2,
        "two_sided": True,
    }
    value = {**two_epochs, "num_epochs_per_batch": 1, "normalize_rewards": True}
    # Weights of the values: with 1 and 2, answers differed from the base's by a tenth of a nat.
    guided: dict[str, Any] = {
        "answers": 1,
        "through": "1, and k = 20 candidates through the value model",
        "forwards": 21,
    }
    found = [
        SAMPLES,
        Arm("base", "base"),
        Arm(
            "best of n",
            "best of n",
            decoding={"best_of_n": [4, 16, 64, 128] if large else [4, 16]},
            answers=1,
            through="n",
        ),
        Arm("principle in the prompt", "principle in the prompt", "principle"),
        Arm(best, "TRL's SFT", "sft", two_epochs, needs=(SAMPLES.name,)),
        Arm("TRL's DPO", "TRL's DPO", "dpo", {**two_epochs, "beta": 0.1}, needs=(SAMPLES.name,)),
        Arm("TRL's GRPO", "TRL's GRPO", "grpo", {**adapted, **sampling, **pieces, "num_train_epochs": 1, "beta": 0.0}),
        Arm("RRHF, offline", "RRHF", "rrhf", two_epochs, needs=(SAMPLES.name,)),
        Arm("PSLE", "PSLE", "psle", psle),
        Arm(
            "Proxy-RLHF",
            "Proxy-RLHF",
            "proxy_rlhf",
            {
                "top_k": 20,
                "per_device_train_batch_size": 64,
                "max_steps": 16 * (task.budget // 64),  # 4 epochs of 4 minibatches on the decisions of each round
                "proxy_layer_sizes": [256],
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
            },
            decoding={"proxy_name_or_path": ["@"]},
            through="k = 20 candidates in one forward",
            forwards=20,
        ),
        Arm(
            "VAS",
            "VAS",
            "vas",
            value,
            needs=(SAMPLES.name,),
            decoding={"value_model_name_or_path": ["@"], "beta": ["4", "8", "24"], "guide_top_k": 20},
            **guided,
        ),
        Arm(
            "RRHF, OP-k with a KL term",
            "RRHF",
            "rrhf",
            {**adapted, **sampling, "resample_steps": 1, "num_train_epochs": 1, "beta": 0.05},
        ),
        Arm(
            "RRHF, IP-3",
            "RRHF",
            "rrhf",
            {**adapted, **sampling, "resample_epochs": 1, "num_train_epochs": 3, "max_rows": task.rows // 3},
        ),
        Arm(
            "context distillation",
            "context distillation",
            "psle",
            {**psle, "two_sided": False, "rank_weight": 0.0, "sft_target": "guided"},
        ),
        Arm(
            "FUDGE",
            "FUDGE",
            "vas",
            {**value, "lam": 1.0},
            needs=(SAMPLES.name,),
            decoding={"value_model_name_or_path": ["@"], "beta": ["8"], "guide_top_k": 20},
            **guided,
        ),
        Arm(
            "VAS, two rounds",
            "VAS",
            "vas",
            # Half of the completions in each round; the second is guided, and trains on both.
            {
                **value,
                "num_generations": task.num_generations // 2,
                "num_iterations": 2,
                "sampling_beta": 8.0,
            },
            decoding={"value_model_name_or_path": ["@"], "beta": ["8"], "guide_top_k": 20},
            **guided,
        ),
    ]
    return [*found, *(in_four_bits(arm) for arm in found if arm.name.startswith(IN_FOUR_BITS))]


FOUR_BITS = ", 4 bits"  # ends the name of an arm in 4 bits


def in_four_bits(arm: Arm) -> Arm:
    """QLoRA: the arm with the model's weights in 4 bits, in training and in measuring, that of the base included."""
    four_bits = {"load_in_4bit": True}
    fields = {**arm.fields, **four_bits} if arm.command else {}
    return replace(arm, name=f"{arm.name}{FOUR_BITS}", fields=fields, loading=four_bits)


def base_of(arm: str) -> str:
    """The name of the base that the KL of an arm is to."""
    return f"base{FOUR_BITS}" if arm.endswith(FOUR_BITS) else "base"
