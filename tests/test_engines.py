# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""vLLM as `trl-ext sample` and several processes use it, with a stand-in: vLLM itself has not been run."""

import json
import weakref
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from vllm_stand_in import use_stand_in

from trl_ext import RRHFConfig, RRHFTrainer
from trl_ext import engines as engines_file
from trl_ext.cli_sample import main
from trl_ext.engines import VLLM, Engine, EngineConfig
from trl_ext.generation_settings import GenerationSettings
from trl_ext.vllm_settings import VLLMSettings


PROMPTS = [{"prompt": f"the {word} film"} for word in ("good", "bad", "great", "dull")]


def accelerator(processes=1, kind=DistributedType.NO):
    return SimpleNamespace(num_processes=processes, distributed_type=kind, device=SimpleNamespace(type="cpu"))


def test_rrhf_samples_with_vllm(tmp_path, monkeypatch):
    calls = use_stand_in(monkeypatch)
    tokenizer = make_tokenizer()
    settings = {"num_generations": 3, "resample_steps": 1, "per_device_train_batch_size": 2, "report_to": []}
    args = RRHFConfig(str(tmp_path), use_vllm=True, vllm_mode="server", vllm_server_port=8001, top_p=0.9, **settings)
    trainer = RRHFTrainer(
        make_model(len(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=tokenizer,
        reward_funcs=letter_reward,
    )
    assert not trainer.engine.gathers  # it is sent a model in pieces piece by piece
    trainer.args.max_steps = 2
    trainer.train()
    assert calls[0]["base_url"] == "http://0.0.0.0:8001"
    assert [call if call == "sync" else (call[0], call[1]["n"]) for call in calls[2:]] == ["sync", (2, 3)] * 2
    assert calls[1] == "group" and calls[3][1]["top_p"] == 0.9
    args.resample_steps = 0
    with pytest.raises(ValueError, match="`use_vllm` needs `reward_funcs`"):
        RRHFTrainer(
            make_model(len(tokenizer)),
            args=args,
            train_dataset=Dataset.from_list(PROMPTS),
            processing_class=tokenizer,
        )


def test_vllm_has_settings_of_its_own(tmp_path, monkeypatch):
    calls, tokenizer = use_stand_in(monkeypatch), make_tokenizer()
    args = EngineConfig(str(tmp_path), use_vllm=True, generation_kwargs={"presence_penalty": 0.5})
    engine = Engine(make_model(64), tokenizer, args, Accelerator())
    found = engine.drawer(make_model(64))([[5], [6]])
    assert len(found) == 2 and calls[2][1]["presence_penalty"] == 0.5
    with pytest.raises(ValueError, match="`generation_kwargs` has 'presence_penalty', which `generate` does not know"):
        EngineConfig(str(tmp_path), generation_kwargs={"presence_penalty": 0.5})


def test_vllm_ends_before_the_process_group(tmp_path, monkeypatch):
    """Its shutdown, which its collection starts, needs the group that `end` destroys."""
    use_stand_in(monkeypatch)
    tokenizer = make_tokenizer()
    trainer = RRHFTrainer(
        make_model(len(tokenizer)),
        args=RRHFConfig(str(tmp_path), use_vllm=True, num_generations=2, resample_steps=1, report_to=[]),
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=tokenizer,
        reward_funcs=letter_reward,
    )
    left, alive = weakref.ref(trainer.engine._vllm._engine.llm), []
    monkeypatch.setattr(trainer.accelerator, "end_training", lambda: alive.append(left() is not None))
    trainer.end()
    assert alive == [False]


def test_processes_ask_a_server_for_equally_many(monkeypatch):
    """TRL's client deals the answers out by the number of prompts of one process."""
    calls = []

    class Generation:
        def __init__(self, **settings):
            pass

        def generate(self, prompts, images, num_generations):
            calls.append((len(prompts), num_generations))
            return prompts, [[10, 11, 1]] * len(prompts), None, None

    monkeypatch.setattr(engines_file, "vllm_generation", lambda **_: Generation)
    monkeypatch.setattr(engines_file, "gather_object", lambda mine: [*mine, 4])
    tokenizer = make_tokenizer()
    settings = GenerationSettings(num_generations=2)
    draw = VLLM(make_model(64), tokenizer, settings, VLLMSettings(use_vllm=True), accelerator(2), batch_size=8)
    for prompts in ([[5], [6], [7]], []):
        found = draw(prompts)
        assert calls.pop() == (8, 2)
        assert [len(group) for group in found] == [2] * len(prompts)


def test_sample_with_vllm(tmp_path, monkeypatch, tiny_model_dir):
    calls = use_stand_in(monkeypatch)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    command = ["--model_name_or_path", tiny_model_dir, "--dataset_name", str(tmp_path / "prompts.jsonl")]
    command += ["--num_generations", "2", "--max_completion_length", "5", "--use_vllm"]
    assert main([*command, "--output_file", str(tmp_path / "out.jsonl"), "--vllm_gpu_memory_utilization", "0.5"]) == 0
    assert (calls[0]["model"], calls[0]["gpu_memory_utilization"]) == (tiny_model_dir, 0.5)
    assert [call[0] for call in calls[1:]] == [8]  # and no weights are sent: vLLM loaded them
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["completions"]) for row in rows] == [2] * 4
    calls.clear()
    server = ["--vllm_mode", "server", "--vllm_server_base_url", "http://there:8000"]
    assert main([*command, "--output_file", str(tmp_path / "served.jsonl"), *server]) == 0
    assert calls[0]["base_url"] == "http://there:8000"
    assert [(call if isinstance(call, str) else call[0]) for call in calls[1:]] == [4]  # no group for sending weights
    for wrong, message in (
        (["--load_in_4bit"], "load_in_4bit is not for --use_vllm"),
        (["--num_beams", "2"], "no beam search"),
        (["--vllm_enable_sleep_mode"], "vllm_enable_sleep_mode is for training"),
        (["--vllm_mode", "cloud"], "vllm_mode"),
    ):
        with pytest.raises((ValueError, SystemExit), match=None if wrong[0] == "--vllm_mode" else message):
            main([*command, "--output_file", str(tmp_path / "other.jsonl"), *wrong])


def test_settings_that_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        EngineConfig(str(tmp_path), use_vllm=True, use_transformers_continuous_batching=True)
    with pytest.raises(ValueError, match="`vllm_mode` must be one of colocate, server"):
        EngineConfig(str(tmp_path), vllm_mode="cloud")
    args = EngineConfig(str(tmp_path), use_transformers_continuous_batching=True)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with pytest.raises(ValueError, match="not for models that DeepSpeed or FSDP have in pieces"):
            Engine(make_model(64), make_tokenizer(), args, accelerator(2, kind))
