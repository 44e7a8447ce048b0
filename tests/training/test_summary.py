# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The summary before the first step: what it counts is what the run does."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer
from tiny_trainers import METHODS, PROMPTS, make_trainer
from transformers import AutoConfig, AutoModelForCausalLM

from trl_ext import RRHFConfig
from trl_ext.memory.estimate import estimate_memory
from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.properties import parameter_count
from trl_ext.training import summary
from trl_ext.training.summary import describe_model, describe_trained, number, summary_text


# Besides rounds by steps: one round for all epochs, a round an epoch, and Proxy-RLHF's rounds of several updates,
# which are filled up. RRHF's four steps have 3, 3, 2 and again 3 of the 8 prompts.
OTHER_ROUNDS = {
    "rrhf": {"resample_steps": 0, "resample_epochs": 1, "num_train_epochs": 2},
    "vas": {"resample_steps": 0, "num_train_epochs": 2},
    "psle": {"resample_steps": 0, "num_iterations": 2},
    "proxy_rlhf": {"num_ppo_epochs": 2, "num_mini_batches": 2, "max_steps": 16, "per_device_train_batch_size": 3},
}


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_summary_counts_the_completions_that_are_sampled(method, other, tmp_path, capsys, monkeypatch):
    by_steps = {"max_steps": 4, "per_device_train_batch_size": 3}
    run = make_trainer(method, tmp_path, **(OTHER_ROUNDS[method] if other else by_steps))
    rounds, real = [], run._log_round
    monkeypatch.setattr(run, "_log_round", lambda sampled, mode: rounds.append(sampled) or real(sampled, mode))
    run.train()
    printed = capsys.readouterr().out
    summary = printed[: printed.index("{")] if "{" in printed else printed
    assert summary.startswith(f"{run._name} training\n  model ")
    *lines, files = summary.splitlines()  # a path is never broken
    assert max(map(len, lines)) <= 80 and len(lines) <= 13 and str(tmp_path) in files
    [(completions, number_of_rounds)] = re.findall(r"([\d,]+) completions of at\s+most 6 tokens in (\d+)", summary)
    assert int(completions) == sum(sum(sampled.is_sampled) for sampled in rounds)
    assert int(number_of_rounds) == len(rounds)
    assert f"{run.state.max_steps} steps" in summary and "8 rows read as `prompt_only`" in summary
    assert re.search(r"memory +(under )?0\.\d+ GiB \(counted, not measured\)", summary)
    assert "letter_reward" in summary and str(tmp_path) in summary.replace("\n", "")


# Method, its settings, and what the estimate is passed for rows of two and three completions, the longest of four
# tokens and an end: (tokens of a completion, completions of a prompt). 0: as the config generates them.
COUNTED = {
    "a dataset": ("rrhf", {"reward_funcs": None, "resample_steps": 0}, (5, 3)),
    "a dataset of values": ("vas", {"reward_funcs": None, "resample_steps": 0}, (5, 3)),
    "generated instead": ("rrhf", {"resample_steps": 1}, (0, 0)),
    "generated beside": ("rrhf", {"resample_steps": 1, "keep_dataset_completions": True}, (0, 3 + 2)),
    "generated later": ("vas", {"resample_steps": 0, "num_iterations": 3, "num_train_epochs": 3}, (0, 3 + 2 * 2)),
    "generated in turn": (
        "vas",
        {"resample_steps": 0, "num_iterations": 3, "num_train_epochs": 3, "keep_samples": False},
        (0, 3),
    ),
}


@pytest.mark.parametrize(("method", "settings", "counted"), COUNTED.values(), ids=COUNTED)
def test_memory_is_estimated_for_the_completions_of_a_step(method, settings, counted, tmp_path, monkeypatch):
    rows = [
        {"prompt": "the film", "completions": [" was good", " bad"], "scores": [1.0, 0.0]},
        {"prompt": "a", "completions": [" was", " was not so good", " is on"], "scores": [2.0, 1.0, 0.0]},
    ]
    run = make_trainer(method, tmp_path, rows, **settings)
    passed = {}
    monkeypatch.setattr(
        summary, "estimate_memory", lambda *args, **kw: passed.update(kw) or estimate_memory(*args, **kw)
    )
    assert "GiB" in summary.describe_memory(run)
    assert (passed["completion"], passed["completions"]) == counted
    assert passed["prompt"] == 2


def test_rows_that_were_dropped_need_no_memory(tmp_path, monkeypatch):
    """A filtered dataset keeps the table with all rows, and a list of those that are left."""
    monkeypatch.setattr(summary, "_ROWS_AT_ONCE", 1)
    rows = [
        {"prompt": "the film", "completions": [" was good", " bad", " on"], "scores": [1.0, 0.0, 0.5]},
        {"prompt": "a " * 40, "completions": [" was"] * 9, "scores": [1.0] * 9},  # its prompt fills max_length
        {"prompt": "a", "completions": [" was not so good", " bad"], "scores": [1.0, 0.0]},
    ]
    run = make_trainer("rrhf", tmp_path, rows, reward_funcs=None, resample_steps=0, max_length=12)
    assert len(run.train_dataset) == 2
    assert summary._longest_row(run.train_dataset) == (2, 5, 3)  # two words; four words and an end; three completions


def test_ten_completions_need_more_than_the_four_of_the_config():
    args = RRHFConfig(output_dir="out", num_generations=4)
    model = make_model(len(make_tokenizer()))
    of_four, of_ten = (estimate_memory(model, args, generates=False, completions=k) for k in (0, 10))
    assert of_ten.total_gib > of_four.total_gib
    ten = RRHFConfig(output_dir="out", num_generations=10)
    assert of_ten == estimate_memory(model, ten, generates=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chat", [False, True])
def test_text_for_a_chat_model_is_said_to_be_text(method, chat, tmp_path):
    note = "text without the chat template"
    assert (note in summary._without_template(make_trainer(method, tmp_path, chat=chat))) is chat
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS]
    if chat:
        assert not summary._without_template(make_trainer(method, tmp_path, rows, chat=True))


def test_the_note_on_text_is_printed(tmp_path, capsys):
    make_trainer("rrhf", tmp_path, chat=True, max_steps=1).train()
    printed = " ".join(capsys.readouterr().out.split())
    assert "read as `prompt_only` (columns prompt), text without the chat template" in printed


def test_one_step_is_no_steps(tmp_path, capsys):
    make_trainer("rrhf", tmp_path, max_steps=1).train()
    assert " 1 step in 1 epoch;" in capsys.readouterr().out


def test_no_summary_if_it_is_switched_off(tmp_path, capsys):
    run = make_trainer("rrhf", tmp_path, max_steps=1, print_summary=False)
    run.train()
    assert "RRHF training" not in capsys.readouterr().out


def test_lines_are_wrapped_and_empty_ones_left_out():
    text = summary_text("RRHF training", {"files": "out", "model": "word " * 20, "memory": ""})
    assert text.splitlines() == [
        "RRHF training",
        "  model        " + " ".join(["word"] * 13),
        "               " + " ".join(["word"] * 7),
        "  files        out",
    ]


def test_what_is_trained_of_a_model():
    """LoRA of rank 4 on two 64 x 64 matrices in each of two layers: 2 x 2 x 2 x 4 x 64 parameters."""
    from peft import LoraConfig, get_peft_model

    model = make_model(len(make_tokenizer()))
    total = parameter_count(model)
    assert describe_trained(model) == f"all {number(total)} parameters"
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert describe_trained(model).startswith(number(model.lm_head.weight.numel()))
    adapter = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    assert parameter_count(adapter, trainable=True) == 2 * 2 * 2 * 4 * 64
    assert describe_trained(adapter).startswith("LoRA adapter of rank 4 on o_proj, q_proj: 2.05k parameters (")
    everywhere = wrap_with_peft(make_model(64), LoraConfig(r=4, target_modules="all-linear"))
    assert len(everywhere.active_peft_config.target_modules) == 14  # of both blocks
    assert describe_trained(everywhere).startswith("LoRA adapter of rank 4 on 7 layers of each block: ")
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=64)
    mamba = wrap_with_peft(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
    assert describe_trained(mamba).startswith("LoRA adapter of rank 4 on dt_proj, in_proj, x_proj: ")
    args = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"), world_size=1)
    described = describe_model(adapter, "a-model", SimpleNamespace(args=args))
    assert described == f"a-model (LlamaForCausalLM), {number(total)} parameters, float32 on cpu"


def test_packed_and_partitioned_weights_count_as_what_they_stand_for():
    """As bitsandbytes packs two weights of 4 bits into a byte, and ZeRO-3 leaves nothing on a process."""
    model = torch.nn.Linear(12, 1, bias=False)
    model.weight.quant_state = SimpleNamespace(shape=(4, 6))
    assert parameter_count(model) == 24
    model.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    model.weight.ds_numel = 100
    assert (parameter_count(model), parameter_count(model, trainable=True)) == (100, 0)


@pytest.mark.parametrize("value, text", [(7, "7"), (33_800, "33.8k"), (134_515_008, "135M"), (8_030_261_248, "8.03B")])
def test_numbers_of_parameters(value, text):
    assert number(value) == text
