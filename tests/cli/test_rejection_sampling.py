# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""`trl-ext rejection_sampling`: what is trained on, that an interrupted run ends as any other, and bad input."""

import json
import linecache
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file

from trl_ext.cli import rejection_sampling, sample
from trl_ext.cli.main import main as trl_ext_main
from trl_ext.cli.rejection_sampling import main
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError


PROMPTS = ["the film", "a", "I liked this movie", "we found the plot", "music", "the actor was", "no", "best"]
REWARDS = """
def letters(completions, **_):
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(text.count("o") - text.count("a")) for text in texts]

def long(completions, **_):
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [1000.0 * len(text) for text in texts]
"""
FLAGS = (
    "--reward_funcs rejection_rewards.letters --num_rounds 2 --num_generations 4 --max_completion_length 6 "
    "--num_train_epochs 1 --per_device_train_batch_size 4 --learning_rate 1e-3 --gradient_checkpointing false "
    "--save_strategy no --report_to none --disable_tqdm true --generation_batch_size 8"
).split()


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rejection_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "rejection_rewards", raising=False)
    write("prompts.jsonl", [{"prompt": prompt, "note": n} for n, prompt in enumerate(PROMPTS)])
    write("chats.jsonl", [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(*parts: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(*parts).read_text().split("\n") if line]


def run(model: str, *words: str, output: str = "out", prompts: str = "prompts.jsonl") -> int:
    places = ["--model_name_or_path", model, "--dataset_name", prompts, "--output_dir", output]
    return main([*places, *FLAGS, *words])


def rounds(output: str = "out") -> list[dict[str, Any]]:
    return json.loads(Path(output, "rounds.json").read_text())["rounds"]  # type: ignore[no-any-return]


def weights(output: str, number: int = 2) -> dict[str, torch.Tensor]:
    [file] = Path(output, f"round_{number}", "model").glob("*.safetensors")
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The rows of each round that TRL's trainer gets."""
    seen: list[list[dict[str, Any]]] = []

    class Spy(trl.SFTTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, train_dataset: Dataset, **kwargs: Any) -> None:
            seen.append(train_dataset.to_list())
            super().__init__(*args, train_dataset=train_dataset, **kwargs)

    monkeypatch.setattr(trl, "SFTTrainer", Spy)
    return seen


# ------------------------------------------------------------------------------------------------ what is trained on


@pytest.mark.parametrize("prompts", ["prompts.jsonl", "chats.jsonl"])
def test_the_best_completions_are_trained_on(tiny_model_dir: str, trained_on: list, prompts: str, capsys: Any) -> None:
    """One of each prompt, with the highest score of those that were sampled; in the next round by the new model."""
    assert run(tiny_model_dir, prompts=prompts) == 0
    for number in (1, 2):
        sampled = read("out", f"round_{number}", "sampled.jsonl")
        assert len(sampled) == len(PROMPTS) and all(len(row["completions"]) == 4 for row in sampled)
        expected = [
            {"prompt": row["prompt"], "completion": row["completions"][row["scores"].index(max(row["scores"]))]}
            for row in sampled
        ]
        assert trained_on[number - 1] == expected
        assert [row["score"] for row in read("out", f"round_{number}", "kept.jsonl")] == [
            max(row["scores"]) for row in sampled
        ]
        scores = [score for row in sampled for score in row["scores"]]
        found = rounds()[number - 1]
        assert found["score_sampled"] == pytest.approx(sum(scores) / len(scores))
        assert found["score_kept"] == pytest.approx(sum(max(row["scores"]) for row in sampled) / len(sampled))
        assert found["sampled"] == 32 and found["kept"] == 8
    assert not same(weights("out", 1), weights("out", 2))
    assert "round 2: score of 32 completions" in capsys.readouterr().out


def test_training_raises_the_reward(tiny_model_dir: str) -> None:
    """The control, random completions at the same cost, gains less than a third of it."""
    long = ["--num_rounds", "3", "--num_generations", "16", "--num_train_epochs", "4", "--learning_rate", "3e-3"]
    gains = []
    for keep in ("best", "random"):
        run(tiny_model_dir, "--keep", keep, *long, output=keep)
        scores = [found["score_sampled"] for found in rounds(keep)]
        gains.append(scores[-1] - scores[0])
    assert gains[0] > 0.5
    assert gains[1] < gains[0] / 3


def test_random_completions_are_a_control(tiny_model_dir: str, trained_on: list) -> None:
    """Sampled and counted alike; which are kept does not depend on scores, but on the seed."""
    run(tiny_model_dir, "--keep", "random", "--keep_per_prompt", "2", "--num_rounds", "1")
    sampled = read("out", "round_1", "sampled.jsonl")
    kept = read("out", "round_1", "kept.jsonl")
    assert len(kept) == 16
    for n, row in enumerate(sampled):
        pairs = list(zip(row["completions"], row["scores"], strict=True))
        assert all((each["completion"], each["score"]) in pairs for each in kept[2 * n : 2 * n + 2])
    assert sum(each["score"] for each in kept) < sum(2 * max(row["scores"]) for row in sampled)
    for seed, expected in (("42", True), ("43", False)):
        args = rejection_sampling.RejectionSamplingArguments(
            reward_funcs=["r"], keep="random", keep_per_prompt=2, num_generations=4
        )
        again = rejection_sampling.export_rows(sampled, args.export(int(seed) + 1))[0]
        assert ([row["completion"] for row in again] == [row["completion"] for row in kept]) == expected


def test_those_above_a_threshold(tiny_model_dir: str, trained_on: list) -> None:
    run(tiny_model_dir, "--keep", "threshold", "--score_threshold", "mean", "--num_rounds", "1")
    expected = [
        completion
        for row in read("out", "round_1", "sampled.jsonl")
        for completion, score in zip(row["completions"], row["scores"], strict=True)
        if score > sum(row["scores"]) / 4
    ]
    assert [row["completion"] for row in trained_on[0]] == expected
    with pytest.raises(DataError, match="no row is left: 8 prompts without a completion above score_threshold"):
        run(tiny_model_dir, "--keep", "threshold", "--score_threshold", "99", output="none")


def test_several_rewards_may_be_normalized_before_they_are_summed(tiny_model_dir: str) -> None:
    """The reward in thousands no longer decides alone."""
    both = ["--reward_funcs", "rejection_rewards.letters", "rejection_rewards.long", "--num_rounds", "1"]
    hows = ("sum_then_normalize", "normalize_then_sum")
    for how in hows:
        assert run(tiny_model_dir, *both, "--multi_objective_aggregation", how, output=how) == 0
    plain, scaled = (read(how, "round_1", "sampled.jsonl") for how in hows)
    assert [row["completions"] for row in plain] == [row["completions"] for row in scaled]
    assert all(abs(sum(row["scores"])) < 1e-6 for row in scaled) and max(max(row["scores"]) for row in plain) > 1000
    kept = [[row["completion"] for row in read(how, "round_1", "kept.jsonl")] for how in hows]
    assert kept[0] != kept[1]


def test_an_adapter_is_trained_on_from_round_to_round(tiny_model_dir: str) -> None:
    assert run(tiny_model_dir, "--use_peft", "true", "--lora_r", "4") == 0
    for number in (1, 2):
        assert Path("out", f"round_{number}", "model", "adapter_config.json").is_file()
    first, second = (weights("out", number) for number in (1, 2))
    assert first.keys() == second.keys() and not same(first, second)
    base = json.loads(Path("out", "round_2", "model", "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == tiny_model_dir  # not an adapter on an adapter


# --------------------------------------------------------------------------------------------------------- resuming


class Stopped(Exception):
    """A run is interrupted."""


def stop_in_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first batch of the second round."""
    append, calls = ResumableFile.append, []

    def stopped(self: ResumableFile, *args: Any) -> None:
        if "round_2" in str(self.path):
            calls.append(self)
            if len(calls) == 2:
                raise Stopped
        append(self, *args)

    monkeypatch.setattr(ResumableFile, "append", stopped)


def stop_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last step of the first round, after a checkpoint."""
    step, calls = trl.SFTTrainer.training_step, []

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise Stopped
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", stopped)


def stop_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the model of the first round and the note that the round is done."""

    def stopped(self: Any, found: Any) -> None:
        raise Stopped

    monkeypatch.setattr(rejection_sampling.Rounds, "add", stopped)


@pytest.mark.parametrize("stop", [stop_in_sampling, stop_in_training, stop_after_training], ids=lambda f: f.__name__)
def test_a_resumed_run_is_the_same(stop: Any, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; what was done is not done again."""
    saves = ["--save_strategy", "steps", "--save_steps", "1"]
    run(tiny_model_dir, *saves, output="whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(patch)
        run(tiny_model_dir, *saves)
    done = len(rounds())
    assert done == (1 if stop is stop_in_sampling else 0)
    first = Path("out/round_1/sampled.jsonl").stat().st_mtime_ns
    assert run(tiny_model_dir, *saves) == 0
    assert Path("out/round_1/sampled.jsonl").stat().st_mtime_ns == first
    assert same(weights("out"), weights("whole")) and same(weights("out", 1), weights("whole", 1))
    for number in (1, 2):
        assert read("out", f"round_{number}", "kept.jsonl") == read("whole", f"round_{number}", "kept.jsonl")
        own, other = (read(output, f"round_{number}", "sampled.jsonl") for output in ("out", "whole"))
        for column in ("completion_ids", "scores"):
            assert [row[column] for row in own] == [row[column] for row in other]
    assert rounds() == rounds("whole")


def test_rounds_are_not_scored_by_a_function_that_was_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"sampled": 1, "score_sampled": 0.0, "kept": 1, "score_kept": 0.0}

    def select(args: Any, folder: Path, seed: int) -> dict[str, Any]:
        folder.mkdir(parents=True)
        (folder / "kept.jsonl").write_text("")
        return counts

    for name, step in (("_sample", lambda *_: 0), ("_select", select), ("_fine_tune", lambda *_: None)):
        monkeypatch.setattr(rejection_sampling, name, step)
    assert run("no model", "--num_rounds", "1") == 0
    Path("rejection_rewards.py").write_text(REWARDS.replace('count("o") -', 'count("o") +'))
    sys.modules.pop("rejection_rewards")
    linecache.clearcache()
    with pytest.raises(ValueError, match=r"other settings: source of rejection_rewards\.letters was"):
        run("no model", "--num_rounds", "2")
    assert rounds() == [{"round": 1, **counts}]


def test_a_finished_run_can_have_more_rounds(
    tiny_model_dir: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_model_dir, "--num_rounds", "1")
    with monkeypatch.context() as patch:
        patch.setattr(sample, "run", None)  # nothing is sampled
        assert run(tiny_model_dir, "--num_rounds", "1") == 0
    assert "all 1 rounds are done" in capsys.readouterr().out
    assert run(tiny_model_dir, "--num_rounds", "2", "--logging_steps", "1") == 0
    run(tiny_model_dir, output="whole")
    assert same(weights("out"), weights("whole"))
    with pytest.raises(ValueError, match=r"a run with other settings: learning_rate was 0\.001 and is 0\.1"):
        run(tiny_model_dir, "--num_rounds", "3", "--learning_rate", "0.1")


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_rounds 0", "`num_rounds` must be at least 1, got 0"),
        ("--keep threshold", "`keep: threshold` needs a `score_threshold`"),
        ("--score_threshold 1", "`score_threshold` has no effect with `keep: best`"),
        ("--keep worst", "keep"),
        ("--keep_per_prompt 5", "`keep_per_prompt` is 5, and a prompt has only `num_generations: 4`"),
        ("--keep_per_prompt -1", "`keep_per_prompt` must be at least 0, got -1"),
        ("--eval_strategy epoch", "`eval_strategy`: a round has no evaluation"),
        ("--resume_from_checkpoint true", "`resume_from_checkpoint`: the same command resumes"),
        ("--push_to_hub true", "`push_to_hub`: a run has a model for each round"),
        ("--reward_weights 1 2", "weight"),
        ("--num_generation 3", "num_generations"),
    ],
)
def test_settings_that_cannot_work(words: str, message: str, tiny_model_dir: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tiny_model_dir, *words.split())
    assert not Path("out").exists()


def test_what_is_required(capsys: Any) -> None:
    assert trl_ext_main(["rejection-sampling", "--model_name_or_path", "m"]) == 2
    told = capsys.readouterr().err
    for flag in ("--dataset_name", "--reward_funcs or --reward_model_name_or_path", "--output_dir"):
        assert flag in told
