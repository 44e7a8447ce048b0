# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""VASTrainer: targets and loss from rows to gradients, invariances, value models, sampling, and errors."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICKSTART, letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.values import oracle_loss, rows_scored_by_letters
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_ext import ValueModel, VASConfig, VASTrainer
from trl_ext.data.schema import DataError
from trl_ext.methods.vas.data import total_rewards


ROWS = [
    {"prompt": "the film", "completions": [" was good", " was very bad and dull", " was"], "scores": [2.0, -1.0, 0.5]},
    {"prompt": "a story of music with", "completions": [" great plot", " no plot"], "scores": [1.0, 1.0]},
    {
        "prompt": "we",
        "completions": [" loved it so", " hated it", " found it dull and bad", " like"],
        "scores": [3, 1, 1, 2],
    },
    {"prompt": "I liked the actor and", "completions": [" scene"], "scores": [0.0]},
]
TWO_HEADS = [
    row | {"rewards": {"kind": row["scores"], "short": [-float(len(c)) for c in row["completions"]]}} for row in ROWS
]
PROMPTS = [{"prompt": text} for text in ("the film", "a story of music", "we", "I liked the", "no one", "one scene")]
LORA = {"r": 4, "target_modules": "all-linear"}


def vowel_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "eiu")) for text in completions]


def config(tmp_path: Path, **changes: Any) -> VASConfig:
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 1,
        "num_epochs_per_batch": 1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_completion_length": 5,
        "num_generations": 3,
    }
    return VASConfig(**settings | changes)


def value_model(tokenizer: Any, heads: tuple[str, ...] = ("reward",), seed: int = 1) -> ValueModel:
    """A value model with a nonzero head, so that targets depend on the values."""
    model = ValueModel.from_backbone(make_model(len(tokenizer), seed=seed), heads)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model.head.weight.normal_(std=0.1)
        model.head.bias.normal_()
    return model


def trainer(tmp_path: Path, rows: list[dict] | None = None, **kwargs: Any) -> VASTrainer:
    settings = kwargs.pop("args", {})
    tokenizer = kwargs.pop("processing_class", None) or make_tokenizer()
    model = kwargs.pop("model", None) or make_model(len(tokenizer))
    if "value_model" not in kwargs and "peft_config" not in kwargs:
        heads = tuple((rows or ROWS)[0].get("rewards") or ["reward"])
        kwargs["value_model"] = value_model(tokenizer, settings.get("heads") or heads)
    return VASTrainer(
        model,
        args=config(tmp_path, **settings),
        train_dataset=Dataset.from_list(rows or ROWS),
        processing_class=tokenizer,
        **kwargs,
    )


class Log(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))

    @property
    def losses(self) -> list[float]:
        return [logs["loss"] for logs in self.logs if "loss" in logs]


def state(run: VASTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------------- loss


TOKEN_ROWS = [
    {"prompt": "the film", "completions": [" was good", " was"], "scores": [[0.5, -1.0, 2.0], [1.0, 3.0]]},
    {"prompt": "we", "completions": [" hated it"], "scores": [[0.25, -0.5]]},  # nothing for the end
]
SOME_UNKNOWN = [TWO_HEADS[0] | {"rewards": {"kind": [2.0, None, 0.5], "short": [1.0, 2.0, 3.0]}}, TWO_HEADS[1]]


@pytest.mark.parametrize("shared_prefix", ["always", "never"])
@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (ROWS, {}),
        (ROWS, {"lam": 1.0}),
        (ROWS, {"gamma": 0.9, "lam": 0.5}),
        (TWO_HEADS, {}),
        (TOKEN_ROWS, {"gamma": 0.9}),
        (SOME_UNKNOWN, {}),
    ],
    ids=["terminal", "Monte-Carlo", "discounted", "two heads", "token by token", "unknown"],
)
def test_loss_and_gradients_equal_the_oracle(
    tmp_path: Path, rows: list[dict], settings: dict, shared_prefix: str
) -> None:
    run = trainer(tmp_path, rows, args={"shared_prefix": shared_prefix, **settings})
    reference = value_model(run._tokenizer, run.model.head_names)
    expected = oracle_loss(reference, run.train_dataset, settings.get("gamma", 1.0), settings.get("lam", 0.95))
    expected.backward()
    batch = run.data_collator([run.train_dataset[i] for i in range(len(rows))])
    run.model.train()
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for (name, mine), theirs in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_normalised_rewards(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"normalize_rewards": True})
    scores = torch.tensor([s for row in ROWS for s in row["scores"]])
    mean, std = scores.mean().item(), scores.std().item()
    assert run.model.config.reward_mean == [pytest.approx(mean)]
    assert run.model.config.reward_std == [pytest.approx(std)]
    plain = trainer(tmp_path).model  # the statistics are recorded all the same
    [(name, found)] = plain.reward_statistics.items()
    assert (plain.config.reward_mean, plain.config.reward_std, found) == ([0.0], [1.0], pytest.approx((mean, std)))
    assert f"{name}: rewards {mean:.3g} ± {std:.3g} in training, a value of 1 is a reward of 1" in repr(plain)
    expected = oracle_loss(value_model(run._tokenizer), run.train_dataset, shift=(mean, std))
    batch = run.data_collator([run.train_dataset[i] for i in range(len(ROWS))])
    assert run.compute_loss(run.model.train(), batch).item() == pytest.approx(expected.item(), rel=1e-4)
    run.save_model(tmp_path / "saved")
    assert ValueModel.from_pretrained(tmp_path / "saved").config.reward_std == [pytest.approx(std)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_repeated_updates_on_a_batch_keep_the_first_targets(tmp_path: Path, accumulation: int) -> None:
    settings = {
        "num_epochs_per_batch": 3,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "num_train_epochs": 2,
    }
    log = Log()
    run = trainer(tmp_path, args=settings, callbacks=[log])
    model = value_model(run._tokenizer)
    expected = []
    for _ in range(2):
        old = copy.deepcopy(model)
        for _ in range(3):
            loss = oracle_loss(model, run.train_dataset, old=old)
            expected.append(loss.item())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient
    run.train()
    assert log.losses == pytest.approx(expected, rel=1e-3)
    for (name, mine), theirs in zip(run.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


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
    whole = step_gradients(tmp_path, 4, 1)
    # 3 and 1 prompts, with completions of different lengths: an average of averages would weigh tokens unequally.
    for batch_size, accumulation in ((1, 4), (2, 2), (3, 2)):
        for a, b in zip(whole, step_gradients(tmp_path, batch_size, accumulation), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"pad_to_multiple_of": 8}])
def test_settings_that_do_not_change_the_gradient(tmp_path: Path, changes: dict) -> None:
    for a, b in zip(step_gradients(tmp_path, 4, 1), step_gradients(tmp_path, 4, 1, **changes), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_bf16_stays_close(tmp_path: Path) -> None:
    exact, rounded = step_gradients(tmp_path, 4, 1), step_gradients(tmp_path, 4, 1, bf16=True)
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b).norm() < 0.1 * a.norm() + 1e-3


def test_the_order_of_completions_and_rows_does_not_matter(tmp_path: Path) -> None:
    turned = [row | {"completions": row["completions"][::-1], "scores": row["scores"][::-1]} for row in reversed(ROWS)]
    losses = []
    for rows in (ROWS, turned):
        run = trainer(tmp_path, rows)
        batch = run.data_collator([run.train_dataset[i] for i in range(len(rows))])
        losses.append(run.compute_loss(run.model.train(), batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# -------------------------------------------------------------------------------------------------- learning, metrics


def test_training_raises_explained_variance(tmp_path: Path) -> None:
    rows = rows_scored_by_letters(48)
    run = trainer(
        tmp_path, rows[:32], eval_dataset=Dataset.from_list(rows[32:]),
        args={"num_train_epochs": 15, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
    )  # fmt: skip
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_explained_variance"] > max(before["eval_explained_variance"], 0) + 0.3
    assert after["eval_loss"] < 0.6 * before["eval_loss"]
    assert after["eval_explained_variance/late"] > after["eval_explained_variance/early"]
    assert after["eval_correlation"] > 0.6


@pytest.mark.slow
def test_learns_the_quickstart_task(tmp_path: Path) -> None:
    """Film reviews by a model of 2 M parameters, scored by another, in less than a minute on one core."""
    models = QUICKSTART / "models"

    def prompts(name: str, count: int) -> Dataset:
        lines = (QUICKSTART / name).read_text().splitlines()[:count]
        return Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in lines])

    run = VASTrainer(
        str(models / "imdb-2m"), str(models / "imdb-2m-reward"),
        config(
            tmp_path, per_device_train_batch_size=8, per_device_eval_batch_size=8, num_generations=4, top_k=50,
            max_completion_length=32, calibration_rollouts=4, calibration_states=64,
        ),
        prompts("prompts_train.jsonl", 160), prompts("prompts_eval.jsonl", 24),
        value_model=str(models / "imdb-2m"),
    )  # fmt: skip
    run.train()
    metrics = run.evaluate()
    assert metrics["eval_explained_variance"] > 0.1
    assert metrics["eval_explained_variance/late"] > metrics["eval_explained_variance/early"]
    assert metrics["eval_calibration/correlation"] > 0.3


def test_metric_names(tmp_path: Path) -> None:
    log = Log()
    run = trainer(
        tmp_path, TWO_HEADS, callbacks=[log], eval_dataset=Dataset.from_list(TWO_HEADS),
        args={"per_device_train_batch_size": 4},
    )  # fmt: skip
    run.train()
    logs = log.logs[0]
    assert set(logs) >= {
        "loss", "explained_variance/kind", "explained_variance/short", "correlation/kind", "values/mean/short",
        "num_tokens", "dropped_rows", "grad_norm",
    }  # fmt: skip
    tokenizer = make_tokenizer()
    tokens = sum(
        len(tokenizer(row["prompt"]).input_ids)
        + sum(len(tokenizer(c + tokenizer.eos_token).input_ids) for c in row["completions"])
        for row in ROWS
    )
    assert logs["num_tokens"] == tokens
    metrics = run.evaluate()
    assert set(metrics) >= {"eval_loss", "eval_explained_variance/early/kind", "eval_correlation/late/short"}


def test_evaluation_averages_over_tokens_for_any_batch_size(tmp_path: Path) -> None:
    by_size = [
        trainer(tmp_path, args={"per_device_eval_batch_size": size}, eval_dataset=Dataset.from_list(ROWS)).evaluate()
        for size in (1, 3, 4)
    ]
    for other in by_size[1:]:
        for name in ("eval_loss", "eval_explained_variance", "eval_correlation/early", "eval_values/mean"):
            assert by_size[0][name] == pytest.approx(other[name], rel=1e-4), name
    run = trainer(tmp_path)
    expected = oracle_loss(value_model(run._tokenizer), run.train_dataset, lam=1.0)
    assert by_size[0]["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)
    parts = run.evaluate({"one": Dataset.from_list(ROWS[:1]), "rest": Dataset.from_list(ROWS[1:])})
    assert {"eval_one_loss", "eval_rest_loss"} <= set(parts)


# ------------------------------------------------------------------------------------------------------------ models


def test_policy_is_loaded_only_if_needed(tmp_path: Path) -> None:
    """For scored rows, a directory with only a tokenizer is enough."""
    make_tokenizer().save_pretrained(tmp_path / "no weights")
    value = value_model(make_tokenizer())
    run = VASTrainer(
        str(tmp_path / "no weights"), args=config(tmp_path), train_dataset=Dataset.from_list(ROWS), value_model=value
    )
    assert run.policy is None
    run.train()


@pytest.mark.parametrize("form", ["id", "language model", "value model", "saved", "config"])
def test_forms_of_the_value_model(tmp_path: Path, tiny_model_dir: str, form: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    args: dict[str, Any] = {}
    model: Any = tiny_model_dir
    if form == "language model":
        model = make_model(len(tokenizer))
    elif form == "value model":
        model = ValueModel.from_backbone(make_model(len(tokenizer)))
    elif form == "saved":
        value_model(tokenizer).save_pretrained(tmp_path / "saved")
        model = str(tmp_path / "saved")
    elif form == "config":
        args, model = {"value_model_name_or_path": tiny_model_dir}, None
    run = trainer(tmp_path, value_model=model, processing_class=tokenizer, args=args)
    assert (run.model.head.weight.abs().sum() > 0) == (form == "saved")
    before = state(run)
    run.train()
    assert {name.split(".")[0] for name, v in state(run).items() if not torch.equal(v, before[name])} == {
        "backbone",
        "head",
    }
    assert run.model.config.vocabulary and run.model.config.lam == 0.95
    run.save_model(tmp_path / "out" / "final")
    found = ValueModel.from_pretrained(tmp_path / "out" / "final")
    assert torch.equal(found.head.weight, run.model.head.weight)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_lora_trains_adapter_and_head_only(tmp_path: Path, tiny_model_dir: str, checkpointing: bool) -> None:
    run = trainer(
        tmp_path, value_model=tiny_model_dir, processing_class=make_tokenizer(chat=True),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM", lora_dropout=0.5),
        args={"gradient_checkpointing": checkpointing},
    )  # fmt: skip
    before = state(run)
    run.train()
    changed = {name for name, value in state(run).items() if not torch.equal(value, before[name])}
    assert {"head.weight", "head.bias"} < changed
    assert all("lora" in name for name in changed - {"head.weight", "head.bias"})
    assert not any(module.p for module in run.model.modules() if isinstance(module, torch.nn.Dropout))
    run.save_model(tmp_path / "saved")
    ids = torch.tensor([[5, 9, 3, 7]])
    found = ValueModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(found(ids).values, run.model.eval()(ids).values)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_an_adapter_on_the_policy_leaves_the_policy_bit_identical(
    tmp_path: Path, tiny_model_dir: str, checkpointing: bool, online: bool
) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.tensor([[5, 9, 3, 7, 11]])
    logits, weights = policy(ids).logits, {name: p.clone() for name, p in policy.state_dict().items()}
    args = {"gradient_checkpointing": checkpointing}
    if online:
        args |= {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 1.0}
    run = trainer(
        tmp_path, PROMPTS if online else ROWS, model=policy, processing_class=make_tokenizer(chat=True),
        peft_config=LoraConfig(**LORA), args=args, reward_funcs=letter_reward if online else None,
    )  # fmt: skip
    before = state(run)
    run.train()
    changed = {name for name, value in state(run).items() if not torch.equal(value, before[name])}
    assert "head.weight" in changed and any("lora" in name for name in changed)
    assert torch.equal(policy(ids).logits, logits)
    for name, value in policy.state_dict().items():
        assert "lora" in name or torch.equal(value, weights[name.replace("base_layer.", "")]), name
    embeddings = run.model.get_input_embeddings().weight
    assert embeddings.data_ptr() == policy.get_input_embeddings().weight.data_ptr()


@pytest.mark.slow
def test_four_bits_train_with_an_adapter_and_survive_an_evaluation(tmp_path: Path, tiny_model_dir: str) -> None:
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    common: dict[str, Any] = {"processing_class": make_tokenizer(chat=True), "quantization_config": four}
    run = trainer(
        tmp_path, value_model=tiny_model_dir, peft_config=LoraConfig(**LORA), eval_dataset=Dataset.from_list(ROWS),
        args={"bf16": True, "learning_rate": 1e-2}, **common,
    )  # fmt: skip
    batch = run.data_collator([run.train_dataset[i] for i in range(len(ROWS))])

    def gradients() -> list[torch.Tensor]:
        run.model.train()
        run.model.zero_grad()
        with run.compute_loss_context_manager():
            run.compute_loss(run.model, batch).backward()
        return [p.grad.clone() for p in run.model.parameters() if p.requires_grad]

    run.train()  # the head is zero at first, and passes no gradient on
    before = gradients()
    assert all(gradient.abs().sum() > 0 for gradient in before)
    run.evaluate()
    for a, b in zip(before, gradients(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"quantised value model.*peft_config"):
        trainer(tmp_path, value_model=tiny_model_dir, **common)
    policy = trainer(
        tmp_path, PROMPTS, model=tiny_model_dir, value_model=tiny_model_dir, reward_funcs=letter_reward,
        peft_config=LoraConfig(**LORA), args={"bf16": True}, **common,
    )  # fmt: skip
    assert policy.policy.is_loaded_in_4bit
    policy.train()


# ---------------------------------------------------------------------------------------------------------- sampling


def test_completions_of_prompts_are_sampled_from_the_frozen_model(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    before = copy.deepcopy(model.state_dict())
    log = Log()
    run = trainer(
        tmp_path, PROMPTS, model=model, processing_class=tokenizer, reward_funcs=letter_reward, callbacks=[log],
        args={"num_train_epochs": 2, "normalize_rewards": True}, eval_dataset=Dataset.from_list(PROMPTS),
    )  # fmt: skip
    run.train()
    assert sum("reward" in logs for logs in log.logs if "loss" in logs) == 1  # sampled once
    assert {"reward_std", "rewards/letter_reward/mean", "completions/mean_length"} <= set(log.logs[0])
    scores = [s for rollout in run._rounds._rollouts.values() for s in rollout.scores]
    assert len(scores) == 3 * len(PROMPTS)
    assert run.model.config.reward_mean == [pytest.approx(sum(scores) / len(scores))]
    assert run.model.config.reward_std == [pytest.approx(torch.tensor(scores).std().item(), rel=1e-5)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(p.requires_grad for p in model.parameters())
    metrics = run.evaluate()
    assert {"eval_reward", "eval_loss", "eval_explained_variance"} <= set(metrics)


def test_a_function_that_is_called_as_the_head_is_weighted_too(tmp_path: Path) -> None:
    """The head `reward` learns the weighted sum, whatever the functions are called."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        return letter_reward(completions)

    found = []
    for func in (reward, letter_reward):
        run = trainer(tmp_path, PROMPTS, reward_funcs=func, args={"reward_weights": [-3.0], "max_steps": 1})
        run.train()
        scores = [s for rollout in run._rounds._rollouts.values() for s in rollout.scores]
        assert run.model.config.observed_mean == [pytest.approx(sum(scores) / len(scores))]
        found.append(scores)
    assert found[0] == found[1] and any(found[0])


def test_several_reward_functions_train_several_heads(tmp_path: Path) -> None:
    both = {"reward_funcs": [letter_reward, vowel_reward]}
    run = trainer(
        tmp_path, PROMPTS, **both, value_model=value_model(make_tokenizer(), ("letter_reward", "vowel_reward"))
    )
    run.train()
    rollout = run._rounds._rollouts[0]
    texts = run._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    assert rollout.rewards == {"letter_reward": letter_reward(texts), "vowel_reward": vowel_reward(texts)}
    assert run._by_head(rollout.rewards, rollout.scores)[0] == [[letter_reward(texts)[0]], [vowel_reward(texts)[0]]]
    summed = trainer(tmp_path, PROMPTS, **both, args={"heads": ["reward"], "reward_weights": [1.0, 2.0]})
    summed.train()
    rollout = summed._rounds._rollouts[0]
    texts = run._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    expected = [a + 2 * b for a, b in zip(letter_reward(texts), vowel_reward(texts), strict=True)]
    assert total_rewards([summed._by_head(rollout.rewards, rollout.scores)], 0) == expected


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("scored", [True, False])
def test_rounds_add_samples_generated_with_guidance(tmp_path: Path, keep: bool, scored: bool) -> None:
    tokenizer = make_tokenizer()
    guided: list[float] = []
    run = trainer(
        tmp_path, rows_scored_by_letters(4) if scored else PROMPTS[:4],
        reward_funcs=letter_reward, processing_class=tokenizer,
        args={"num_iterations": 3, "num_train_epochs": 6, "sampling_beta": 2.0, "keep_samples": keep},
    )  # fmt: skip
    original = run._guides

    def guides(rows: list[dict]) -> Any:
        guided.append(run.state.epoch)
        return original(rows)

    run._guides = guides  # type: ignore[method-assign]
    sizes: list[int] = []

    class Count(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sizes.append(len(run._rounds._rollouts[0].completion_ids))

    run.add_callback(Count())
    run.train()
    assert sizes == ([3, 3, 6, 6, 9, 9] if keep else [3] * 6)
    assert sorted(set(guided)) == [2.0, 4.0]


def test_guidance_uses_a_copy_with_cast_for_generation(tmp_path: Path) -> None:
    settings = {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 2.0, "bf16": True}
    settings["cast_for_generation"] = True
    run = trainer(tmp_path, PROMPTS[:4], reward_funcs=letter_reward, args=settings)
    ids = torch.ones(1, 3, dtype=torch.long)
    [guide] = run._guides([])(ids, torch.ones_like(ids))
    dtypes = {p.dtype for p in guide.guides[0].model.backbone.parameters()}
    assert dtypes == {torch.bfloat16} and {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_guidance_in_training_uses_reward_weights(tmp_path: Path) -> None:
    def one(completions: Any, **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)

    def other(completions: Any, **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    settings = {"num_iterations": 2, "num_train_epochs": 2, "sampling_beta": 3.0, "reward_weights": [2.0, -0.5]}
    made = value_model(make_tokenizer(), ("one", "other"))
    run = trainer(tmp_path, PROMPTS[:4], reward_funcs=[one, other], value_model=made, args=settings)
    ids = torch.ones(1, 3, dtype=torch.long)
    [guide] = run._guides([])(ids, torch.ones_like(ids))
    assert guide.beta == {"one": 6.0, "other": -1.5}


def test_guidance_raises_the_reward(tmp_path: Path) -> None:
    log = Log()
    run = trainer(
        tmp_path, PROMPTS * 8, reward_funcs=letter_reward, callbacks=[log],
        args={
            "num_iterations": 2, "num_train_epochs": 8, "sampling_beta": 4.0, "learning_rate": 3e-3,
            "per_device_train_batch_size": 8, "num_generations": 4,
        },
    )  # fmt: skip
    run.train()
    first, second = [logs["reward"] for logs in log.logs if "reward" in logs]
    assert second > first + 0.3


def test_prompts_without_scores_are_skipped(tmp_path: Path) -> None:
    def sometimes(prompts: list[str], **_: Any) -> list[float | None]:
        return [None if prompt == "we" else 1.0 for prompt in prompts]

    run = trainer(
        tmp_path, PROMPTS[:3], reward_funcs=sometimes, args={"per_device_train_batch_size": 1, "resample_steps": 1}
    )
    before = state(run)
    run.train()
    assert any(not torch.equal(before[name], value) for name, value in state(run).items())
    alone = trainer(tmp_path, PROMPTS[2:3], reward_funcs=sometimes, args={"resample_steps": 1, "weight_decay": 0.0})
    before = state(alone)
    alone.train()
    assert all(torch.equal(before[name], value) for name, value in state(alone).items())


def test_streamed_datasets(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    for rows, rewards, changes in (
        (ROWS, None, {"normalize_rewards": True}),
        (PROMPTS, letter_reward, {"resample_steps": 1}),
    ):
        run = VASTrainer(
            make_model(len(tokenizer)), rewards, config(tmp_path, max_steps=2, **changes),
            Dataset.from_list(rows).to_iterable_dataset(), processing_class=tokenizer,
            value_model=value_model(tokenizer),
        )  # fmt: skip
        run.train()
        assert run.state.global_step == 2
        if rewards is None:
            assert run._reward_statistics.columns[0].count == sum(len(row["scores"]) for row in ROWS)
            assert run.model.config.reward_std[0] != 1.0


def test_calibration_against_continuations_of_the_frozen_model(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = rows_scored_by_letters(12)
    run = trainer(
        tmp_path, rows, reward_funcs=letter_reward, eval_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        args={
            "num_train_epochs": 15, "learning_rate": 3e-3, "calibration_rollouts": 4, "max_completion_length": 6,
            "per_device_train_batch_size": 6, "normalize_rewards": True,
        },
    )  # fmt: skip
    before = run.evaluate()
    assert "eval_calibration/r2" in before
    run.train()
    after = run.evaluate()
    # What half a completion has said already is part of its reward, so that a value that reads it follows.
    assert after["eval_calibration/correlation"] > 0.5
    assert after["eval_calibration/r2"] > before["eval_calibration/r2"]
    assert run.evaluate()["eval_calibration/r2"] == after["eval_calibration/r2"]  # the same continuations each time
    prompts = run.evaluate(Dataset.from_list(PROMPTS))
    assert "eval_calibration/r2" in prompts


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("rows", "settings", "interrupted_at"),
    [
        (ROWS * 2, {}, 3),
        (ROWS * 2, {"num_epochs_per_batch": 2, "normalize_rewards": True}, 3),  # between two updates on a batch
        (ROWS * 2, {"num_epochs_per_batch": 2, "gradient_accumulation_steps": 2}, 2),
        (ROWS * 2, {"num_epochs_per_batch": 2}, 9),  # in the second epoch, whose order is another
        (PROMPTS, {"num_epochs_per_batch": 2, "num_iterations": 2, "sampling_beta": 1.0}, 3),
        (PROMPTS, {"num_iterations": 2, "sampling_beta": 1.0, "normalize_rewards": True}, 3),
        (PROMPTS, {"num_iterations": 2, "sampling_beta": 1.0}, 5),
        (PROMPTS, {"resample_steps": 2, "normalize_rewards": True}, 2),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, rows: list[dict], settings: dict, interrupted_at: int
) -> None:
    sampling = {} if "completions" in rows[0] else {"reward_funcs": letter_reward}
    common = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, **settings}
    whole = trainer(tmp_path, rows, args={**common, "output_dir": str(tmp_path / "whole")}, **sampling)
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{interrupted_at}"
    assert checkpoint.is_dir()
    assert (checkpoint / "rollouts_0.json").is_file() == bool(sampling)
    between = settings.get("num_epochs_per_batch", 1) > 1 and interrupted_at % 2 == 1
    assert (checkpoint / "targets_0.safetensors").is_file() == between
    resumed = trainer(tmp_path, rows, args={**common, "output_dir": str(tmp_path / "resumed")}, **sampling)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.model.config.reward_mean == resumed.model.config.reward_mean
    assert whole.model.config.reward_std == resumed.model.config.reward_std


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_resumes_and_the_best_one_is_loaded(tmp_path: Path, tiny_model_dir: str, shared: bool) -> None:
    def run(folder: str) -> VASTrainer:
        value = {} if shared else {"value_model": tiny_model_dir}
        return trainer(
            tmp_path, ROWS * 2, model=tiny_model_dir, processing_class=make_tokenizer(chat=True), **value,
            peft_config=LoraConfig(**LORA), eval_dataset=Dataset.from_list(ROWS),
            args={
                "output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 1, "eval_steps": 1,
                "eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "loss",
                "learning_rate": 0.05, "num_train_epochs": 2,
            },
        )  # fmt: skip

    whole = run("whole")
    whole.train()
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, a), b in zip(state(whole).items(), state(resumed).values(), strict=True):
        assert torch.equal(a, b), name
    best = ValueModel.from_pretrained(whole.state.best_model_checkpoint)
    ids = torch.tensor([[5, 9, 3, 7]])
    torch.testing.assert_close(best(ids).values, whole.model.eval()(ids).values)
    assert whole.evaluate()["eval_loss"] == pytest.approx(whole.state.best_metric, rel=1e-3)


def test_model_card_cites_the_paper(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"save_strategy": "steps", "save_steps": 1})
    run.train()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2405.06639" in card and "han2024value" in card and "trl-ext" in card
    assert set(run.model.model_tags) >= {"trl", "trl-ext", "vas"}
    assert isinstance(ValueModel.from_pretrained(tmp_path / "out" / "checkpoint-2"), ValueModel)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [1.0]}, ["Row 1", "scores", "1 entries", "2 completions"]),
        ({"scores": [1.0, math.nan]}, ["Row 1", "scores", "nan"]),
        ({"completions": [], "scores": []}, ["Row 1", "completions", "K = 0"]),
        ({"prompt": ""}, ["Row 1", "prompt", "empty"]),
    ],
)
def test_errors_name_the_row(tmp_path: Path, change: dict, words: list[str]) -> None:
    row = {"prompt": "the film", "completions": [" good", " bad"], "scores": [1.0, 0.0]}
    with pytest.raises(DataError) as caught:
        trainer(tmp_path, [row, row | change])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("rows", "kwargs", "words"),
    [
        ([{"text": "the film"}], {}, ["'prompt'", "'text'"]),
        (PROMPTS, {}, ["prompts but no completions", "--reward_funcs"]),
        (ROWS, {"args": {"num_iterations": 2, "num_train_epochs": 2}}, ["num_iterations", "reward_funcs"]),
        (ROWS, {"args": {"calibration_rollouts": 2}}, ["calibration_rollouts", "reward_funcs"]),
        (ROWS, {"reward_funcs": letter_reward, "args": {"resample_steps": 2}}, ["resample_steps", "prompt-only"]),
        (
            PROMPTS,
            {"reward_funcs": letter_reward, "args": {"reward_weights": [1.0, 2.0]}},
            ["reward_weights", "2", "1"],
        ),
        (PROMPTS, {"reward_funcs": letter_reward, "args": {"heads": ["kind"]}}, ["'kind'", "'letter_reward'"]),
        (ROWS, {"args": {"heads": ["kind"]}}, ["'rewards'", "'kind'", "no column"]),
        (ROWS, {"value_model": None}, ["no value model", "value_model", "peft_config"]),
        (ROWS, {"args": {"max_length": 1}}, ["max_length"]),
    ],
)
def test_invalid_arguments(tmp_path: Path, rows: list[dict], kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, rows, **kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_max_steps_and_the_number_of_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are counted in epochs: `max_steps` may end the last one earlier, but there are no further rounds."""
    said: list[str] = []
    monkeypatch.setattr("trl_ext.methods.vas.trainer.logger.warning", said.append)
    rows, common = PROMPTS[:4], {"num_iterations": 2, "num_train_epochs": 4, "num_epochs_per_batch": 2}
    arithmetic = "a round is 8 steps (4 rows, `num_train_epochs` / `num_iterations` = 2, `num_epochs_per_batch` 2), so"

    def make(max_steps: int) -> None:
        trainer(tmp_path, rows, reward_funcs=letter_reward, args=common | {"max_steps": max_steps})

    make(16)
    assert not said
    with pytest.raises(ValueError, match=re.escape(f"`max_steps` (17) needs 3 rounds: {arithmetic}")):
        make(17)
    make(8)
    assert len(said) == 1 and said[0].startswith(f"`max_steps` (8) ends the run in round 1 of 2: {arithmetic}")


def test_arguments_for_loading_a_value_model_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("trl_ext.methods.vas.loading.logger.warning", said.append)
    trainer(tmp_path, args={"value_model_init_kwargs": {"dtype": "bfloat16"}})
    assert said == ["`value_model_init_kwargs` is ignored: no value model is loaded by name."]


def test_the_language_model_is_no_value_model(tmp_path: Path) -> None:
    """It would be frozen with the language model, or trained with the value model."""
    model = make_model(len(make_tokenizer()))
    for more in ({}, {"peft_config": LoraConfig(**LORA)}):
        with pytest.raises(ValueError, match="The value model's backbone is the language model itself"):
            trainer(tmp_path, model=model, value_model=model, **more)


def test_the_rank_of_a_value_model_that_is_trained_further(tmp_path: Path) -> None:
    made = ValueModel.from_backbone(make_model(len(make_tokenizer())), form="action", action_rank=5)
    for rank in ({}, {"action_rank": 5}):
        assert trainer(tmp_path, value_model=made, args={"value_form": "action"} | rank).model is made
    with pytest.raises(ValueError, match="has the rank 5, but `action_rank` is 7"):
        trainer(tmp_path, value_model=made, args={"value_form": "action", "action_rank": 7})


def test_contradictory_settings(tmp_path: Path) -> None:
    for changes, word in (
        ({"resample_steps": 1, "num_iterations": 2, "num_train_epochs": 2}, "cannot be combined"),
        ({"resample_steps": 1, "num_epochs_per_batch": 2}, "num_epochs_per_batch"),
        ({"num_iterations": 2, "num_train_epochs": 3}, "multiple"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"gamma": 1.5}, "gamma"),
        ({"lam": -0.1}, "lam"),
        ({"sampling_beta": math.nan}, "sampling_beta"),
        ({"sampling_candidates": 0}, "sampling_candidates"),
        ({"sampling_candidates": 5}, "`sampling_candidates: 5` has no effect without `sampling_beta`"),
        ({"calibration_states": 5}, "`calibration_states: 5` has no effect without `calibration_rollouts`"),
        ({"keep_samples": False}, "`keep_samples: False` has no effect in a single round"),
        ({"shared_prefix": "maybe"}, "shared_prefix"),
        ({"heads": ["a", "a"]}, "heads"),
        ({"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=word):
            config(tmp_path, **changes)


def test_error_for_another_vocabulary_says_what_to_do(tmp_path: Path) -> None:
    other = make_tokenizer()
    vocabulary = other.get_vocab()
    document = json.loads(other.backend_tokenizer.to_str())
    document["model"]["vocab"]["film"], document["model"]["vocab"]["movie"] = vocabulary["movie"], vocabulary["film"]
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    changed.save_pretrained(tmp_path / "other")
    make_model(len(other)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another vocabulary.*'(film|movie)'.*same family.*peft_config"):
        trainer(tmp_path, value_model=str(tmp_path / "other"), processing_class=other)
    with pytest.raises(ValueError, match=r"embeddings for 20 tokens.*same family"):
        trainer(tmp_path, value_model=make_model(20))


def test_heads_that_do_not_match_and_wrong_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'kind', 'short'.*'reward'"):
        trainer(tmp_path, value_model=value_model(make_tokenizer(), ("kind", "short")))
    with pytest.raises(ValueError, match="train_dataset"):
        VASTrainer(make_model(10), args=config(tmp_path), processing_class=make_tokenizer())
    with pytest.raises(TypeError, match="processing_class"):
        trainer(tmp_path, processing_class=object(), model=make_model(10), value_model=make_model(10))
    stream = Dataset.from_list(PROMPTS).to_iterable_dataset()
    common: dict[str, Any] = {"processing_class": make_tokenizer(), "value_model": value_model(make_tokenizer())}
    with pytest.raises(ValueError, match="resample_steps"):
        VASTrainer(
            make_model(193),
            letter_reward,
            config(tmp_path, max_steps=1, num_iterations=2, num_train_epochs=2),
            stream,
            **common,
        )
    scored = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ValueError, match="num_epochs_per_batch=1"):
        VASTrainer(make_model(193), None, config(tmp_path, max_steps=1, num_epochs_per_batch=2), scored, **common)
