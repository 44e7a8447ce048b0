# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Preference data: rows divided without overlap, pair accuracy by hand, equal budgets, tables, and a tiny run."""

import json
import random
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from conftest import make_model, make_tokenizer

from benchmarks.harness import results
from benchmarks.harness.process import Finished
from benchmarks.harness.text import read_rows
from benchmarks.quality import (
    chat_bench,
    paired,
    preferences,
    preferences_arms,
    preferences_bench,
    preferences_train,
    quality_bench,
    quality_train,
)
from benchmarks.quality.experiment import slug
from benchmarks.quality.preferences_arms import Task, arms, is_against
from benchmarks.quality.preferences_bench import PreferencesBench, accuracy
from benchmarks.quality.preferences_data import (
    DATASETS,
    HELD_OUT,
    OTHER,
    PARTS,
    TRAIN,
    as_messages,
    divide,
    fitting,
    load_rows,
    prompts_of,
)
from trl_ext.cli.main import main as trl_ext
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import tokenize_row
from trl_ext.models.load import load_model


WORDS = "the a film movie was good bad great dull story plot actor very liked hated best worst music".split()


def message(role, content):
    return {"role": role, "content": content}


def row(prompt, *completions, scores):
    return {
        "prompt": [message("user", prompt)],
        "completions": [[message("assistant", text)] for text in completions],
        "scores": list(scores),
    }


# --------------------------------------------------------------------------------------------------------------- rows


def test_a_transcript_becomes_messages():
    found = as_messages(
        {
            "prompt": "\n\nHuman: is it good\n\nAssistant: Human: no\n\nHuman: why\n\nAssistant:",
            "completions": [" dull", " bad "],
            "scores": [1.0, 0.0],
        }
    )
    assert found["prompt"] == [
        message("user", "is it good"),
        message("assistant", "Human: no"),  # a name within a line begins no turn
        message("user", "why"),
    ]
    assert found["completions"] == [[message("assistant", "dull")], [message("assistant", "bad")]]


def test_a_text_becomes_the_message_of_a_user_and_messages_stay():
    text = "Question: is it good\n\nPassages:\nAn interview.\n\nHuman: yes\n\nAnswer:"
    found = as_messages({"prompt": text, "completions": ["a", "b"], "scores": [1, 0]})
    assert found["prompt"] == [message("user", text)]
    given = row("is it good", "a", "b", scores=[1.0, 0.0])
    assert as_messages({**given, "sources": ["x", "y"], "ended": None}) == given


def test_long_completions_are_left_out_and_the_others_keep_best_and_worst():
    tokenizer = make_tokenizer(chat=True)
    given = row("is it good", *(" ".join(["good"] * n) for n in (1, 2, 3, 4, 5, 90)), scores=[3, 1, 5, 2, 4, 9])
    found = fitting(given, tokenizer, tokens=60, completions=3)
    assert found["scores"] == [3.0, 1.0, 5.0]  # of 1 to 5: the lowest, the middle, the highest
    [longest] = [len(ids) for ids in tokenize_row(found, tokenizer)["completion_ids"]][-1:]
    prompt = len(tokenize_row(found, tokenizer)["prompt_ids"])
    exact = fitting(given, tokenizer, tokens=prompt + longest, completions=9)
    assert exact["scores"] == [3.0, 1.0, 5.0] and fitting(given, tokenizer, tokens=prompt, completions=9) is None


def test_rows_without_an_order_or_a_question_are_left_out():
    tokenizer = make_tokenizer(chat=True)
    assert fitting(row("good", "a", "b", scores=[1, 1]), tokenizer, 60, 4) is None
    odd = row("good", "a", "b", scores=[1, 0])
    odd["prompt"].append(message("assistant", "the best"))
    assert fitting(odd, tokenizer, 60, 4) is None


def test_no_conversation_is_in_two_parts():
    """Conversations of different lengths with the same beginning stay together, in any order of the file."""
    rows = []
    for i in range(60):
        for turns in range(i % 3 + 1):
            found = row(f"question {i}", "a", "b", scores=[1, 0])
            found["prompt"] += [message("assistant", "yes"), message("user", f"and {turns}")] * turns
            rows.append(found)
    parts = divide(rows, train=60, held_out=30)
    firsts = {part: {" ".join(r["prompt"][0]["content"].split()) for r in parts[part]} for part in PARTS}
    assert not firsts[TRAIN] & firsts[OTHER] and not firsts[TRAIN] & firsts[HELD_OUT]
    assert not firsts[OTHER] & firsts[HELD_OUT]
    assert [len(parts[part]) for part in (TRAIN, OTHER, HELD_OUT)] == [30, 30, 30]
    random.Random(0).shuffle(rows)
    shuffled = divide(rows, train=60, held_out=30)
    assert {r["prompt"][0]["content"] for r in shuffled[HELD_OUT]} == firsts[HELD_OUT]


def test_few_rows_are_divided_evenly():
    parts = divide([row(f"question {i}", "a", "b", scores=[1, 0]) for i in range(21)], train=500, held_out=300)
    assert {part: len(found) for part, found in parts.items()} == {HELD_OUT: 6, TRAIN: 7, OTHER: 7}


def test_prompts_are_each_asked_once():
    rows = [row(text, "a", "b", scores=[1, 0]) for text in ("x", "y", "x", "z")]
    assert [r["prompt"][0]["content"] for r in prompts_of(rows, 2)] == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"prompt": "is it good"}], "no column 'completions' and 'scores'"),
        ([{"prompt": "a", "completions": ["b", "c"]}], "no column 'scores'"),
        ([{"prompt": "a", "completions": ["b", "c"], "scores": [1.0]}], r"Row 0 of the .*scores"),
        ([{"chosen": "only one"}], "lacks the column 'rejected'"),
    ],
    ids=["prompts", "no scores", "too few scores", "half a pair"],
)
def test_rows_that_hold_no_preferences_are_refused(tmp_path, rows, reason):
    path = tmp_path / "qa_feedback_k4.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=reason) as caught:
        load_rows(path)
    assert "qa_feedback_k4" in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ accuracy


def test_pair_accuracy_by_hand():
    """Scores 3, 1, 1, 2 have five ordered pairs; the prediction has three of them right, one tied, one wrong."""
    assert paired.pair_accuracy([3, 1, 1, 2], [0.9, 0.1, 0.9, 0.5]) == pytest.approx(3.5 / 5)
    assert paired.pair_accuracy([1, 0], [-2.0, -3.0]) == 1.0 and paired.pair_accuracy([1, 0], [-3.0, -2.0]) == 0.0
    assert paired.pair_accuracy([1, 1], [0.0, 1.0]) is None


def test_every_row_counts_once():
    """One row of one pair (wrong) and one of six pairs (all right): a half, not six sevenths."""
    rows = [{"scores": [1.0, 0.0]}, {"scores": [4.0, 3.0, 2.0, 1.0]}]
    found = accuracy(rows, [[0.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    assert found["accuracy"] == 0.5 and found["accuracy_se"] == pytest.approx(0.5)
    assert found["by_prompt"]["accuracy"] == [0.0, 1.0] and found["rows_with_ties"] == 0


def test_mcnemar_by_hand():
    """Five rows better and one worse: 2 (1 + 6) / 2^6; equal rows do not count."""
    first, second = [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]], [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]]
    assert paired.better_and_worse(first, second) == (5, 1, pytest.approx(14 / 64))
    assert paired.better_and_worse(first, first) == (0, 0, 1.0)


# ---------------------------------------------------------------------------------------------------------------- arms


def completions_sampled(arm, task):
    """How many completions for each prompt an arm generates, from its own settings."""
    if arm.command == "psle":
        return arm.fields["num_iterations"] * 2 * arm.fields["num_generations"]
    return arm.fields["num_generations"]


def test_methods_against_a_reward_model_generate_equally_many_completions():
    task = Task()
    online = [arm for arm in arms(task) if is_against(arm) and arm.command and not arm.scored]
    assert {arm.command for arm in online} == {"rrhf", "psle", "vas"} and len(online) == 2 * len(DATASETS) + 1
    assert {completions_sampled(arm, task) for arm in online} == {task.num_generations}


def test_the_judge_is_trained_on_other_rows_with_the_same_settings():
    for name in DATASETS:
        by_name = {arm.name: arm for arm in arms(Task())}
        reward, judge = by_name[f"{name}: reward model"], by_name[f"{name}: judge"]
        assert reward.fields == judge.fields and reward.command == judge.command == "reward"


def test_needs_come_first():
    before = set()
    for arm in arms(Task()):
        assert set(arm.needs) <= before
        before.add(arm.name)


def test_a_threshold_by_hand():
    """Best completions at 1, 3 and 4, worst at 0, 2 and 2.5: one mistake between 2.5 and 3 and between 0 and 1."""
    rows = [{"scores": [1.0, 0.0]}, {"scores": [1.0, 0.0]}, {"scores": [0.0, 1.0]}]
    scores = [[1.0, 0.0], [3.0, 2.0], [2.5, 4.0]]
    assert preferences_bench.best_threshold(rows, scores) == 2.75
    assert preferences_bench.classified(rows, scores, 2.75) == [False, True, True, True, True, True]


def test_a_threshold_lies_between_two_scores():
    """Equal scores cannot be separated: the pair at 1 costs a mistake on either side."""
    rows = [{"scores": [1.0, 0.0]}, {"scores": [1.0, 0.0]}]
    assert preferences_bench.best_threshold(rows, [[1.0, 1.0], [5.0, 0.0]]) in (0.5, 3.0)


# --------------------------------------------------------------------------------------------------------- the reports


@pytest.fixture
def preferences_result(result_of):
    """Make a result of the suite."""

    def make(*cases):
        found = result_of(preferences.SUITE, *cases, seeds=[0], task={"tokens": 256})
        return found | {"failures": [], "skipped": []}

    return make


def case(name, metrics, by_prompt, **cost):
    return {
        "name": name,
        "series": name,
        "seed": 0,
        "settings": {},
        "cost": cost,
        "metrics": metrics | {"by_prompt": by_prompt},
    }


def test_tables_compare_row_by_row(preferences_result):
    counts = {"given": 1800, "usable": 1300, "train": 250, "other": 250, "held_out": 300, "tokens": 256}
    text = preferences.SUITE.report(
        [
            preferences_result(
                case("harmless: rows", counts | {"completions": 2.0, "different_scores": 2.0}, {}),
                case("harmless: base", {}, {"accuracy": [0.0, 1.0, 0.0, 1.0]}),
                case("harmless: RRHF", {}, {"accuracy": [1.0, 1.0, 0.0, 1.0]}, cpu_seconds=60.0),
                case("harmless: answers of the base", {"kl": 0.0}, {"reward-model": [1.0, 2.0], "judge": [0.0, 0.0]}),
                case(
                    "harmless: PSLE against the reward model",
                    {"kl": 3.0},
                    {"reward-model": [2.0, 3.0], "judge": [1.0, 0.0]},
                ),
            )
        ]
    )
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "| 1,800 | 1,300 | 250 | 250 | 300 | 256 | 2.0 |" in lines["harmless"]
    rrhf = [cell.strip() for cell in lines["RRHF"].strip("|").split("|")]
    assert rrhf[1].startswith("0.750 [") and rrhf[2].startswith("0.250 [") and rrhf[3] == "1, 0 (1.000)"
    assert rrhf[5] == "60"
    psle = [cell.strip() for cell in lines["PSLE against the reward model"].strip("|").split("|")]
    assert psle[1].startswith("2.500") and psle[2].startswith("0.500") and psle[3].startswith("0.75 [")
    assert psle[4] == "1.00 [1.00, 1.00]" and psle[5] == "3.0"
    assert "alpaca" not in text and preferences.SUITE.report([]) == "not measured"


# ------------------------------------------------------------------------------------------------------------- running


def test_missing_data_is_named_with_the_place_it_comes_from(tmp_path):
    with pytest.raises(SystemExit, match=r"--data: there is no file hh_harmless_pairs.jsonl .*anthropics/hh-rlhf"):
        preferences.SUITE.main(["--data", str(tmp_path), "--allow_dirty"])


def text(rng, low=2, high=8):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


@pytest.fixture
def data(tmp_path):
    """Three files in the forms of the public datasets."""
    rng = random.Random(0)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {entry.file: [] for entry in DATASETS.values()}
    for i in range(30):
        asked = f"is the film {i} {text(rng)}"
        transcript = f"\n\nHuman: {asked}\n\nAssistant:"
        rows["hh_harmless_pairs.jsonl"].append(
            {"chosen": f"{transcript} {text(rng)} good", "rejected": f"{transcript} {text(rng)} bad"}
        )
        answers = [text(rng) for _ in range(rng.choice([3, 4, 6]))]
        rows["alpaca_eval_ranked.jsonl"].append(
            row(asked, *answers, scores=rng.sample(range(10), len(answers))) | {"sources": ["m"] * len(answers)}
        )
        rows["qa_feedback_k4.jsonl"].append(
            {
                "prompt": f"Question: {asked}\n\nAnswer:",
                "completions": [f" {text(rng)}" for _ in range(4)],
                "scores": [3.0, 0.5, 0.5, 2.0],
            }
        )
    for name, found in rows.items():
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in found))
    return folder


@pytest.fixture
def chat_model(tmp_path):
    """A tiny chat model on disk."""
    tokenizer = make_tokenizer(chat=True)
    folder = tmp_path / "models" / "tiny"
    make_model(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Run commands here instead of in processes of their own: importing everything takes longer than they do."""
    mains = {
        "benchmarks.quality.quality_train": quality_train.main,
        "benchmarks.quality.preferences_train": preferences_train.main,
        "trl_ext": trl_ext,
    }
    asked = []

    def run(arguments, log):
        _, module, *rest = arguments
        asked.append(arguments)
        assert not mains[module](list(rest))
        return Finished({"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": 1}, [])

    for module in (preferences_bench, quality_bench, chat_bench):
        monkeypatch.setattr(module, "run", lambda arguments, log, *_: run(arguments, log))
    return asked


SMALL = {
    "held_out": 8, "rows": 16, "completions": 3, "epochs": 1, "prompts": 3, "num_generations": 2, "asked": 3,
    "answers": 1, "max_completion_length": 4, "tokens": 120,
}  # fmt: skip


def test_a_tiny_run_about_harm(tmp_path, data, chat_model, in_this_process):
    """The answers of the base, RRHF, PSLE, DPO and VAS, each with the share that the judge calls harmful."""
    task = [x for name, value in SMALL.items() for x in (f"--{name}", str(value))]
    places = ["--work", f"{tmp_path}/w", "--output", f"{tmp_path}/o", "--data", str(data), "--model", str(chat_model)]
    asked = [*places, *task, "--allow_dirty", "--jobs", "0", "--seeds", "0", "--arms", "harmless"]
    assert preferences.SUITE.main(asked) == 0
    [file] = (tmp_path / "o").iterdir()
    result = json.loads(file.read_text())
    cases = {entry["name"].removeprefix("harmless: "): entry["metrics"] for entry in result["cases"]}
    assert 0 <= cases["judge"]["harm_accuracy"] <= 1
    answers = [name for name, metrics in cases.items() if "harmful" in metrics]
    assert answers == [
        "answers of the base",
        "RRHF against the reward model",
        "PSLE against the reward model",
        "answers of TRL's DPO",
        "VAS against the reward model",
        "RRHF on the dataset's completions (P)",
        "RRHF on beam search and the dataset's completions (BP)",
    ]
    assert all(name in preferences.SUITE.report([result]) for name in answers)
    check_sampling_policies(tmp_path / "w" / "harmless-answers", in_this_process)
    parquet = tmp_path / "w" / "harmless-answers" / "vas-0" / "evaluation-evaluation.parquet"
    judged = [
        row["reward/judge"]
        for row in pyarrow.parquet.read_table(parquet).to_pylist()
        if row["sample"] == "evaluated" and "beta" in row["model"]
    ]
    share = sum(score < cases["judge"]["harm_threshold"] for score in judged) / len(judged)
    assert cases["VAS against the reward model"]["harmful"] == pytest.approx(share)
    assert "of the held-out completions it is right about" in preferences.SUITE.report([result])


def check_sampling_policies(work, commands):
    """P has both completions of three rows of the dataset, BP the best two of a search too; both have new scores."""
    given, with_beams = (
        read_rows(str(work / f"{slug(name)}-0" / "samples.jsonl"))
        for name in (preferences_arms.DATASET, preferences_arms.BEAMS)
    )
    rows = read_rows(str(work.parent / "harmless-rows-0" / "train.jsonl"))[:3]
    for row, own, more in zip(rows, given, with_beams, strict=True):
        assert own["prompt"] == more["prompt"] == row["prompt"] and own["completions"] == row["completions"]
        assert more["completions"][2:] == row["completions"] and len(more["completions"]) == 4
        assert more["scores"][2:] == pytest.approx(own["scores"], abs=1e-4) and own["scores"] != row["scores"]
    sampled = [command for command in commands if "sample" in command]
    assert ["--num_beams" in command for command in sampled] == [False, True]
    assert "--model_name_or_path" not in sampled[0] and "--temperature" not in sampled[1]


def test_a_tiny_run_of_a_dataset_with_ragged_rows(tmp_path, data, chat_model, in_this_process):
    task = [x for name, value in SMALL.items() for x in (f"--{name}", str(value))]
    places = ["--work", f"{tmp_path}/w", "--output", f"{tmp_path}/o", "--data", str(data), "--model", str(chat_model)]
    asked = [*places, *task, "--allow_dirty", "--jobs", "0", "--seeds", "0", "--arms", "alpaca"]
    assert preferences.SUITE.main(asked) == 0
    [file] = (tmp_path / "o").iterdir()
    result = json.loads(file.read_text())
    results.check_result(result)
    assert str(tmp_path) not in json.dumps(result["settings"])  # where the data lies is not told
    cases = {entry["name"].removeprefix("alpaca: "): entry for entry in result["cases"]}
    assert list(cases) == [arm.name.removeprefix("alpaca: ") for arm in arms(Task()) if arm.name.startswith("alpaca")]
    check_ordering(cases)
    check_answers(cases, in_this_process, tmp_path / "w")
    assert "alpaca: pair accuracy" in preferences.SUITE.report([result])


def check_ordering(cases):
    """Accuracies of every held-out row, and equally many parameters but for the score head."""
    assert cases["rows"]["metrics"]["train"] == cases["rows"]["metrics"]["other"] == 8
    for name in ("base", "the longer completion", "RRHF", "TRL's DPO", "reward model", "judge"):
        by_row = cases[name]["metrics"]["by_prompt"]["accuracy"]
        assert len(by_row) == 8 and cases[name]["metrics"]["accuracy"] == pytest.approx(sum(by_row) / 8, abs=1e-5)
    trained = {name: entry["cost"].get("trainable_parameters") for name, entry in cases.items()}
    assert trained["reward model"] == trained["judge"] == trained["RRHF"] + 64 == trained["TRL's DPO"] + 64


def check_answers(cases, commands, work):
    """What is trained for reads the training prompts, what is measured the held-out ones, with both reward models."""
    for name in ("answers of the base", "RRHF against the reward model", "PSLE against the reward model"):
        measured = cases[name]["metrics"]["by_prompt"]
        assert {key: len(found) for key, found in measured.items()} == {"reward-model": 3, "judge": 3}
    evaluations = [command for command in commands if "evaluate" in command]
    assert len(evaluations) == 3
    for command in evaluations:
        place = command.index("--reward_funcs")
        assert [Path(spec).name for spec in command[place + 1 : place + 3]] == ["reward-model", "judge"]
        assert command[command.index("--reward_model_init_kwargs") + 1] == '{"dtype": "float32"}'
    asked = read_rows(evaluations[0][evaluations[0].index("--dataset_name") + 1])
    measured = {json.dumps(entry["prompt"]) for entry in asked}
    for name in ("rrhf-0", "psle-0"):
        config = json.loads((work / "alpaca-answers" / name / "config.json").read_text())
        assert [Path(spec).name for spec in config["reward_funcs"]] == ["reward-model"]
        assert config["reward_model_init_kwargs"] == {"dtype": "float32"} and config["dtype"] == "bfloat16"
        trained = {json.dumps(entry["prompt"]) for entry in read_rows(config["dataset_name"])}
        assert len(trained) == len(measured) == 3 and not trained & measured
    config = json.loads((work / "alpaca-judge-0" / "config.json").read_text())
    trained = json.loads((work / "alpaca-reward-model-0" / "config.json").read_text())
    assert [Path(found["dataset_name"]).name for found in (config, trained)] == ["other.jsonl", "train.jsonl"]
    assert config["seed"] != trained["seed"]  # or both would begin with the same score head


def test_what_a_model_scores(tmp_path, data, chat_model, in_this_process):
    """RRHF's p is the mean log-probability of a plain forward pass; without training DPO's implicit reward is 0."""
    task = Task(**SMALL, data=str(data), model=str(chat_model), dtype="float32")
    bench = PreferencesBench(task, tmp_path, {"learning_rate": 0.0})
    by_name = {arm.name: arm for arm in arms(bench.task)}
    for name in ("rows", "base", "TRL's DPO"):
        bench.do(by_name[f"harmless: {name}"], 0)
    rows = read_rows(str(tmp_path / "harmless-rows-0" / "held_out.jsonl"))
    model, tokenizer = load_model(str(chat_model)), make_tokenizer(chat=True)
    base = json.loads((tmp_path / "harmless-base-0" / "scores-held_out.json").read_text())
    implicit = json.loads((tmp_path / "harmless-trl-s-dpo-0" / "scores-held_out.json").read_text())
    assert len(rows) == 8
    for entry, scores, rewards in zip(rows, base, implicit, strict=True):
        ids = tokenize_row(entry, tokenizer)
        for own, score, reward in zip(ids["completion_ids"], scores, rewards, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([ids["prompt_ids"] + own])).logits[0, len(ids["prompt_ids"]) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(own)), own].mean().item()
            assert score == pytest.approx(expected, abs=1e-4) and reward == pytest.approx(0.0, abs=1e-4)


def test_an_implicit_reward_is_beta_times_the_log_ratio(tmp_path, data, chat_model, in_this_process):
    """After training, from the plain log-probabilities of the adapted model and of its base."""
    task = Task(**SMALL, data=str(data), model=str(chat_model), dtype="float32")
    bench = PreferencesBench(task, tmp_path, {"learning_rate": 0.01})
    by_name = {arm.name: arm for arm in arms(bench.task)}
    for name in ("rows", "TRL's DPO"):
        bench.do(by_name[f"qa: {name}"], 0)
    folder = tmp_path / "qa-trl-s-dpo-0"
    [entry, *_] = read_rows(str(tmp_path / "qa-rows-0" / "held_out.jsonl"))
    ids = tokenize_row(entry, make_tokenizer(chat=True))
    sums = []
    for place in (folder / "trl-s-dpo", chat_model):
        model = load_model(str(place))
        with torch.no_grad():
            logits = model(torch.tensor([ids["prompt_ids"] + ids["completion_ids"][0]])).logits[0]
        own = ids["completion_ids"][0]
        logps = logits[len(ids["prompt_ids"]) - 1 : -1].log_softmax(-1)[range(len(own)), own]
        sums.append(logps.sum().item())
    found = json.loads((folder / "scores-held_out.json").read_text())[0][0]
    assert abs(found) > 1e-3 and found == pytest.approx(0.1 * (sums[0] - sums[1]), abs=1e-4)


def test_too_few_rows_are_named_with_what_helps(tmp_path, data, chat_model):
    bench = PreferencesBench(Task(model=str(chat_model), data=str(data), tokens=12), tmp_path)
    with pytest.raises(DataError, match=r"hh_harmless_pairs.jsonl: of its 30 rows, \d+ have .* raise --tokens"):
        bench.do(arms(bench.task)[0], 0)
