# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Proxy-RLHF, PSLE and VAS on the IMDB task: several settings and seeds at a time on one GPU, in minutes.

    python -m benchmarks.run imdb --method psle --models models --data data --jobs 14 [--tune] [--time_limit 120]

The task is that of recipes/rrhf/README.md. `--tune` tries the settings of `imdb_arms.tuned` with the first seed;
without it the arms of `imdb_arms.chosen` are trained and measured with all seeds. Each arm and seed is one file under
`--work` as soon as it is done; a later call goes on from there, and `--collect` writes a result of what is there.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..harness.measure import RESULTS, ROOT, environment, refuse_dirty, write_result
from .imdb_arms import METHODS, NOT_BEGUN, Arm, Task, chosen, tuned


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run imdb", description=__doc__.split("\n\n")[0])
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="folder of imdb-7m, imdb-7m-reward, imdb-2m"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of imdb_prompts_{train,eval}.jsonl")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="try settings, with the first of the seeds")
    parser.add_argument("--arms", nargs="+", default=[""], help="parts of names of arms to run (default: all)")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time; 0: all in this one")
    parser.add_argument("--time_limit", type=float, default=0.0, help="seconds after which to stop (0: none)")
    parser.add_argument("--work", type=Path, default=None, help="folder of what is done (outputs/imdb/<method>)")
    parser.add_argument("--collect", action="store_true", help="run nothing; write a result of what is done")
    parser.add_argument("--fields", type=json.loads, default={}, help="JSON: fields of the config of all that train")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
    for name in ("model", "reward", "small", "train", "evaluation", "other"):
        parser.add_argument(f"--{name}", help=f"another {name} than the task's: a path")
    for name in ("prompts", "evaluated", "max_completion_length", "samples", "batch"):
        parser.add_argument(f"--{name}", type=int, help="instead of the task's")
    return parser


def arms_of(method: str, tune: bool, parts: Sequence[str]) -> list[Arm]:
    """The arms whose names have one of the parts, and those that they need, in order."""
    arms = tuned(method) if tune else chosen(method)
    by_name = {arm.name: arm for arm in arms}
    wanted = {arm.name for arm in arms if any(part in arm.name for part in parts)}
    while more := {need for name in wanted for need in by_name[name].needs} - wanted:
        wanted |= more
    if not wanted:
        raise SystemExit(f"no arm is named so; there are: {', '.join(by_name)}")
    return [arm for arm in arms if arm.name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for and write one result file; arms that fail are named and do not cost the others."""
    options = _parser().parse_args(argv)
    refuse_dirty(options.allow_dirty)
    # Whether there is a GPU must be asked without starting on it, or no fork could.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if torch.cuda.is_available():
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # its import starts on the GPU
    from .imdb_jobs import Job, run_all

    names = [field.name for field in dataclasses.fields(Task)]
    changes = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    task = dataclasses.replace(Task.of(options.models.resolve(), options.data.resolve()), **changes)
    work = (options.work or ROOT / "outputs" / "imdb" / options.method).resolve()
    folder = work / ("tuned" if options.tune else "chosen")
    folder.mkdir(parents=True, exist_ok=True)
    arms, seeds = (
        arms_of(options.method, options.tune, options.arms),
        options.seeds[:1] if options.tune else options.seeds,
    )
    jobs = [Job(arm, seed, folder) for arm in arms for seed in seeds]  # the arms that others need first, for all seeds
    if not options.collect:
        _import_all()
        if not run_all(jobs, task, folder, options.fields, options.jobs, options.time_limit):
            print(f"stopped after {options.time_limit:g} seconds", file=sys.stderr)
    return _write(jobs, task, options, seeds)


def _import_all() -> None:
    """What workers would else import each: seconds of each of them."""
    import peft
    from trl import GRPOTrainer

    import trl_ext.methods.proxy_rlhf.trainer
    import trl_ext.methods.psle.trainer
    import trl_ext.methods.vas.trainer

    assert peft and GRPOTrainer and trl_ext


def _write(jobs: Sequence[Any], task: Task, options: argparse.Namespace, seeds: Sequence[int]) -> int:
    """The result file of what is done; 1 if something is not."""
    cases, failures = [], []
    for job in jobs:
        found = job.result() or {"error": NOT_BEGUN}
        if "error" in found:
            failures.append({"arm": job.arm.name, "seed": job.seed, "error": found["error"]})
            print(f"{job.arm.name}, seed {job.seed}: {found['error']}", file=sys.stderr)
        cases += [{**case, "job_seconds": found.get("seconds")} for case in job.cases()]
    for case in cases:
        shown = {name: round(value, 3) for name, value in case["metrics"].items() if value and "_se" not in name}
        print(f"{case['name']}, seed {case['seed']}: {shown}, {case['cost'].get('seconds')} s", flush=True)
    settings = {"method": options.method, "tune": options.tune, "seeds": list(seeds), "jobs": options.jobs,
                "fields": options.fields, "task": {key: Path(value).name if isinstance(value, str) else value
                                                   for key, value in dataclasses.asdict(task).items()}}  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = environment(device, measures())
    if cases:
        result = {"settings": settings, "environment": facts, "cases": cases, "failures": failures}
        print("wrote", write_result("imdb", device, result, options.output))
    return int(bool(failures))


def measures() -> set[Any]:
    """What measures; a result keeps fingerprints of all that it runs through."""
    from .imdb_jobs import run_all

    return {run_all, Task, Arm}


def report(results: Sequence[dict[str, Any]]) -> str:
    """What has been run, for README.md; the tables are on the pages in `results`."""
    from .imdb_tables import overview

    return overview(results)


def pages() -> dict[Path, str]:
    """The pages that have tables of their own, and which method's."""
    return {RESULTS / f"{method}.md": method for method in METHODS}


def page(results: Sequence[dict[str, Any]], method: str) -> str:
    """The tables of a method's page."""
    from .imdb_tables import tables

    return tables(results, method)
