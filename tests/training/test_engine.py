# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Training and sampling with a mock of vLLM, in one and several processes; `generation/test_vllm.py` runs vLLM."""

import json
import weakref
from types import SimpleNamespace

import numpy
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset
from vllm_mock import mock_vllm

from trl_ext import RRHFConfig, RRHFTrainer
from trl_ext.cli.sample import main
from trl_ext.data.tokenization import check_positions
from trl_ext.generation import vllm as engine_file
from trl_ext.generation.vllm import VLLM
from trl_ext.generation.vllm_settings import VLLMSettings
from trl_ext.generation_settings import GenerationSettings
from trl_ext.seeds import seeded
from trl_ext.training.engine import Engine, EngineConfig


PROMPTS = [{"prompt": f"the {word} film"} for word in ("good", "bad", "great", "dull")]


def accelerator(processes=1, kind=DistributedType.NO):
    device = SimpleNamespace(type="cpu")
    return SimpleNamespace(num_processes=processes, process_index=0, distributed_type=kind, device=device)


def test_rrhf_samples_with_vllm(tmp_path, monkeypatch):
    calls = mock_vllm(monkeypatch)
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
    assert not trainer.engine.gathers  # TRL gathers a sharded model parameter by parameter
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
    calls, tokenizer = mock_vllm(monkeypatch), make_tokenizer()
    args = EngineConfig(str(tmp_path), use_vllm=True, generation_kwargs={"presence_penalty": 0.5})
    engine = Engine(make_model(64), tokenizer, args, Accelerator())
    found = engine.generate_function(make_model(64))([[5], [6]])
    assert len(found) == 2 and calls[2][1]["presence_penalty"] == 0.5
    assert "stop_token_ids" not in calls[2][1]
    args = EngineConfig(str(tmp_path), use_vllm=True, eos_token=tokenizer.eos_token)  # vLLM reads the saved tokenizer
    Engine(make_model(64), tokenizer, args, Accelerator()).generate_function(make_model(64))([[5]])
    assert calls[-1][1]["stop_token_ids"] == [tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="`generation_kwargs` has 'presence_penalty', which `generate` does not know"):
        EngineConfig(str(tmp_path), generation_kwargs={"presence_penalty": 0.5})


def test_vllm_ends_before_the_process_group(tmp_path, monkeypatch):
    """vLLM shuts down when it is garbage-collected, and needs the process group for it, which `end` destroys."""
    mock_vllm(monkeypatch)
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
    with pytest.raises(
        RuntimeError, match="vLLM was shut down when the trainer ended"
    ):  # rather than transformers generating in its place
        trainer.engine.generate_function(trainer.model)


def test_processes_ask_a_server_for_equally_many(monkeypatch):
    """TRL distributes the completions by the number of prompts of one process."""
    calls = []

    class Generation:
        def __init__(self, **settings):
            pass

        def generate(self, prompts, images, num_generations):
            calls.append((len(prompts), num_generations))
            return prompts, [[10, 11, 1]] * len(prompts), None, None

    monkeypatch.setattr(engine_file, "vllm_generation", lambda: Generation)
    monkeypatch.setattr(engine_file, "gather_object", lambda mine: [*mine, 4])
    tokenizer = make_tokenizer()
    settings = GenerationSettings(num_generations=2)
    vllm = VLLM(make_model(64), tokenizer, settings, VLLMSettings(use_vllm=True), accelerator(2), batch_size=8)
    for prompts in ([[5], [6], [7]], []):
        found = vllm(prompts)
        assert calls.pop() == (8, 2)
        assert [len(group) for group in found] == [2] * len(prompts)


@pytest.mark.parametrize(("size", "alike"), [(1, False), (2, True)])
def test_processes_that_share_a_model_sample_alike(monkeypatch, size, alike):
    """Each holds a part of the model and must sample the same tokens, though a trainer seeds processes differently."""

    class Generation:
        def __init__(self, **settings):
            pass

        def generate(self, prompts, images, num_generations):
            by_torch = torch.randint(10, 60, (4,)).tolist()
            return prompts, [by_torch + numpy.random.randint(10, 60, 4).tolist() for _ in prompts], None, None

    monkeypatch.setattr(engine_file, "vllm_generation", lambda: Generation)
    args = VLLMSettings(use_vllm=True, vllm_tensor_parallel_size=size)
    seeds, sampled = [], []
    for rank in range(4):
        with seeded(7, 1, rank):
            seeds.append(int(torch.randint(2**31, ())))
    for rank in range(4):
        here = accelerator(4)
        here.process_index = rank
        gathered = lambda mine: [4] * 4 if mine == [4] else seeds if mine == [seeds[rank]] else None  # noqa: B023, E731
        monkeypatch.setattr(engine_file, "gather_object", gathered)
        vllm = VLLM(make_model(64), make_tokenizer(), GenerationSettings(num_generations=1), args, here, batch_size=8)
        numpy.random.seed(rank)  # as vLLM does
        with seeded(7, 1, rank):
            sampled.append([group[0].ids for group in vllm([[5]] * 4)])
    assert (sampled[0] == sampled[1], sampled[2] == sampled[3], sampled[0] == sampled[2]) == (alike, alike, False)


@pytest.mark.parametrize("name", ["n", "max_tokens", "seed", "temperature", "top_k"])
def test_vllm_is_not_given_twice_what_is_a_setting(tmp_path, monkeypatch, name):
    """With a second `n`, vLLM would return more completions, which would be assigned to the wrong prompts."""
    mock_vllm(monkeypatch)
    args = EngineConfig(str(tmp_path), use_vllm=True, generation_kwargs={name: 2})
    with pytest.raises(ValueError, match=f"must not have '{name}' with .*set `"):
        Engine(make_model(64), make_tokenizer(), args, Accelerator())
    vllm = Engine(make_model(64), make_tokenizer(), EngineConfig(str(tmp_path), use_vllm=True), Accelerator())._vllm
    vllm._engine.generation_kwargs = {"n": 2}
    with pytest.raises(RuntimeError, match="vLLM returned 16 completions, where 2 prompts ask for 4 each"):
        vllm([[5], [6]])


def test_errors_of_a_server_name_it(tmp_path, monkeypatch):
    mock_vllm(monkeypatch)
    args = EngineConfig(str(tmp_path), use_vllm=True, vllm_mode="server", vllm_server_timeout=7.0)
    vllm = Engine(make_model(64), make_tokenizer(), args, Accelerator())._vllm

    def fails(*args, **kwargs):
        raise Exception("Request failed: 400, too long")

    vllm._engine.vllm_client.generate = fails
    with pytest.raises(ConnectionError, match=r"vLLM server at http://0.0.0.0:8000: Request failed: 400, too long"):
        vllm([[5]])
    vllm._engine.vllm_client.update_named_params = fails
    with pytest.raises(ConnectionError, match="Request failed"):
        vllm.sync_weights()
    vllm._engine.vllm_client.update_named_params = lambda *_: int(None)  # a bug is not an error of the server
    with pytest.raises(TypeError, match="NoneType"):
        vllm.sync_weights()


def test_vllm_on_a_cpu_refuses_weights(tmp_path, monkeypatch):
    mock_vllm(monkeypatch)
    engine = Engine(make_model(64), make_tokenizer(), EngineConfig(str(tmp_path), use_vllm=True), Accelerator())

    def packed():
        raise AttributeError("'Parameter' object has no attribute 'weight_loader'")

    monkeypatch.setattr(engine._vllm._engine, "sync_weights", packed)
    with pytest.raises(OSError, match=r"vLLM did not accept the weights .*weight_loader.* on a GPU"):
        engine.generate_function(make_model(64))


@pytest.mark.parametrize(
    ("is_there", "message"), [(False, "is not installed"), (True, "cannot be used: no libcudart")]
)
def test_the_error_where_vllm_does_not_import(tmp_path, monkeypatch, is_there, message):
    def missing():
        raise ImportError("no libcudart")

    monkeypatch.setattr(engine_file, "vllm_generation", missing)
    monkeypatch.setattr(engine_file, "find_spec", lambda name: object() if is_there else None)
    with pytest.raises(ImportError, match=message):
        Engine(make_model(64), make_tokenizer(), EngineConfig(str(tmp_path), use_vllm=True), Accelerator())


def test_rows_longer_than_the_context_of_vllm_are_refused(tmp_path, monkeypatch):
    """Rows that are too long are an error before training, rather than an error of vLLM during it."""
    mock_vllm(monkeypatch)
    tokenizer = make_tokenizer()
    settings = {"num_generations": 2, "resample_steps": 1, "max_completion_length": 8, "report_to": []}
    for context, words in ((12, "`vllm_max_model_length` is 12"), (64, None)):
        args = RRHFConfig(str(tmp_path), use_vllm=True, vllm_max_model_length=context, **settings)
        data = Dataset.from_list([{"prompt": "the good film " * 4}])
        call = lambda: RRHFTrainer(  # noqa: E731
            make_model(len(tokenizer)), args=args, train_dataset=data, processing_class=tokenizer,  # noqa: B023
            reward_funcs=letter_reward,
        )  # fmt: skip
        if words:
            with pytest.raises(ValueError, match=words):
                call()
        else:
            call()
    rows = [{"row_index": 0, "prompt_ids": [5] * 4, "completion_ids": [[6] * 44]}]  # its own, which vLLM does not see
    checked = check_positions(Dataset.from_list(rows), 64, name="train", max_new_tokens=4, generation_context=16)
    assert len(checked) == 1
    assert VLLMSettings(use_vllm=True, vllm_max_model_length=12).vllm_context(0) == 12
    assert VLLMSettings(use_vllm=False, vllm_max_model_length=12).vllm_context(20) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"vllm_tensor_parallel_size": 0},
        {"vllm_max_model_length": -1},
        {"vllm_gpu_memory_utilization": 3.0},
        {"vllm_server_timeout": -1.0},
        {"vllm_server_port": 99999},
        {"vllm_group_port": 0},
        {"vllm_server_host": "http://there"},
        {"vllm_server_base_url": "localhost:8000"},
        {"vllm_server_base_url": "http://"},
    ],
)
def test_numbers_out_of_their_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must "):
        EngineConfig(str(tmp_path), **wrong)


def test_sample_with_vllm(tmp_path, monkeypatch, tiny_model_dir):
    calls = mock_vllm(monkeypatch)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    command = ["--model_name_or_path", tiny_model_dir, "--dataset_name", str(tmp_path / "prompts.jsonl")]
    command += ["--num_generations", "2", "--max_completion_length", "5", "--use_vllm"]

    def sample(name, *more):
        out = tmp_path / f"{name}.jsonl"
        assert main([*command, "--output_file", str(out), *more]) == 0
        return [json.loads(line)["completions"] for line in out.read_text().splitlines()]

    texts = sample("out", "--vllm_gpu_memory_utilization", "0.5")
    assert (calls[0]["model"], calls[0]["gpu_memory_utilization"]) == (tiny_model_dir, 0.5)
    assert [call[0] for call in calls[1:]] == [8]  # and no weights are sent: vLLM loaded them
    assert [len(group) for group in texts] == [2] * 4
    torch.manual_seed(5)  # the seed alone decides
    numpy.random.seed(5)
    assert sample("again") == texts != sample("other", "--seed", "1")
    # The memory that vLLM may take can change while a file is written.
    assert main([*command, "--output_file", str(tmp_path / "out.jsonl")]) == 0


def test_sample_refuses_what_vllm_cannot_do(tmp_path, monkeypatch, tiny_model_dir):
    mock_vllm(monkeypatch)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    command = ["--dataset_name", str(tmp_path / "prompts.jsonl"), "--max_completion_length", "5"]
    command += ["--output_file", str(tmp_path / "out.jsonl")]
    this = ["--model_name_or_path", tiny_model_dir]
    for wrong, message in (
        (["--load_in_4bit"], "load_in_4bit is not for --use_vllm"),
        (["--num_beams", "4"], "no beam search"),
        (["--cuda_graphs", "always"], "`cuda_graphs` is for generation with transformers"),
        (["--vllm_enable_sleep_mode"], "vllm_enable_sleep_mode is for training"),
        (["--vllm_tensor_parallel_size", "2"], "trl-ext sample is one"),
        (["--use_vllm", "false", "--vllm_mode", "server"], "`vllm_mode` has no effect without `use_vllm`"),
    ):
        with pytest.raises((ValueError, SystemExit), match=message):
            main([*command, *this, "--use_vllm", *wrong])
    with pytest.raises(OSError, match="nowhere"):
        main([*command, "--model_name_or_path", "./nowhere", "--use_vllm"])
    with pytest.raises(ValueError, match=r"leaves no tokens for a prompt: vllm_max_model_length is 5\."):
        main([*command, *this, "--use_vllm", "--vllm_max_model_length", "5"])
    for context, rows in ((6, 0), (64, 4)):
        done = [*command[:-1], str(tmp_path / f"{context}.jsonl"), *this, "--use_vllm"]
        done += ["--vllm_max_model_length", str(context)]
        if rows:
            assert main(done) == 0
        else:
            with pytest.raises(ValueError, match="4 prompts too long for the model with max_completion_length"):
                main(done)


def test_settings_that_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        EngineConfig(str(tmp_path), use_vllm=True, use_transformers_continuous_batching=True)
    with pytest.raises(ValueError, match="`vllm_mode` must be one of colocate, server"):
        EngineConfig(str(tmp_path), vllm_mode="cloud")
    args = EngineConfig(str(tmp_path), use_transformers_continuous_batching=True)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with pytest.raises(ValueError, match="does not support models that DeepSpeed or FSDP has sharded"):
            Engine(make_model(64), make_tokenizer(), args, accelerator(2, kind))
