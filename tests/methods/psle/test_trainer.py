# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""PSLETrainer: the losses through the whole path, both views, iterations, resuming, baselines, and what it refuses."""

import gc
import itertools
import json
import math
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset, DatasetDict
from oracles.psle import oracle
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback
from vllm_mock import mock_vllm

from trl_ext import PSLEConfig, PSLETrainer
from trl_ext.data.schema import DataError
from trl_ext.methods.psle.data import principle_index
from trl_ext.methods.psle.iterations import both_views, check_max_steps
from trl_ext.methods.psle.warm_up import WarmUpTrainer
from trl_ext.packages import VLLM, is_installed
from trl_ext.rewards.functions import RewardError
from trl_ext.training.nonfinite import LossGuard


PROMPTS = [{"prompt": text} for text in ("the film", "a story of music", "we", "I liked the", "no one", "one scene")]
ANSWERS = [{"prompt": "the film", "completion": f" was {word}"} for word in ("good", "bad", "dull", "great")]
SAVES = {"save_strategy": "steps", "save_steps": 1}


def config(tmp_path: Path, **changes: Any) -> PSLEConfig:
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_completion_length": 5,
        "num_generations": 2,
        "principles": ["so good"],
    }
    return PSLEConfig(**settings | changes)


def trainer(tmp_path: Path, rows: list[dict] | None = None, **kwargs: Any) -> PSLETrainer:
    settings = kwargs.pop("args", {})
    tokenizer = kwargs.pop("processing_class", None) or make_tokenizer()
    model = kwargs.pop("model", None) or make_model(len(tokenizer))
    return PSLETrainer(
        model,
        kwargs.pop("reward_funcs", letter_reward),
        config(tmp_path, **settings),
        Dataset.from_list(rows or PROMPTS),
        processing_class=tokenizer,
        **kwargs,
    )


class Logs(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))

    def of(self, name: str) -> list[float]:
        return [log[name] for log in self.logs if name in log]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr("trl_ext.methods.psle.trainer.logger.warning", lambda text, *rest: texts.append(str(text)))
    return texts


def weights(run: PSLETrainer) -> list[torch.Tensor]:
    return [value.clone() for value in run.model.state_dict().values()]


def same(a: PSLETrainer, b: PSLETrainer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


# ------------------------------------------------------------------------------------------------------------- loss

# Two prompts with answers and one that has lost its guided view; gaps in reward that are wide either way, and narrow.
BATCH: dict[str, Any] = {
    "prompt_ids": [[5, 9, 3], [6], [7, 8]],
    "completion_ids": [[[10, 11, 12], [14], [15, 16]], [[9]], [[20, 21], [22], [23, 24, 25], [26]]],
    "scores": [[0.0, 3.0, 0.5], [1.0], [3.0, -1.0, 1.1, 4.0]],
    "marks": [[0, 1, 1], [0], [0, 0, 1, 1]],
}


def logps_by_loop(model: Any, batch: dict[str, Any]) -> list[list[torch.Tensor]]:
    found = []
    for prompt, group in zip(batch["prompt_ids"], batch["completion_ids"], strict=True):
        found.append([])
        for ids in group:
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            found[-1].append(sum(logits[len(prompt) - 1 + t][x] for t, x in enumerate(ids)) / len(ids))
    return found


@pytest.mark.parametrize("shared_prefix", ["always", "never"])
@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.7},
        {"threshold": 0.2, "rank_weight": 10.0, "sft_weight": 0.5, "margin": 0.3, "reward_temperature": 2.0},
        {"threshold": 0.7, "two_sided": True},
    ],
)
def test_loss_and_gradients_are_the_loops(tmp_path: Path, shared_prefix: str, settings: dict) -> None:
    run = trainer(tmp_path, args={"shared_prefix": shared_prefix, **settings})
    run.iterations.scale = 2.0
    reference = make_model(len(run._tokenizer))
    logps = logps_by_loop(reference, BATCH)
    names = {"rank_weight": "rank", "sft_weight": "sft", "reward_temperature": "temperature"}
    rewards = [[x / 2.0 for x in group] for group in BATCH["scores"]]
    losses = oracle(logps, rewards, BATCH["marks"], **{names.get(k, k): v for k, v in settings.items()})
    expected = (losses[0] + losses[2]) / 2  # the prompt without a pair does not count
    expected.backward()
    loss = run.compute_loss(run.model, BATCH)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    for (name, mine), theirs in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_baselines_by_settings(tmp_path: Path) -> None:
    def loss(**settings: Any) -> float:
        run = trainer(tmp_path, args={"threshold": 0.2, "reward_scaling": "none", **settings})
        return run.compute_loss(run.model, BATCH).item()

    l = [[x.item() for x in group] for group in logps_by_loop(make_model(len(make_tokenizer())), BATCH)]
    marks, scores = BATCH["marks"], BATCH["scores"]
    distilled = [-(l[0][1] + l[0][2]) / 2, -(l[2][2] + l[2][3]) / 2]
    assert loss(rank_weight=0.0, sft_target="guided") == pytest.approx(sum(distilled) / 2, abs=1e-4)
    assert loss(rank_weight=0.0, sft_target="best") == pytest.approx(-(l[0][1] + l[1][0] + l[2][3]) / 3, abs=1e-4)
    weighted = oracle(l, scores, marks, math.inf)
    assert loss(rank_weight=0.0) == pytest.approx((weighted[0] + weighted[2]) / 2, abs=1e-4)
    ranked = oracle(l, scores, marks, 0.2, sft=0.0)
    assert loss(sft_weight=0.0) == pytest.approx((ranked[0] + ranked[2]) / 2, abs=1e-4)


def step_gradients(tmp_path: Path, batch_size: int, accumulation: int, **changes: Any) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = []

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.extend(parameter.grad.clone() for parameter in model.parameters())

    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **changes}
    run = trainer(tmp_path, args={"max_steps": 1, "max_grad_norm": 1e9, **settings}, callbacks=[Grab()])
    run.train()
    return gradients


def test_accumulation_does_not_change_the_gradient(tmp_path: Path) -> None:
    whole = step_gradients(tmp_path, 6, 1)
    for batch_size, accumulation, changes in ((1, 6, {}), (4, 2, {}), (6, 1, {"gradient_checkpointing": True})):
        for a, b in zip(whole, step_gradients(tmp_path, batch_size, accumulation, **changes), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("schedule", [{}, {"resample_steps": 1}])
def test_the_reward_rises(tmp_path: Path, schedule: dict) -> None:
    log = Logs()
    run = trainer(
        tmp_path,
        PROMPTS * 4,
        callbacks=[log],
        args={"num_iterations": 10, "learning_rate": 2e-3, "rank_weight": 10.0, "per_device_train_batch_size": 8}
        | schedule,
    )
    before = run.evaluate(Dataset.from_list(PROMPTS * 4))
    run.train()
    after = run.evaluate(Dataset.from_list(PROMPTS * 4))
    assert after["eval_rewards/plain"] > before["eval_rewards/plain"] + 0.5


def test_the_kl_term_is_subtracted_from_the_reward(tmp_path: Path) -> None:
    """beta x (log pi - log pi_0) of each completion given the plain prompt; the metric is of plain ones."""
    run = trainer(tmp_path, args={"beta": 0.5})
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    rows = [run.train_dataset[i] for i in range(6)]
    for mode, beta in (("train", 0.5), ("eval", 0.0)):
        sampled = run._sample_round(rows, mode)
        batch = {
            "prompt_ids": [row["prompt_ids"] for row in rows],
            "completion_ids": [sampled.rollouts[i].completion_ids for i in range(6)],
        }
        with torch.no_grad():
            ours, first = (logps_by_loop(m, batch) for m in (run.model, make_model(len(run._tokenizer))))
        plain = []
        for i, group in enumerate(batch["completion_ids"]):
            ratios = [float(a - b) * len(c) for a, b, c in zip(ours[i], first[i], group, strict=True)]
            rewards = sampled.rollouts[i].rewards["letter_reward"]
            expected = [r - beta * x for r, x in zip(rewards, ratios, strict=True)]
            assert sampled.rollouts[i].scores == pytest.approx(expected, abs=1e-3)
            plain += ratios[:2]
        assert max(map(abs, plain)) > 0.1
        if mode == "train":
            kl = run._meters["train"].pop(run.accelerator)["kl"]
            assert kl == pytest.approx(sum(plain) / len(plain), abs=1e-3)


# ------------------------------------------------------------------------------------------------------------ views


def test_rewards_and_training_see_the_plain_prompt_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list] = {"rewards": [], "topics": [], "trained": [], "generated": []}

    def reward(prompts: list[str], completions: list[str], topic: list[str], **columns: Any) -> list[float]:
        assert "guided_ids" not in columns and "prompt_ids" not in columns
        seen["rewards"] += prompts
        seen["topics"] += topic
        return letter_reward(completions)

    rows = [{**row, "topic": str(i)} for i, row in enumerate(PROMPTS)]
    run = trainer(tmp_path, rows, reward_funcs=reward, args={"num_iterations": 1})
    forward, generate = run.log_probs._forward, run.model.generate

    def spy_forward(model: Any, form: str, prompts: list, *rest: Any) -> Any:
        seen["trained"] += prompts if model.training else []
        return forward(model, form, prompts, *rest)

    def spy_generate(**kwargs: Any) -> Any:
        seen["generated"].append(kwargs["attention_mask"].sum(1).tolist())
        return generate(**kwargs)

    monkeypatch.setattr(run.log_probs, "_forward", spy_forward)
    monkeypatch.setattr(run.model, "generate", spy_generate)
    run.train()
    texts = [row["prompt"] for row in rows]
    assert sorted(seen["rewards"]) == sorted(texts * 4)
    assert sorted(set(seen["topics"])) == [str(i) for i in range(6)]
    plain = [run._tokenizer(text).input_ids for text in texts]
    assert all(prompt in plain for prompt in seen["trained"]) and len(seen["trained"]) >= 6
    # One call for both prompts of all rows: 6 rows, 2 views, 2 answers each.
    (lengths,) = seen["generated"]
    guided = [len(run._tokenizer("so good\n" + text).input_ids) for text in texts]
    assert sorted(lengths) == sorted((guided + [len(p) for p in plain]) * 2)


def test_both_views_are_asked_for_in_one_call() -> None:
    rows = [{"prompt_ids": [i], "guided_ids": [[10 * i]]} for i in range(1, 4)]
    rows.append({"prompt_ids": [4], "guided_ids": []})
    asked: list = []

    def generate(prompts: list[list[int]]) -> list:
        asked.append(prompts)
        return [[f"{prompt[0]}a", f"{prompt[0]}b"] for prompt in prompts]

    assert both_views(rows, 0, generate)[1:] == [["2a", "2b", "20a", "20b"], ["3a", "3b", "30a", "30b"], ["4a", "4b"]]
    assert asked == [[[1], [2], [3], [4], [10], [20], [30]]]


RULES = ["so good", "no music", "one story"]
MANY = [{"prompt": f"{start} {word}"} for start in ("the", "a", "one") for word in ("film", "story", "scene", "plot")]


@pytest.fixture
def guides(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[tuple[int, ...], set[int]]]:
    """For each iteration and prompt, which of its principles were used."""
    used: dict[int, dict[tuple[int, ...], set[int]]] = {}

    def spy(rows: list[dict[str, Any]], iteration: int, generate: Any) -> Any:
        def watched(prompts: list[list[int]]) -> Any:
            for row, guided in zip(rows, prompts[len(rows) :], strict=True):
                found = used.setdefault(iteration, {}).setdefault(tuple(row["prompt_ids"]), set())
                found.add(row["guided_ids"].index(guided))
            return generate(prompts)

        return both_views(rows, iteration, watched)

    monkeypatch.setattr("trl_ext.methods.psle.trainer.both_views", spy)
    return used


@pytest.mark.parametrize("how", ["alone", "together", "reversed", "streamed", "steps", "epochs"])
def test_a_principle_depends_on_the_prompt_and_the_iteration(tmp_path: Path, guides: dict, how: str) -> None:
    """Not on the batch, the order of rows, the form of the dataset, or when completions are generated."""
    rows = Dataset.from_list(MANY[::-1] if how == "reversed" else MANY)
    size = {"alone": 1, "together": 12}.get(how, 5)
    settings = {"principles": RULES, "per_device_eval_batch_size": size, "per_device_train_batch_size": size}
    if how == "steps":
        trainer(tmp_path, MANY, args=settings | {"resample_steps": 2, "num_iterations": 3}).train()
    elif how == "epochs":
        trainer(tmp_path, MANY, args=settings | {"num_iterations": 3}).train()
    else:
        run = trainer(tmp_path, args=settings)
        for run.iterations.number in range(3):
            run.evaluate(rows.to_iterable_dataset(num_shards=3) if how == "streamed" else rows)
    tokenizer = make_tokenizer()
    for row in MANY:
        ids = tokenizer(row["prompt"]).input_ids
        expected = [principle_index(ids, iteration, 3) for iteration in range(3)]
        assert sorted(expected) == [0, 1, 2]
        assert [guides[iteration][tuple(ids)] for iteration in range(3)] == [{index} for index in expected]
    assert {len(guides[i]) for i in guides} == {len(MANY)}
    assert all(len(set().union(*guides[i].values())) == 3 for i in guides)


def test_chat_prompts_and_row_principles(tmp_path: Path) -> None:
    def chat(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    rows = [{"prompt": chat(row["prompt"]), "principle": "no music" if i else ""} for i, row in enumerate(PROMPTS)]

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        assert all(prompt[-1]["role"] == "user" and len(prompt) == 1 for prompt in prompts)
        return letter_reward(completions)

    tokenizer = make_tokenizer(chat=True)
    run = trainer(tmp_path, rows, processing_class=tokenizer, reward_funcs=reward, args={"num_iterations": 1})
    assert "no music" in tokenizer.decode(run.train_dataset[1]["guided_ids"][0])
    assert "so good" in tokenizer.decode(run.train_dataset[0]["guided_ids"][0])
    run.train()


# ------------------------------------------------------------------------------------------------------- iterations


@pytest.mark.parametrize(("schedule", "expected"), [({}, [0, 3, 6]), ({"resample_steps": 1}, [*range(9)])])
def test_snapshots_and_decay(tmp_path: Path, schedule: dict, expected: list[int]) -> None:
    log, steps = Logs(), []
    run = trainer(
        tmp_path, callbacks=[log], args={"num_iterations": 3, "threshold": 0.4, "threshold_decay": 0.5, **schedule}
    )
    sample = run._sample_round
    run._rounds.sample = lambda rows: steps.append(run.state.global_step) or sample(rows).rollouts
    run.train()
    assert steps == expected
    assert log.of("threshold") == [0.4] * 3 + [0.2] * 3 + [0.1] * 3
    assert log.of("iteration") == [1.0] * 3 + [2.0] * 3 + [3.0] * 3
    assert run.state.global_step == 9


def test_several_epochs_an_iteration_and_a_constant_threshold(tmp_path: Path) -> None:
    log, rounds = Logs(), []
    run = trainer(tmp_path, callbacks=[log], args={"epochs_per_iteration": 2, "threshold_decay": 1.0})
    sample = run._sample_round
    run._rounds.sample = lambda rows: rounds.append(len(rows)) or sample(rows).rollouts
    run.train()
    assert rounds == [6, 6] and run.state.global_step == 12
    assert log.of("iteration") == [1.0] * 6 + [2.0] * 6
    assert set(log.of("threshold")) == {0.2}


@pytest.mark.parametrize("streaming", [True, False])
def test_iterations_by_steps(tmp_path: Path, streaming: bool) -> None:
    log, rows = Logs(), Dataset.from_list(PROMPTS * 4)
    run = PSLETrainer(
        make_model(len(make_tokenizer())),
        letter_reward,
        config(tmp_path, resample_steps=1, max_steps=4),
        rows.to_iterable_dataset() if streaming else rows,
        processing_class=make_tokenizer(),
        callbacks=[log],
    )
    run.train()
    assert log.of("iteration") == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch_size", "accumulation", "epochs"), [(2, 1, 1), (4, 1, 2), (1, 4, 1), (5, 2, 1)])
def test_more_steps_than_the_iterations_have_are_refused(
    tmp_path: Path, batch_size: int, accumulation: int, epochs: int, drop_last: bool
) -> None:
    """As many steps as transformers trains for are allowed, and one more is not."""
    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    settings |= {"epochs_per_iteration": epochs, "dataloader_drop_last": drop_last, "num_iterations": 3}
    run = trainer(tmp_path, args=settings)
    run.train()
    steps = run.state.global_step
    check_max_steps(config(tmp_path, max_steps=steps, **settings), len(PROMPTS))
    with pytest.raises(ValueError, match=rf"{steps + 1}\) needs 4 iterations.*6 rows.*\(3\) is {steps} steps"):
        trainer(tmp_path, args=settings | {"max_steps": steps + 1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_steps": 4}, r"\(4\) ends the run in iteration 2 of 3: an iteration is 3 steps .* is 9 steps"),
        ({"max_steps": 2, "resample_steps": 1}, r"\(2\) is less than `num_iterations` \(3\).*Set .* to 2 at most"),
        ({"max_steps": 9}, ""),
        ({"max_steps": 20, "resample_steps": 1}, ""),
    ],
)
def test_fewer_steps_than_the_iterations_have_are_said(
    tmp_path: Path, settings: dict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr("trl_ext.methods.psle.iterations.logger.warning", texts.append)
    log = Logs()
    run = trainer(tmp_path, callbacks=[log], args={"num_iterations": 3, **settings})
    assert bool(texts) == bool(words) and all(re.search(words, text) for text in texts)
    run.train()
    assert run.state.global_step == settings["max_steps"] and max(log.of("iteration")) <= 3


@pytest.mark.parametrize("scaling", ["running", "batch", "none"])
def test_scale_of_rewards(tmp_path: Path, scaling: str) -> None:
    rounds: list[list[float]] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        rounds.append([10 * x for x in letter_reward(completions)])
        return rounds[-1]

    run = trainer(tmp_path, reward_funcs=reward, args={"reward_scaling": scaling})
    run.train()
    assert len(rounds) == 2
    everything = torch.tensor(rounds[0] + rounds[1])
    expected = {"running": everything.std().item(), "batch": torch.tensor(rounds[1]).std().item(), "none": 1.0}
    assert run.iterations.scale == pytest.approx(expected[scaling], rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "stop"),
    [
        ({}, 2),
        ({}, 3),
        ({}, 4),
        ({"resample_steps": 2, "reward_scaling": "batch"}, 5),
        ({"sft_mix": 0.5, "epochs_per_iteration": 2}, 5),
        ({"beta": 0.1}, 4),
        ({"principles": RULES, "principles_per_query": 2, "resample_steps": 1}, 3),  # between two iterations
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, schedule: dict, stop: int) -> None:
    settings = {"num_iterations": 3, **SAVES, **schedule}
    sft = {"sft_dataset": Dataset.from_list(ANSWERS)} if "sft_mix" in schedule else {}
    whole = trainer(tmp_path, args={**settings, "output_dir": str(tmp_path / "whole")}, **sft)
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{stop}"
    state = json.loads((checkpoint / "iterations_0.json").read_text())
    assert state["number"] == (stop - 1) // (3 * schedule.get("epochs_per_iteration", 1))
    assert state["threshold"] == pytest.approx(0.2 * 0.9 ** state["number"])
    assert state["rewards"]["count"] > 0 and (checkpoint / "rollouts_0.json").is_file()
    log = Logs()
    resumed = trainer(tmp_path, args={**settings, "output_dir": str(tmp_path / "resumed")}, callbacks=[log], **sft)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(whole, resumed)
    assert resumed.iterations.rewards == whole.iterations.rewards
    assert resumed.iterations.tally == whole.iterations.tally
    later = [x for x in whole.state.log_history if "threshold" in x and x["step"] > stop]
    assert log.of("threshold") == [x["threshold"] for x in later]
    assert log.of("loss") == [x["loss"] for x in later]


# ---------------------------------------------------------------------------------------------------------- warm-up


def logged(folder: Path) -> list[str]:
    """Which loss each line of a run's metrics file has; the warm-up's summary has none."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [name for line in lines for name in ("warm_up/loss", "loss") if name in line]


def test_warm_up_then_iterations_and_resume_in_each(tmp_path: Path) -> None:
    settings = {"sft_epochs": 2, "sft_learning_rate": 5e-3, **SAVES}
    answers = {"sft_dataset": Dataset.from_list(ANSWERS)}
    log = Logs()
    whole = trainer(tmp_path, args=settings | {"output_dir": str(tmp_path / "whole")}, callbacks=[log], **answers)
    whole.train()
    losses = log.of("warm_up/loss")
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.5
    assert whole.state.global_step == 6 and log.of("iteration") == [1.0] * 3 + [2.0] * 3
    assert log.of("warm_up/learning_rate")[0] == 5e-3 and max(log.of("learning_rate")) <= 1e-3
    assert len(log.of("loss")) == len(log.of("grad_norm")) == 6 and len(log.of("warm_up/grad_norm")) == 4
    for stop in ("warm_up/checkpoint-3", "warm_up/checkpoint-4", "checkpoint-2"):
        resumed = trainer(tmp_path, args=settings | {"output_dir": str(tmp_path / stop)}, **answers)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / stop))
        assert same(whole, resumed), stop
        if stop.startswith("warm_up"):
            assert logged(tmp_path / stop) == logged(tmp_path / "whole") == ["warm_up/loss"] * 4 + ["loss"] * 6


def test_the_iterations_have_the_memory_of_the_warm_ups_optimizer(tmp_path: Path) -> None:
    optimizers: list[weakref.ref] = []
    alive: list[int] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if "warm_up" in args.output_dir:
                optimizers.append(weakref.ref(optimizer))
            else:
                gc.collect()
                alive.append(sum(reference() is not None for reference in optimizers))

    settings = {"sft_epochs": 1, "max_steps": 2}
    run = trainer(tmp_path, args=settings, callbacks=[Watch()], sft_dataset=Dataset.from_list(ANSWERS))
    run.train()
    assert optimizers and set(alive) == {0}


def test_warm_up_imitates_completions_given_their_prompt(tmp_path: Path) -> None:
    """The loss is the mean of the negative mean log-probabilities, which a loop over the tokens adds up."""
    run = trainer(tmp_path, args={"sft_epochs": 1}, sft_dataset=Dataset.from_list(ANSWERS))
    assert run._sft_dataset is not None
    batch = run.data_collator([run._sft_dataset[i] for i in range(4)])
    logps = logps_by_loop(make_model(len(run._tokenizer)), batch)
    expected = -sum(group[0] for group in logps) / 4
    warm_up = WarmUpTrainer(run, run._sft_dataset)
    assert warm_up.compute_loss(run.model, batch).item() == pytest.approx(expected.item(), abs=1e-4)


def test_accumulation_does_not_change_the_gradient_of_the_warm_up(tmp_path: Path) -> None:
    """4 rows at once, and as 3 and 1: an average of averages would weigh the last row threefold."""
    found = []
    for batch_size, accumulation in ((4, 1), (3, 2)):
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        settings |= {"sft_epochs": 1, "max_grad_norm": 1e9}
        run = trainer(tmp_path, args=settings, sft_dataset=Dataset.from_list(ANSWERS))
        warm_up = WarmUpTrainer(run, run._sft_dataset)
        warm_up.train()
        assert warm_up.state.global_step == 1
        found.append([warm_up.state.log_history[0][name] for name in ("warm_up/loss", "warm_up/grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_warm_up_has_a_config_and_a_guard_of_its_own(tmp_path: Path) -> None:
    """It trains for `sft_epochs`, in a folder of its own, without evaluations; the trainer's config stays."""
    settings = {"sft_epochs": 2, "sft_learning_rate": 5e-3, "max_steps": 5, "eval_strategy": "steps", "eval_steps": 1}
    settings |= SAVES | {"eval_on_start": True, "load_best_model_at_end": True}
    answers, evals = Dataset.from_list(ANSWERS), Dataset.from_list(PROMPTS[:2])
    run = trainer(tmp_path, args=settings, sft_dataset=answers, eval_dataset=evals)
    run.args.push_to_hub = True
    before = run.args.to_dict()
    warm_up = WarmUpTrainer(run, run._sft_dataset)
    assert run.args.to_dict() == before
    args = warm_up.args
    assert (args.output_dir, args.learning_rate) == (str(tmp_path / "out" / "warm_up"), 5e-3)
    assert (args.num_train_epochs, args.max_steps) == (2, -1)
    assert (args.eval_strategy, args.eval_on_start) == ("no", False)
    assert (args.load_best_model_at_end, args.push_to_hub) == (False, False)
    assert [each for each in warm_up.callback_handler.callbacks if isinstance(each, LossGuard)] == [warm_up._guard]


def test_early_stopping_watches_the_iterations_after_a_warm_up(tmp_path: Path) -> None:
    """The warm-up has no evaluations; after it, a reward that never rises ends the run at the second evaluation."""
    settings = {"sft_epochs": 1, "num_iterations": 5, "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "reward", "greater_is_better": True}
    log = Logs()
    run = trainer(
        tmp_path, callbacks=[log, EarlyStoppingCallback(1)], args=settings, eval_dataset=Dataset.from_list(PROMPTS),
        reward_funcs=lambda prompts, **_: [1.0] * len(prompts), sft_dataset=Dataset.from_list(ANSWERS),
    )  # fmt: skip
    run.train()
    assert log.of("warm_up/num_tokens") and log.of("eval_reward") == [1.0, 1.0]
    assert run.state.global_step == 6 and run.state.best_model_checkpoint.endswith("checkpoint-3")


@pytest.mark.parametrize("dataset", [Dataset.from_list(ANSWERS).to_iterable_dataset(), DatasetDict(), ANSWERS])
def test_completions_to_imitate_need_a_length(tmp_path: Path, dataset: Any) -> None:
    with pytest.raises(TypeError, match=f"`sft_dataset` must be a `Dataset`, got `{type(dataset).__name__}`"):
        trainer(tmp_path, args={"sft_mix": 0.5}, sft_dataset=dataset)


def test_an_answer_to_imitate_beyond_the_models_positions_is_named(tmp_path: Path) -> None:
    answers = Dataset.from_list([*ANSWERS, {"prompt": "the film", "completion": " was good" * 200}])
    with pytest.raises(DataError, match=r"Row 4 of the SFT dataset has \d+ tokens, but .* context length is"):
        trainer(tmp_path, args={"sft_mix": 0.5}, sft_dataset=answers)


def test_sft_mix_adds_to_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"sft_mix": 0.5}, sft_dataset=Dataset.from_list(ANSWERS))
    alone = run.compute_loss(run.model, BATCH).item()
    rows = [run._sft_dataset[i] for i in range(2)]
    logps = logps_by_loop(run.model, run.data_collator(rows))
    both = run.compute_loss(run.model, BATCH | {"mixed": rows}).item()
    # Two prompts have pairs; the batch's loss is a mean over those.
    assert both == pytest.approx(alone - 0.5 * (logps[0][0] + logps[1][0]).item() / 2, abs=1e-4)


def test_rows_are_mixed_in_for_the_prompts_that_count(tmp_path: Path) -> None:
    """The mean of the mixed rows keeps its weight where rewards are missing; without any, there is no step."""
    run = trainer(tmp_path, args={"sft_mix": 0.5}, sft_dataset=Dataset.from_list(ANSWERS))
    assert len(run._mixed(0, BATCH)) == 2  # of three prompts
    assert run._mixed(0, {**BATCH, "marks": [[0], [], [1]]}) == []


def test_mixed_rows_differ_by_micro_batch_and_process_and_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Dataset.from_list([{"prompt": "the film", "completion": f" {chr(97 + n)}"} for n in range(26)])
    run = trainer(tmp_path, args={"sft_mix": 0.5}, sft_dataset=answers)
    batch = {**BATCH, "marks": [[0, 1]] * 8}

    def rows(step: int, micro_batch: int, process: int) -> list[int]:
        run.state.global_step, run.accelerator = step, SimpleNamespace(process_index=process)
        return [row["row_index"] for row in run._mixed(micro_batch, batch)]

    found = {given: rows(*given) for given in itertools.product(range(3), repeat=3)}
    assert len(set(map(tuple, found.values()))) == len(found) == 27
    assert all(rows(*given) == numbers for given, numbers in found.items())


# --------------------------------------------------------------------------------------------------------- adapters


def test_lora_trains_the_adapter_alone(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        args={"gradient_checkpointing": True, "beta": 0.05},
    )
    run.train()
    moved = {name for name, p in run.model.named_parameters() if p.requires_grad and p.abs().sum() > 0}
    assert moved and all("lora" in name for name in moved)
    run.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def quantized() -> Any:
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def test_qlora(tmp_path: Path, tiny_model_dir: str) -> None:
    log = Logs()
    run = PSLETrainer(
        tiny_model_dir,
        letter_reward,
        config(tmp_path, bf16=True, num_iterations=1),
        Dataset.from_list(PROMPTS),
        quantization_config=quantized(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        callbacks=[log],
    )
    run.train()
    assert all(math.isfinite(x) for x in log.of("loss")) and any(x > 0 for x in log.of("grad_norm"))


# ---------------------------------------------------------------------------------------------------------- engines


CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 256},
}


def test_continuous_batching_writes_what_generate_writes(tmp_path: Path) -> None:
    """With one candidate per token nothing is random, so both backends return the same completions."""
    tables = []
    for engine in ({}, CONTINUOUS):
        run = trainer(tmp_path, args={**engine, "top_k": 1, "num_iterations": 1})
        attention = run.model.config._attn_implementation
        rows = [run.train_dataset[i] for i in range(6)]
        tables.append(run._sample_round(rows).table["completion"])
        assert run.model.config._attn_implementation == attention
        run.train()
    assert tables[0] == tables[1]


@pytest.mark.parametrize("engine", [{}, CONTINUOUS], ids=["generate", "continuous"])
def test_engines_sample(tmp_path: Path, engine: dict) -> None:
    """Frequencies of the first token match the truncated probabilities."""
    n, settings = 400, {"temperature": 0.8, "top_k": 6, "top_p": 0.9}
    run = trainer(tmp_path, args={**engine, **settings, "num_generations": n, "max_completion_length": 1})
    prompt = run.train_dataset[0]["prompt_ids"]
    torch.manual_seed(0)
    [group] = run.engine.generate_function(run.model)([prompt])
    with torch.no_grad():
        top, ids = (run.model(torch.tensor([prompt])).logits[0, -1] / 0.8).topk(6)
    p = top.softmax(0)
    p = p * (p.cumsum(0) - p < 0.9)
    p = p / p.sum()
    found = torch.tensor([completion.ids[0] for completion in group])
    share = torch.stack([(found == token).float().mean() for token in ids])
    assert len(found) == n and 0.05 < float(p.max()) < 0.9
    assert bool(((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-6).all()), (share, p)


def test_vllm_is_asked_for_politely(tmp_path: Path, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_installed(VLLM):
        with pytest.raises(ValueError, match=r"trl-ext\[vllm\]"):
            trainer(tmp_path, args={"use_vllm": True})
    mock_vllm(monkeypatch)
    with pytest.raises(ValueError, match=r"use_vllm.*4-bit.*merged"):
        PSLETrainer(
            tiny_model_dir,
            letter_reward,
            config(tmp_path, use_vllm=True),
            Dataset.from_list(PROMPTS),
            quantization_config=quantized(),
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
        )


def test_vllm_path_with_a_mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of vLLM by TRL's class, and our use of its results. For vLLM itself see tests/generation/test_vllm.py."""
    calls = mock_vllm(monkeypatch)
    run = trainer(tmp_path, args={"use_vllm": True, "top_k": 7})
    run.train()
    assert calls[0]["gpu_memory_utilization"] == 0.3
    assert [call if call == "sync" else call[0] for call in calls[1:]] == ["sync", 24] * 2
    assert calls[2][1]["top_k"] == 7


# ------------------------------------------------------------------------------------------------------ diagnostics


def test_metrics_have_their_names(tmp_path: Path) -> None:
    log = Logs()
    run = trainer(
        tmp_path,
        callbacks=[log],
        eval_dataset={"a": Dataset.from_list(PROMPTS[:3]), "b": Dataset.from_list(PROMPTS)},
        args={"threshold": 0.01, "eval_strategy": "epoch", "beta": 0.1, "log_completions": True},
    )
    run.train()
    assert set(log.logs[0]) >= {
        "loss", "loss/sft", "threshold", "iteration", "reward_scale", "ranked_share", "principle_win_rate",
        "rewards/plain", "rewards/guided", "rewards/gap", "rewards/letter_reward/mean", "reward", "reward_std",
        "distinct_2", "logps/plain", "logps/guided", "completions/mean_length", "completions/clipped_ratio",
        "completions/empty_ratio", "entropy", "mean_token_accuracy", "num_tokens", "dropped_rows", "kl",
        "seconds/generation", "seconds/reward",
    }  # fmt: skip
    assert log.of("loss/rank") and log.of("seconds/update")
    assert log.of("eval_a_rewards/plain") and log.of("eval_b_principle_win_rate")
    import pandas as pd

    table = pd.read_parquet(tmp_path / "out" / "completions" / "train_completions_00000.parquet")
    assert table["guided"].value_counts().to_dict() == {0.0: 12, 1.0: 12}


def test_metrics_are_of_what_they_name(tmp_path: Path) -> None:
    """Rewards are 0 and 2 for plain completions, 1 and 3 for guided ones: gaps of 1, 3, -1 and 1; one is ranked."""

    def reward(prompts: list[str], **_: Any) -> list[float]:
        return [[0.0, 2.0, 1.0, 3.0][i % 4] for i in range(len(prompts))]

    run = trainer(tmp_path, reward_funcs=reward, args={"reward_scaling": "none", "threshold": 1.5})
    rounds: list[Any] = []
    sample = run._sample_round
    run._sample_round = lambda *args: rounds.append(sample(*args)) or rounds[-1]
    found = run.evaluate(Dataset.from_list(PROMPTS[:2]))
    assert found["eval_rewards/plain"] == 1 and found["eval_rewards/guided"] == 2 and found["eval_rewards/gap"] == 1
    assert found["eval_principle_win_rate"] == 0.75 and found["eval_ranked_share"] == 0.25
    answers = [rollout.completion_ids for rollout in rounds[0].rollouts.values()]
    prompts = [run._tokenizer(row["prompt"]).input_ids for row in PROMPTS[:2]]
    with torch.no_grad():
        l = logps_by_loop(run.model, {"prompt_ids": prompts, "completion_ids": answers})
    l = [[x.item() for x in group] for group in l]
    rank = [max(0.0, a[0] - a[3]) for a in l]
    assert found["eval_loss/rank"] == pytest.approx(sum(rank) / 2, abs=1e-4)
    assert found["eval_logps/plain"] == pytest.approx(sum(a[0] + a[1] for a in l) / 4, abs=1e-4)
    assert found["eval_logps/guided"] == pytest.approx(sum(a[2] + a[3] for a in l) / 4, abs=1e-4)


@pytest.mark.parametrize("size", [1, 4])
def test_compute_metrics_gets_log_probabilities_and_rewards(tmp_path: Path, size: int) -> None:
    """Columns are plain completions, then guided ones. A prompt that lost one kind has no pair, and no loss."""
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        values: list[float | None] = list(range(len(prompts)))
        for i, prompt in enumerate(prompts):
            values[i] = None if (prompt == "we" and i % 4 > 1) or (prompt == "the film" and i % 4 == 0) else i % 4
        return values

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen["l"], seen["rewards"] = prediction
        return {"best": float(np.nanmax(prediction.label_ids))}

    run = trainer(
        tmp_path, reward_funcs=reward, eval_dataset=Dataset.from_list(PROMPTS), compute_metrics=compute_metrics,
        args={"per_device_eval_batch_size": size},
    )  # fmt: skip
    rounds: list[Any] = []
    sample = run._sample_round
    run._sample_round = lambda *args: rounds.append(sample(*args)) or rounds[-1]
    assert run.evaluate()["eval_best"] == 3.0
    rollouts = [rollout for each in rounds for rollout in each.rollouts.values()]
    nan = math.nan
    expected = [[1, nan, 2, 3], [0, 1, 2, 3], [nan] * 4, *[[0, 1, 2, 3]] * 3]
    np.testing.assert_equal(seen["rewards"], expected)
    np.testing.assert_equal(np.isnan(seen["l"]), np.isnan(expected))
    batch = {
        "prompt_ids": [run._tokenizer(row["prompt"]).input_ids for row in PROMPTS],
        "completion_ids": [rollout.completion_ids for rollout in rollouts],
    }
    with torch.no_grad():
        logps = logps_by_loop(run.model, batch)
    for b in (0, 1, 3, 4, 5):
        found = seen["l"][b][~np.isnan(seen["l"][b])]
        assert found == pytest.approx([float(x) for x in logps[b]], abs=1e-4)


def test_rounds_sample_other_completions_and_are_reproducible(tmp_path: Path) -> None:
    """The RNG is seeded by the step in training, and by the batch in evaluation, with other seeds."""
    run = trainer(tmp_path)
    rows = [run.train_dataset[i] for i in range(6)]

    def sampled(mode: str, step: int, batch: int) -> list[str]:
        run.state.global_step, run._eval_batches = step, batch
        return run._sample_round(rows, mode).table["completion"]

    found = [sampled(*where) for where in (("train", 0, 0), ("train", 1, 0), ("eval", 0, 0), ("eval", 0, 1))]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert sampled("train", 1, 5) == found[1] and sampled("eval", 7, 1) == found[3]


def test_the_table_names_the_principle_of_each_completion(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"principles": RULES})
    sampled = run._sample_round([run.train_dataset[i] for i in range(6)])
    expected = [principle_index(run.train_dataset[i]["prompt_ids"], 0, 3) + 1 for i in range(6)]
    assert sampled.extra["principle"] == [number for n in expected for number in (0, 0, n, n)]
    run = trainer(tmp_path)
    assert "principle" not in run._sample_round([run.train_dataset[0]]).extra


def test_evaluation_before_training_says_what_the_threshold_is_in_units_of(tmp_path: Path, said: list[str]) -> None:
    run = trainer(tmp_path)
    run.evaluate(Dataset.from_list(PROMPTS))
    assert len(said) == 1 and "in units of the reward itself" in said[0]
    run.train()
    run.evaluate(Dataset.from_list(PROMPTS))
    trainer(tmp_path, args={"reward_scaling": "none"}).evaluate(Dataset.from_list(PROMPTS))
    assert len([text for text in said if "Evaluation before" in text]) == 1


def test_evaluation_leaves_the_state_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    a, b = run.evaluate(Dataset.from_list(PROMPTS)), run.evaluate(Dataset.from_list(PROMPTS))
    assert a["eval_rewards/plain"] == b["eval_rewards/plain"]
    assert run.iterations.rewards.count == 0 and run.iterations.tally == {}


def test_a_principle_that_does_nothing_is_reported(tmp_path: Path, said: list[str]) -> None:
    def against(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float((i // 2) % 2 == 0) for i in range(len(prompts))]  # the first two of four are the plain ones

    trainer(tmp_path, reward_funcs=against).train()
    assert [text for text in said if "principle does nothing" in text and text.startswith("Iteration 1")]
    assert len([text for text in said if "guided" in text]) == 1


@pytest.mark.parametrize("schedule", [{}, {"resample_steps": 1}])
@pytest.mark.parametrize(("sign", "words"), [(1.0, "every pair"), (-1.0, "no pair")])
def test_everything_on_one_side_of_the_threshold_works_and_is_said(
    tmp_path: Path, said: list[str], schedule: dict, sign: float, words: str
) -> None:
    def reward(prompts: list[str], **_: Any) -> list[float]:
        return [sign * ((i // 2) % 2) for i in range(len(prompts))]

    log = Logs()
    trainer(tmp_path, reward_funcs=reward, callbacks=[log], args=schedule).train()
    found = [text for text in said if f"{words} is above the threshold" in text]
    assert [text.partition(":")[0] for text in found] == ["Iteration 1", "Iteration 2"]
    assert set(log.of("ranked_share")) == {float(sign > 0)}


def test_rewards_without_spread_and_empty_answers_work_and_are_said(tmp_path: Path, said: list[str]) -> None:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    trainer(tmp_path, model=model, reward_funcs=lambda prompts, **_: [1.0] * len(prompts)).train()
    assert not any("principle does nothing" in text for text in said)
    assert not any("threshold" in text for text in said)  # which follows from the former
    log = Logs()
    run = trainer(
        tmp_path, callbacks=[log], args={"generation_kwargs": {"forced_eos_token_id": 1}, "max_completion_length": 1}
    )
    run.train()
    assert any("all completions are empty" in text for text in said)
    assert set(log.of("completions/empty_ratio")) == {1.0}
    assert all(math.isfinite(loss) for loss in log.of("loss"))


def test_collapse_is_reported(tmp_path: Path, said: list[str]) -> None:
    run = trainer(tmp_path)
    run.iterations.first_distinct_2 = 3.0
    run._sample_round([run.train_dataset[i] for i in range(6)])
    assert any("diversity of completions collapses" in text for text in said)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"args": {"principles": None}}, ["Row 0", "no principle", "principles_file"]),
        ({"args": {"principles": ["good " * 260]}}, ["Row 0", "context length", "256"]),
        ({"args": {"max_completion_length": 255}}, ["Row 0", "context length", "256"]),
        (
            {"eval_dataset": Dataset.from_list([*PROMPTS, {"prompt": "the " * 250}])},
            ["Row 6", "context length", "256"],
        ),
        ({"reward_funcs": []}, ["reward_funcs"]),
        ({"args": {"reward_weights": [1.0, 2.0]}}, ["reward_weights", "2", "1"]),
        ({"args": {"sft_epochs": 1}}, ["sft_dataset_name"]),
        ({"args": {"max_length": 1}}, ["max_length"]),
        ({"rows": [{"text": "the film"}]}, ["'prompt'", "'text'"]),
        ({"rows": [{"prompt": ""}]}, ["Row 0", "prompt", "empty"]),
        ({"rows": [{"prompt": [{"role": "user", "content": "we"}]}]}, ["chat template"]),
        ({"quantization_config": object()}, ["loaded already"]),
    ],
)
def test_what_cannot_work_is_said(tmp_path: Path, kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, kwargs.pop("rows", None), **kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_types_and_streams_without_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset"):
        PSLETrainer(make_model(10), letter_reward, config(tmp_path), processing_class=make_tokenizer())
    with pytest.raises(TypeError, match="processing_class"):
        trainer(tmp_path, model=make_model(10), processing_class=object())
    with pytest.raises(ValueError, match="set `max_steps`"):
        PSLETrainer(
            make_model(10),
            letter_reward,
            config(tmp_path),
            Dataset.from_list(PROMPTS).to_iterable_dataset(),
            processing_class=make_tokenizer(),
        )


def test_rewards_that_fail_or_do_not_apply(tmp_path: Path) -> None:
    def fails(**_: Any) -> list[float]:
        raise RuntimeError("the server is gone")

    with pytest.raises(RewardError, match=r"fails.*server is gone"):
        trainer(tmp_path, reward_funcs=fails).train()

    def sometimes(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        values = letter_reward(completions)
        return [None if p == "we" else v for p, v in zip(prompts, values, strict=True)]

    log = Logs()
    trainer(tmp_path, reward_funcs=sometimes, callbacks=[log], args={"per_device_train_batch_size": 1}).train()
    assert all(math.isfinite(loss) for loss in log.of("loss"))


def test_best_of_n_needs_no_principle(tmp_path: Path, said: list[str]) -> None:
    log = Logs()
    settings = {"sft_target": "best", "rank_weight": 0.0, "num_generations": 4}
    trainer(tmp_path, args=settings)
    assert any("principles are not used" in text for text in said)
    run = trainer(
        tmp_path,
        callbacks=[log],
        args={"principles": None, "sft_target": "best", "rank_weight": 0.0, "num_generations": 4},
    )
    run.train()
    assert log.of("loss/sft") and not log.of("rewards/guided")
    with pytest.raises(DataError, match="no principle"):
        trainer(tmp_path, args={"principles": None, "rank_weight": 0.0})


def test_the_checkpoint_has_a_card_with_the_paper(tmp_path: Path) -> None:
    run = trainer(tmp_path, args=SAVES | {"num_iterations": 1})
    run.train()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2408.02599" in card and "liu2025progressively" in card and "trl-ext" in card


def test_the_context_of_vllm_is_named_where_it_is_what_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_vllm(monkeypatch)
    settings = {"max_completion_length": 8, "use_vllm": True, "vllm_max_model_length": 9}
    with pytest.raises(DataError, match=r"context length of 9.* Or raise `vllm_max_model_length`"):
        trainer(tmp_path, args=settings)
