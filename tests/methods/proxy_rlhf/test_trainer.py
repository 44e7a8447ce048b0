# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""ProxyRLHFTrainer: advantages through the whole path, learning, exact resume, models, and what it refuses."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, TrainerCallback

from trl_ext import ProxyModel, ProxyRLHFConfig, ProxyRLHFTrainer
from trl_ext.data.schema import DataError
from trl_ext.methods.proxy_rlhf.data import Decisions, minibatch
from trl_ext.methods.proxy_rlhf.losses import decision_logps
from trl_ext.methods.proxy_rlhf.trainer import _seeds


STARTS = ("the film", "a story of music", "we", "I liked the", "no one", "one scene", "it was", "this actor")
PROMPTS = [{"prompt": text} for text in STARTS]


def config(folder: Path, **changes: Any) -> ProxyRLHFConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "num_train_epochs": 1,
        "max_completion_length": 6,
        "top_k": 6,
        "proxy_layer_sizes": [16],
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "bf16": False,
        "seed": 7,
    }
    return ProxyRLHFConfig(**settings | changes)


def make_trainer(folder: Path, model: Any = None, rewards: Any = letter_reward, rows: Any = PROMPTS, **changes: Any):
    tokenizer = changes.pop("tokenizer", None) or make_tokenizer()
    more = {name: changes.pop(name) for name in ("eval_dataset", "proxy_model", "callbacks") if name in changes}
    model = make_model(len(tokenizer)) if model is None else model
    data = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return ProxyRLHFTrainer(model, rewards, config(folder, **changes), data, processing_class=tokenizer, **more)


def graph_key(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_advantages_against_loops(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, gamma=0.9, lam=0.8, kl_coef=0.3, missing_eos_penalty=0.5, whiten_advantages=False)
    rows = list(trainer.train_dataset)
    decisions = trainer._start_round(rows)
    answers, scores = trainer._roll_out(rows, "train")
    kept = answers.decisions
    texts = trainer._tokenizer.batch_decode(answers.ids, skip_special_tokens=True)
    expected_scores = [r - 0.5 * (not e) for r, e in zip(letter_reward(texts), answers.ended, strict=True)]
    assert scores.tolist() == pytest.approx(expected_scores)
    values = trainer.model(kept.features).values
    advantages, returns = [0.0] * len(kept), [0.0] * len(kept)
    for response in range(len(answers.ids)):
        mine = [i for i in range(len(kept)) if int(kept.response[i]) == response]
        ahead, following = 0.0, 0.0
        for i in reversed(mine):
            reward = -0.3 * float(kept.kl[i]) + (expected_scores[response] if i == mine[-1] else 0.0)
            delta = reward + 0.9 * following - float(values[i])
            ahead = delta + 0.9 * 0.8 * ahead
            advantages[i], returns[i], following = ahead, ahead + float(values[i]), float(values[i])
    torch.testing.assert_close(decisions.advantages, torch.tensor(advantages), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decisions.returns, torch.tensor(returns), atol=1e-4, rtol=1e-4)
    total = torch.zeros(len(answers.ids)).index_add(0, kept.response, kept.kl)
    torch.testing.assert_close(total, answers.kl, atol=1e-4, rtol=1e-4)


def test_leave_one_out_needs_no_critic(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, advantage_estimator="rloo", num_generations=3, whiten_advantages=False, num_train_epochs=1,
        kl_coef=0.3,
    )  # fmt: skip
    assert trainer.model.critic is None
    rows = list(trainer.train_dataset)
    decisions = trainer._start_round(rows)
    answers, scores = trainer._roll_out(rows, "train")
    scores = scores - 0.3 * answers.kl  # at all positions there is something to decide
    assert float(answers.kl.abs().min()) > 0.01
    for i in range(len(decisions)):
        response = int(decisions.response[i])
        group = range(response // 3 * 3, response // 3 * 3 + 3)
        others = [float(scores[j]) for j in group if j != response]
        assert float(decisions.advantages[i]) == pytest.approx(float(scores[response]) - sum(others) / 2, abs=1e-5)
    trainer.train()


def test_logged_kl_equals_the_kl_in_the_rewards(tmp_path: Path) -> None:
    """At the last decision of each position; of positions without one, at the last decision of the completion."""
    trainer = make_trainer(tmp_path, kl_coef=0.3, top_p=0.6)
    answers, _ = trainer._roll_out(list(trainer.train_dataset), "train")
    kept, n = answers.decisions, len(answers.ids)
    assert (kept.kl[kept.accepted] != 0).all() and (kept.kl[~kept.accepted] == 0).any()
    assert (answers.asked < torch.tensor([len(ids) for ids in answers.ids])).any()
    paid = torch.zeros(n).index_add(0, kept.response, kept.kl)
    decided = answers.asked > 0
    assert not torch.allclose(paid[decided], answers.kl[decided], atol=1e-3)
    whole = kept.with_total_kl(answers.kl)
    paid = torch.zeros(n).index_add(0, whole.response, whole.kl)
    torch.testing.assert_close(paid[decided], answers.kl[decided])
    assert torch.equal(whole.kl[~whole.last()], kept.kl[~kept.last()])
    decisions = trainer._start_round(list(trainer.train_dataset))
    paid = torch.zeros(n).index_add(0, decisions.response, decisions.kl)
    torch.testing.assert_close(paid[decided], answers.kl[decided], atol=1e-5, rtol=1e-5)


def test_rejected_candidates_may_be_proposed_again(tmp_path: Path) -> None:
    """The setting reaches the rollouts and the saved proxy, and the KL of some of the candidates is still exact."""
    trainer = make_trainer(tmp_path, propose_rejected=True, max_candidates=3, kl_coef=0.1)
    answers, _ = trainer._roll_out(list(trainer.train_dataset), "train")
    kept = answers.decisions
    place = (kept.response[1:] == kept.response[:-1]) & ~kept.accepted[:-1]
    assert (kept.features[1:][place] == kept.features[:-1][place]).all(1).any()
    torch.testing.assert_close(decision_logps(trainer.model(kept.features).logits, kept.accepted), kept.logps)
    assert answers.kl.isfinite().all() and (answers.kl != 0).all()
    trainer.train()
    assert all(math.isfinite(row["objective/kl"]) for row in trainer.state.log_history if "objective/kl" in row)
    trainer.save_model()
    assert ProxyModel.from_pretrained(tmp_path).config.decision_process.propose_rejected


def test_repeated_row_has_different_completions(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    row = trainer.train_dataset[0]
    seeds = _seeds([row, trainer.train_dataset[1], row], 0, 5, 3)
    assert len(set(seeds)) == 9
    assert _seeds([row], 0, 5, 3) == seeds[:3]


def test_loss_is_the_mean_over_the_decisions(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, entropy_coef=0.1, vf_coef=0.7)
    decisions = trainer._start_round(list(trainer.train_dataset))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = {name: getattr(decisions, name) for name in Decisions.__dataclass_fields__}
    loss = float(trainer.compute_loss(trainer.model, inputs))
    output, expected = trainer.model(decisions.features), 0.0
    for i in range(len(decisions)):
        p = 1 / (1 + math.exp(-float(output.logits[i])))
        logp = math.log(p if decisions.accepted[i] else 1 - p)
        ratio, a = math.exp(logp - float(decisions.logps[i])), float(decisions.advantages[i])
        v, old, target = (float(x[i]) for x in (output.values, decisions.values, decisions.returns))
        clipped = old + max(-0.2, min(0.2, v - old))
        expected -= min(ratio * a, max(0.8, min(1.2, ratio)) * a)
        expected += 0.7 * 0.5 * max((v - target) ** 2, (clipped - target) ** 2)
        expected -= 0.1 * (-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert loss == pytest.approx(expected / len(decisions), abs=1e-4)


def test_minibatches_partition_one_shuffle() -> None:
    parts = [minibatch(10, number, 3, seed=5) for number in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    assert torch.cat(parts).tolist() != list(range(10))


def test_each_pass_has_all_decisions_in_another_order(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=PROMPTS[:4])
    seen: list[torch.Tensor] = []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *args, **kwargs: (
        seen.append(inputs["advantages"].clone()) or compute_loss(model, inputs, *args, **kwargs)
    )
    trainer.train()
    everything = trainer._decisions.advantages.sort().values
    assert len(seen) == 4
    for part in (seen[:2], seen[2:]):
        assert torch.equal(torch.cat(part).sort().values, everything)
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(
    "settings",
    [{}, {"order": "descending", "feature": "context"}, {"advantage_estimator": "rloo", "num_generations": 4}],
    ids=["gae", "descending-context", "rloo"],
)
def test_reward_rises(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The rewarded letter becomes more frequent in the completions, only by decisions of the proxy."""
    k = settings.get("num_generations", 1)
    trainer = make_trainer(
        tmp_path, rows=PROMPTS * 16, per_device_train_batch_size=128 // k, num_train_epochs=16 // k, num_ppo_epochs=4,
        num_mini_batches=4, max_completion_length=4, top_k=10, temperature=2.0, proxy_layer_sizes=[64],
        learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=16, generation_batch_size=128, **settings,
    )  # fmt: skip
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert len(rewards) == 16
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.6, rewards


def test_metrics(tmp_path: Path) -> None:
    def second(completions: list[str], **_: Any) -> list[float]:
        return [1.0 for _ in completions]

    trainer = make_trainer(
        tmp_path, rewards=[letter_reward, second], reward_weights=[1.0, 0.5], num_generations=2, kl_coef=0.1,
        eval_dataset=Dataset.from_list(PROMPTS[:3]),
    )  # fmt: skip
    trainer.train()
    logs = next(log for log in trainer.state.log_history if "reward" in log)
    names = """objective/kl objective/scores objective/rlhf_reward objective/non_score_reward policy/approxkl_avg
        policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg val/clipfrac_avg val/ratio episode
        val/num_eos_tokens reward reward_std rewards/letter_reward/mean rewards/second/mean completions/mean_length
        completions/clipped_ratio accept_rate candidates_per_token forced_share trainable_share num_tokens"""
    assert set(logs) >= set(names.split())
    assert logs["reward"] == pytest.approx(logs["rewards/letter_reward/mean"] + 0.5)
    assert logs["objective/rlhf_reward"] == pytest.approx(
        logs["objective/scores"] - 0.1 * logs["objective/kl"], abs=1e-3
    )
    share = sum(p.numel() for p in trainer.model.parameters()) / sum(
        p.numel() for p in trainer.language_model.parameters()
    )
    assert logs["trainable_share"] == pytest.approx(share)
    metrics = trainer.evaluate()
    assert {"eval_reward", "eval_accept_rate", "eval_objective/kl"} <= set(metrics)
    assert metrics["eval_reward"] == trainer.evaluate()["eval_reward"]


def test_metrics_of_a_round(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kl_coef=0.2, missing_eos_penalty=0.5, top_p=0.5, initial_accept_rate=0.2)
    answers, scores = trainer._roll_out(list(trainer.train_dataset), "train")
    found = trainer._meters["train"].pop(trainer.accelerator)
    tokens, examined, rejected, forced, asked = (
        float(sum(x))
        for x in (map(len, answers.ids), answers.examined, answers.rejected, answers.forced, answers.asked)
    )
    assert 0 < forced < asked < tokens < examined  # so that no two of them can be mistaken for one another
    kl, total = float(answers.kl.mean()), float(scores.mean())
    expected = {
        "accept_rate": (examined - rejected) / examined,
        "candidates_per_token": examined / tokens,
        "forced_share": forced / asked,
        "decided_share": asked / tokens,
        "objective/kl": kl,
        "objective/non_score_reward": -0.2 * kl,
        "objective/scores": total,
        "objective/rlhf_reward": total - 0.2 * kl,
        "val/num_eos_tokens": sum(answers.ended),
        "completions/mean_length": tokens / len(answers.ids),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("step", [4, 6], ids=["between rounds", "within a round"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    whole = make_trainer(tmp_path / "whole", num_train_epochs=2, save_strategy="no")
    whole.train()
    first = make_trainer(tmp_path / "part", num_train_epochs=2, callbacks=[StopAt(step)])
    first.train()
    resumed = make_trainer(tmp_path / "part", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 16
    assert same(graph_key(whole.model), graph_key(resumed.model))
    last = [trainer.state.log_history[-2] for trainer in (whole, resumed)]
    assert last[0]["episode"] == last[1]["episode"]
    assert last[0]["loss"] == last[1]["loss"]


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_language_model_does_not_change(tmp_path: Path, kind: str) -> None:
    model = make_model(len(make_tokenizer()))
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    before = graph_key(model)
    trainer = make_trainer(tmp_path, model=model)
    proxy = graph_key(trainer.model)
    trainer.train()
    assert same(before, graph_key(model))
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(
        torch.equal(value, proxy[name]) for name, value in graph_key(trainer.model).items() if "weight" in name
    )
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in trainer.model.parameters()
    }


def test_four_bits(tmp_path: Path, tiny_model_dir: str) -> None:
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    data = Dataset.from_list(PROMPTS)
    trainer = ProxyRLHFTrainer(tiny_model_dir, letter_reward, config(tmp_path), data, quantization_config=quantization)
    before = graph_key(trainer.language_model)
    trainer.train()
    assert same(before, graph_key(trainer.language_model))
    # Of all parameters of the model, however they are packed.
    whole = make_model(len(make_tokenizer(chat=True))).num_parameters()
    assert trainer.trainable_share == pytest.approx(trainer.model.num_parameters() / whole)


def test_chat_prompts_and_their_columns(tmp_path: Path) -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, answer, strict=True))
        return [0.0] * len(prompts)

    rows = [{"prompt": [{"role": "user", "content": text}], "answer": text.upper()} for text in STARTS]
    make_trainer(tmp_path, rewards=reward, rows=rows, tokenizer=make_tokenizer(chat=True)).train()
    prompt, completion, answer = seen[0]
    assert prompt[0]["content"].upper() == answer
    assert completion[0]["role"] == "assistant"


def test_critic_is_saved_and_trained_further(tmp_path: Path) -> None:
    model = make_model(len(make_tokenizer()))
    trainer = make_trainer(tmp_path / "a", model=model)
    trainer.train()
    trainer.save_model()
    proxy = ProxyModel.from_pretrained(tmp_path / "a")
    assert same(graph_key(proxy), graph_key(trainer.model))
    assert proxy.critic is not None
    further = make_trainer(tmp_path / "b", model=model, proxy_model=str(tmp_path / "a"))
    assert same(graph_key(further.model), graph_key(trainer.model))
    with pytest.raises(ValueError, match="trained with the feature 'candidate'"):
        make_trainer(tmp_path / "c", model=model, proxy_model=proxy, feature="context")
    for setting, value in (("proxy_layer_sizes", [8]), ("initial_accept_rate", 0.7)):
        with pytest.raises(ValueError, match=f"`{setting}` is for a new proxy"):
            make_trainer(tmp_path / "c", model=model, proxy_model=proxy, **{setting: value})


def test_training_a_proxy_further_with_another_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with `allow_other_model`. The config then names the other model, and changed settings are logged."""
    warnings: list[str] = []
    monkeypatch.setattr("trl_ext.methods.proxy_rlhf.loading.logger.warning", warnings.append)
    first, other = (make_model(len(make_tokenizer()), seed=seed) for seed in (0, 9))
    first.config._name_or_path, other.config._name_or_path = "org/first", "org/other"
    make_trainer(tmp_path / "a", model=first).save_model()
    with pytest.raises(ValueError, match=r"'org/first'.*'org/other'.*other weights"):
        make_trainer(tmp_path / "b", model=other, proxy_model=str(tmp_path / "a"))
    assert not warnings
    settings = {"allow_other_model": True, "order": "descending", "top_k": 5}
    make_trainer(tmp_path / "b", model=other, proxy_model=str(tmp_path / "a"), **settings).save_model()
    assert "may not transfer" in caplog.text
    assert len(warnings) == 1 and "top_k 6 -> 5" in warnings[0] and "order 'sampled' -> 'descending'" in warnings[0]
    proxy = ProxyModel.from_pretrained(tmp_path / "b")
    proxy.check_model(other)
    assert proxy.config.decision_process.top_k == 5
    with pytest.raises(ValueError, match=r"'org/other'.*'org/first'"):
        proxy.check_model(first)


def test_target_kl_ends_the_updates_of_a_round(tmp_path: Path) -> None:
    few = make_trainer(tmp_path / "few", target_kl=1e-9, learning_rate=0.1, num_train_epochs=1, rows=PROMPTS[:4])
    few.train()
    logs = [log for log in few.state.log_history if "loss" in log]
    assert len(logs) == 4
    assert [("policy/approxkl_avg" in log) for log in logs] == [True, True, False, False]
    assert logs[2]["loss"] == 0


def test_approximate_kl_is_over_all_micro_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    decisions = trainer._start_round(list(trainer.train_dataset))
    with torch.no_grad():
        trainer.model.actor[-1].bias.add_(0.5)
    found = []
    for parts in (1, 3):
        trainer._last_kl = torch.zeros(2)
        for rows in torch.arange(len(decisions)).tensor_split(parts):
            part = decisions[rows]
            trainer.compute_loss(trainer.model, {n: getattr(part, n) for n in Decisions.__dataclass_fields__})
        found.append(trainer._last_kl)
    assert found[0][1] == len(decisions) and found[0][0] > 0
    torch.testing.assert_close(found[0], found[1])


def test_metrics_of_an_update_against_loops(tmp_path: Path) -> None:
    """They show whether a step went too far, and nothing else depends on them."""
    trainer = make_trainer(tmp_path, cliprange=0.2, cliprange_value=0.1)
    decisions = trainer._start_round(list(trainer.train_dataset))
    trainer._meters["train"].pop(trainer.accelerator)
    with torch.no_grad():
        trainer.model.actor[-1].weight.mul_(3.0).add_(0.1)
        trainer.model.critic[-1].weight.mul_(3.0).add_(0.1)
    trainer.model.train()
    trainer.compute_loss(trainer.model, {n: getattr(decisions, n) for n in Decisions.__dataclass_fields__})
    found = trainer._meters["train"].pop(trainer.accelerator)
    with torch.no_grad():
        output = trainer.model(decisions.features)
    ratios, entropies, moved = [], [], []
    for n in range(len(decisions)):
        p = 1 / (1 + math.exp(-float(output.logits[n])))
        now = p if decisions.accepted[n] else 1 - p
        ratios.append(now / math.exp(float(decisions.logps[n])))
        entropies.append(-p * math.log(p) - (1 - p) * math.log(1 - p))
        moved.append(abs(float(output.values[n]) - float(decisions.values[n])) > 0.1)
    expected = {
        "policy/approxkl_avg": [ratio - 1 - math.log(ratio) for ratio in ratios],
        "policy/clipfrac_avg": [float(not 0.8 <= ratio <= 1.2) for ratio in ratios],
        "policy/entropy_avg": entropies,
        "val/ratio": ratios,
        "val/clipfrac_avg": [float(value) for value in moved],
    }
    means = {name: sum(values) / len(values) for name, values in expected.items()}
    assert 0 < means["policy/clipfrac_avg"] < 1 and 0 < means["val/clipfrac_avg"] < 1
    assert {name: found[name] for name in means} == pytest.approx(means, abs=1e-4)


def test_gradient_accumulation_does_not_change_the_update(tmp_path: Path) -> None:
    one = make_trainer(tmp_path / "one", num_mini_batches=1)
    two = make_trainer(
        tmp_path / "two", num_mini_batches=1, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    for trainer in (one, two):
        trainer.train()
    for name, value in graph_key(one.model).items():
        torch.testing.assert_close(two.model.state_dict()[name], value, atol=1e-4, rtol=1e-4)


def test_completions_without_scores_are_skipped(tmp_path: Path) -> None:
    def some(completions: list[str], **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    trainer = make_trainer(tmp_path, rewards=some, whiten_advantages=False)
    decisions = trainer._start_round(list(trainer.train_dataset))
    assert set(decisions.response.tolist()) == {0, 2, 4, 6}
    with pytest.raises(DataError, match="no reward function scored any"):
        make_trainer(tmp_path, rewards=lambda completions, **_: [math.nan] * len(completions)).train()


def fails(**_: Any) -> list[float]:
    raise RuntimeError("the judge is asleep")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": None}, ValueError, "`reward_funcs` is required"),
        ({"rows": Dataset.from_list(PROMPTS).to_iterable_dataset()}, ValueError, "is streamed"),
        ({"rows": [{"text": "x"}]}, DataError, "prompt"),
        ({"rows": [{"prompt": "the " * 300}]}, DataError, "max_length"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "2 entries for 1"),
        ({"model": make_model(20)}, ValueError, "has token 192, but the vocabulary of LlamaForCausalLM has 20 tokens"),
    ],
)
def test_invalid_arguments(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **changes)


def test_peft_config_is_rejected(tmp_path: Path) -> None:
    data, tokenizer = Dataset.from_list(PROMPTS), make_tokenizer()
    with pytest.raises(ValueError, match="the language model is not trained"):
        ProxyRLHFTrainer(
            make_model(len(tokenizer)), letter_reward, config(tmp_path), data, processing_class=tokenizer,
            peft_config=LoraConfig(),
        )  # fmt: skip


def test_error_names_the_reward_function(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'fails' raised RuntimeError: the judge is asleep"):
        make_trainer(tmp_path, rewards=fails).train()


def test_out_of_memory_error_names_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("trl_ext.methods.proxy_rlhf.decoding.walk.Tree.branch", full)
    with pytest.raises(RuntimeError, match=r"`generation_batch_size`.*`first_candidates`"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 1}, "nothing to decide"),
        ({"gamma": 1.5}, "`gamma` must be between 0 and 1"),
        ({"advantage_estimator": "rloo"}, "num_generations"),
        ({"advantage_estimator": "a2c"}, "one of gae, rloo"),
        ({"advantage_estimator": "rloo", "num_generations": 2, "lam": 0.9}, "`lam: 0.9` has no effect with"),
        ({"kl_coef": 0.1, "max_candidates": 3}, "max_candidates=0"),
        ({"propose_rejected": True, "order": "descending"}, "set order='sampled' or propose_rejected=False"),
        ({"propose_rejected": True, "first_candidates": 2}, "set it to 0"),
        ({"num_ppo_epochs": 0}, "`num_ppo_epochs`"),
        ({"cliprange": -1}, "`cliprange`"),
        ({"generation_kwargs": {"stop_strings": ["."]}}, "stop_strings.* are not supported"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` adds noise to the embeddings"),
    ],
)
def test_invalid_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_gradient_checkpointing_of_a_recipe_for_trl_is_switched_off(tmp_path: Path, caplog: Any) -> None:
    args = config(tmp_path, gradient_checkpointing=True)
    assert not args.gradient_checkpointing
    assert "`gradient_checkpointing` is not used" in caplog.text
    make_trainer(tmp_path, gradient_checkpointing=True, max_steps=1).train()


def test_model_whose_backbone_returns_no_hidden_states(tmp_path: Path) -> None:
    """The complete model works; its backbone alone returns logits."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    forward, backbone_forward = model.forward, model.model.forward

    def without_states(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"logits": backbone_forward(*args, **kwargs).last_hidden_state}

    def complete_forward(*args: Any, **kwargs: Any) -> Any:
        model.model.forward = backbone_forward
        try:
            return forward(*args, **kwargs)
        finally:
            model.model.forward = without_states

    model.forward, model.model.forward = complete_forward, without_states
    with pytest.raises(ValueError, match="last_hidden_state"):
        make_trainer(tmp_path, model=model, tokenizer=tokenizer)


def test_checkpoints_contain_the_complete_proxy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    assert (folder / "decisions_0.safetensors").is_file()
    assert json.loads((folder / "decisions_0.json").read_text())["episodes"] == 4
    assert not (tmp_path / "checkpoint-8" / "decisions_0.safetensors").exists()
    copy.deepcopy(ProxyModel.from_pretrained(folder))


def test_a_second_training_counts_from_its_own_start(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    counts = []
    for _ in range(2):
        trainer.train()
        counts += [log["episode"] for log in trainer.state.log_history if "episode" in log]
    assert len(counts) == 2 and counts[0] == counts[1]
