# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `preferences` compares on each dataset.

First, how often a trained model orders two held-out completions as people (or a judge) did: the base model by its mean
log-probability, RRHF by the same, TRL's DPO by its implicit reward, TRL's reward model by its logit, and length alone.
All train on the same rows. Then RRHF and PSLE are trained with that reward model as reward, on new completions, and
judged by a second reward model, which was trained on other rows. On the pairs about harm, so are the answers of DPO
and of the model that a value model of the reward guides (VAS).

Nothing was tuned on these datasets. The adapter is that of the suite `chat`; the learning rate is ten times RRHF's own
(2e-5), the factor between adapters and full training in TRL's recipe for LoRA without regret.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.text import DATA

from . import chat_arms
from .chat_arms import ADAPTER
from .preferences_data import DATASETS, OTHER, TRAIN, Dataset
from .quality_arms import TRAINING, Arm


BETA = 0.1  # TRL's default of DPO
ROWS, BASE, LENGTH, RRHF, DPO = "rows", "base", "the longer completion", "RRHF", "TRL's DPO"
REWARD, JUDGE = "reward model", "judge"
AGAINST = "against the reward model"
# Sampling policies of RRHF's Table 6: the dataset's completions, alone or with those of a beam search.
DATASET, BEAMS = "RRHF on the dataset's completions (P)", "RRHF on beam search and the dataset's completions (BP)"
DPO_ANSWERS = f"answers of {DPO}"
# Which part of the rows a model is trained on, and how its score is computed (preferences_train.py).
TRAINED_ON = {RRHF: TRAIN, DPO: TRAIN, REWARD: TRAIN, JUDGE: OTHER}
SCORES = {
    BASE: "mean_logp",
    LENGTH: "length",
    RRHF: "mean_logp",
    DPO: "implicit_reward",
    REWARD: "reward",
    JUDGE: "reward",
}


@dataclass(frozen=True)
class Task:
    """
    The model, the data, and how much of it is used.

    Args:
        model (`str`): The chat model that everything starts from.
        data (`str`): Folder of the datasets' files.
        rows (`int`): Rows of a dataset to train on, both halves together.
        held_out (`int`): Rows to measure on.
        tokens (`int`): Prompt and completion together; a longer completion is left out.
        completions (`int`): Completions of a row.
        batch (`int`): Rows of a step.
        prompts (`int`): Prompts on which RRHF and PSLE generate completions for the reward model.
        num_generations (`int`): Completions for each of them.
        asked (`int`), answers (`int`): Held-out prompts that the trained models answer, and how often.
        dtype (`str`): Of the model, in training and in measuring.
        score_dtype (`str`): Of a reward model when it scores: in bfloat16, close logits change their order.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    data: str = str(DATA)
    rows: int = 500
    held_out: int = 300
    tokens: int = 256
    completions: int = 4
    epochs: int = 2
    batch: int = 8
    learning_rate: float = 2e-4
    prompts: int = 96
    num_generations: int = 4
    max_completion_length: int = 64
    temperature: float = 0.7
    asked: int = 100
    answers: int = 2
    dtype: str = "bfloat16"
    score_dtype: str = "float32"

    @property
    def training(self) -> dict[str, Any]:
        """Fields of all that train: of TRL's trainers as of ours."""
        adapted = {**ADAPTER, "learning_rate": self.learning_rate, "per_device_train_batch_size": self.batch}
        return {**TRAINING, **adapted, "num_train_epochs": self.epochs, "dtype": self.dtype, "bf16": self.in_half}

    @property
    def in_half(self) -> bool:
        """Whether training computes in bfloat16."""
        return self.dtype == "bfloat16"

    def against(self, reward: str, judge: str, train: str, held_out: str, prompts: int) -> "AnswersTask":
        """
        The task of the suite `chat` whose reward is a reward model, and whose second reward is the judge.

        Args:
            reward (`str`), judge (`str`): Folders of the two reward models.
            train (`str`), held_out (`str`): Files of prompts.
            prompts (`int`): Prompts of the first.
        """
        return AnswersTask(
            model=self.model,
            reward=reward,
            second=judge,
            train=train,
            evaluation=held_out,
            other="",
            prompts=prompts,
            num_generations=self.num_generations,
            answers=self.answers,
            batch=self.batch,
            max_completion_length=self.max_completion_length,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            dtype=self.dtype,
            texts=0,
            score_dtype=self.score_dtype,
        )


@dataclass(frozen=True)
class AnswersTask(chat_arms.Task):
    """
    The task of the suite `chat` with reward models.

    Args:
        score_dtype (`str`): Of the reward models.
    """

    score_dtype: str = "float32"

    @property
    def scoring(self) -> dict[str, Any]:
        return {"reward_model_init_kwargs": {"dtype": self.score_dtype}}

    @property
    def loading(self) -> dict[str, Any]:
        return {**super().loading, "reward_model_init_kwargs": json.dumps({"dtype": self.score_dtype})}


def arm_name(dataset: str, what: str) -> str:
    """The name of an arm: "harmless: RRHF"."""
    return f"{dataset}: {what}"


def arms(task: Task) -> list[Arm]:
    """All arms, dataset after dataset; each after those that it needs."""
    return [arm for dataset in DATASETS.values() for arm in dataset_arms(task, dataset)]


def dataset_arms(task: Task, dataset: Dataset) -> list[Arm]:
    """The arms of one dataset."""

    def arm(what: str, command: str = "", fields: dict[str, Any] | None = None, *needs: str, series: str = "") -> Arm:
        needed = tuple(arm_name(dataset.name, name) for name in needs)
        return Arm(arm_name(dataset.name, what), series or what, command, fields or {}, needs=needed, other=False)

    # The score head is trained whole, beside the adapter, as TRL advises.
    reward = {"lora_task_type": "SEQ_CLS", "lora_modules_to_save": ["score"], "max_length": None}
    adapted = {**ADAPTER, "learning_rate": task.learning_rate, "per_device_train_batch_size": task.batch}
    # As many completions for each: RRHF generates once, PSLE a plain and a guided one in each of its iterations.
    rrhf = {**adapted, "num_generations": task.num_generations, "num_train_epochs": task.epochs}
    psle = {
        **adapted,
        "principles": [dataset.principle],
        "num_generations": 1,
        "num_iterations": task.num_generations // 2,
        "two_sided": True,
    }
    vas = {
        **adapted,
        "num_generations": task.num_generations,
        "num_train_epochs": task.epochs,
        "num_epochs_per_batch": 1,
        "normalize_rewards": True,
    }
    guided = {"value_model_name_or_path": ["@"], "beta": ["2"], "guide_top_k": 20}
    both = (ROWS, REWARD, JUDGE)
    found = [
        arm(ROWS, "divide"),
        arm(BASE, "", {}, ROWS),
        arm(LENGTH, "", {}, ROWS),
        arm(RRHF, "rrhf", {}, ROWS),
        arm(DPO, "dpo", {"beta": BETA, "max_length": None}, ROWS),
        arm(REWARD, "reward", reward, ROWS),
        arm(JUDGE, "reward", reward, ROWS),
        arm("answers of the base", "", {}, *both, series="base"),
        arm(f"{RRHF} {AGAINST}", "rrhf", rrhf, *both, series=RRHF),
        arm(f"PSLE {AGAINST}", "psle", psle, *both, series="PSLE"),
    ]
    if dataset.of_harm:
        value = arm(f"VAS {AGAINST}", "vas", vas, *both, series="VAS")
        found += [arm(DPO_ANSWERS, "", {}, *both, DPO, series=DPO), replace(value, decoding=guided)]
        # Both read completions of the same prompts, which the reward model scores.
        given = {"dataset_completions": True, "max_num_prompts": task.prompts, "temperature": None}
        beams = {**given, "num_beams": task.num_generations}
        offline = {**adapted, "num_train_epochs": task.epochs}
        found += [
            replace(arm(DATASET, "rrhf", offline, *both), scored={**given, "model_name_or_path": None}),
            replace(arm(BEAMS, "rrhf", offline, *both), scored=beams),
        ]
    return found


def is_against(arm: Arm) -> bool:
    """Whether an arm answers prompts, which the reward models score, or orders completions that are there."""
    return len(arm.needs) > 1
