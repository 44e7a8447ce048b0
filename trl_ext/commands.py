# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The commands of `trl-ext` that are not methods, and what a command or a method cannot run without.

Only names and texts: what a user forgot is said before torch is imported, and a plug-in declares it in the same way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Required:
    """
    A setting without which a command cannot run, or several of which one is enough.

    Args:
        names (`tuple[str, ...]`):
            The settings. A flag or a YAML key of any of them will do; the first one is shown in examples.
        meaning (`str`):
            What it is, for the help and the error.
        example (`str`):
            A value, for the command that the help begins with.
        served (`bool`, *optional*, defaults to `False`):
            Whether a server may take its place, which the decoding of a method names (`Method.server_settings`).
        instead (`tuple[str, ...]`, *optional*, defaults to `()`):
            Settings with which it is not required, as the command does something else then.
    """

    names: tuple[str, ...]
    meaning: str
    example: str
    served: bool = False
    instead: tuple[str, ...] = ()

    @property
    def flags(self) -> str:
        """The flags, as an error shows them."""
        return " or ".join(f"--{name}" for name in self.names)

    def is_given(self, given: Mapping[str, Any]) -> bool:
        """Whether one of the settings has a value, or one of those instead."""
        return any(given.get(name) not in (None, "", [], False) for name in (*self.names, *self.instead))


@dataclass(frozen=True)
class Command:
    """
    A command of `trl-ext` that is no method.

    Args:
        summary (`str`):
            What it does, for `trl-ext --help`.
        run (`str`):
            `"module:function"` in `trl_ext.cli`: takes the words after the command, returns the exit status.
        parser (`str`, *optional*, defaults to `""`):
            `"module:function"` that returns its parser, for shell completion. Empty: it has no settings.
        required (`tuple[Required, ...]`, *optional*, defaults to `()`):
            What it cannot run without.
        example (`str`, *optional*, defaults to `""`):
            Further words of the example that its help begins with.
    """

    summary: str
    run: str
    parser: str = ""
    required: tuple[Required, ...] = ()
    example: str = ""


MODEL = Required(("model_name_or_path",), "the model, by Hub id or directory", "Qwen/Qwen3-0.6B")
REWARD = Required(
    ("reward_funcs", "reward_model_name_or_path"),
    "what scores completions, such as a function, a reward model or a server",
    "trl-lib/Qwen2-0.5B-Reward",
)
PROMPTS = Required(
    ("dataset_name",), "the prompts, by Hub id, directory or file of rows", "trl-lib/ultrafeedback-prompt"
)
_TO_SAMPLE = Required(
    ("model_name_or_path", "dataset_completions"),
    "the models to sample from, or completions of the dataset to score",
    MODEL.example,
    served=True,
)
_FROM = ("from", "from_file")
_TO_MEASURE = Required(
    ("model_name_or_path", "base_model_name_or_path"),
    "the models to measure",
    MODEL.example,
    served=True,
    instead=_FROM,
)
_GENERATOR = Required(MODEL.names, MODEL.meaning, MODEL.example, served=True)
# With --prompt, completions are printed.
_TO_COMPLETE = Required(
    ("dataset_name", "prompt"), "the prompts, by Hub id, directory or file of rows, or as texts", PROMPTS.example
)
_ROWS = Required(
    ("output_file", "prompt"), "the file to write, .jsonl or .parquet; not needed for texts", "sampled.jsonl"
)

_FOLDER = Required(("output_dir",), "the folder of the rounds: rows, models and their state", "rejection-sampling")

COMMANDS: dict[str, Command] = {
    "sample": Command(
        "generate completions for prompts, score them, write a dataset",
        "sample:main",
        "sample:make_parser",
        (_TO_SAMPLE, _TO_COMPLETE, _ROWS),
        "--reward_funcs trl-lib/Qwen2-0.5B-Reward",
    ),
    "best_of_n": Command(
        "generate n completions per prompt and write them, the best first",
        "sample:best_of_n",
        "sample:make_best_of_n_parser",
        (_TO_SAMPLE, _TO_COMPLETE, REWARD, _ROWS),
        "--num_generations 16",
    ),
    "rejection_sampling": Command(
        "in rounds: sample completions, keep the best of each prompt, fine-tune on them (RAFT, ReST)",
        "rejection_sampling:main",
        "rejection_sampling:make_parser",
        (MODEL, PROMPTS, REWARD, _FOLDER),
        "--num_generations 8 --num_rounds 3",
    ),
    "evaluate": Command(
        "measure models on prompts: reward, KL, perplexity, diversity",
        "evaluate:main",
        "evaluate:make_parser",
        (_TO_MEASURE, replace(PROMPTS, instead=_FROM)),
        "--reward_funcs trl-lib/Qwen2-0.5B-Reward --output_file evaluation.json",
    ),
    "frontier": Command(
        "join evaluations into one plot of reward over KL and one table", "frontier:main", "frontier:make_parser"
    ),
    "judge": Command(
        "compare the completions of two evaluations pair by pair: win rate and interval",
        "judge:main",
        "judge:make_parser",
    ),
    "generate": Command(
        "generate completions for prompts and print them as they are generated",
        "generate:main",
        "generate:make_parser",
        (_GENERATOR,),
        '--prompt "Once upon a time"',
    ),
    "chat": Command("hold a conversation with a model", "chat:main", "chat:make_parser", (_GENERATOR,)),
    "serve": Command(
        "serve a model, guided or not, by OpenAI's API", "serve:main", "serve:make_parser", (MODEL,), "--port 8000"
    ),
    "playground": Command(
        "compare answers on a page: models, guides and weights, with the value of each token",
        "playground:main",
        "playground:make_parser",
        (Required(("model_name_or_path", "server"), "the models, by Hub id or directory, or servers", MODEL.example),),
    ),
    "convert": Command(
        "read a dataset in any known form and write the rows that training takes",
        "convert:main",
        "convert:make_parser",
        (Required(("dataset_name",), "the dataset, by Hub id, directory or file of rows", "berkeley-nest/Nectar"),),
        "--output_file nectar.parquet",
    ),
    "quickstart": Command(
        "train a tiny model with a method and compare it with its base, on a CPU", "recipes:quickstart"
    ),
    "recipes": Command("list and copy the recipes that come with the package", "recipes:main"),
    "plan": Command(
        "say whether a training fits a card, and with which settings it would",
        "plan:main",
        "plan:make_parser",
        (
            Required(("model", "model_name_or_path"), "the model: a folder, a config.json or a Hub id", MODEL.example),
            Required(("method",), "the method, of those that `trl-ext methods` lists", "METHOD"),
        ),
        "--card 8GB",
    ),
    "new_method": Command("write a package with a method of your own, to be changed", "new_method:main"),
    "methods": Command("list the methods and the packages they come from", "main:print_methods"),
    "completion": Command("print a script that lets a shell complete commands and flags", "completion:main"),
    "env": Command("print versions and hardware for a bug report", "env:main"),
}

# Those of `trl`, for users who expect them here.
TRL_COMMANDS = ("distillation", "dpo", "grpo", "kto", "reward", "rloo", "sft", "vllm-serve")


def missing(required: Iterable[Required], given: Mapping[str, Any]) -> list[Required]:
    """Those of the required settings that have no value."""
    return [each for each in required if not each.is_given(given)]


def example(name: str, required: Iterable[Required], further: str = "") -> str:
    """A command that runs."""
    words = [f"--{each.names[0]} {each.example}" for each in required]
    return " ".join(["trl-ext", name, *words, *filter(None, [further])])
