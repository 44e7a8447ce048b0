# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How the suite `chat` does an arm: as `quality` does, with each prompt's rewards and what the model has forgotten."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from benchmarks.harness.process import run, trainable_parameters

from .chat_arms import Task
from .quality_arms import SAMPLES, Arm
from .quality_bench import QualityBench, case_name, measured_models, reward_key


@dataclass
class ChatBench(QualityBench):
    """Trains and measures arms; a case also has the mean rewards of each prompt, by which arms are compared."""

    task: Task

    def do(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        cases = super().do(arm, seed)
        for case in cases:
            case["forwards"] = float(case["name"].rpartition(" ")[2]) if arm.through == "n" else arm.forwards
            case["cost"]["model_parameters"] = trainable_parameters(Path(self.task.model))
            # Only Proxy-RLHF trains without a backward pass through the model.
            frozen = arm.command == "proxy_rlhf"
            case["cost"] |= {"sampling_forwards": sampling_forwards(arm), "backward": not frozen}
        changed = not arm.decoding and arm.command not in ("principle",)
        if arm != SAMPLES and changed and self.task.texts:
            cases[0]["metrics"]["text_perplexity"] = self._text_perplexity(arm, seed)
        return cases

    def measured(self, file: Path, arm: Arm) -> dict[str, dict[str, Any]]:
        found = super().measured(file, arm)
        rewards = [reward_key(spec) for spec in self.task.rewards]
        table = pyarrow.parquet.read_table(
            file.with_suffix(".parquet"), columns=["model", "row_index", "sample", *rewards]
        )
        for row in measured_models(file, arm):
            metrics = found[case_name(row, arm)]
            answers = {name.partition("/")[2]: by_answer(table, row["model"], name) for name in rewards}
            metrics["by_answer"] = answers
            metrics["by_prompt"] = {name: list(map(_mean, of_prompts)) for name, of_prompts in answers.items()}
            if self.task.second:
                second = reward_key(self.task.second)
                metrics |= {"second": row[second], "second_se": row[f"{second}_se"]}
        return found

    def _text_perplexity(self, arm: Arm, seed: int) -> float:
        folder, task = self.folder(arm.name, seed), self.task
        config = {
            "model_name_or_path": str(folder / "trained") if arm.command else task.model,
            "tokenizer": task.model,
            "dtype": task.dtype,
            **arm.loading,
            "texts": task.texts,
            "tokens": task.text_tokens,
            "output_file": str(folder / "texts.json"),
        }
        file = folder / "texts-config.json"
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        run(["-m", "benchmarks.quality.quality_train", "texts", str(file)], folder / "texts.log")
        return round(json.loads((folder / "texts.json").read_text(encoding="utf-8"))["text_perplexity"], 3)


def sampling_forwards(arm: Arm) -> float:
    """Tokens through the model for each token that training samples: as for an answer where it is guided."""
    if arm.command == "proxy_rlhf":
        return arm.forwards
    rounds = arm.fields.get("num_iterations", 1) if arm.command == "vas" else 1
    return (1 + (rounds - 1) * arm.forwards) / rounds  # the first round is not guided


def by_prompt(table: Any, model: str, reward: str) -> list[float | None]:
    """The mean reward of a model's evaluated completions of each prompt, in the order of the prompts."""
    return [_mean(found) for found in by_answer(table, model, reward)]


def by_answer(table: Any, model: str, reward: str) -> list[list[float]]:
    """The rewards of a model's evaluated completions of each prompt, in the order of the prompts."""
    values: dict[int, list[float]] = {}
    columns = (table.column(name).to_pylist() for name in ("model", "row_index", "sample", reward))
    for name, index, sample, value in zip(*columns, strict=True):
        if name == model and sample == "evaluated":
            values.setdefault(index, []).extend([] if value is None else [round(value, 4)])
    return [found for _, found in sorted(values.items())]


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
