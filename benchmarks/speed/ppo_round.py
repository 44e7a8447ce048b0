# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds and memory of a round of Proxy-RLHF, against TRL's PPO as TRL last had it.

    python -m benchmarks.run ppo_round [--cases TEXT ...] [--rounds N] [--batches N] [--output FOLDER]

A round generates a response to each prompt, scores it, and learns from it in 4 epochs of 4 minibatches. TRL's PPO
needs an environment of its own (ppo_environment.py), so the variants are processes, which take turns; the first round
of each is not timed.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.harness import ppo_environment
from benchmarks.harness.models import MODELS, SHAPES
from benchmarks.harness.ppo_environment import PPO
from benchmarks.harness.process import run, trainable_parameters
from benchmarks.harness.suite import TimedSuite
from benchmarks.harness.tables import Column, Table, ratio_column, seconds_column, sections
from benchmarks.harness.text import pieces
from benchmarks.harness.timing import CLOCKS, all_pairs, clock_of, pair_ratios, spreads


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (TRL, OURS) = (PPO, "Proxy-RLHF")
# Of both: as in the suite `quality`, in float32.
COMMON: dict[str, Any] = {
    "num_ppo_epochs": 4,
    "num_mini_batches": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": False,
}


@dataclass(frozen=True)
class Case:
    """
    Models and a round.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`]: policy, reward model and TRL's value model.
        responses (`int`): One to each prompt.
        prompt, new (`int`): Tokens of each prompt and response.
    """

    model: str
    responses: int = 64
    prompt: int = 24
    new: int = 48
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.device}/{self.model}/n{self.responses}-p{self.prompt}-t{self.new}"


CASES = [Case("imdb-2m"), Case("imdb-7m")]


def write_models(case: Case, folder: Path, seed: int) -> tuple[str, str]:
    """Directories of a policy and a reward model: those of the repository where it has them, else random weights."""
    if SHAPES[case.model].weights is not None:
        return str(SHAPES[case.model].weights), f"{SHAPES[case.model].weights}-reward"
    shape, paths = SHAPES[case.model], (folder / "policy", folder / "reward")
    config = AutoConfig.from_pretrained(MODELS / "imdb-2m")  # its special tokens, as its tokenizer is used
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name in sizes:
        setattr(config, name, getattr(shape, name))
    config.head_dim, config.num_labels = shape.hidden_size // shape.num_attention_heads, 1
    torch.manual_seed(seed)
    for kind, path in zip((AutoModelForCausalLM, AutoModelForSequenceClassification), paths, strict=True):
        kind.from_config(config, dtype=torch.float32).save_pretrained(path)
        AutoTokenizer.from_pretrained(MODELS / "imdb-2m").save_pretrained(path)
    return str(paths[0]), str(paths[1])


def write_prompts(case: Case, file: Path) -> None:
    """Prompts of exactly as many tokens: pieces of the training prompts, one after the other."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "imdb-2m")
    texts = list(islice(pieces(tokenizer, case.prompt), case.responses))
    if len(texts) < case.responses:
        raise ValueError(f"{case.name}: there is text for {len(texts)} prompts of {case.prompt} tokens only.")
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")


def config_of(
    variant: str, case: Case, folder: Path, models: tuple[str, str], rounds: int, seed: int
) -> dict[str, Any]:
    """What a process of a variant is to do: a round that is not timed, and `rounds` that are."""
    found = {
        **COMMON,
        "model_name_or_path": models[0],
        "reward_model_name_or_path": models[1],
        "dataset_name": str(folder / "prompts.jsonl"),
        "output_dir": str(folder / "trained"),
        "rounds_file": str(folder / "rounds.json"),
        "per_device_train_batch_size": case.responses,
        "max_completion_length": case.new,
        "seed": seed,
    }
    if variant == TRL:
        episodes = case.responses * (rounds + 1)
        return found | {"total_episodes": episodes, "temperature": 1.0, "num_sample_generations": 0}
    steps = COMMON["num_ppo_epochs"] * COMMON["num_mini_batches"] * (rounds + 1)
    return found | {"max_steps": steps, "top_k": 20, "order": "sampled", "proxy_layer_sizes": [128]}


def run_variant(variant: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a process; returns what [`~benchmarks.harness.round_clock.RoundClock`] wrote."""
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    modules = {TRL: "benchmarks.harness.ppo_driver", OURS: "benchmarks.speed.proxy_round"}
    python = ppo_environment.python() if variant == TRL else sys.executable
    run(["-m", modules[variant], str(file)], folder / "log", python, keep=True)
    found: dict[str, Any] = json.loads(Path(config["rounds_file"]).read_text(encoding="utf-8"))
    return found


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file: `batches` processes of each variant in turns, with `rounds` timed rounds each."""
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in ORDER}
    memory: dict[str, dict[str, int]] = {name: {"resident": 0, "process": 0} for name in ORDER}
    trained: dict[str, int | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_models(case, folder, seed)
        write_prompts(case, folder / "prompts.jsonl")
        for batch in range(batches):
            for variant in ORDER if batch % 2 == 0 else ORDER[::-1]:
                found = run_variant(variant, config_of(variant, case, folder, models, rounds, seed + batch), folder)
                for clock in CLOCKS:
                    seconds[variant][clock] += found[clock][1:]
                grown = {"resident": found["peak"] - found["before"], "process": found["peak"]}
                memory[variant] = {key: max(memory[variant][key], value) for key, value in grown.items()}
                trained[variant] = trainable_parameters(folder / "trained")
                for file in (folder / "trained").glob("*.safetensors"):
                    file.unlink()
    clock = clock_of(torch.device(case.device))
    return {
        "ratios": pair_ratios(seconds, all_pairs(ORDER), clock),
        "name": case.name,
        "settings": {
            **asdict(case),
            "clock": clock,
            "dtype": "float32",
            "weights": SHAPES[case.model].weights_name,
            "trained": trained,
            "trl": {TRL: ppo_environment.VERSION},
        },
        "variants": {name: {"seconds": spreads(seconds[name]), "memory": memory[name]} for name in ORDER},
    }


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much faster and smaller a round of ours is, and seconds and memory."""
    ratios = [
        ratio_column(f"{OURS}: times faster than {TRL}", f"{TRL} / {OURS}"),
        Column("memory: times less", _less_memory),
        Column("trained parameters: ours, TRL's", _trained),
    ]
    absolute = []
    for name in ORDER:
        absolute.append(seconds_column(name))
        absolute.append(Column(f"{name}: memory above the models", partial(_mebibytes, name)))
    found = [
        Table("round", _label, ratios),
        Table("round", _label, absolute, "Seconds of a round, and memory", measured_only=True),
    ]
    return sections(results, CASES, {"cpu": "CPU, float32"}, found)


def _less_memory(case: Case, measured: dict[str, Any]) -> str:
    trl, ours = (measured["variants"][name]["memory"]["resident"] for name in ORDER)
    return f"**{trl / ours:.1f}**"


def _trained(case: Case, measured: dict[str, Any]) -> str:
    return " and ".join(f"{measured['settings']['trained'][name]:,}" for name in (OURS, TRL))


def _mebibytes(name: str, case: Case, measured: dict[str, Any]) -> str:
    return f"{measured['variants'][name]['memory']['resident'] >> 20:,} MiB"


def _label(case: Case) -> str:
    return f"{case.model}: {case.responses} × (prompt {case.prompt}, {case.new} tokens)"


class PPOSuite(TimedSuite):
    """A suite that measures nothing where there is no environment for TRL's PPO."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        asked = list(sys.argv[1:] if argv is None else argv)
        if not {"-h", "--help"} & set(asked):
            try:
                ppo_environment.python()
            except ppo_environment.Unavailable as reason:
                print(f"skipped. {reason}", file=sys.stderr)
                return 0
        return super().main(asked)


SUITE = PPOSuite(
    "ppo_round",
    "Seconds and memory of a round of Proxy-RLHF, against TRL's PPO as TRL last had it.",
    CASES,
    measure,
    tables,
)
