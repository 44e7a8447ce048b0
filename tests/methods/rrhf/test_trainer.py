# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""RRHFTrainer: the equations through the whole path, invariances, resuming, sampling, and what it refuses."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, TrainerCallback
from transformers.utils import logging

from trl_ext import RRHFConfig, RRHFTrainer
from trl_ext.data.schema import DataError
from trl_ext.rewards.functions import RewardError
from trl_ext.training.copies import sampling_copy


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
PROMPTS = [{"prompt": text} for text in ("the film", "a story of music", "we", "I liked the", "no one", "one scene")]


def config(tmp_path: Path, **changes: Any) -> RRHFConfig:
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_completion_length": 5,
        "num_generations": 3,
    }
    return RRHFConfig(**settings | changes)


def trainer(tmp_path: Path, rows: list[dict] | None = None, **kwargs: Any) -> RRHFTrainer:
    settings = kwargs.pop("args", {})
    tokenizer = kwargs.pop("processing_class", None) or make_tokenizer()
    model = kwargs.pop("model", None) or make_model(len(tokenizer))
    return RRHFTrainer(
        model,
        args=config(tmp_path, **settings),
        train_dataset=Dataset.from_list(rows or ROWS),
        processing_class=tokenizer,
        **kwargs,
    )


def oracle_loss(
    model: Any, tokenizer: Any, rows: list[dict], a: float = 1.0, rank: float = 1.0, sft: float = 1.0
) -> Any:
    """Eqs. (1) to (5) as loops over full logits, one response at a time; the mean over prompts."""
    total = torch.zeros(())
    for row in rows:
        sums, lengths = [], []
        for completion in row["completions"]:
            prompt = tokenizer(row["prompt"]).input_ids
            ids = tokenizer(row["prompt"] + completion + tokenizer.eos_token).input_ids
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            terms = [logits[t - 1].log_softmax(-1)[ids[t]] for t in range(len(prompt), len(ids))]
            sums.append(sum(terms))
            lengths.append(len(terms))
        p = [s / n**a for s, n in zip(sums, lengths, strict=True)]
        scores = row["scores"]
        for i in range(len(p)):
            for j in range(len(p)):
                if scores[i] < scores[j]:
                    total = total + rank * torch.relu(p[i] - p[j])
        best = scores.index(max(scores))
        total = total - sft * sums[best] / lengths[best]
    return total / len(rows)


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))
        if "loss" in logs:
            self.losses.append(logs["loss"])


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("shared_prefix", ["always", "never"])
@pytest.mark.parametrize("weights", [{}, {"rank_weight": 3.0, "sft_weight": 0.5, "length_penalty": 0.5}])
def test_loss_and_gradients_are_the_equations(tmp_path: Path, shared_prefix: str, weights: dict) -> None:
    run = trainer(tmp_path, args={"shared_prefix": shared_prefix, **weights})
    reference = make_model(len(run._tokenizer))
    expected = oracle_loss(
        reference,
        run._tokenizer,
        ROWS,
        weights.get("length_penalty", 1.0),
        weights.get("rank_weight", 1.0),
        weights.get("sft_weight", 1.0),
    )
    expected.backward()
    batch = run.data_collator([run.train_dataset[i] for i in range(len(ROWS))])
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    for (name, mine), theirs in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_training_descends_on_the_ranking_loss_and_the_best_answer(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"num_train_epochs": 12, "learning_rate": 3e-3})
    before = run.evaluate(Dataset.from_list(ROWS))
    run.train()
    after = run.evaluate(Dataset.from_list(ROWS))
    assert after["eval_loss/rank"] < 0.5 * before["eval_loss/rank"]
    assert after["eval_loss/sft"] < before["eval_loss/sft"] - 1
    assert after["eval_rewards/accuracies"] == 1.0
    assert after["eval_rewards/margins"] > 0


def step_gradients(tmp_path: Path, batch_size: int, accumulation: int, **changes: Any) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = []

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.extend(parameter.grad.clone() for parameter in model.parameters())

    given = {name: changes.pop(name) for name in ("rows", "reward_funcs") if name in changes}
    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **changes}
    run = trainer(tmp_path, args={"max_steps": 1, "max_grad_norm": 1e9, **settings}, callbacks=[Grab()], **given)
    run.train()
    return gradients


def test_accumulation_does_not_change_the_gradient(tmp_path: Path) -> None:
    whole = step_gradients(tmp_path, 4, 1)
    # 3 and 1 prompts: an average of averages would weigh the last prompt threefold.
    for batch_size, accumulation in ((1, 4), (2, 2), (3, 2)):
        for a, b in zip(whole, step_gradients(tmp_path, batch_size, accumulation), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"pad_to_multiple_of": 8}])
def test_settings_that_change_no_gradient(tmp_path: Path, changes: dict) -> None:
    for a, b in zip(step_gradients(tmp_path, 4, 1), step_gradients(tmp_path, 4, 1, **changes), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_bf16_stays_close(tmp_path: Path) -> None:
    exact, rounded = step_gradients(tmp_path, 4, 1), step_gradients(tmp_path, 4, 1, bf16=True)
    for a, b in zip(exact, rounded, strict=True):
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.05 * a.norm()


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("conversational", [False, True])
def test_a_dpo_script_runs_with_other_class_names(tmp_path: Path, tiny_model_dir: str, conversational: bool) -> None:
    def text(role: str, content: str) -> Any:
        return [{"role": role, "content": content}] if conversational else content

    rows = [
        {
            "prompt": text("user", "the film"),
            "chosen": text("assistant", " good"),
            "rejected": text("assistant", " bad"),
        },
        {
            "prompt": text("user", "a story"),
            "chosen": text("assistant", " best"),
            "rejected": text("assistant", " no"),
        },
    ]
    run = RRHFTrainer(  # the positions of DPOTrainer
        tiny_model_dir, None, config(tmp_path, beta=0.0), None, Dataset.from_list(rows), Dataset.from_list(rows)
    )
    run.train()
    metrics = run.evaluate()
    assert run.train_dataset[0]["scores"] == [1.0, 0.0]
    assert 0 <= metrics["eval_rewards/accuracies"] <= 1


def test_implicit_prompts_and_long_rows(tmp_path: Path) -> None:
    rows = [
        {"chosen": "the film was good", "rejected": "the film was bad"},
        {"chosen": "a story of music with no plot and no scene", "rejected": "a story of music with no plot and dull"},
    ]
    run = trainer(tmp_path, rows, args={"max_length": 6})
    assert len(run.train_dataset) == 1
    assert run._dropped_rows == 1
    log = Losses()
    run.add_callback(log)
    run.train()
    assert log.logs[0]["dropped_rows"] == 1


def test_metrics_have_their_names(tmp_path: Path) -> None:
    log = Losses()
    trainer(tmp_path, callbacks=[log], args={"per_device_train_batch_size": 4}).train()
    names = set(log.logs[0])
    assert names >= {
        "loss", "loss/rank", "loss/sft", "rewards/accuracies", "rewards/margins", "kendall_tau", "logps/chosen",
        "logps/rejected", "logps/mean", "entropy", "mean_token_accuracy", "num_tokens", "dropped_rows", "grad_norm",
    }  # fmt: skip
    logs = log.logs[0]
    assert logs["loss"] == pytest.approx(logs["loss/rank"] + logs["loss/sft"], abs=1e-3)
    tokenizer = make_tokenizer()
    tokens = sum(
        len(tokenizer(row["prompt"]).input_ids)
        + sum(len(tokenizer(c + tokenizer.eos_token).input_ids) for c in row["completions"])
        for row in ROWS
    )
    assert logs["num_tokens"] == tokens


def test_an_evaluation_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The eval dataset has prompts but no completions"):
        trainer(tmp_path, eval_dataset=Dataset.from_list([{"prompt": "the film"}]))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the model 'models/nowhere', which is no local directory"):
        RRHFTrainer("models/nowhere", args=config(tmp_path), train_dataset=Dataset.from_list(ROWS))


def test_a_row_beyond_the_models_positions_is_named(tmp_path: Path) -> None:
    long = {"prompt": "the film was good " * 8, "completions": ["good", "bad"], "scores": [1, 0]}
    model = make_model(len(make_tokenizer()), max_position_embeddings=24)
    with pytest.raises(DataError, match=r"Row 1 of the train dataset has \d+ tokens, but .* context length is 24"):
        trainer(tmp_path, [*ROWS[:1], long], model=model)
    with pytest.raises(DataError, match=r"with `max_completion_length` \(60\), but the model's context length is 24"):
        trainer(tmp_path, [{"prompt": "the film"}], model=model, reward_funcs=lambda completions, **_: [0.0] * 3,
                args={"resample_steps": 1, "max_completion_length": 60})  # fmt: skip


def test_arguments_of_another_kind_are_named(tmp_path: Path) -> None:
    from trl import DPOConfig

    model = make_model(len(make_tokenizer()))
    with pytest.raises(TypeError, match="`args` of `RRHFTrainer` must be a `RRHFConfig`, got `DPOConfig`"):
        theirs = DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
        rows = Dataset.from_list(ROWS)
        RRHFTrainer(model, args=theirs, train_dataset=rows, processing_class=make_tokenizer())
    with pytest.raises(ValueError, match="`beta` must be finite, got inf"):
        config(tmp_path, beta=float("inf"))


def test_rows_without_a_pair_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("trl_ext.methods.rrhf.trainer.logger.warning", said.append)
    alone = [{"prompt": r["prompt"], "completions": r["completions"][:1], "scores": r["scores"][:1]} for r in ROWS]
    trainer(tmp_path, alone)
    assert any("no pairs to rank" in text for text in said)
    said.clear()
    trainer(tmp_path)
    assert not said


def test_a_round_without_any_score_is_told(tmp_path: Path, caplog: Any) -> None:
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    run = trainer(tmp_path, prompts, reward_funcs=lambda completions, **_: [None] * len(completions),
                  args={"max_steps": 1, "resample_steps": 1, "max_completion_length": 3})  # fmt: skip
    logger = logging.get_logger("trl_ext.training.trainer")
    logger.addHandler(caplog.handler)
    run.train()
    logger.removeHandler(caplog.handler)
    assert "none of the" in caplog.text and "this step has no effect" in caplog.text


def test_a_round_of_cut_completions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have scores: what leaves them out is another setting."""
    said: list[str] = []
    monkeypatch.setattr("trl_ext.training.trainer.logger.warning", said.append)
    settings = {"max_steps": 1, "resample_steps": 1, "max_completion_length": 1, "mask_truncated_completions": True}
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    trainer(tmp_path, prompts, reward_funcs=lambda completions, **_: [*range(len(completions))], args=settings).train()
    (text,) = [text for text in said if "this step has no effect" in text]
    assert "completions were cut off" in text and "`mask_truncated_completions` leaves them out" in text


def test_tokens_are_counted_over_checkpoints_and_resuming(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    whole, resumed = Losses(), Losses()
    trainer(tmp_path, callbacks=[whole], args=settings).train()
    trainer(tmp_path, callbacks=[resumed], args=settings).train(
        resume_from_checkpoint=tmp_path / "out" / "checkpoint-2"
    )
    counted = [log["num_tokens"] for log in whole.logs if "num_tokens" in log]
    assert counted == sorted(set(counted)) and len(counted) == 4
    assert [log["num_tokens"] for log in resumed.logs if "num_tokens" in log] == counted[2:]


def test_evaluation_pools_pairs_over_batches_and_passes_them_on(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen["p"], seen["scores"] = prediction.predictions, prediction.label_ids
        return {"best_score": float(np.nanmax(prediction.label_ids))}

    by_size = []
    for size in (1, 4):
        run = trainer(
            tmp_path, args={"per_device_eval_batch_size": size}, eval_dataset=Dataset.from_list(ROWS),
            compute_metrics=compute_metrics,
        )  # fmt: skip
        by_size.append(run.evaluate())
        assert seen["scores"].shape == seen["p"].shape == (len(ROWS), 4)
        for row, scores, p in zip(ROWS, seen["scores"], seen["p"], strict=True):
            assert scores[: len(row["scores"])].tolist() == row["scores"]
            assert np.isnan(scores[len(row["scores"]) :]).all() and np.isnan(p[len(row["scores"]) :]).all()
            assert not np.isnan(p[: len(row["scores"])]).any()
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_kendall_tau", "eval_logps/chosen"):
        assert by_size[0][name] == pytest.approx(by_size[1][name], abs=1e-4), name
    assert by_size[0]["eval_best_score"] == 3.0
    parts = run.evaluate({"one": Dataset.from_list(ROWS[:1]), "rest": Dataset.from_list(ROWS[1:])})
    assert {"eval_one_rewards/accuracies", "eval_rest_rewards/accuracies"} <= set(parts)


# --------------------------------------------------------------------------------------------------------- adapters


def test_lora_trains_the_adapter_alone(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    before = copy.deepcopy(model.state_dict())
    run = trainer(
        tmp_path, model=model, processing_class=tokenizer, peft_config=LoraConfig(r=4, target_modules="all-linear"),
        args={"gradient_checkpointing": True},
    )  # fmt: skip
    run.train()
    moved = {name for name, p in run.model.named_parameters() if p.requires_grad and p.abs().sum() > 0}
    assert moved and all("lora" in name for name in moved)
    for name, value in before.items():
        assert torch.equal(run.model.get_base_model().state_dict()[_base_name(run, name)], value)
    run.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def _base_name(run: RRHFTrainer, name: str) -> str:
    names = run.model.get_base_model().state_dict()
    return name if name in names else name.replace(".weight", ".base_layer.weight")


@pytest.mark.parametrize("use_dora", [False, True])
def test_qlora_gradients_survive_an_evaluation(tmp_path: Path, tiny_model_dir: str, use_dora: bool) -> None:
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    run = RRHFTrainer(
        tiny_model_dir,
        args=config(tmp_path, bf16=True),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        quantization_config=quantization,
        peft_config=LoraConfig(r=4, target_modules="all-linear", use_dora=use_dora),
    )
    batch = run.data_collator([run.train_dataset[i] for i in range(len(ROWS))])

    def gradients() -> list[torch.Tensor]:
        run.model.train()
        run.model.zero_grad()
        with run.compute_loss_context_manager():
            run.compute_loss(run.model, batch).backward()
        return [p.grad.clone() for p in run.model.parameters() if p.requires_grad]

    before = gradients()
    run.evaluate()
    assert any(g.abs().sum() > 0 for g in before)
    for a, b in zip(before, gradients(), strict=True):
        assert torch.equal(a, b)
    run.train()


# -------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("schedule", [{"resample_steps": 2}, {"resample_epochs": 1}, {}])
def test_sampling_in_training_raises_the_reward(tmp_path: Path, schedule: dict) -> None:
    log = Losses()
    run = trainer(
        tmp_path, PROMPTS * 4, reward_funcs=letter_reward, eval_dataset=Dataset.from_list(PROMPTS), callbacks=[log],
        args={"num_train_epochs": 6, "learning_rate": 3e-3, "num_generations": 6, **schedule},
    )  # fmt: skip
    before = run.evaluate()["eval_reward"]
    run.train()
    assert run.evaluate()["eval_reward"] > before + 0.2
    rounds = sum("reward" in logs for logs in log.logs if "loss" in logs)
    assert rounds == {2: 36, 1: 6}.get(schedule.get("resample_steps", schedule.get("resample_epochs")), 1)


def test_sampled_completions_replace_or_join_those_of_the_rows(tmp_path: Path) -> None:
    for keep, extra in ((False, 0), (True, 1)):
        run = trainer(
            tmp_path, ROWS[3:], reward_funcs=letter_reward,
            args={"resample_epochs": 1, "keep_dataset_completions": keep},
        )  # fmt: skip
        rollouts = run._sample_round([run.train_dataset[0]]).rollouts[0]
        assert len(rollouts.completion_ids) == 3 + extra
        assert (rollouts.completion_ids[-1] == run.train_dataset[0]["completion_ids"][0]) == keep


def test_a_prompt_that_no_reward_can_score_is_left_out(tmp_path: Path) -> None:
    def sometimes(prompts: list[str], **_: Any) -> list[float | None]:
        return [None if prompt == "we" else 1.0 for prompt in prompts]

    run = trainer(
        tmp_path, PROMPTS[:3], reward_funcs=sometimes, args={"per_device_train_batch_size": 1, "resample_steps": 1}
    )
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    assert any(not torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    alone = trainer(tmp_path, PROMPTS[2:3], reward_funcs=sometimes, args={"resample_steps": 1, "weight_decay": 0.0})
    before = copy.deepcopy(alone.model.state_dict())
    alone.train()
    assert all(torch.equal(before[name], value) for name, value in alone.model.state_dict().items())


def test_the_kl_term_is_the_log_ratio_to_the_start(tmp_path: Path) -> None:
    run = trainer(tmp_path, PROMPTS, reward_funcs=letter_reward, args={"beta": 0.5, "resample_steps": 1})
    prompts, completions = [[5, 6, 7], [8, 9]], [[[10, 11], [12]], [[13, 14, 15]]]
    assert run._kl_penalty(prompts, completions) == [[0.0, 0.0], [0.0]]
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(1.05)
    penalty = run._kl_penalty(prompts, completions)
    start = make_model(len(run._tokenizer))
    for prompt, group, costs in zip(prompts, completions, penalty, strict=True):
        for completion, cost in zip(group, costs, strict=True):
            logps = []
            for model in (run.model, start):
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
                logps.append(sum(logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion)))
            assert cost == pytest.approx(0.5 * (logps[0] - logps[1]).item(), abs=1e-4)


def test_evaluation_pays_nothing_for_the_distance(tmp_path: Path) -> None:
    told: list[float] = []

    def reward(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        told.extend(letter_reward(completions))
        return told[-len(completions) :]

    settings = {"beta": 5.0, "resample_steps": 1, "learning_rate": 1e-2}
    run = trainer(tmp_path, PROMPTS, reward_funcs=reward, args=settings)
    run.train()
    told.clear()
    found = run.evaluate(Dataset.from_list(PROMPTS))
    assert found["eval_reward"] == pytest.approx(sum(told) / len(told), abs=1e-4)
    assert run._kl_penalty([[5, 6, 7]], [[[10, 11, 12]]]) != [[0.0]]  # there would be something to pay


def test_a_prompt_without_scores_does_not_count(tmp_path: Path) -> None:
    """Neither in the gradient nor in its divisor."""

    def some(prompts: Any, completions: Any, **kwargs: Any) -> list[float | None]:
        return [None if prompt == PROMPTS[2]["prompt"] else 1.0 for prompt in prompts]

    settings = {"top_k": 1, "resample_steps": 1}  # greedy: completions do not depend on the batch
    gradients = [
        step_gradients(tmp_path, len(rows), 1, rows=rows, reward_funcs=some, **settings)
        for rows in (PROMPTS[:3], PROMPTS[:2])
    ]
    assert gradients[0][0].abs().max() > 0
    for with_it, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without, atol=2e-5, rtol=1e-4)


def test_copies_compute_with_their_own_weights(tmp_path: Path) -> None:
    """A model that was trained before carries a patched forward, which refers to that model."""
    model = make_model(len(make_tokenizer()))
    rewards = {"reward_funcs": letter_reward, "args": {"beta": 0.5, "resample_steps": 1, "bf16": True}}
    trainer(tmp_path, PROMPTS, model=model, **rewards).train()
    run = trainer(tmp_path, PROMPTS, model=model, **rewards)
    run.train()
    assert run._kl_penalty([[5, 6, 7]], [[[10, 11, 12]]]) != [[0.0]]
    run.args.cast_for_generation = True
    copied = sampling_copy(run.accelerator.unwrap_model(run.model), run.args)
    ids = torch.tensor([[5, 6, 7]])
    before = copied(input_ids=ids).logits
    assert before.dtype == torch.bfloat16
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(input_ids=ids).logits, before)
    assert run.model(input_ids=ids).logits.abs().max() == 0


def test_a_reference_is_kept_only_where_one_is_needed(tmp_path: Path) -> None:
    rewards = {"reward_funcs": letter_reward}
    assert trainer(tmp_path, PROMPTS, **rewards).reference is None
    assert trainer(tmp_path, PROMPTS, **rewards, args={"beta": 0.1}).reference.model is not None
    lora = LoraConfig(r=4, target_modules="all-linear")
    run = trainer(tmp_path, PROMPTS, **rewards, args={"beta": 0.1, "resample_steps": 1}, peft_config=lora)
    assert run.reference.model is None
    run.train()
    penalty = run._kl_penalty([[5, 6, 7]], [[[10, 11, 12]]])
    assert penalty != [[0.0]]


def test_completions_are_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    run = trainer(tmp_path, PROMPTS, reward_funcs=letter_reward, args={"log_completions": True, "resample_epochs": 1})
    run.train()
    frame = pd.read_parquet(tmp_path / "out" / "completions" / "train_completions_00000.parquet")
    assert list(frame.columns) == ["step", "prompt", "completion", "letter_reward", "score"]
    assert len(frame) == 3 * len(PROMPTS)
    assert "letter_reward" in capsys.readouterr().out


def test_chat_prompts_are_sampled_for(tmp_path: Path) -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], topic: list[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, topic, strict=True))
        return letter_reward(completions)

    rows = [{"prompt": [{"role": "user", "content": "the film"}], "topic": "x"}] * 2
    trainer(tmp_path, rows, reward_funcs=reward, processing_class=make_tokenizer(chat=True)).train()
    prompt, completion, topic = seen[0]
    assert prompt == rows[0]["prompt"] and topic == "x"
    assert completion[0]["role"] == "assistant"


# -------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("rows", "schedule", "interrupted_at"),
    [
        (ROWS * 2, {}, 3),
        (PROMPTS * 2, {"resample_steps": 3}, 2),  # in the middle of a round
        (PROMPTS * 2, {"resample_steps": 3}, 3),  # at its end
        (PROMPTS * 2, {"resample_epochs": 1, "beta": 0.1}, 4),
        (PROMPTS * 2, {"resample_epochs": 2, "gradient_accumulation_steps": 2}, 4),
        (PROMPTS * 2, {}, 8),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, rows: list[dict], schedule: dict, interrupted_at: int
) -> None:
    sampling = {} if "completions" in rows[0] else {"reward_funcs": letter_reward}
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, **schedule}
    whole = trainer(tmp_path, rows, args={**settings, "output_dir": str(tmp_path / "whole")}, **sampling)
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{interrupted_at}"
    assert checkpoint.is_dir()
    assert (checkpoint / "rollouts_0.json").is_file() == bool(sampling)
    resumed = trainer(tmp_path, rows, args={**settings, "output_dir": str(tmp_path / "resumed")}, **sampling)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_resumed_adapter_equals_an_uninterrupted_one(tmp_path: Path, four_bit: bool) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    make_model(len(make_tokenizer())).save_pretrained(tmp_path / "model")
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    kwargs = {"model": str(tmp_path / "model"), "peft_config": LoraConfig(r=4, target_modules="all-linear")}
    if four_bit:
        kwargs["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    whole = trainer(tmp_path, args=settings, **kwargs)
    whole.train()
    resumed = trainer(tmp_path, args={**settings, "output_dir": str(tmp_path / "resumed")}, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    states = [{n: p for n, p in run.model.named_parameters() if p.requires_grad} for run in (whole, resumed)]
    assert states[0].keys() == states[1].keys() and states[0]
    for name, value in states[0].items():
        assert value.dtype == states[1][name].dtype == (torch.bfloat16 if four_bit else torch.float32)
        assert torch.equal(value, states[1][name]), name


def test_a_full_disk_leaves_the_last_checkpoint_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"resample_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = trainer(tmp_path, PROMPTS, reward_funcs=letter_reward, args=settings)
    save = run.save_model

    def full(output_dir: str | None = None, **kwargs: Any) -> None:
        if str(output_dir).endswith("checkpoint-2"):
            raise OSError(28, "No space left on device")
        save(output_dir, **kwargs)

    monkeypatch.setattr(run, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert (tmp_path / "out" / "checkpoint-2").is_dir()  # begun, and no checkpoint
    resumed = trainer(tmp_path, PROMPTS, reward_funcs=letter_reward, args=settings)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(
        tmp_path, PROMPTS, reward_funcs=letter_reward, args={**settings, "output_dir": str(tmp_path / "w")}
    )
    whole.train()
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_checkpoint_has_a_card_with_the_paper(tmp_path: Path) -> None:
    run = trainer(tmp_path, args={"save_strategy": "steps", "save_steps": 1})
    run.train()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2304.05302" in card and "yuan2023rrhf" in card and "trl-ext" in card
    assert set(run.model.model_tags) >= {"trl", "trl-ext", "rrhf"}


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scores": [1.0]}, DataError, ["Row 1", "scores", "1 entries", "2 completions"]),
        ({"scores": [1.0, math.nan]}, DataError, ["Row 1", "scores", "nan"]),
        ({"scores": [math.inf, 0.0]}, DataError, ["Row 1", "scores", "inf"]),
        ({"completions": [], "scores": []}, DataError, ["Row 1", "completions", "K = 0"]),
        ({"completions": ["", " was"], "scores": [1.0, 0.0]}, DataError, ["Row 1", "completions", "[0]", "empty"]),
        ({"prompt": ""}, DataError, ["Row 1", "prompt", "empty"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict, error: type[Exception], words: list[str]) -> None:
    rows = [
        {"prompt": "the film", "completions": [" good", " bad"], "scores": [1.0, 0.0]},
        {"prompt": "the film", "completions": [" good", " bad"], "scores": [1.0, 0.0], **change},
    ]
    with pytest.raises(error) as caught:
        trainer(tmp_path, rows)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_scores_that_are_text_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "the film", "completions": [" good", " bad"], "scores": ["1", "0"]}]
    with pytest.raises(DataError, match=r"Row 0 of .*, column 'scores': \[0\] must be a number"):
        trainer(tmp_path, rows)


@pytest.mark.parametrize(
    ("rows", "kwargs", "words"),
    [
        ([{"text": "the film"}], {}, ["'prompt'", "'text'"]),
        ([{"prompt": "the film", "chosen": " good"}], {}, ["'rejected'", "'prompt', 'chosen'"]),
        (PROMPTS, {}, ["prompts but no completions", "--reward_funcs"]),
        (ROWS, {"args": {"resample_steps": 2}}, ["reward_funcs"]),
        (
            PROMPTS,
            {"reward_funcs": letter_reward, "args": {"reward_weights": [1.0, 2.0]}},
            ["reward_weights", "2", "1"],
        ),
        (PROMPTS, {"reward_funcs": letter_reward, "args": {"keep_dataset_completions": True}}, ["keep_dataset"]),
        ([{"prompt": [{"role": "user", "content": "we"}]}], {"reward_funcs": letter_reward}, ["chat template"]),
        (ROWS, {"args": {"max_length": 1}}, ["max_length"]),
        (ROWS, {"quantization_config": object()}, ["loaded already"]),
    ],
)
def test_what_cannot_work_is_said(tmp_path: Path, rows: list[dict], kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, rows, **kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_contradictory_settings_are_refused(tmp_path: Path) -> None:
    for changes, word in (
        ({"resample_steps": 1, "resample_epochs": 1}, "exclude"),
        ({"rank_weight": 0.0, "sft_weight": 0.0}, "nothing to learn"),
        ({"sft_reduction": "median"}, "sft_reduction"),
        ({"sft_reduction": "sum", "sft_weight": 0.0}, "`sft_reduction: sum` has no effect without an SFT loss"),
        ({"shared_prefix": "maybe"}, "shared_prefix"),
        ({"temperature": 0.0}, "temperature"),
        ({"num_generations": 0}, "num_generations"),
        ({"length_penalty": -1.0}, "length_penalty"),
    ):
        with pytest.raises(ValueError, match=word):
            config(tmp_path, **changes)


def test_no_train_dataset_and_wrong_types(tmp_path: Path) -> None:
    model = make_model(10)
    with pytest.raises(ValueError, match="train_dataset"):
        RRHFTrainer(model, args=config(tmp_path), processing_class=make_tokenizer())
    with pytest.raises(TypeError, match="processing_class"):
        trainer(tmp_path, model=model, processing_class=object())


def test_a_wrapped_model_with_another_adapter_is_refused(tmp_path: Path) -> None:
    from peft import get_peft_model

    tokenizer = make_tokenizer()
    lora = LoraConfig(r=4, target_modules="all-linear")
    model = get_peft_model(make_model(len(tokenizer)), lora)
    with pytest.raises(ValueError, match="already has an adapter"):
        trainer(tmp_path, model=model, processing_class=tokenizer, peft_config=lora)
    trainer(tmp_path, model=model, processing_class=tokenizer).train()


def test_a_failing_reward_is_named_and_checkpoints_stay(tmp_path: Path) -> None:
    calls = []

    def fails_later(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) > 2:
            raise RuntimeError("the server is gone")
        return [0.0] * len(completions)

    run = trainer(
        tmp_path, PROMPTS, reward_funcs=fails_later,
        args={"resample_steps": 1, "save_strategy": "steps", "save_steps": 1},
    )  # fmt: skip
    with pytest.raises(RewardError, match=r"fails_later.*the server is gone"):
        run.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    fixed = trainer(
        tmp_path, PROMPTS, reward_funcs=letter_reward,
        args={"resample_steps": 1, "save_strategy": "steps", "save_steps": 1},
    )  # fmt: skip
    fixed.train(resume_from_checkpoint=True)
    assert fixed.state.global_step == 3
