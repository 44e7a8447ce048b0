# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison on a chat model: equal budgets, comparisons prompt by prompt, and tables that say what was found."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from benchmarks.harness.text import human_texts
from benchmarks.quality import chat, paired
from benchmarks.quality.chat_arms import PRESETS, Task, arms
from benchmarks.quality.chat_bench import ChatBench, by_prompt
from benchmarks.quality.quality_arms import Arm


def case(name, seed, *, rewards=(0.0, 1.0), other=(0.0, 1.0), kl=2.0, **cost):
    metrics = {"reward": float(np.mean(rewards)), "kl": kl, "completion_length": 40.0, "perplexity": 9.0}
    found = {"name": name, "seed": seed, "settings": {}, "series": name, "through": "1", "forwards": 1.0}
    return found | {
        "metrics": metrics | {"by_prompt": {"met": list(rewards), "readable": [-5.0, -6.0]}},
        "other": {"reward": float(np.mean(other)), "by_prompt": {"met": list(other), "readable": [-5.0, -6.0]}},
        "cost": {"model_parameters": 10**6, **cost},
    }


@pytest.fixture
def chat_result(result_of):
    """Make a result of the preset `cpu`."""

    def make(*cases):
        return result_of(chat.SUITE, *cases, preset="cpu", seeds=[0], task={}) | {"failures": [], "skipped": []}

    return make


# -------------------------------------------------------------------------------------------------------------- arms


def completions_sampled(arm, task):
    """How many completions a trained arm samples, from its own settings."""
    fields = arm.fields
    if arm.needs:
        return task.budget
    if arm.command == "psle":
        return fields["num_iterations"] * task.rows * 2 * fields["num_generations"]
    if arm.command == "proxy_rlhf":
        return fields["max_steps"] // 16 * fields["per_device_train_batch_size"]
    if arm.command == "vas":
        return fields["num_iterations"] * task.rows * fields["num_generations"]
    return fields["num_train_epochs"] * fields.get("max_rows", task.rows) * fields["num_generations"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_trained_arm_samples_the_same_number_of_completions(preset):
    task = PRESETS[preset]
    trained = [arm for arm in arms(task) if arm.command not in ("", "principle", "sample")]
    assert {arm.command for arm in trained} == {"sft", "dpo", "grpo", "rrhf", "psle", "proxy_rlhf", "vas"}
    for arm in trained:
        assert completions_sampled(arm, task) == pytest.approx(task.budget, rel=0.01), arm.name


def test_every_trained_model_is_an_adapter_of_one_rank():
    ranks = {
        arm.fields["lora_r"] for arm in arms(Task()) if arm.command not in ("", "principle", "sample", "proxy_rlhf")
    }
    assert len(ranks) == 1


# ------------------------------------------------------------------------------------------------------- comparisons


def test_worked_comparisons():
    """By hand: differences 0.5, 0, -0.5, 1 have the mean 0.25; wins 1, 0.5, 0, 1 the mean 0.625."""
    first, second = [[1.0, 0.5, 0.0, 1.0]], [[0.5, 0.5, 0.5, 0.0]]
    found = paired.difference(first, second)
    assert found.value == pytest.approx(0.25) and found.low <= 0.25 <= found.high
    assert paired.win_rate(first, second).value == pytest.approx(0.625)
    assert paired.win_rate(second, first).value == pytest.approx(0.375)
    assert paired.difference(first, first) == paired.Interval(0.0, 0.0, 0.0)
    assert paired.win_rate(first, first).text() == "0.50 [0.50, 0.50]"


def test_a_win_rate_is_over_pairs_of_answers():
    """By hand: the answers 1 and 0 against 0.5 win half, 1 and 1 against 1 and 0 win 3/4; the last prompt has none."""
    assert paired.win_rate([[[1.0, 0.0], [1.0, 1.0], []]], [[[0.5], [1.0, 0.0], [1.0]]]).value == pytest.approx(0.625)


def test_an_arm_against_itself_wins_half_whatever_the_number_of_its_answers():
    """A reward of 1 with a probability of 0.2: one answer against two."""
    random = np.random.default_rng(0)
    one, two = ((random.random((4000, n)) < 0.2).astype(float).tolist() for n in (1, 2))
    assert paired.win_rate([one], [two]).value == pytest.approx(0.5, abs=0.02)


def test_an_interval_is_that_of_the_normal_distribution_for_many_prompts():
    values = np.random.default_rng(1).normal(size=(1, 400)).tolist()
    found = paired.mean(values)
    half = 1.96 * np.std(values) / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_a_prompt_without_a_reward_is_left_out():
    assert paired.mean([[1.0, None, 0.0]]).value == 0.5
    assert paired.difference([[1.0, None]], [[0.5, 0.5]]).value == 0.5


def test_other_prompts_are_no_comparison():
    with pytest.raises(ValueError, match="same prompts"):
        paired.difference([[1.0, 0.0]], [[1.0]])


def test_the_detectable_difference_by_hand():
    """(1.96 + 0.8416) * s * sqrt(2 / n), of 100 prompts with a standard deviation of about a half."""
    assert paired.detectable([[0.0, 1.0] * 50]) == pytest.approx(2.8016 * 0.50252 * (2 / 100) ** 0.5, rel=1e-4)


def test_rewards_of_a_prompt_are_averaged_in_the_order_of_the_prompts():
    table = pa.table(
        {
            "model": ["a", "a", "a", "b", "a"],
            "row_index": [1, 0, 1, 0, 0],
            "sample": ["evaluated", "evaluated", "evaluated", "evaluated", "kl"],
            "reward/met": [1.0, 0.25, 0.0, 9.0, 9.0],
        }
    )
    assert by_prompt(table, "a", "reward/met") == [0.25, 0.5]


def test_human_texts_are_there_and_differ():
    texts = human_texts(50)
    assert len(set(texts)) == 50 and min(map(len, texts)) >= 200


# ------------------------------------------------------------------------------------------------------------ reports


def test_tables_compare_prompt_by_prompt(chat_result):
    cases = [
        case("base", 0, rewards=[0.0, 0.5], other=[0.5, 0.5], kl=0.0),
        case("TRL's GRPO", 0, rewards=[0.5, 1.0], kl=10.0),
        case("RRHF, offline", 0, rewards=[0.5, 0.5], other=[1.0, 0.5], kl=4.0),
    ]
    text = chat.SUITE.report([chat_result(*cases)])
    row = next(line for line in text.splitlines() if line.startswith("| RRHF, offline |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("0.500 [") and cells[2].startswith("0.250 [") and cells[3] == "4.0"
    assert cells[5].startswith("0.75 [")  # one prompt won, one equal
    equal = [line for line in text.splitlines() if line.startswith("| TRL's GRPO |")][2]
    # From the base, 0.25 at 0, to 0.75 at 10.
    assert [cell.strip() for cell in equal.strip("|").split("|")][1:] == ["0.350", "0.500", "0.750"]
    assert chat.SUITE.report([]) == "not measured"


def test_another_form_of_an_arm_is_no_point_of_its_line(chat_result):
    """With its 4-bit form at a KL of 2 and a reward of 0, "RRHF, offline" is still half-way at half of its KL."""
    cases = [
        case("base", 0, rewards=[0.0, 0.0], kl=0.0),
        case("RRHF, offline", 0, rewards=[1.0, 1.0], kl=4.0),
        case("RRHF, offline, 4 bits", 0, rewards=[0.0, 0.0], kl=2.0),
    ]
    text = chat.SUITE.report([chat_result(*cases)])
    equal = [line for line in text.splitlines() if line.startswith("| RRHF, offline |")][2]
    assert equal.split("|")[2].strip() == "0.500"


def test_an_arm_in_four_bits_is_compared_from_the_base_in_four_bits(chat_result):
    """Its KL is to that base: half-way from 0.2 to 1 is 0.6, not the 0.7 from the 0.4 of the base in bfloat16."""
    cases = [
        case("base", 0, rewards=[0.4, 0.4], kl=0.0),
        case("best of n, n 4", 0, rewards=[0.9, 0.9]) | {"series": "best of n", "forwards": 4.0},
        case("RRHF, offline, 4 bits", 0, rewards=[1.0, 1.0], kl=4.0, completions=0),
        case("base, 4 bits", 0, rewards=[0.2, 0.2], kl=0.0),
    ]

    def cells(*some):
        text = chat.SUITE.report([chat_result(*some)])
        lines = [line for line in text.splitlines() if line.startswith("| RRHF, offline, 4 bits |")]
        return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]

    assert cells(*cases)[2] == ["0.600", "-", "-"]
    assert cells(*cases)[3][7] == "-"  # best-of-n was not measured in 4 bits
    assert cells(*cases[:3])[2] == ["-", "-", "-"]


def test_win_rates_of_arms_with_other_numbers_of_answers(chat_result):
    """VAS has one answer for each prompt, the base two: of means alone nothing can be said, of answers it can."""
    base = case("base", 0, rewards=[0.0, 0.0], other=[0.5, 0.5])
    vas = case("VAS, beta 1.0", 0, rewards=[1.0, 1.0], other=[1.0, 1.0])
    row = next(x for x in chat.SUITE.report([chat_result(base, vas)]).splitlines() if x.startswith("| VAS, beta 1.0"))
    assert row.split("|")[6].strip() == "-"
    base["other"]["by_answer"] = {"met": [[0.0, 1.0], [0.0, 1.0]]}
    vas["other"]["by_answer"] = {"met": [[1.0], [1.0]]}
    row = next(x for x in chat.SUITE.report([chat_result(base, vas)]).splitlines() if x.startswith("| VAS, beta 1.0"))
    assert row.split("|")[6].strip().startswith("0.75 [")


def test_best_of_n_for_the_operations_of_an_arm(chat_result):
    """The base answers 1,000 prompts with 80 operations; an arm with 320 in all is compared with n = 4: 0.6."""
    cases = [
        case("base", 0, rewards=[0.2, 0.2], kl=0.0),
        case("best of n, n 4", 0, rewards=[0.6, 0.6]) | {"series": "best of n", "forwards": 4.0},
        case("X", 0, completions=0, tokens_read=0, backward=True) | {"forwards": 4.0},
    ]
    at = chat._best_of_n({entry["name"]: [entry] for entry in cases})
    assert at([cases[2]]) == "0.600" and at([cases[1]]) == "-" and at([cases[0]]) == "0.200"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_prompts_of_a_preset_are_there(preset, tmp_path):
    """In the file of the repository, so many as it asks for."""
    task = PRESETS[preset]
    path = ChatBench(task, tmp_path).prompts(tmp_path, task.rows)
    assert len(Path(path).read_text().splitlines()) == task.rows


def test_operations_by_hand(chat_result):
    """A model of 10^6 parameters: 1,000 answers of 40 tokens; 100 completions of 40 tokens, and 5,000 tokens read."""
    trained = case("X", 0, completions=100, tokens_read=5_000, backward=True)
    training, answering = chat._operations(trained)
    assert answering == pytest.approx(2e6 * 40 * 1_000 / 1e12)
    assert training == pytest.approx((2e6 * 100 * 40 + 4e6 * 5_000) / 1e12)
    dpo = case("TRL's DPO", 0, completions=100, tokens_read=5_000, backward=True)
    assert chat._operations(dpo)[0] == pytest.approx((2e6 * 100 * 40 + 6e6 * 5_000) / 1e12)
    frozen = case("X", 0, completions=100, tokens_read=5_000, backward=False, sampling_forwards=20)
    assert chat._operations(frozen)[0] == pytest.approx(2e6 * 100 * 40 * 20 / 1e12)


def test_a_result_without_the_base_has_a_table(chat_result):
    text = chat.SUITE.report([chat_result(case("RRHF, offline", 0), case("TRL's GRPO", 0))])
    assert "| RRHF, offline | 0.500 [" in text and "more than the base" in text


def test_a_case_has_the_rewards_of_each_prompt(tmp_path):
    models = [
        {"model": name, "extras": {}, "reward/constraints_met": 0.5, "reward/constraints_met_se": 0.1,
         "reward/readability": -5.0, "reward/readability_se": 0.2, "completion_length": 4.0, "generation_seconds": 1.0}
        for name in ("base", "trained")
    ]  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": models}))
    rows = {"model": ["base", "trained"], "row_index": [0, 0], "sample": ["evaluated"] * 2}
    rows |= {"reward/constraints_met": [0.0, 0.5], "reward/readability": [-4.0, -5.0]}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "evaluation.parquet")
    found = ChatBench(Task(), tmp_path).measured(tmp_path / "evaluation.json", Arm("X", "X"))
    assert found["X"]["by_prompt"] == {"constraints_met": [0.5], "readability": [-5.0]}
    assert found["X"]["second"] == -5.0


def test_what_an_arm_is_asked_for(tmp_path, monkeypatch):
    """Adapters, the sampling of the task and its rewards reach every command."""
    asked = []
    monkeypatch.setattr("benchmarks.quality.quality_bench.run", lambda command, *_: asked.append(command) or Done())
    bench = ChatBench(Task(), tmp_path)
    for name in ("TRL's GRPO", "PSLE"):
        arm = next(arm for arm in arms(bench.task) if arm.name == name)
        folder = bench.folder(name, 0)
        folder.mkdir()
        monkeypatch.setattr(bench, "prompts", lambda folder, limit: "prompts.jsonl")
        bench._train(arm, 0, folder)
        config = json.loads((folder / "config.json").read_text())
        assert config["reward_funcs"] == [Task().reward] and config["temperature"] == 0.7 and config["use_peft"]
        assert config["dtype"] == "bfloat16" and config["lora_target_modules"] == ["all-linear"]
        bench._evaluate(arm, 0, folder, "evaluation", "eval.jsonl")
    flags = dict(pairwise(asked[-1]))
    assert flags["--reward_funcs"] == Task().reward and flags["--dtype"] == "bfloat16"
    assert flags["--base_model_name_or_path"] == Task().model
    words = asked[-1][asked[-1].index("--reward_weights") :]
    assert words[1:3] == ["1.0", "0.0"]  # best-of-n must not choose by the reward that nothing is trained on


class Done:
    """In place of a finished process."""

    def __init__(self):
        self.cost, self.logs = {}, []

    def last(self, name):
        return None
