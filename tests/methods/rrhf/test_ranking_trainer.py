# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""RRHF with other ranking losses: the trainer computes what loops over a plain model compute, with a reference too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model
from oracles.ranking import ORACLES
from peft import LoraConfig
from tiny_trainers import PROMPTS, make_trainer

from trl_ext import RRHFConfig, RRHFTrainer
from trl_ext.methods.rrhf.memory import needs
from trl_ext.methods.rrhf.ranking_registry import OWN


ROWS = [
    {"prompt": "the film", "completions": [" was good", " was very bad and dull", " was"], "scores": [2.0, -1.0, 0.5]},
    {"prompt": "a story of music with", "completions": [" great plot", " no plot"], "scores": [1.0, 1.0]},
    {"prompt": "we", "completions": [" loved it so", " hated it", " found it dull and bad"], "scores": [3, 1, 2]},
    {"prompt": "I liked the actor and", "completions": [" scene"], "scores": [0.0]},
]
REFERENCE = {"ranking_reference": "policy"}


def offline(folder: Path, rows: list[dict] = ROWS, **settings: Any) -> RRHFTrainer:
    """A trainer on scored rows."""
    defaults = {"resample_steps": None, "reward_funcs": None, "disable_tqdm": True}
    return make_trainer("rrhf", folder, rows, **defaults | settings)


def batch_of(run: RRHFTrainer) -> dict[str, Any]:
    return run.data_collator([run.train_dataset[i] for i in range(len(run.train_dataset))])


def logp(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The sum over the tokens of a completion, from full logits of one sequence."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion))


def oracle(run: RRHFTrainer, model: Any, start: Any, batch: dict[str, Any]) -> Any:
    """Eq. (5) with another L_rank, one completion at a time; `start` is the reference or `None`."""
    member, total = run.ranking.member, torch.zeros(())
    numbers = {"beta": run.ranking.beta, "margin": run.ranking.margin}
    for prompt, completions, scores in zip(batch["prompt_ids"], batch["completion_ids"], batch["scores"], strict=True):
        sums = [logp(model, prompt, ids) for ids in completions]
        p = sums
        if start is not None:
            p = [value - logp(start, prompt, ids).detach() for value, ids in zip(sums, completions, strict=True)]
        p = [value / len(ids) ** run.ranking.length_penalty for value, ids in zip(p, completions, strict=True)]
        given = {name: value for name, value in numbers.items() if value is not None}
        total = total + ORACLES[member.name](p, scores, **given)
        best = scores.index(max(scores))
        total = total - sums[best] / len(completions[best])
    return total / len(batch["scores"])


@pytest.mark.parametrize(
    ("name", "reference"),
    # Losses that need a reference are refused without one: test_ranking_registry.py.
    [
        (name, reference)
        for name, loss in OWN.items()
        for reference in (False, True)
        if reference or not loss.needs_reference
    ],
)
def test_loss_and_gradients_are_those_of_the_loops(tmp_path: Path, name: str, reference: bool) -> None:
    """With a reference the policy has moved: a reference that follows it, or has a gradient, would show."""
    run = offline(tmp_path, ranking_loss=name, **(REFERENCE if reference else {}))
    plain, start = (make_model(len(run._tokenizer)) for _ in range(2))
    with torch.no_grad():
        for mine, theirs in zip(run.model.parameters(), plain.parameters(), strict=True):
            mine.mul_(1.03)
            theirs.mul_(1.03)
    batch = batch_of(run)
    expected = oracle(run, plain, start if reference else None, batch)
    expected.backward()
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-4)
    for (parameter, mine), theirs in zip(run.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, atol=2e-4, rtol=2e-3, msg=lambda m, n=parameter: f"{n}: {m}"
        )


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_the_reference_is_the_policy_at_the_start_and_stays_it(tmp_path: Path, adapter: bool) -> None:
    """
    Before training all log-ratios are 0, so listwise DPO of three completions is log 3 + log 2; training changes the
    policy and not the reference, whose log-probabilities are those of a new model.
    """
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    settings = {"ranking_loss": "listwise_dpo", "sft_weight": 0.0, "learning_rate": 1e-2, "max_steps": 4, **REFERENCE}
    run = offline(tmp_path, ROWS[:1] * 4, **settings)
    if adapter:  # trained before, so that the policy with its adapter disabled is another model
        from peft import get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(make_model(len(run._tokenizer)), lora)
        run = RRHFTrainer(model, args=run.args, train_dataset=run.train_dataset, processing_class=run._tokenizer)
    batch = batch_of(run)
    before = run.reference.token_logps(run, run.log_probs, batch["prompt_ids"], batch["completion_ids"]).sums()
    with torch.no_grad():
        loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    assert outputs["p"].abs().max() < 1e-4
    assert loss.item() == pytest.approx(torch.tensor(6.0).log().item(), abs=1e-4)
    run.train()
    with torch.no_grad():
        loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    assert loss.item() < 1.7 and outputs["p"].abs().max() > 0.1
    after = run.reference.token_logps(run, run.log_probs, batch["prompt_ids"], batch["completion_ids"]).sums()
    assert torch.equal(before, after)
    trained = run.log_probs(run.model, batch["prompt_ids"], batch["completion_ids"]).sums()
    torch.testing.assert_close(trained - after, outputs["p"])


def test_a_given_reference_is_used(tmp_path: Path) -> None:
    settings = {"ranking_loss": "qrpo", **REFERENCE}
    run = offline(tmp_path, **settings)
    other = make_model(len(run._tokenizer), seed=5)
    model = make_model(len(run._tokenizer))
    run = RRHFTrainer(model, other, run.args, train_dataset=run.train_dataset, processing_class=run._tokenizer)
    batch = batch_of(run)
    expected = oracle(run, make_model(len(run._tokenizer)), other, batch)
    assert run.compute_loss(run.model, batch).item() == pytest.approx(expected.item(), rel=2e-4)


@pytest.mark.parametrize("name", ["listnet", "qrpo"])
def test_accumulation_does_not_change_the_gradient(tmp_path: Path, name: str) -> None:
    """A step of four prompts at once or one by one, and rows of one batch padded by one another."""
    weights = []
    for size in (4, 1):
        run = offline(
            tmp_path / str(size), ranking_loss=name, per_device_train_batch_size=size, max_steps=1, max_grad_norm=1e9,
            gradient_accumulation_steps=4 // size, optim="sgd", lr_scheduler_type="constant", **REFERENCE,
        )  # fmt: skip
        run.train()
        weights.append([p.detach().clone() for p in run.model.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", list(OWN))
def test_training_raises_the_reward(tmp_path: Path, name: str) -> None:
    """New completions for every step: the mean reward of the last steps is above that of the first."""
    run = make_trainer(
        "rrhf", tmp_path, PROMPTS * 4, ranking_loss=name, num_generations=4, max_steps=14, sft_weight=0.1,
        per_device_train_batch_size=8, learning_rate=5e-3, lr_scheduler_type="constant", warmup_steps=0,
        ranking_reference="policy" if OWN[name].needs_reference else "none",
    )  # fmt: skip
    run.train()
    rewards = [entry["reward"] for entry in run.state.log_history if "reward" in entry]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """The reference is the model that the run began with, not that of the checkpoint."""
    settings = {
        "ranking_loss": "listwise_dpo", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **REFERENCE,
    }  # fmt: skip
    whole = make_trainer("rrhf", tmp_path / "out", **settings)
    whole.train()
    resumed = make_trainer("rrhf", tmp_path / "out", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kl_term_and_a_ranking_loss_share_a_reference(tmp_path: Path) -> None:
    settings = {"ranking_loss": "lambda", "beta": 0.5, "max_steps": 2, **REFERENCE}
    run = make_trainer("rrhf", tmp_path, **settings)
    run.train()
    assert any("kl" in entry for entry in run.state.log_history)
    lines = run._summary(run_size())
    assert lines["reference"].endswith("beta 0.5")
    assert lines["ranking"] == "lambda, beta 0.05, length penalty 0, of log-ratios to the reference"
    without = make_trainer("rrhf", tmp_path, **settings | {"beta": None})
    without.train()
    assert not any("kl" in entry for entry in without.state.log_history)
    assert "beta" not in without._summary(run_size())["reference"]
    assert "ranking" not in make_trainer("rrhf", tmp_path)._summary(run_size())


def run_size() -> Any:
    from trl_ext.training.summary import Run

    return Run(steps=2, begun=0, steps_per_epoch=4, epochs=1, rows=8, prompts_per_step=2)


def test_a_reference_is_kept_only_where_one_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert offline(tmp_path, ranking_loss="listnet").reference is None
    assert offline(tmp_path, ranking_loss="listnet", **REFERENCE).reference is not None
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    assert not needs(RRHFConfig(**settings)).reference
    assert needs(RRHFConfig(**settings, **REFERENCE)).reference


def test_metrics_with_a_reference(tmp_path: Path) -> None:
    """At the start all log-ratios are 0 but for rounding: every pair is tied. `logps/` stay log-probabilities."""
    run = offline(tmp_path, eval_rows=ROWS[:1], ranking_loss="listwise_dpo", **REFERENCE)
    original = run.reference.token_logps

    def rounded(*args: Any) -> Any:
        tokens = original(*args)
        tokens.logps = tokens.logps * (1 + 3e-7 * torch.rand_like(tokens.logps))
        return tokens

    run.reference.token_logps = rounded
    metrics = run.evaluate()
    assert metrics["eval_rewards/margins"] == 0.0 and metrics["eval_rewards/accuracies"] == 0.5
    assert "eval_kendall_tau" not in metrics
    assert metrics["eval_logps/chosen"] < -1


def test_a_prompt_without_completions_asks_the_reference_as_well(tmp_path: Path) -> None:
    """On several processes with a sharded reference, all have to run it equally often."""
    run = make_trainer("rrhf", tmp_path, ranking_loss="listwise_dpo", **REFERENCE)
    asked = []
    original = run.reference.token_logps
    run.reference.token_logps = lambda *args: asked.append(args) or original(*args)
    inputs = {"prompt_ids": [[5, 6]], "completion_ids": [[]], "scores": [[]], "rows": [{}]}
    assert run.compute_loss(run.model, inputs).item() == 0.0
    assert len(asked) == 1


def test_rows_with_one_completion_are_no_reason_for_a_warning_where_a_loss_is_pointwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl_ext.methods.rrhf import trainer as module

    warnings: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *_: warnings.append(text))
    offline(tmp_path, ROWS[3:], ranking_loss="qrpo", **REFERENCE)
    assert not [text for text in warnings if "no pairs to rank" in text]
    offline(tmp_path, ROWS[3:], ranking_loss="listwise_dpo", **REFERENCE)
    assert [text for text in warnings if "no pairs to rank" in text]


def test_rewards_of_generated_completions_are_ranked_by_another_packages_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an entry point names is called once for each batch, with p of Eq. (1) and its own beta."""
    from stranger import write_package

    source = """
        from trl_ext import RankingLoss

        calls = []

        def spread(p_N, scores_N, group_N, num_prompts, *, beta):
            calls.append((len(p_N), num_prompts, beta))
            return p_N.new_zeros(num_prompts).index_add(0, group_N, -beta * p_N * scores_N)

        SPREAD = RankingLoss("spread", spread, source="none", beta=0.5)
    """
    monkeypatch.syspath_prepend(tmp_path)
    write_package(
        tmp_path,
        "spread-pkg",
        {"__init__.py": source},
        {"spread": "spread_pkg:SPREAD"},
        group="trl_ext.ranking_losses",
    )
    run = make_trainer("rrhf", tmp_path / "out", ranking_loss="spread", max_steps=1, reward_funcs=letter_reward)
    run.train()
    import spread_pkg

    assert spread_pkg.calls == [(4, 2, 0.5)]
