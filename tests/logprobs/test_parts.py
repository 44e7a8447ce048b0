# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Batches that are read in parts (`completions_per_forward`): the loss and gradient of one pass over all completions.

The oracle is the same computation without the setting, whose loss and gradient other tests compare with plain loops.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from oracles.logprobs import gradients
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from trl_ext import PSLEConfig, PSLETrainer, RRHFConfig, RRHFTrainer
from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.logprobs.parts import split
from trl_ext.logprobs.token_logps import TokenLogps
from trl_ext.methods.psle.warm_up import WarmUpTrainer
from trl_ext.models.sharding import check_launch


WORDS = [" was good", " was very bad and dull", " was", " great plot", " no plot", " is on a story", " worst", " best"]
# Groups of 5, 1, 3, 8, 2 and 4 completions, in batches of two; the scores have ties.
ROWS = [
    {
        "prompt": prompt,
        "completions": [WORDS[(n + j) % 8] for j in range(k)],
        "scores": [float((n + 3 * j) % 3) for j in range(k)],
    }
    for n, (prompt, k) in enumerate(
        [("the film", 5), ("we", 1), ("a story of music with", 3), ("I liked the", 8), ("no one", 2), ("one scene", 4)]
    )
]
PROMPTS = [{"prompt": row["prompt"]} for row in ROWS]
ANSWERS = [{"prompt": "the film", "completion": f" was {word}"} for word in ("good", "bad", "dull", "great")]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_completion_length": 5,
    "seed": 1,
}


def rrhf(folder: Path, model: Any = None, rows: Any = None, lora: bool = False, **changes: Any) -> RRHFTrainer:
    tokenizer = make_tokenizer()
    rows = Dataset.from_list(rows or ROWS)
    online = "completions" not in rows.column_names
    return RRHFTrainer(
        model or make_model(len(tokenizer)),
        args=RRHFConfig(str(folder), **SETTINGS | {"num_train_epochs": 1} | changes),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        reward_funcs=letter_reward if online else None,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.1) if lora else None,
    )


def psle(folder: Path, model: Any = None, **changes: Any) -> PSLETrainer:
    tokenizer = make_tokenizer()
    settings = {"num_iterations": 1, "num_generations": 3, "principles": ["so good"], "threshold": 0.0}
    return PSLETrainer(
        model or make_model(len(tokenizer)),
        letter_reward,
        PSLEConfig(str(folder), **SETTINGS | settings | changes),
        Dataset.from_list(PROMPTS),
        Dataset.from_list(PROMPTS),
        processing_class=tokenizer,
        sft_dataset=Dataset.from_list(ANSWERS) if {"sft_mix", "sft_epochs"} & changes.keys() else None,
    )


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def metrics(run: Any) -> list[dict[str, float]]:
    clocks = ("runtime", "per_second", "seconds/generation", "seconds/reward", "seconds/update", "total_flos", "epoch")
    return [{n: v for n, v in log.items() if not n.endswith(clocks)} for log in run.state.log_history]


def assert_same(a: Any, b: Any) -> None:
    """Two finished runs have the same weights, and logged the same: losses, gradients and metrics."""
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-6)
    assert len(metrics(a)) == len(metrics(b)) > 1
    for one, two in zip(metrics(a), metrics(b), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=5e-6, nan_ok=True)


def loss_and_gradient(run: Any, number: int = 0, count: int | None = 5) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one batch, as a training step computes them; the step has `count` prompts."""
    batch = list(run.get_train_dataloader())[number]
    run.model.train()
    run.model.zero_grad()
    loss = run.compute_loss(run.model, batch, num_items_in_batch=count)
    run.accelerator.backward(loss)
    return loss.item(), gradients(run.model)


# ------------------------------------------------------------------------------------------------------------ parts


def test_completions_of_a_prompt_stay_together_where_they_fit() -> None:
    prompts, groups = [[1], [2], [3]], [[[10], [11], [12], [13]], [[20], [21]], [[30]]]
    assert split(prompts, groups, 7) == [(prompts, groups)]
    assert split(prompts, groups, 5) == [([[1]], groups[:1]), ([[2], [3]], groups[1:])]
    # The first group fits in no part: the next one fills up what it leaves.
    assert split(prompts, groups, 3) == [
        ([[1]], [[[10], [11], [12]]]),
        ([[1], [2]], [[[13]], [[20], [21]]]),
        ([[3]], [[[30]]]),
    ]
    assert [sum(map(len, some)) for _, some in split(prompts, groups, 1)] == [1] * 7
    assert split([[1], [2]], [[], [[20]]], 4) == [([[2]], [[[20]]])]


@pytest.mark.parametrize("form", ["always", "never"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_log_probabilities_are_those_of_one_pass(form: str, size: int) -> None:
    model = make_model(64)
    prompts, completions = [[5, 6, 7], [8, 9]], [[[20, 21, 22], [23], [24, 25], [26, 20]], [[26, 27], [28, 29, 30]]]
    whole = LogProbs(model, 0, shared_prefix=form)(model, prompts, completions)
    parts = LogProbs(model, 0, shared_prefix=form, completions_per_forward=size)
    tokens = parts(model, prompts, completions)
    assert tokens.num_completions == 6
    for name in ("sums", "lengths"):
        torch.testing.assert_close(getattr(tokens, name)(), getattr(whole, name)())
    for name in ("entropy", "is_top1"):
        own, all_at_once = (getattr(x, name)[x.completion_index >= 0].sum() for x in (tokens, whole))
        torch.testing.assert_close(own, all_at_once)
    with torch.no_grad():
        assert parts(model, prompts, completions).parts is None
    # What reads texts without gradients, such as the KL term, keeps to the size too.
    found = completion_logps(model, prompts, completions, pad_token_id=0, log_probs=parts)
    expected = completion_logps(model, prompts, completions, pad_token_id=0, batch_size=2)
    torch.testing.assert_close(found, expected)


def test_a_loss_that_forgets_the_parts_is_an_error() -> None:
    model = make_model(64)
    tokens = LogProbs(model, 0, completions_per_forward=1)(model, [[5, 6]], [[[7], [8]]])
    with pytest.raises(RuntimeError, match=r"let `compute_loss` return `self\._through_parts"):
        tokens.sums().sum().backward()


# ------------------------------------------------------------------------------------------------ loss and gradient


@pytest.mark.parametrize("form", ["always", "never"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_rrhf_has_the_same_loss_and_gradient(tmp_path: Path, form: str, size: int) -> None:
    """Ragged groups and ties, batches of two, with padding."""
    settings = {"shared_prefix": form, "length_penalty": 0.7, "rank_weight": 2.0, "pad_to_multiple_of": 8}
    whole, parts = rrhf(tmp_path, **settings), rrhf(tmp_path, completions_per_forward=size, **settings)
    for number in range(3):
        loss, expected = loss_and_gradient(whole, number)
        found, gradient = loss_and_gradient(parts, number)
        assert found == pytest.approx(loss, rel=1e-5)
        assert max(values.abs().max() for values in expected.values()) > 0.1
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"lora": True, "gradient_checkpointing": True},
        {"lora": True, "ranking_loss": "listwise_dpo", "ranking_reference": "policy"},
        {"ranking_loss": "qrpo", "ranking_reference": "policy", "gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.1, "optim": "adamw_torch", "learning_rate": 1e-4},
    ],
    ids=["accumulation", "checkpointing", "reentrant checkpointing", "LoRA", "listwise DPO", "QRPO", "clipping"],
)
def test_runs_of_rrhf_are_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Weights and everything that is logged, evaluations included."""
    runs = [rrhf(tmp_path, eval_strategy="epoch", completions_per_forward=size, **settings) for size in (0, 2)]
    for run in runs:
        run.train()
    assert_same(*runs)


@pytest.mark.parametrize("settings", [{}, {"sft_mix": 0.5}, {"sft_epochs": 1.0}, {"two_sided": True}], ids=str)
def test_runs_of_psle_are_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    """With the rows that are mixed in, and in the warm-up; half of the pairs are ranked, half imitated."""
    runs = [psle(tmp_path / str(n), completions_per_forward=n, eval_strategy="epoch", **settings) for n in (0, 4)]
    for run in runs:
        run.train()
    assert_same(*runs)
    assert 0 < next(log["ranked_share"] for log in runs[0].state.log_history if "ranked_share" in log) < 1


def test_the_warm_up_reads_parts_too(tmp_path: Path) -> None:
    run = psle(tmp_path, sft_epochs=1.0, completions_per_forward=1)
    warm_up = WarmUpTrainer(run, run._sft_dataset)
    batch = next(iter(warm_up.get_train_dataloader()))
    assert run.log_probs(run.model, batch["prompt_ids"], batch["completion_ids"]).parts is not None


def test_dropout_is_the_same_in_both_passes(tmp_path: Path) -> None:
    """The oracle keeps the graphs of all parts, whose dropout follows from one RNG state, for one backward pass."""
    model = make_model(len(make_tokenizer()), attention_dropout=0.3)
    run = rrhf(tmp_path, model, disable_dropout=False, completions_per_forward=3)
    run.log_probs.verify(run.model)
    torch.manual_seed(3)
    loss, found = loss_and_gradient(run)
    after = torch.get_rng_state()

    read_whole = LogProbs(run.model, 0)
    read_whole.verify(run.model)

    def read(model: Any, prompts: Any, completions: Any, aux_loss: bool = False) -> TokenLogps:
        return TokenLogps.joined([read_whole(model, *part) for part in split(prompts, completions, 3)])

    run.log_probs = read  # type: ignore[assignment]
    torch.manual_seed(3)
    expected_loss, expected = loss_and_gradient(run)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(after, torch.get_rng_state())  # the second pass leaves the generators alone
    torch.manual_seed(4)
    other_loss, _ = loss_and_gradient(run)
    assert other_loss != pytest.approx(loss, rel=1e-3)  # the dropout matters


@pytest.mark.parametrize("form", ["always", "never"])
def test_the_load_balancing_loss_is_that_of_the_batch(tmp_path: Path, form: str) -> None:
    """It is no sum over completions: how often an expert is chosen counts over all of them."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2}
    sizes |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.2, "head_dim": 8}
    runs = []
    for size in (0, 2):
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3_moe", vocab_size=len(make_tokenizer()), **sizes)
        settings = {"router_aux_loss_coef": 5.0, "shared_prefix": form, "completions_per_forward": size}
        runs.append(rrhf(tmp_path, AutoModelForCausalLM.from_config(config), **settings))
    (loss, expected), (found, gradient) = (loss_and_gradient(run, count=None) for run in runs)
    assert found == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    runs[0].router_aux_loss_coef = 0.0
    assert loss_and_gradient(runs[0], count=None)[0] != pytest.approx(loss, rel=0.1)


def test_a_gradient_scaler_scales_every_part(tmp_path: Path) -> None:
    whole, parts = rrhf(tmp_path), rrhf(tmp_path, completions_per_forward=2)
    _, expected = loss_and_gradient(whole)
    parts.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    _, scaled = loss_and_gradient(parts)
    torch.testing.assert_close({n: g / 8 for n, g in scaled.items()}, expected, rtol=1e-4, atol=1e-6)


def test_under_autocast(tmp_path: Path) -> None:
    """bfloat16 has 8 bits of mantissa, and rows of other lengths round differently."""
    runs = [rrhf(tmp_path, completions_per_forward=n, bf16=True, shared_prefix="never") for n in (0, 2)]
    (loss, expected), (found, gradient) = map(loss_and_gradient, runs)
    assert found == pytest.approx(loss, rel=1e-2)
    for name, values in expected.items():
        assert (gradient[name] - values).norm() < 0.05 * values.norm() + 1e-4, name


def test_no_forward_pass_has_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, evaluation, and under the policy and the reference of a KL term."""
    seen: list[int] = []
    forward = LogProbs._forward

    def spy(self: LogProbs, model: Any, form: str, prompts: list, completions: list, *rest: Any) -> TokenLogps:
        seen.append(sum(map(len, completions)))
        return forward(self, model, form, prompts, completions, *rest)

    monkeypatch.setattr(LogProbs, "_forward", spy)
    monkeypatch.setattr(LogProbs, "verify", lambda self, model: None)
    run = rrhf(tmp_path, rows=PROMPTS, num_generations=5, beta=0.1, completions_per_forward=2, eval_strategy="epoch")
    run.train()
    assert max(seen) == 2
    # 6 prompts of 5 completions: a KL term under two models, both passes of training, and an evaluation
    assert sum(seen) == 6 * 5 * (2 + 2 + 1)


# ------------------------------------------------------------------------------------------------------ bad settings


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`completions_per_forward` must be at least 0, got -1"):
        rrhf(tmp_path, completions_per_forward=-1)
    with pytest.raises(ValueError, match="`optim: lomo` changes weights in the backward pass"):
        rrhf(tmp_path, completions_per_forward=2, optim="lomo")
    with pytest.raises(ValueError, match="galore_adamw_layerwise"):
        psle(tmp_path, completions_per_forward=2, optim="galore_adamw_layerwise")


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    run = rrhf(tmp_path, completions_per_forward=2)
    run.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="DeepSpeed takes its optimizer step in the first of them"):
        check_launch(run)
