# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How the suite `quality` does an arm: with the commands that users have, in processes of their own."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.harness import ppo_environment
from benchmarks.harness.process import Failed, run, trainable_parameters
from benchmarks.harness.text import read_rows

from .experiment import METRICS, Bench, Skipped
from .quality_arms import SAMPLES, Arm, Task
from .quality_train import TRL_TRAINERS


SCORE = "objective/scores"  # what Proxy-RLHF and TRL's PPO log of each round
ROUNDS = 5  # over which scores are averaged: 320 completions of the task's rounds of 64


@dataclass
class QualityBench(Bench):
    """Trains and measures arms; each has a folder for its config, models and logs."""

    task: Task

    def do(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        folder = self.folder(arm.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if arm == SAMPLES:
            self._sample(arm, seed, folder)
            return []
        if arm.scored:
            self._sample(arm, seed, folder)
        nothing: tuple[dict[str, Any], dict[str, Any], dict[str, float]] = ({}, {}, {})
        is_trained = arm.command not in ("", "principle")
        settings, cost, training = self._train(arm, seed, folder) if is_trained else nothing
        places = {"evaluation": self.task.evaluation, "other": self.task.other}
        if not arm.other:
            places.pop("other")
        files = {place: self._evaluate(arm, seed, folder, place, prompts) for place, prompts in places.items()}
        found = {place: self.measured(file, arm) for place, file in files.items()}
        untrained = untrained_rows(files["evaluation"], arm, self.task)
        samples = scores_of(read_rows(self.dataset(arm, seed, folder))) if arm.reads_samples else {}
        return [
            {
                "name": name,
                "series": arm.series,
                "seed": seed,
                "metrics": metrics | samples,
                "other": found.get("other", {}).get(name, {}),
                "untrained": untrained.get(name, {}),
                "cost": cost,
                "training": training,
                "through": arm.through,
                "settings": settings | arm.decoding | arm.loading,
            }
            for name, metrics in found["evaluation"].items()
        ]

    def measured(self, file: Path, arm: Arm) -> dict[str, dict[str, Any]]:
        """What an evaluation has found, by the name of the case."""
        return measured_rows(file, arm, self.task)

    def prompts(self, folder: Path, limit: int) -> str:
        """A file of the training prompts, pass after pass, `limit` rows of them."""
        rows = read_rows(self.task.train, self.task.prompts)
        if len(rows) < self.task.prompts:
            raise ValueError(f"{self.task.train} has {len(rows)} prompts; {self.task.prompts} are asked for.")
        lines = [json.dumps(row, ensure_ascii=False) for row in rows * self.task.passes]
        path = folder / "prompts.jsonl"
        path.write_text("\n".join(lines[:limit]) + "\n", encoding="utf-8")
        return str(path)

    def _rows(self, rows: list[dict[str, Any]], arm: Arm, path: Path) -> str:
        """A file of rows, with what the arm's value model reads in place of their prompts."""
        if arm.value_prompt:
            rows = [{**row, "value_prompt": arm.value_prompt + row["prompt"]} for row in rows]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def dataset(self, arm: Arm, seed: int, folder: Path) -> str:
        """The file that an arm trains on: prompts, all scored samples, a part of them, or these with value prompts."""
        if not arm.reads_samples:
            return self.prompts(folder, arm.fields.get("max_rows", self.task.rows))
        file = str(self.samples(arm, seed))
        if arm.part is None and not arm.value_prompt:
            return file
        rows = read_rows(file)
        if arm.part is not None:
            rows = part_of(rows, self.task.prompts, *arm.part)
        return self._rows(rows, arm, folder / "rows.jsonl")

    def samples(self, arm: Arm, seed: int) -> Path:
        """The scored samples that an arm trains on, its own or those of all; their cost is beside them."""
        return self.folder(arm.name if arm.scored else SAMPLES.name, seed) / "samples.jsonl"

    def _sample(self, arm: Arm, seed: int, folder: Path) -> None:
        flags: dict[str, Any] = {
            "model_name_or_path": self.task.model,
            "dataset_name": self.prompts(folder, self.task.rows),
            "reward_funcs": self.task.reward,
            "num_generations": self.task.num_generations,
            **self.task.sampling,
            **self.task.loading,
            "seed": seed,
            "output_file": str(self.samples(arm, seed)),
            **arm.scored,
        }
        flags = {name: value for name, value in flags.items() if value is not None}
        found = run(["-m", "trl_ext", "sample", *flags_of(flags)], folder / "sample.log")
        (folder / "cost.json").write_text(json.dumps(found.cost), encoding="utf-8")

    def _train(self, arm: Arm, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
        """Train; returns the config, the cost, and how the samples' scores changed, where they are logged."""
        fields, task = dict(arm.fields), self.task
        fields.pop("max_rows", None)
        config: dict[str, Any] = {
            **task.training,
            **fields,
            **self.overrides,
            "model_name_or_path": task.model,
            "dataset_name": self.dataset(arm, seed, folder),
            "output_dir": str(folder / "trained"),
            "seed": seed,
        }
        if not arm.reads_samples:
            # TRL's PPO takes its critic from the reward model too.
            reward = (
                {"reward_model_name_or_path": task.reward} if arm.command == "ppo" else {"reward_funcs": [task.reward]}
            )
            config = {**task.sampling, **task.scoring, **config, **reward}
        file, python = folder / "config.json", sys.executable
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        if arm.command == "ppo":
            command = ["-m", "benchmarks.harness.ppo_driver", str(file)]
            try:
                python = ppo_environment.python()
            except ppo_environment.Unavailable as reason:
                raise Skipped(str(reason)) from reason
        else:
            command = training_command(arm.command, file)
        found = run(command, folder / "train.log", python)
        cost = {
            **found.cost,
            "tokens_read": found.last("num_tokens"),
            "completions": round(arm.budget * task.budget),
            "trainable_parameters": trainable_parameters(folder / "trained"),
        }
        if arm.reads_samples:
            cost_file = self.samples(arm, seed).with_name("cost.json")
            cost["samples_cpu_seconds"] = json.loads(cost_file.read_text(encoding="utf-8"))["cpu_seconds"]
        return config, cost, course([float(row[SCORE]) for row in found.logs if SCORE in row])

    def _evaluate(self, arm: Arm, seed: int, folder: Path, place: str, prompts: str) -> Path:
        task, file = self.task, folder / f"evaluation-{place}.json"
        if arm.value_prompt:
            prompts = self._rows(read_rows(prompts), arm, folder / f"prompts-{place}.jsonl")
        flags: dict[str, Any] = {
            "dataset_name": prompts,
            "reward_funcs": task.rewards,
            # Best-of-n chooses by the first, which the others train on.
            "reward_weights": [1.0, *(0.0 for _ in task.rewards[1:])],
            "num_generations": arm.answers or (task.other_answers if place == "other" else task.answers),
            **task.sampling,
            **task.measuring(place),
            "seed": seed,
            "output_file": str(file),
        }
        if arm.command == "principle":
            config = {**flags, **task.loading, "model_name_or_path": task.model, "principle": task.principle}
            config_file = folder / f"config-{place}.json"
            config_file.write_text(json.dumps(config, indent=1), encoding="utf-8")
            command = ["-m", "benchmarks.quality.quality_train", "principle", str(config_file)]
        else:
            trained = str(folder / "trained")
            guided = not arm.command or arm.decoding
            flags["model_name_or_path"] = task.model if guided else trained
            flags |= {"base_model_name_or_path": task.model, **task.loading, **arm.loading}
            flags |= decoding_flags(arm.decoding, trained)
            command = ["-m", "trl_ext", "evaluate", *flags_of(flags)]
        run(command, folder / f"evaluate-{place}.log")
        return file


def course(scores: list[float]) -> dict[str, float]:
    """
    How the mean score of a training's samples changed from round to round, each figure a mean over [`ROUNDS`] rounds.

    Args:
        scores (`list[float]`): The mean score of each round.

    Returns:
        `dict[str, float]`: `end`, that of the last rounds; `fall`, the most that it ever was below what it had been
            before. Empty for fewer rounds than twice as many.
    """
    if len(scores) < 2 * ROUNDS:
        return {}
    means = [fmean(scores[i : i + ROUNDS]) for i in range(len(scores) - ROUNDS + 1)]
    highest = accumulate(means, max)
    return {"end": means[-1], "fall": max(high - mean for high, mean in zip(highest, means, strict=True))}


def part_of(rows: list[dict[str, Any]], all_prompts: int, prompts: int, each: int) -> list[dict[str, Any]]:
    """
    Some of the scored samples, a row for each prompt.

    Args:
        rows (`list[dict]`): Scored samples, pass after pass over all prompts.
        all_prompts (`int`): Prompts of a pass.
        prompts (`int`), each (`int`): How many of them, the first ones; how many samples of each, the first ones.

    Raises:
        `ValueError`: There are not as many.
    """
    found = []
    for place in range(min(prompts, all_prompts)):
        passes = rows[place::all_prompts]
        row = {name: [x for own in passes for x in own[name]][:each] for name in ("completions", "scores", "ended")}
        if len(row["scores"]) < each:
            raise ValueError(f"prompt {place} has {len(row['scores'])} scored samples; {each} are asked for.")
        found.append({"prompt": passes[0]["prompt"], **row})
    if len(found) < prompts:
        raise ValueError(f"there are scored samples of {len(found)} prompts; {prompts} are asked for.")
    return found


def scores_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of scored samples, the mean score and the mean over prompts of the best one, which Eq. (7) of RRHF is about."""
    return {
        "samples_mean": fmean(fmean(row["scores"]) for row in rows),
        "samples_best": fmean(max(row["scores"]) for row in rows),
    }


def training_command(name: str, config: Path) -> list[str]:
    """What trains with a config file: one of TRL's trainers, or a command of `trl-ext`."""
    if name in TRL_TRAINERS:
        return ["-m", "benchmarks.quality.quality_train", name, str(config)]
    return ["-m", "trl_ext", name, "--config", str(config)]  # JSON is YAML


def measured_models(file: Path, arm: Arm) -> list[dict[str, Any]]:
    """
    The rows of an evaluation that an arm is about: the base's alone, or all the others.

    Raises:
        [`~benchmarks.harness.process.Failed`]: A row is an error.
    """
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    untrained = {row.get("start") for row in models}  # such as a proxy before training, beside the trained one
    found = []
    for row in models[:1] if arm.series == "base" and not arm.command else models[1:]:
        if "error" in row:
            raise Failed(f"{arm.name}: {row['error']} ({file})")
        if row["model"] not in untrained:
            found.append(row)
    return found


def untrained_rows(file: Path, arm: Arm, task: Task) -> dict[str, dict[str, Any]]:
    """What an arm's rows began as, such as a proxy that accepts half of all tokens, by the names of the cases."""
    by_model = {row["model"]: row for row in json.loads(file.read_text(encoding="utf-8"))["models"]}
    reward, found = reward_key(task.reward), {}
    for row in measured_models(file, arm):
        if start := by_model.get(row.get("start")):
            metrics = {key: start.get(key) for name in ("kl", "perplexity") for key in (name, f"{name}_se")}
            found[case_name(row, arm)] = metrics | {"reward": start[reward], "reward_se": start[f"{reward}_se"]}
    return found


def case_name(row: dict[str, Any], arm: Arm) -> str:
    """The name of a measured row: the arm's, with the row's setting."""
    setting = ", ".join(f"{key} {value}" for key, value in row.get("extras", {}).items() if key in ("n", "beta"))
    return f"{arm.name}, {setting}" if setting else arm.name


def measured_rows(file: Path, arm: Arm, task: Task) -> dict[str, dict[str, Any]]:
    """The metrics of an arm's rows by the names of their cases."""
    base = json.loads(file.read_text(encoding="utf-8"))["models"][0]
    reward = reward_key(task.reward)
    found = {}
    for row in measured_models(file, arm):
        metrics = {key: row.get(key) for name in METRICS[1:] for key in (name, f"{name}_se")}
        metrics |= {"reward": row[reward], "reward_se": row[f"{reward}_se"], "kl_bound": row.get("kl_bound")}
        if task.judge:
            judge = reward_key(task.judge)
            metrics |= {"judge": row[judge], "judge_se": row[f"{judge}_se"]}
        # Generated in one process beside the base, whose time is the unit.
        metrics["time_of_base"] = None if arm.through == "n" else _ratio(row, base)
        found[case_name(row, arm)] = metrics
    return found


def reward_key(spec: str) -> str:
    """Where a report has a reward: under its function's or its folder's name."""
    return f"reward/{Path(spec).name if '/' in spec else spec.rpartition('.')[2]}"


def _ratio(row: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Time per token, in that of the base."""
    lengths = row["completion_length"], base["completion_length"]
    if not all(lengths) or not base["generation_seconds"]:
        return None
    return round(row["generation_seconds"] / lengths[0] / (base["generation_seconds"] / lengths[1]), 2)


def decoding_flags(decoding: dict[str, Any], trained: str) -> dict[str, Any]:
    """The flags of a decoding, with the folder of the trained model for `"@"`."""
    return {
        name: [trained if x == "@" else x for x in value] if isinstance(value, list) else value
        for name, value in decoding.items()
    }


def flags_of(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"--{name}"
        yield from map(str, value) if isinstance(value, list) else [str(value)]
