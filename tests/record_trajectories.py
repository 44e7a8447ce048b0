# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Records the numbers of short trainings and guided decodings, which tests/test_trajectories.py compares.

    python tests/record_trajectories.py                                    # all, into a file of tests/trajectories/
    python tests/record_trajectories.py /tmp/before.json --runs vas psle   # two of them, elsewhere

There is a file for each kind of processor and minor version of torch, which decide about the last bits of a number.

Everything runs on the CPU in float32, in one process and one thread, from fixed seeds. Of a training the file holds
every number that the trainer logs (times aside), among them the loss and gradient norm of each step, and of the
trained weights a digest of their bytes, the norm, and the norm of their change. Of a decoding it holds token ids and
log-probabilities.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import QUICKSTART, REPOSITORY, make_model, make_tokenizer  # before torch: it sets the environment


# isort: split
import torch
import transformers
from safetensors.torch import load_file
from tiny_trainers import OPENINGS, SCORED, make_trainer

# Public names alone, so that no move of a file inside the package touches this one.
from trl_ext import GenerationSettings, ProxyConfig, ProxyModel, ValueModel, discover


FOLDER = REPOSITORY / "tests" / "trajectories"
TIMES = re.compile(r"seconds/|.*(_runtime|_per_second)$")  # names of logged numbers that are no two times the same


def provenance() -> dict[str, str]:
    """The kind of processor and the version of torch, which decide about the last bits of a number; transformers'."""
    return {
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def record_file(made_with: dict[str, str]) -> Path:
    """The file for a kind of processor and a minor version of torch."""
    version = ".".join(made_with["torch"].split(".")[:2])
    processor = re.sub(r"[^A-Za-z0-9]+", "-", made_with["processor"]).strip("-")
    return FOLDER / f"{processor}-torch-{version}.json"


def _processor() -> str:
    """Vendor, family and model of the processor. The name that it is sold under can differ between equal ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    names = ("vendor_id", "cpu family", "model")
    if not all(name in found for name in names):  # not x86
        return platform.machine()
    return "{} family {} model {}".format(*(found[name] for name in names))


# ---------------------------------------------------------------------------------------------------------- trainings


def logged(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log of a training without times."""
    return [{name: value for name, value in row.items() if not TIMES.match(name)} for row in history]


def summary(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The weights after a training: digest of their bytes, norm, and norm of the change."""
    digest, norm, change = hashlib.sha256(), 0.0, 0.0
    for name in sorted(after):
        tensor = after[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
        norm += tensor.double().square().sum().item()
        change += (tensor.double() - before[name].double()).square().sum().item()
    return {"sha256": digest.hexdigest(), "norm": norm**0.5, "change": change**0.5}


def training(method: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Eight steps of a method on the tiny models of tests/tiny_trainers.py."""
    transformers.set_seed(0)
    trainer = make_trainer(method, folder, max_steps=8, use_cpu=True, bf16=False, **settings)
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    trainer.train()
    return {"log": logged(trainer.state.log_history), "weights": summary(before, trained)}


def quickstart(folder: Path, *flags: str) -> dict[str, Any]:
    """The quickstart of RRHF by its command, as a user runs it, with further flags."""
    recipe, output = QUICKSTART / "rrhf.yaml", folder / "output"
    # A folder of checkpoints is where the command leaves the trainer's log.
    keep = ["--save_strategy", "steps", "--save_steps", "1000000", "--disable_tqdm", "true"]
    processor = ["--use_cpu", "true", "--bf16", "false"]
    (folder / "recipes").symlink_to(QUICKSTART.parent)
    words = ["rrhf", "--config", str(recipe), "--output_dir", str(output), *keep, *processor, *flags]
    done = subprocess.run(
        [sys.executable, "-m", "trl_ext", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"The quickstart failed:\n{done.stderr[-3000:]}")
    [state] = output.glob("checkpoint-*/trainer_state.json")
    before = load_file(QUICKSTART / "models" / "imdb-2m" / "model.safetensors")
    after = load_file(output / "model.safetensors")
    return {"log": logged(json.loads(state.read_text())["log_history"]), "weights": summary(before, after)}


# ---------------------------------------------------------------------------------------------------------- decodings


def decoding(trained: str, folder: Path, cuda_graphs: str) -> dict[str, Any]:
    """
    Completions of a few prompts by a frozen model under guidance, both with random weights.

    Args:
        trained (`str`): The method: `"vas"` or `"proxy_rlhf"`.
        folder (`Path`): Where the value model or proxy is saved, from where it is loaded as the command does.
        cuda_graphs (`str`): `"never"` for the ordinary loop, `"always"` for the loop over a static KV cache (which a
            CPU runs without recording a graph).
    """
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    transformers.set_seed(0)
    guide: Any
    if trained == "vas":
        guide = ValueModel.from_backbone(make_model(len(tokenizer), seed=1))
        torch.nn.init.normal_(guide.head.weight, std=0.3)
        fields: dict[str, Any] = {"value_model_name_or_path": [str(folder)], "beta": ["2"], "guide_top_k": 6}
    else:
        guide = ProxyModel(ProxyConfig(llm_hidden_size=64, layer_sizes=[16], process={"top_k": 6}))
        torch.nn.init.normal_(guide.actor[-1].weight)
        fields = {"proxy_name_or_path": [str(folder)]}
    guide.save_pretrained(folder)
    made: Any = discover().methods[trained].method.decoding_class()
    [policy] = made(**fields).policies(model, tokenizer, name="model", batch_size=8)
    prompts = [tokenizer(text)["input_ids"] for text in OPENINGS[:4]]
    settings = GenerationSettings(num_generations=2, max_completion_length=12, cuda_graphs=cuda_graphs)
    transformers.set_seed(0)
    completions = [[list(completion.ids) for completion in group] for group in policy.generate(prompts, settings)]
    logps = policy.logps(prompts, completions)
    return {"ids": completions, "logps": [[row.tolist() for row in group] for group in logps]}


# --------------------------------------------------------------------------------------------------------------- runs


OFFLINE = {"rows": SCORED, "reward_funcs": None, "resample_steps": 0}
SHORT = ["--num_train_epochs", "1", "--resample_epochs", "0", "--resample_steps", "1", "--max_steps", "3"]
SHORT += ["--logging_steps", "1", "--max_completion_length", "16", "--eval_strategy", "no", "--eval_on_start", "false"]

RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "rrhf_offline": lambda folder: training("rrhf", folder, **OFFLINE),
    "rrhf_online": lambda folder: training("rrhf", folder, resample_steps=2),
    "psle": lambda folder: training("psle", folder, resample_steps=2),
    "vas": lambda folder: training("vas", folder, resample_steps=2),
    "proxy_rlhf": lambda folder: training("proxy_rlhf", folder, num_ppo_epochs=2, num_mini_batches=2),
    "vas_decoding": lambda folder: decoding("vas", folder, "never"),
    "vas_decoding_static": lambda folder: decoding("vas", folder, "always"),
    "proxy_rlhf_decoding": lambda folder: decoding("proxy_rlhf", folder, "never"),
    "proxy_rlhf_decoding_static": lambda folder: decoding("proxy_rlhf", folder, "always"),
    "quickstart": lambda folder: quickstart(folder, *SHORT),
    "quickstart_whole": quickstart,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = record_file(provenance())
    parser.add_argument("output", nargs="?", type=Path, default=here, help=f"The file to write; by default {here}.")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="By default all.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"made_with": provenance(), "runs": {}}
    for name in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            found["runs"][name] = RUNS[name](Path(folder))
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
