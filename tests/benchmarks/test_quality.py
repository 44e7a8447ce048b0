# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison gives all arms the same means, keeps what is done, and its tables say what its results say."""

import copy
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file

from benchmarks.harness import ppo_environment, results
from benchmarks.harness import process as quality_process
from benchmarks.harness.models import REWARDS
from benchmarks.harness.text import PRINCIPLE, read_rows
from benchmarks.quality import quality, quality_bench
from benchmarks.quality.quality_arms import PRESETS, Arm, Task, arms
from benchmarks.quality.quality_bench import course, part_of
from benchmarks.quality.quality_train import best_rows, preference_rows, with_prompts
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.rewards.functions import load_rewards


METRICS = {"reward": 1.0, "reward_se": 0.1, "perplexity": 20.0, "distinct_2": 0.5, "completion_length": 40.0}


def case(name, seed, *, reward=1.0, kl=2.0, series="a", **cost):
    metrics = {**METRICS, "reward": reward, "kl": kl, "kl_se": 0.2, "ended": 0.5, "time_of_base": 1.5}
    given = {"seed": seed, "settings": {}, "series": series, "through": "1", "other": {"reward": reward - 1}}
    return {"name": name, **given, "metrics": metrics, "cost": cost}


@pytest.fixture
def quality_result(result_of):
    """Make a result of the preset `cpu`."""

    def make(*cases, **more):
        return result_of(quality.SUITE, *cases, preset="cpu", seeds=[0, 1], **more) | {"failures": []}

    return make


# -------------------------------------------------------------------------------------------------------------- arms


def completions_sampled(arm, task):
    """How many completions a trained arm samples, from its own settings."""
    fields = arm.fields
    if arm.part:
        prompts, each = arm.part
        return prompts * each
    if arm.needs:
        return task.rows * task.num_generations
    if arm.command == "psle":
        return fields["num_iterations"] * task.rows * 2 * fields["num_generations"]
    if arm.command == "ppo":
        return fields["total_episodes"]
    if arm.command == "proxy_rlhf":
        return fields["max_steps"] // 16 * fields["per_device_train_batch_size"]
    rows = fields.get("max_rows", task.rows)
    return fields["num_train_epochs"] * rows * fields["num_generations"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_trained_arm_samples_the_budget_or_what_its_name_says(preset):
    task = PRESETS[preset]
    trained = [arm for arm in arms(task) if arm.command not in ("", "principle", "sample")]
    assert len({arm.command for arm in trained}) == 7
    for arm in trained:
        assert completions_sampled(arm, task) == pytest.approx(arm.budget * task.budget, rel=0.01), arm.name
        assert arm.budget == 1 or arm.part or arm.name == "RRHF, OP-k, 8 x the samples"


def test_value_models_learn_from_equally_many_samples_in_equally_many_steps():
    arms_of_parts = {arm.part: arm for arm in arms(PRESETS["cpu-imdb"]) if arm.part}
    assert [(n, each) for n, each in arms_of_parts if n * each == 3200] == [
        (3200, 1),
        (1600, 2),
        (800, 4),
        (400, 8),
        (200, 16),
    ]
    assert [part for part in arms_of_parts if part[0] * part[1] == 800] == [(200, 4), (50, 16)]
    for (_, each), arm in arms_of_parts.items():
        assert arm.fields["max_steps"] * arm.fields["per_device_train_batch_size"] * each == 3200
    # What the repository has prompts for, and so many samples of each as the arm `VAS` learns from.
    assert [arm.part for arm in arms(Task()) if arm.part] == [(200, 16), (200, 4), (50, 16)]
    assert Task().budget == 200 * 16


def test_the_largest_fall_of_a_training_by_hand():
    """Means of five rounds: 1, 2, 3, 2.6, 2.2, 1.8, 2.2; the most below an earlier one is 1.8 below 3."""
    scores = [1.0, 1.0, 1.0, 1.0, 1.0, 6.0, 6.0, -1.0, -1.0, -1.0, 8.0]
    assert course(scores) == {"end": pytest.approx(2.2), "fall": pytest.approx(1.2)}
    assert course([float(i) for i in range(10)]) == {"end": 7.0, "fall": 0.0}
    assert course(scores[:9]) == {}


def test_a_part_of_the_samples_has_the_first_of_each_prompt_over_all_passes():
    rows = [
        {"prompt": p, "completions": [f"{p}{n}", f"{p}{n + 1}"], "scores": [n, n + 1.0], "ended": [True, n > 1]}
        for n in (0, 2)
        for p in "abc"
    ]
    found = part_of(rows, 3, 2, 3)
    assert found == [
        {"prompt": p, "completions": [f"{p}0", f"{p}1", f"{p}2"], "scores": [0, 1.0, 2], "ended": [True, False, True]}
        for p in "ab"
    ]
    with pytest.raises(ValueError, match="prompt 0 has 4 scored samples; 5 are asked for"):
        part_of(rows, 3, 1, 5)
    with pytest.raises(ValueError, match="scored samples of 3 prompts; 4 are asked for"):
        part_of(rows, 3, 4, 1)


def test_prompts_measured_are_not_those_trained_on():
    task = PRESETS["cpu"]
    train, held_out, other = (
        {row["prompt"] for row in read_rows(path)} for path in (task.train, task.evaluation, task.other)
    )
    assert len(train) == task.prompts and len(held_out) >= 160 and len(other) >= 80
    assert not train & held_out and not train & other and not held_out & other


def test_dpo_gets_the_best_and_the_worst():
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.0, 2.0, -1.0]},
        {"prompt": "q", "completions": ["a", "b"], "scores": [1.0, 1.0]},
    ]
    assert preference_rows(rows) == [{"prompt": "p", "chosen": "b", "rejected": "c"}]


def test_sft_gets_the_best():
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.0, 2.0, 2.0]}]
    assert best_rows(rows) == [{"prompt": "p", "completion": "b"}]


def test_a_principle_is_read_and_is_not_measured(tiny_model, tiny_tokenizer):
    base = model_policy(tiny_model, tiny_tokenizer, name="base")
    [prompt] = tiny_tokenizer(["this film"])["input_ids"]
    longer = tiny_tokenizer("be kind ")["input_ids"] + prompt
    policy = with_prompts(base, "with a principle", {tuple(prompt): longer})
    [[logps]] = policy.logps([prompt], [[[5, 6]]])
    [[expected]] = base.logps([longer], [[[5, 6]]])
    torch.testing.assert_close(logps, expected)
    assert not torch.allclose(logps, base.logps([prompt], [[[5, 6]]])[0][0])
    seen = []
    rewards = load_rewards(lambda prompts, completions, **_: seen.extend(prompts) or [0.0] * len(prompts))
    settings = GenerationSettings(max_completion_length=4)
    found = evaluate(policy, [{"prompt": "this film"}] * 2, rewards, settings=settings, base=base)
    assert set(seen) == {"this film"} and found.metrics["kl"] is not None


# ------------------------------------------------------------------------------------------------------------ running


class Commands:
    """In place of processes: what was asked for, and files such as the commands leave."""

    def __init__(self, failing=""):
        self.asked, self.failing, self.pythons, self.samples = [], failing, [], 1
        self.rows = [self.row("base", 0.0), self.row("trained", 2.0)]

    def __call__(self, command, log, python=sys.executable):
        self.asked.append(command)
        self.pythons.append(python)
        if self.failing and any(self.failing in word for word in command):
            raise quality_process.Failed(f"see {log}")
        flags = dict(pairwise(command))
        if "evaluate" in command or "principle" in command:
            config = json.loads(Path(command[-1]).read_text()) if "principle" in command else {}
            file = flags.get("--output_file") or config["output_file"]
            Path(file).write_text(json.dumps({"models": self.rows}))
        elif "sample" in command:
            row = {"prompt": "p", "completions": ["a", "b"], "scores": [0.0, 1.0], "ended": [True, True]}
            rows = [row] * self.samples
            Path(flags["--output_file"]).write_text("\n".join(map(json.dumps, rows)))
        logs = [{"objective/scores": str(i)} for i in range(20, 10, -1)]
        return quality_process.Finished(
            {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mib": 3}, [*logs, {"num_tokens": "7"}]
        )

    @staticmethod
    def row(name, reward):
        return {
            **{key: value for key, value in METRICS.items() if not key.startswith("reward")},
            **{"model": name, "reward/imdb-2m-reward": reward, "reward/imdb-2m-reward_se": 0.1},
            **{"reward/imdb-7m-reward": reward - 1, "reward/imdb-7m-reward_se": 0.1},
            **{"kl": reward, "kl_se": 0.1, "ended": 0.5, "generation_seconds": 1.0 + reward, "extras": {}},
        }


def flags_of(tmp_path, *more):
    """Of one seed, in this process."""
    folders = ["--work", f"{tmp_path}/w", "--output", f"{tmp_path}/o"]
    return [*folders, "--allow_dirty", "--jobs", "0", "--seeds", "0", *more]


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(quality_bench, "run", commands)
    return commands


def test_arms_are_run_once_and_kept(tmp_path, commands):
    flags = flags_of(tmp_path, "--seeds", "0", "1")
    assert quality.SUITE.main([*flags, "--arms", "base", "DPO", "IP-3"]) == 0
    [file] = (tmp_path / "o").iterdir()
    result = json.loads(file.read_text())
    results.check_result(result)
    found = {(c["name"], c["seed"]): c for c in result["cases"]}
    assert len(found) == 6 and found["base", 0]["metrics"]["reward"] == 0 and found["TRL's DPO", 1]["seed"] == 1
    assert found["TRL's DPO", 0]["cost"]["samples_cpu_seconds"] == 1.0
    assert found["TRL's DPO", 0]["metrics"]["time_of_base"] == 3.0
    assert found["TRL's DPO", 0]["training"] == {"end": 13.0, "fall": 5.0} and found["base", 0]["training"] == {}
    assert found["TRL's DPO", 0]["untrained"] == {}
    # Scores 0 and 1 of one prompt, which DPO trained on and IP-3 did not.
    assert found["TRL's DPO", 0]["metrics"]["samples_best"] == 1.0
    assert found["TRL's DPO", 0]["metrics"]["samples_mean"] == 0.5
    assert "samples_best" not in found["RRHF, IP-3", 0]["metrics"]
    config = json.loads((tmp_path / "w" / "rrhf-ip-3-1" / "config.json").read_text())
    assert config["seed"] == 1 and len(read_rows(config["dataset_name"])) == Task().rows // 3
    assert sum("sample" in command for command in commands.asked) == 2  # one a seed, for the arms that need it

    commands.asked.clear()
    # What an arm had no field for when it was done had its default; another value is another arm.
    done = tmp_path / "w" / "rrhf-ip-3-0.json"
    kept = json.loads(done.read_text())
    del kept["asked"]["arm"]["budget"], kept["asked"]["arm"]["loading"]
    done.write_text(json.dumps(kept))
    assert quality.SUITE.main([*flags, "--arms", "base", "DPO", "IP-3"]) == 0
    assert commands.asked == []
    kept["asked"]["arm"]["budget"] = 2
    done.write_text(json.dumps(kept))
    assert quality.SUITE.main([*flags, "--arms", "IP-3"]) == 0
    assert len(commands.asked) == 3
    commands.asked.clear()
    assert quality.SUITE.main([*flags, "--arms", "base", "--answers", "3"]) == 0  # another task is measured again
    assert len(commands.asked) == 4  # both files of prompts, for each seed


def test_a_value_model_learns_from_a_part_of_the_samples(tmp_path, commands):
    commands.samples = Task().rows
    flags = flags_of(tmp_path, "--arms", "VAS, 4 samples of 200 prompts")
    assert quality.SUITE.main([*flags]) == 0
    [file] = (tmp_path / "o").iterdir()
    [case] = json.loads(file.read_text())["cases"]
    assert case["cost"]["completions"] == 800 and case["metrics"]["samples_best"] == 1.0
    config = json.loads((tmp_path / "w" / "vas-4-samples-of-200-prompts-0" / "config.json").read_text())
    rows = read_rows(config["dataset_name"])
    assert len(rows) == 200 and all(row["completions"] == ["a", "b", "a", "b"] for row in rows)


def test_a_value_model_may_read_the_principle_and_nothing_else_does(tmp_path, commands):
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "VAS", "VAS, values that read the principle")) == 0
    folders = [tmp_path / "w" / name for name in ("vas-0", "vas-values-that-read-the-principle-0")]
    plain, principled = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert {k for k in plain if plain[k] != principled[k]} == {"dataset_name", "output_dir"}
    rows, with_values = (read_rows(config["dataset_name"]) for config in (plain, principled))
    assert [{**row, "value_prompt": PRINCIPLE + row["prompt"]} for row in rows] == with_values
    command = next(c for c in commands.asked if "evaluate" in c and str(folders[1] / "trained") in c)
    asked = read_rows(command[command.index("--dataset_name") + 1])
    assert asked == [{**row, "value_prompt": PRINCIPLE + row["prompt"]} for row in read_rows(Task().evaluation)]


def test_the_other_classifier_of_the_repository_judges(tmp_path, commands):
    assert [PRESETS[preset].judge for preset in ("cpu", "gpu")] == list(REWARDS[::-1])
    assert Task(reward="another").judge == "" and Task(reward="another").rewards == ["another"]
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "best of n")) == 0
    [command] = commands.asked
    place = command.index("--reward_funcs")
    assert command[place + 1 : place + 3] == list(REWARDS)
    # Best-of-n chooses by the reward alone.
    assert command[command.index("--reward_weights") + 1 :][:2] == ["1.0", "0.0"]
    [file] = (tmp_path / "o").iterdir()
    [case] = json.loads(file.read_text())["cases"]
    assert (case["metrics"]["reward"], case["metrics"]["judge"]) == (2.0, 1.0)


def test_what_a_proxy_began_as_is_kept(tmp_path, commands, monkeypatch):
    def rows(name, reward):
        row = Commands.row(name, reward)
        return row | ({"start": "untrained"} if name == "trained" else {})

    monkeypatch.setattr(commands, "rows", [rows("base", 0.0), rows("untrained", 1.0), rows("trained", 2.0)])
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "Proxy-RLHF, descending")) == 0
    [file] = (tmp_path / "o").iterdir()
    [case] = json.loads(file.read_text())["cases"]
    assert case["metrics"]["reward"] == 2.0
    assert case["untrained"]["reward"] == case["untrained"]["kl"] == 1.0 and case["untrained"]["perplexity"] == 20.0


def test_an_arm_that_fails_is_named_and_does_not_cost_the_others(tmp_path, commands, capsys):
    commands.failing = "dpo"
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "base", "DPO")) == 1
    result = json.loads(next((tmp_path / "o").iterdir()).read_text())
    assert {c["name"] for c in result["cases"]} == {"base"}
    assert result["failures"][0]["arm"] == "TRL's DPO" and "train.log" in capsys.readouterr().err


def test_ppo_runs_in_its_own_environment(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(ppo_environment, "python", lambda: "another/python")
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "TRL's PPO", "DPO")) == 0
    places = [i for i, command in enumerate(commands.asked) if "benchmarks.harness.ppo_driver" in command]
    assert [i for i, python in enumerate(commands.pythons) if python == "another/python"] == places
    config, other = (json.loads(Path(commands.asked[place][-1]).read_text()) for place in places)
    assert "kl_coef" not in config and other["kl_coef"] == 0.1
    assert config["total_episodes"] == Task().budget and config["max_completion_length"] == 48
    [file] = (tmp_path / "o").iterdir()
    assert str(REPOSITORY) not in file.read_text()  # where the clone lies is not told


def test_without_an_index_ppo_is_skipped_and_that_is_said(tmp_path, commands, monkeypatch, capsys):
    monkeypatch.setattr(ppo_environment, "_run", refusing := Refusing(fails_at="pip"))
    monkeypatch.setattr(ppo_environment, "FOLDER", tmp_path / "environment")
    monkeypatch.setattr(ppo_environment.python, "__defaults__", (tmp_path / "environment",))
    assert quality.SUITE.main(flags_of(tmp_path, "--arms", "TRL's PPO", "DPO")) == 0
    result = json.loads(next((tmp_path / "o").iterdir()).read_text())
    assert {c["name"] for c in result["cases"]} == {"TRL's DPO"} and not result["failures"]
    assert len(result["skipped"]) == 2  # with another coefficient, too
    assert result["skipped"][0]["arm"] == "TRL's PPO (trl 1.12)" and "no index" in result["skipped"][0]["reason"]
    assert "skipped. no index" in capsys.readouterr().err
    assert "Skipped: TRL's PPO (trl 1.12) (seed 0)," in quality.SUITE.report([result])
    refusing.fails_at = "nothing"
    environment = tmp_path / "environment"
    assert ppo_environment.python(environment) == str(environment / "bin" / "python")  # what was begun is made again
    refusing.fails_at = "venv"
    assert ppo_environment.python(environment) == str(environment / "bin" / "python")  # and then it is there


class Refusing:
    """In place of the commands that make an environment."""

    def __init__(self, fails_at):
        self.fails_at = fails_at

    def __call__(self, command, folder):
        if self.fails_at in command:
            raise ppo_environment.Unavailable("no index")
        if "venv" in command:
            (folder / "lib" / "python3" / "site-packages").mkdir(parents=True)


def test_what_a_failed_environment_says(tmp_path):
    with pytest.raises(
        ppo_environment.Unavailable, match=r"-c raise SystemExit.*says 'no such thing'.*by the commands in"
    ):
        ppo_environment._run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_a_tree_that_differs_from_its_commit_is_refused(monkeypatch):
    monkeypatch.setattr(results, "current_commit", lambda: "0123456789ab-dirty")
    with pytest.raises(SystemExit, match="--allow_dirty"):
        quality.SUITE.main([])


def test_what_a_process_costs(tmp_path):
    code = "print(\"{'loss': '1.5', 'num_tokens': '12'}\"); x = bytearray(50 << 20); print('{no dict}')"
    found = quality_process.run(["-c", code], tmp_path / "log")
    assert found.cost["peak_mib"] > 50 and found.last("num_tokens") == 12 and found.last("kl") is None
    with pytest.raises(quality_process.Failed, match="status 3: see"):
        quality_process.run(["-c", "raise SystemExit(3)"], tmp_path / "log")


def test_parameters_are_counted_in_what_was_saved(tmp_path):
    assert quality_process.trainable_parameters(tmp_path) is None
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, os.fspath(tmp_path / "model.safetensors"))
    assert quality_process.trainable_parameters(tmp_path) == 7


# ------------------------------------------------------------------------------------------------------------ reports


def test_tables_give_mean_and_farthest_seed(quality_result):
    result = quality_result(case("base", 0, reward=0.0, kl=0.0), case("X", 0, reward=2.0), case("X", 1, reward=3.0))
    text = quality.SUITE.report([result])
    assert "judge" not in text
    assert "| X | 2.50 ± 0.50 | 2.00 ± 0.00 |" in text and "| base | 0.00 |" in text and "1.50 ± 0.50 |" in text
    assert quality.SUITE.report([]) == "not measured"
    for each in result["cases"]:
        each["metrics"]["judge"] = each["metrics"]["reward"] + 1
    head, _, base = (line.split(" | ") for line in quality.SUITE.report([result]).split("\n")[2:5])
    assert base[head.index("judge")] == "1.00"


def test_ablations_alone_have_no_plot(tmp_path, quality_result):
    ablation = "VAS, 4 samples of 200 prompts, beta 1.0"
    result = quality_result(case("base", 0, series="base"), case(ablation, 0, series="VAS"))
    assert quality.SUITE.plot([result], tmp_path) == [] and "<picture>" not in quality.SUITE.report([result])
    result["cases"].append(case("VAS, beta 1.0", 0, series="VAS"))
    assert len(quality.SUITE.plot([result], tmp_path)) == 2 and "<picture>" in quality.SUITE.report([result])


def test_a_later_file_brings_an_arm_and_renews_a_seed(quality_result):
    first = quality_result(case("base", 0, reward=0.0), case("VAS, beta 1.0", 0), case("VAS, beta 1.0", 1, reward=2.0))
    first["failures"] = [{"arm": "TRL's PPO (trl 1.12)", "seed": s, "error": "x"} for s in (0, 1)]
    second = quality_result(case("VAS, beta 1.0", 1, reward=5.0), case("TRL's PPO (trl 1.12)", 0, reward=4.0))
    second |= {"time": "2026-03-04T00:00:00+00:00"}
    [result] = quality.SUITE.by_preset([first, second]).values()
    found = [(c["name"], c["seed"], c["metrics"]["reward"]) for c in result["cases"]]
    ppo = ("TRL's PPO (trl 1.12)", 0, 4.0)
    assert found == [("base", 0, 0.0), ppo, ("VAS, beta 1.0", 0, 1.0), ("VAS, beta 1.0", 1, 5.0)]
    text = quality.SUITE.report([first, second])
    assert "2026-01-02: " in text and "2026-03-04 (TRL's PPO (trl 1.12), VAS): " in text
    assert "Failed or not done: TRL's PPO (trl 1.12) (seed 1)." in text  # seed 0 is there now
    second["settings"]["task"] = {"prompts": 3}  # what is measured on other prompts stands alone
    assert [c["name"] for c in quality.SUITE.by_preset([first, second])["cpu"]["cases"]] == [
        "TRL's PPO (trl 1.12)",
        "VAS, beta 1.0",
    ]


def test_points_of_one_setting_are_a_line(tmp_path, quality_result):
    cases = [case("base", 0, reward=0.0, kl=0.0, series="base")]
    cases += [case("RRHF, offline, ranking x 10", 0, series="RRHF")]  # an ablation
    cases += [case(f"VAS, beta {b}", 0, reward=b, kl=b, series="VAS") for b in (2, 1)] + [case("RRHF, OP-k", 0)]
    bounded = case("best of n, n 4", 0, series="best of n")
    bounded["metrics"] |= {"kl": None, "kl_bound": 0.64}
    data = quality.points(quality_result(*cases, bounded))
    series = {s["name"]: s["points"] for s in data["series"]}
    assert set(series) == {"base", "VAS", "RRHF, OP-k", "best of n"}
    assert [p["kl"] for p in series["VAS"]] == [1, 2] and series["VAS"][0]["extras"] == {"beta": "1"}
    assert series["best of n"][0]["bound"] and series["RRHF, OP-k"][0]["extras"] == {}
    plots = quality.SUITE.plot([quality_result(*cases, bounded)], tmp_path)
    assert [file.name for file in plots] == ["quality-cpu.png", "quality-cpu-dark.png"] and plots[1].stat().st_size


@pytest.mark.parametrize("key", ["name", "seed", "settings", "metrics", "cost"])
def test_a_malformed_outcome_is_refused(key, quality_result):
    result = quality_result(case("X", 0))
    results.check_result(result)
    broken = copy.deepcopy(result)
    del broken["cases"][0][key]
    with pytest.raises(ValueError, match=rf"cases\[0\]: {key} missing"):
        results.check_result(broken)


def test_arms_have_names_of_their_own():
    names = [arm.name for arm in arms(Task())]
    assert len(set(names)) == len(names) and all(isinstance(arm, Arm) for arm in arms(Task()))
