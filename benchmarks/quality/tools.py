# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A model behind an API learns to call functions: valid calls before and after its answers are guided by values.

    python -m llama_cpp.server --model SmolLM2-135M-Instruct.Q4_1.gguf --model_alias smollm2 --logits_all true
    python -m benchmarks.run tools --endpoint http://localhost:8000/v1 --endpoint_model smollm2 \
        --model outputs/models/SmolLM2-135M-Instruct

The server's model is only asked for completions and for the probabilities of next tokens. A value model, an adapter
and a head on weights of the same family, learns from its scored completions and guides it. tool_calls.py has the
requests and the checks. A later call goes on with what is not done.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet

from benchmarks.harness.process import Failed, run, trainable_parameters
from benchmarks.harness.tables import NOT_MEASURED

from . import paired
from .chat_arms import ADAPTER
from .chat_bench import by_prompt
from .experiment import Bench, Experiment, run_all
from .preferences_data import write_rows
from .quality_arms import TRAINING, Arm
from .quality_bench import case_name, decoding_flags, flags_of, training_command
from .tables import Seeds, by_name, cost, grid, metric, missing, sources
from .tool_calls import call_parts, make_prompts, valid_call


PARTS, VALID = (f"benchmarks.quality.tool_calls.{each.__name__}" for each in (call_parts, valid_call))
SAMPLES = Arm("samples", "", "sample")
BASE = Arm("base", "base")


@dataclass(frozen=True)
class Task:
    """
    The server, the value model, and how much is sampled.

    Args:
        endpoint (`str`), endpoint_model (`str`): The server, and the name of its model.
        model (`str`): Tokenizer of the server's model, and the weights that the value model is an adapter of.
        prompts (`int`), num_generations (`int`): Training prompts, and the completions sampled for each.
        held_out (`int`), answers (`int`): Prompts to measure on, and the answers to each.
        concurrency (`int`): Requests at a time. A server that keeps the state of one text only, such as llama.cpp with
            one slot, reads a prompt again whenever two take turns.
        top_k (`int`): Next tokens that the server lists.
        epochs (`int`), batch (`int`): Of the value model's training; a batch is so many prompts.
    """

    endpoint: str = "http://localhost:8000/v1"
    endpoint_model: str = "smollm2"
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    prompts: int = 96
    num_generations: int = 8
    held_out: int = 40
    answers: int = 1
    concurrency: int = 1
    max_completion_length: int = 48
    temperature: float = 0.7
    top_k: int = 20
    epochs: int = 4
    batch: int = 8
    learning_rate: float = 5e-4
    dtype: str = "bfloat16"

    @property
    def served(self) -> dict[str, Any]:
        """Flags of every command that asks the server."""
        return {
            "endpoint": self.endpoint,
            "endpoint_model": self.endpoint_model,
            "endpoint_tokenizer": self.model,
            "endpoint_concurrency": self.concurrency,
            "max_completion_length": self.max_completion_length,
            "temperature": self.temperature,
        }


def arms(task: Task) -> list[Arm]:
    """The server's model alone, and guided by values."""
    value = {
        **ADAPTER,
        "learning_rate": task.learning_rate,
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.batch,
        "num_epochs_per_batch": 1,
        "normalize_rewards": True,
    }
    guided = {"value_model_name_or_path": ["@"], "beta": ["4"], "guide_top_k": task.top_k}
    return [SAMPLES, BASE, Arm("VAS", "VAS", "vas", value, needs=(SAMPLES.name,), decoding=guided)]


@dataclass
class ToolsBench(Bench):
    """Samples, trains and measures with the commands that users have."""

    task: Task

    def do(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        folder = self.folder(arm.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if arm == SAMPLES:
            self._sample(folder, seed)
            return []
        settings, spent = self._train(arm, folder, seed) if arm.command else ({}, {})
        rows = make_prompts(self.task.held_out, held_out=True)
        file = self._evaluate(folder, rows, self.task.answers, seed, arm.decoding)
        table = pyarrow.parquet.read_table(
            file.with_suffix(".parquet"), columns=["model", "row_index", "sample", "reward/valid_call"]
        )
        models = json.loads(file.read_text(encoding="utf-8"))["models"]  # of a server, without a base beside them
        for row in models:
            if "error" in row:
                raise Failed(f"{arm.name}: {row['error']} ({file})")
        return [
            {
                "name": case_name(row, arm),
                "series": arm.series,
                "seed": seed,
                "metrics": {
                    "valid": row["reward/valid_call"],
                    "valid_se": row["reward/valid_call_se"],
                    "reward": row["reward/call_parts"],
                    "reward_se": row["reward/call_parts_se"],
                    "completion_length": row["completion_length"],
                    "ended": row["ended"],
                    "by_prompt": {"valid": by_prompt(table, row["model"], "reward/valid_call")},
                },
                "cost": spent,
                "settings": settings | arm.decoding,
            }
            for row in models
        ]

    def _sample(self, folder: Path, seed: int) -> None:
        """Scored completions of the server's model, in the form that training reads."""
        rows = make_prompts(self.task.prompts, seed)
        file = self._evaluate(folder, rows, self.task.num_generations, seed, {})
        table = pyarrow.parquet.read_table(file.with_suffix(".parquet"))
        names = ("row_index", "sample", "completion", "ended", "reward/call_parts")
        for index, sample, text, ended, score in zip(*(table.column(name).to_pylist() for name in names), strict=True):
            if sample == "evaluated":
                row = rows[index]
                row.setdefault("completions", []).append([{"role": "assistant", "content": text}])
                row.setdefault("ended", []).append(ended)
                row.setdefault("scores", []).append(score)
        write_rows(folder / "samples.jsonl", rows)

    def _train(self, arm: Arm, folder: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        config = {
            **TRAINING,
            "dtype": self.task.dtype,
            "bf16": self.task.dtype == "bfloat16",
            **arm.fields,
            **self.overrides,
            "model_name_or_path": self.task.model,
            "dataset_name": str(self.folder(SAMPLES.name, seed) / "samples.jsonl"),
            "output_dir": str(folder / "trained"),
            "seed": seed,
        }
        file = folder / "config.json"
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        found = run(training_command(arm.command, file), folder / "train.log")
        return config, {**found.cost, "trainable_parameters": trainable_parameters(folder / "trained")}

    def _evaluate(
        self, folder: Path, rows: list[dict[str, Any]], answers: int, seed: int, decoding: dict[str, Any]
    ) -> Path:
        """Ask the server, guided or not, and score the answers."""
        prompts, file = folder / "prompts.jsonl", folder / "evaluation.json"
        write_rows(prompts, rows)
        flags = {
            "dataset_name": str(prompts),
            "reward_funcs": [PARTS, VALID],
            "num_generations": answers,
            **self.task.served,
            "seed": seed,
            "output_file": str(file),
        }
        flags |= decoding_flags(decoding, str(folder / "trained"))
        run(["-m", "trl_ext", "evaluate", *flags_of(flags)], folder / "evaluate.log")
        return file


class Tools(Experiment):
    """Function calls of a model behind an API, alone and guided."""

    name = "tools"
    what = "Valid function calls of a model behind an API, alone and guided by a value model of its own answers."
    task = Task
    jobs = 1
    places = ("model",)

    def arms_of(self, task: Task, options: argparse.Namespace) -> list[Arm]:
        return arms(task)

    def bench(self, task: Task, work: Path, overrides: dict[str, Any]) -> Bench:
        model = Path(task.model)
        return ToolsBench(replace(task, model=str(model.resolve()) if model.exists() else task.model), work, overrides)

    def settings(self, options: argparse.Namespace, task: Task) -> dict[str, Any]:
        return super().settings(options, replace(task, endpoint=""))  # where the server is says nothing

    def measures(self) -> set[Any]:
        return {ToolsBench, run_all, Task, Arm, make_prompts, call_parts}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """Valid calls of each arm, and how many more than without guidance."""
        if not results:
            return NOT_MEASURED
        found = self.newest(results, arms(Task()))
        cases = by_name(found)
        columns: dict[str, Callable[[Seeds], str]] = {
            "valid calls": _mean,
            "more than without guidance": lambda seeds: _more(seeds, cases.get(BASE.name, [])),
            "reward (parts of a call)": metric("reward", 3),
            "tokens": metric("completion_length", 1),
            "ended": metric("ended", 2),
            "CPU seconds of training": cost("cpu_seconds"),
        }
        return "\n".join([*grid("", cases, columns), "", sources(found, name_arms=True), *missing(found)])


def _values(seeds: Seeds) -> list[list[float | None]]:
    return [case["metrics"]["by_prompt"]["valid"] for case in seeds]


def _mean(seeds: Seeds) -> str:
    return paired.mean(_values(seeds)).text(3)


def _more(seeds: Seeds, base: Seeds) -> str:
    """The difference to the model alone on the seeds that both have."""
    pairs = [(a, b) for a in seeds for b in base if a["seed"] == b["seed"] and a["name"] != b["name"]]
    if not pairs:
        return "-"
    first, second = (_values([pair[i] for pair in pairs]) for i in (0, 1))
    return paired.difference(first, second).text(3)


SUITE = Tools()
