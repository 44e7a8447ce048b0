# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Reward, KL, fluency, diversity and cost of the four methods beside TRL's DPO, GRPO and PPO, best-of-n and a principle.

    python -m benchmarks.run quality --preset cpu

Each arm is trained and measured for each seed with the commands that users have, in processes of their own; what is
done already is kept (`--work`), so an interrupted run goes on where it was. See quality_arms.py for the arms.
TRL's PPO runs in an environment of its own (ppo_environment.py), and is skipped where that cannot be made.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..harness import ppo_environment
from ..harness.measure import RESULTS, ROOT, environment, refuse_dirty, write_result
from ..harness.process import Failed, run, trainable_parameters
from ..harness.text import PRINCIPLE, read_rows
from .quality_arms import PRESETS, TRAINING, Arm, Task, arms


METRICS = ("reward", "kl", "perplexity", "distinct_2", "completion_length", "ended")


class Runner:
    """
    All arms of a task, each in its folder under `work`.

    Args:
        task ([`~benchmarks.quality.quality_arms.Task`]): What is compared on what.
        work (`Path`): Where files are kept; may hold those of an interrupted run of the same task.
    """

    def __init__(self, task: Task, work: Path) -> None:
        self.task, self.work = task, work

    def prompts(self, limit: int) -> Path:
        """The training prompts, pass after pass, `limit` rows of them."""
        path = self.work / f"prompts-{limit}.jsonl"
        rows = read_rows(self.task.train, self.task.prompts)
        if len(rows) < self.task.prompts:
            raise ValueError(f"{self.task.train} has {len(rows)} prompts; {self.task.prompts} are asked for.")
        lines = [json.dumps({"prompt": row["prompt"]}, ensure_ascii=False) for row in rows * self.task.passes]
        _write(path, "\n".join(lines[:limit]) + "\n")
        return path

    def samples(self, seed: int) -> Path:
        """The scored samples of a seed, drawn once for the arms that train on them; their cost is beside them."""
        folder, task = self.work / f"samples-{seed}", self.task
        file, cost = folder / "samples.jsonl", folder / "cost.json"
        folder.mkdir(parents=True, exist_ok=True)
        if not cost.exists():
            flags = {
                "model_name_or_path": task.model,
                "dataset_name": str(self.prompts(task.rows)),
                "reward_model_name_or_path": task.reward,
                "num_generations": task.num_generations,
                "max_completion_length": task.max_completion_length,
                "top_k": task.top_k,
                "seed": seed,
                "output_file": str(file),
            }
            found = run(["-m", "trl_ext", "sample", *_flags(flags)], folder / "sample.log")
            lengths = [row["completions"] for row in read_rows(str(file))]
            _write(cost, json.dumps({**found.cost, "completions": sum(map(len, lengths)), "settings": flags}))
        return file

    def measure(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        """
        Train and measure an arm: a case for each of its settings.

        Raises:
            [`~benchmarks.harness.process.Failed`]: A command failed; the message names its log.
        """
        folder = self.work / f"{_slug(arm.name)}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / "cases.json"
        asked = json.loads(json.dumps({"task": dataclasses.asdict(self.task), "arm": dataclasses.asdict(arm)}))
        if done.exists():
            kept = json.loads(done.read_text(encoding="utf-8"))
            if kept["asked"] == asked:
                return kept["cases"]
        settings, cost = ({}, {}) if arm.command in ("", "principle") else self._train(arm, seed, folder)
        places = {"evaluation": self.task.evaluation, "other": self.task.other}
        if arm.through == "n":  # a draw of hundreds of completions a prompt: once is enough
            places.pop("other")
        cases = [_rows(self._evaluate(arm, seed, folder, *place), arm, self.task) for place in places.items()]
        merged = [
            {
                "name": name,
                "series": arm.series,
                "seed": seed,
                "metrics": metrics,
                "other": cases[1][name] if len(cases) > 1 else {},
                "cost": cost,
                "through": arm.through,
                "settings": settings | arm.decoding,
            }
            for name, metrics in cases[0].items()
        ]
        _write(done, json.dumps({"asked": asked, "cases": merged}, indent=1))
        return merged

    def _train(self, arm: Arm, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        fields, task = dict(arm.fields), self.task
        data = self.samples(seed) if arm.samples else self.prompts(fields.pop("max_rows", task.rows))
        config: dict[str, Any] = {
            **TRAINING,
            **fields,
            "model_name_or_path": task.model,
            "dataset_name": str(data),
            "output_dir": str(folder / "trained"),
            "seed": seed,
        }
        if not arm.samples:
            sampling = {"max_completion_length": task.max_completion_length, "top_k": task.top_k}
            config = {**sampling, **config, "reward_model_name_or_path": task.reward}
        _write(folder / "config.json", json.dumps(config, indent=1))
        log, python = folder / "train.log", sys.executable
        if arm.command == "ppo":
            command, python = (
                ["-m", "benchmarks.harness.ppo_driver", str(folder / "config.json")],
                ppo_environment.python(),
            )
        elif arm.command in ("dpo", "grpo"):
            command = ["-m", "benchmarks.quality.quality_train", arm.command, str(folder / "config.json")]
        else:  # JSON is YAML
            command = ["-m", "trl_ext", arm.command, "--config", str(folder / "config.json")]
        found = run(command, log, python)
        cost = {
            **found.cost,
            "tokens_read": found.last("num_tokens"),
            "completions": task.budget,
            "trainable_parameters": trainable_parameters(folder / "trained"),
        }
        if arm.samples:
            drawn = json.loads((self.work / f"samples-{seed}" / "cost.json").read_text(encoding="utf-8"))
            cost["samples_cpu_seconds"] = drawn["cpu_seconds"]
        return config, cost

    def _evaluate(self, arm: Arm, seed: int, folder: Path, place: str, prompts: str) -> Path:
        task, file = self.task, folder / f"evaluation-{place}.json"
        flags: dict[str, Any] = {
            "dataset_name": prompts,
            "reward_funcs": task.reward,
            "num_generations": arm.answers or (1 if place == "other" else task.answers),
            "max_completion_length": task.max_completion_length,
            "top_k": task.top_k,
            "seed": seed,
            "output_file": str(file),
        }
        if arm.command == "principle":
            config = {**flags, "model_name_or_path": task.model, "principle": PRINCIPLE}
            _write(folder / f"config-{place}.json", json.dumps(config, indent=1))
            command = ["-m", "benchmarks.quality.quality_train", "principle", str(folder / f"config-{place}.json")]
        else:
            trained = str(folder / "trained")
            steered = not arm.command or arm.decoding
            flags["model_name_or_path"] = task.model if steered else trained
            flags["base_model_name_or_path"] = task.model
            decoding = {k: [trained if x == "@" else x for x in v] if isinstance(v, list) else v
                        for k, v in arm.decoding.items()}  # fmt: skip
            command = ["-m", "trl_ext", "evaluate", *_flags({**flags, **decoding})]
        run(command, folder / f"evaluate-{place}.log")
        return file


def _rows(file: Path, arm: Arm, task: Task) -> dict[str, dict[str, Any]]:
    """The measured rows of an arm by name: the base's alone, or all the others, in units of the suite."""
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    reward = f"reward/{Path(task.reward).name}"
    chosen = models[:1] if arm.name == "base" else models[1:]
    found = {}
    for row in chosen:
        if "error" in row:
            raise Failed(f"{arm.name}: {row['error']} ({file})")
        told = ", ".join(f"{key} {value}" for key, value in row.get("extras", {}).items() if key in ("n", "beta"))
        metrics = {key: row.get(key) for name in METRICS[1:] for key in (name, f"{name}_se")}
        metrics |= {"reward": row[reward], "reward_se": row[f"{reward}_se"], "kl_bound": row.get("kl_bound")}
        # Drawn in one process beside the base, whose time is the unit.
        metrics["time_of_base"] = None if arm.through == "n" else _ratio(row, models[0])
        found[f"{arm.name}, {told}" if told else arm.name] = metrics
    return found


def _ratio(row: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Time of a token, in that of the base."""
    lengths = row["completion_length"], base["completion_length"]
    if not all(lengths) or not base["generation_seconds"]:
        return None
    return round(row["generation_seconds"] / lengths[0] / (base["generation_seconds"] / lengths[1]), 2)


def _flags(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"--{name}"
        yield from map(str, value) if isinstance(value, list) else [str(value)]


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _write(path: Path, text: str) -> None:
    """In one piece, whatever happens."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[""], help="parts of names of arms to run (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--work", type=Path, default=None, help="folder of models and logs (outputs/quality/<preset>)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
    for name in ("model", "reward", "value", "train", "evaluation", "other"):
        parser.add_argument(f"--{name}", help=f"another {name} than the preset's: a path")
    for name in ("prompts", "passes", "num_generations", "answers", "batch", "max_completion_length"):
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for and write one result file; arms that fail are named and do not cost the others."""
    options = _parser().parse_args(argv)
    refuse_dirty(options.allow_dirty)
    asked = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(Task)}
    task = dataclasses.replace(PRESETS[options.preset], **{k: v for k, v in asked.items() if v is not None})
    runner = Runner(task, (options.work or ROOT / "outputs" / "quality" / options.preset).resolve())
    chosen = [arm for arm in arms(task) if any(part in arm.name for part in options.arms)]
    if not chosen:
        raise SystemExit(f"no arm is named so; there are: {', '.join(arm.name for arm in arms(task))}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = environment(device, measures())
    cases, failures, skipped = [], [], []
    with ThreadPoolExecutor(options.jobs) as pool:
        if any(arm.samples for arm in chosen):
            list(pool.map(runner.samples, options.seeds))
        jobs = [(arm, seed, pool.submit(runner.measure, arm, seed)) for seed, arm in product(options.seeds, chosen)]
        for arm, seed, job in jobs:
            try:
                cases += job.result()
            except ppo_environment.Unavailable as reason:
                skipped.append({"arm": arm.name, "seed": seed, "reason": str(reason)})
                print(f"{arm.name}, seed {seed}: skipped. {reason}", file=sys.stderr)
            except Exception as error:  # the other arms' numbers are worth having
                failures.append({"arm": arm.name, "seed": seed, "error": f"{type(error).__name__}: {error}"})
                print(f"{arm.name}, seed {seed}: {failures[-1]['error']}", file=sys.stderr)
            else:
                print(f"{arm.name}, seed {seed}: done", file=sys.stderr, flush=True)
    settings = {"preset": options.preset, "seeds": options.seeds, "task": dataclasses.asdict(task)}
    result = {"settings": settings, "environment": facts, "cases": cases, "failures": failures, "skipped": skipped}
    if cases:
        # Where the clone lies is nobody's business, and runs in different places are of one task.
        result = json.loads(json.dumps(result).replace(f"{ROOT}/", ""))
        print("wrote", write_result("quality", device, result, options.output))
    return int(bool(failures))


def measures() -> set[Any]:
    """What measures; a result keeps fingerprints of all that it runs through."""
    return {Runner, Task, Arm}


def report(results: Sequence[dict[str, Any]]) -> str:
    """Its tables for README.md."""
    from .quality_tables import tables

    return tables(results)


def draw(results: Sequence[dict[str, Any]]) -> list[Path]:
    """Its pictures, in the folder of the results."""
    from .quality_tables import draw

    return draw(results, RESULTS)
