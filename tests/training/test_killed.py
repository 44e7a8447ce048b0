# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs that are killed (SIGKILL) and resumed end as if nothing had happened: the same weights, bit for bit, the same
completions, the same log. Three kills a method; ten with `TRL_EXT_LONG=1`. `TRL_EXT_SEED` chooses the points.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG, make_model, make_tokenizer
from killable import Killing, Server, durations
from run_results import assert_alike, run_results

from trl_ext.training.checkpoints import is_complete


KILLS = 10 if LONG else 3
STEPS = 12

SETTINGS: dict[str, dict[str, Any]] = {
    # A save between two rounds of sampling, with prompts that are sampled for and not yet trained on.
    "rrhf": {"resample_steps": 2, "num_train_epochs": 2, "num_generations": 3, "per_device_train_batch_size": 2},
    # Warm-up first, in which it is killed too.
    "psle": {
        "principles": "good film",
        "num_iterations": 4,
        "per_device_train_batch_size": 4,
        "sft_dataset_name": "sft.jsonl",
        "sft_epochs": 1,
    },
    # Saves between the two updates on a batch, whose targets are from before the first; two rounds, the second guided.
    "vas": {
        "value_model_name_or_path": "value",
        "num_epochs_per_batch": 2,
        "num_iterations": 2,
        "num_train_epochs": 2,
        "sampling_beta": 1.0,
        "normalize_rewards": "true",
        "calibration_rollouts": 2,
        "per_device_train_batch_size": 4,
    },
    # Saves within a round of four updates, whose decisions are kept.
    "proxy_rlhf": {
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_steps": STEPS,
        "top_k": 5,
        "per_device_train_batch_size": 4,
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    tokenizer = make_tokenizer()
    for name, seed in (("model", 0), ("value", 1)):
        make_model(len(tokenizer), seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    openings = "the film|a great story|I found|the plot was|one of|music and|it is|we loved|a dull|the actor|this|had"
    prompts = [{"prompt": text} for text in openings.split("|")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "eval.jsonl").write_text("\n".join(map(json.dumps, prompts[:2])))
    answers = [{**row, "completion": " was good"} for row in prompts]
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, answers)))
    return folder


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("TRL_EXT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"TRL_EXT_SEED={seed}")  # shown if the test fails
    return random.Random(seed)


def training(method: str, folder: Path, output: Path) -> list[str]:
    settings = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "eval_dataset_name": "eval.jsonl",
        "output_dir": output,
        "reward_funcs": "conftest:letter_reward",
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "log_completions": "true",
        "num_completions_to_print": 1,
        "report_to": "none",
        "disable_tqdm": "true",
        "seed": 3,
        **SETTINGS[method],
    }
    paths = {name: folder / str(settings[name]) for name in settings if str(settings[name]) in os.listdir(folder)}
    return [method, *(str(word) for name, value in (settings | paths).items() for word in (f"--{name}", value))]


def points(timed: dict[str, list[float]], rng: random.Random) -> Iterator[Killing]:
    """Points to kill at: each phase in turn, at random times up to a little after its end."""
    phases = [name for name in ("sample", "save", "step", "evaluate", "finish") if name in timed]
    rng.shuffle(phases)
    while True:
        for phase in phases:
            seconds = max(timed[phase])
            yield Killing(phase, rng.randint(1, min(3, len(timed[phase]))), rng.uniform(0, 1.2 * seconds))


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_killed_training_ends_with_the_same_weights(
    method: str, server: Server, folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    server.must_end_well(training(method, folder, whole), log)
    expected, timed = run_results(whole), durations(log)
    assert {"sample", "step", "save", "evaluate"} <= timed.keys()
    assert len([entry for entry in expected["log"] if "loss" in entry]) == STEPS
    kills, runs, killings = 0, 0, points(timed, rng)
    while kills < KILLS or not runs:
        runs += 1
        output = tmp_path / f"killed-{runs}"
        while True:
            complete = [path for path in output.rglob("checkpoint-*") if is_complete(path)]
            words = training(method, folder, output) + ["--resume_from_checkpoint", "true"] * bool(complete)
            if kills == KILLS:
                server.must_end_well(words, log)
                break
            killing = next(killings)
            status = server.run(words, log, killing)
            print(f"{method}: run {runs}, {killing}: status {status}")
            assert status in (0, -9), log.read_text()[-3000:]
            kills += status == -9
            if status == 0:
                break
        assert_alike(expected, run_results(output))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_killed_sampling_loses_and_repeats_nothing(
    suffix: str, server: Server, folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    def sampling(output: Path) -> list[str]:
        words = ["sample", "--model_name_or_path", folder / "model", "--dataset_name", folder / "rows.jsonl"]
        words += ["--reward_funcs", "conftest:letter_reward", "--num_generations", "2", "--max_completion_length", "8"]
        return [*map(str, words), "--generation_batch_size", "8", "--output_file", str(output)]

    whole, log = tmp_path / f"whole.{suffix}", tmp_path / "log"
    server.must_end_well(sampling(whole), log)
    timed = durations(log)
    assert len(timed["sample"]) == 3 and len(timed["save"]) == 3
    kills, killings = 0, points(timed, rng)
    for run in range(100):
        output, complete = tmp_path / f"killed-{run}.{suffix}", False
        while not complete:
            killing = next(killings) if kills < KILLS else None
            status = server.run(sampling(output), log, killing)
            print(f"{suffix}: run {run}, {killing}: status {status}")
            assert status in (0, -9), log.read_text()[-3000:]
            kills, complete = kills + (status == -9), status == 0
        assert output.read_bytes() == whole.read_bytes()
        if kills == KILLS:
            break
