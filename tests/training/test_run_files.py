# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The metrics file over interrupted, resumed and repeated runs; a run from Python as settings of the command."""

import errno
import functools
import io
import json
import math
from dataclasses import MISSING, fields
from types import SimpleNamespace

import pytest
import torch
from conftest import letter_reward, make_model
from datasets import Dataset
from peft import IA3Config, LoraConfig
from transformers import BitsAndBytesConfig, TrainerState
from trl import ModelConfig

from trl_ext import PSLETrainer, RRHFConfig, RRHFTrainer, VASConfig, VASTrainer
from trl_ext.models.adapters import peft_config_from
from trl_ext.models.load import quantization_config_from
from trl_ext.settings_file import RunSettings
from trl_ext.training.run_files import RunFiles
from trl_ext.training.run_settings import Arguments, command_of, python_settings


class Run:
    """A trainer's logs without a trainer: `history` is that of the checkpoint that it resumes from."""

    def __init__(self, folder, files=None):
        trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(folder)), _name="RRHF", create_model_card=list)
        self.files = RunFiles(trainer)
        self.files.run_settings = lambda: SimpleNamespace(text=lambda *_: "seed: 1\n")
        self.path, self.state = folder / "metrics.jsonl", TrainerState()

    def begin(self, history=(), main=True):
        self.state = TrainerState(log_history=list(history), is_world_process_zero=main)
        self.files.on_train_begin(self.files.trainer.args, self.state, None)

    def log(self, *steps, **metrics):
        for step in steps:
            self.state.log_history.append({"loss": 1.0, "epoch": 1.0, **metrics, "step": step})
            self.files.on_log(self.files.trainer.args, self.state, None)

    def end(self):
        self.files.on_train_end(self.files.trainer.args, self.state, None)

    def steps(self):
        return [json.loads(line)["step"] for line in self.path.read_text().splitlines()]


def test_a_new_run_begins_a_new_file_and_a_resumed_one_continues_it(tmp_path):
    first = Run(tmp_path)
    first.begin()
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    first.log(1, 2, 3, 4)
    with first.path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    resumed = Run(tmp_path)
    resumed.begin(first.state.log_history[:2])
    resumed.log(3, 4)
    assert resumed.steps() == [1, 2, 3, 4]
    elsewhere = Run(tmp_path / "other")
    elsewhere.begin(first.state.log_history[:2])
    assert elsewhere.steps() == [1, 2]
    again = Run(tmp_path)
    again.begin()
    assert again.steps() == []


def test_evaluations_around_training_and_earlier_phases_stay(tmp_path):
    run = Run(tmp_path)
    run.log(0)  # `evaluate` before `train`
    run.begin()
    run.log(1)
    run.begin()  # `auto_find_batch_size` begins again
    run.log(1, 2)
    run.end()
    run.log(2)  # `evaluate` after `train`
    run.begin()
    run.log(1)
    assert run.steps() == [0, 1, 2, 2, 1]
    later = Run(tmp_path)
    later.log(9)  # `evaluate` of another process
    assert later.steps()[-2:] == [1, 9]
    later.begin()  # another run: only its own lines stay
    later.log(1)
    assert later.steps() == [9, 1]


def test_a_line_is_strict_json_with_step_and_epoch_first(tmp_path):
    run = Run(tmp_path)
    run.begin()
    run.log(1, loss=math.nan, grad_norm=math.inf)
    assert run.path.read_text() == '{"step": 1, "epoch": 1.0, "loss": null, "grad_norm": null}\n'


def test_only_the_main_process_writes(tmp_path):
    run = Run(tmp_path)
    run.begin(main=False)
    run.log(1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_training(tmp_path, caplog):
    run = Run(tmp_path)
    run.path.mkdir()
    run.log(1)


@pytest.mark.parametrize("reports", ["an error", "fewer bytes"])
def test_half_a_line_is_taken_back(reports, tmp_path, monkeypatch):
    """A full disk takes half of a line. The next line begins where that one began."""
    run = Run(tmp_path)
    run.begin()
    run.log(1)

    class Half(io.FileIO):
        def write(self, data):
            written = super().write(data[: len(data) // 2])
            if reports == "an error":
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

    with monkeypatch.context() as patch:
        patch.setattr(type(run.path), "open", lambda path, mode, buffering: Half(path, "a"))
        run.log(2)
    run.log(3)
    assert run.steps() == [1, 3]


# ------------------------------------------------------------------------------------------------- runs from Python


def arguments(trainer_class=RRHFTrainer, **kwargs):
    return Arguments(trainer_class, (), kwargs)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=["v_proj", "q_proj"], use_rslora=True),
        LoraConfig(target_modules=["q_proj"], use_dora=True, modules_to_save=["embed_tokens"]),
    ],
)
def test_the_flags_of_an_adapter_make_the_same_adapter(config):
    found = arguments(peft_config=config)
    made = peft_config_from(ModelConfig(**found.values)).to_dict()
    differing = {name for name, value in config.to_dict().items() if value != made[name]}
    assert differing <= {"task_type"} and not found.notes


def test_what_no_flag_of_an_adapter_expresses_is_noted():
    found = arguments(peft_config=LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa", bias="all"))
    assert found.notes == [
        "`peft_config` also had bias='all', init_lora_weights='pissa', for which there are no flags."
    ]
    assert "PEFT chose them" in arguments(peft_config=LoraConfig()).notes[0]
    found = arguments(peft_config=IA3Config(task_type="CAUSAL_LM"))
    assert not found.values and "IA3Config" in found.notes[0]


def test_quantization():
    config = quantization_config_from(ModelConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"))
    found = arguments(quantization_config=config)
    assert found.values == {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"} and not found.notes
    found = arguments(quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=5.0))
    assert found.values == {"load_in_8bit": True} and "llm_int8_threshold=5.0" in found.notes[0]


def test_models_rewards_and_datasets():
    rows = Dataset.from_list([{"prompt": "a", "completions": ["b"], "scores": [1.0]}])
    model = make_model(16).to(torch.bfloat16)
    model.config.name_or_path = "org/policy"
    rewards = [letter_reward, "org/reward", lambda completions, **_: completions, functools.partial(letter_reward)]
    found = arguments(
        model=model,
        ref_model="org/reference",
        train_dataset=rows,
        reward_funcs=rewards,
        callbacks=[],
        optimizers=(None, None),
    )
    assert found.values == {
        "model_name_or_path": "org/policy",
        "dtype": torch.bfloat16,
        "reward_funcs": ["conftest.letter_reward", "org/reward"],
    }
    notes = "\n".join(found.notes)
    assert "a LlamaForCausalLM in memory, loaded from org/policy" in notes and "`ref_model`" in notes
    assert "a Dataset of 1 rows (prompt, completions, scores)" in notes and "<lambda> cannot be imported" in notes
    rows.info.download_checksums = {"hf://datasets/org/data@1234/train.parquet": {"num_bytes": 3}}
    assert arguments(train_dataset=rows).values == {"dataset_name": "org/data"}
    assert arguments(PSLETrainer, sft_dataset=rows).values == {"sft_dataset_name": "org/data"}
    assert arguments(VASTrainer, value_model="org/value").values == {"value_model_name_or_path": "org/value"}
    assert arguments(RRHFTrainer, no_such_argument=1).values == arguments(model=1).values == {}


def test_the_settings_that_were_given_or_changed(tmp_path, monkeypatch):
    args = RRHFConfig(str(tmp_path), 3, bf16=False, report_to="none", hub_token="hf_secret", use_cpu=False)
    assert args.given["output_dir"] == str(tmp_path) and args.given["per_device_train_batch_size"] == 3
    args.learning_rate, args.resume_from_checkpoint = 1e-4, "checkpoint-1"
    trainer = RRHFTrainer.__new__(RRHFTrainer, "org/policy", args=args)
    trainer.args, trainer.accelerator = args, SimpleNamespace(num_processes=2)
    settings = python_settings(trainer)
    assert settings.values == {
        "model_name_or_path": "org/policy",
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-4,
        "bf16": False,
        "seed": 42,
        "num_processes": 2,
    }
    assert "hf_secret" not in settings.text("A run") and "`hub_token`" in settings.text("A run")
    assert command_of(trainer) == "trl-ext rrhf" and command_of(object()) == ""


def test_the_settings_of_a_run_are_those_of_its_command_if_one_started_it(tmp_path):
    trainer = RRHFTrainer.__new__(RRHFTrainer, "org/policy")
    trainer.args = RRHFConfig(str(tmp_path), learning_rate=1e-4, bf16=False, use_cpu=True)
    trainer.accelerator = SimpleNamespace(num_processes=1)
    files = RunFiles(trainer)
    found = files.run_settings()
    assert found.values == python_settings(trainer).values and found.values["learning_rate"] == 1e-4
    files.settings = RunSettings.of({"learning_rate": 2e-4})
    assert files.run_settings().values == {"learning_rate": 2e-4}


@pytest.mark.parametrize("parsed", [False, True])
def test_defaults_are_not_written(tmp_path, parsed):
    """A script's TrlParser passes all fields to the config, those with their defaults too."""
    trainer = VASTrainer.__new__(VASTrainer, "org/policy")
    defaults = {each.name: each.default for each in fields(VASConfig) if each.default is not MISSING and each.init}
    args = VASConfig(**(defaults if parsed else {}) | {"output_dir": str(tmp_path)})
    trainer.args, trainer.accelerator = args, SimpleNamespace(num_processes=1)
    assert list(python_settings(trainer).values) == ["model_name_or_path", "output_dir", "seed"]


def test_the_model_card_is_written_at_the_end_of_training_and_after_later_evaluations(tmp_path):
    written = []
    run = Run(tmp_path)
    run.files.trainer.create_model_card = lambda: written.append(len(written))
    args = run.files.trainer.args
    run.begin()
    run.files.on_evaluate(args, run.state, None)
    assert written == []
    run.files.on_train_end(SimpleNamespace(output_dir=str(tmp_path / "warm_up")), run.state, None)
    assert written == [], "an earlier phase has another folder"
    run.end()
    run.files.on_evaluate(args, run.state, None)
    assert written == [0, 1]
