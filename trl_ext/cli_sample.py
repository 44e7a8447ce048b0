# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
`trl-ext sample`: completions for prompts, scored and written as the data set that the trainers take.

    trl-ext sample --model_name_or_path M --dataset_name prompts.jsonl --reward_model_name_or_path R \\
        --num_generations 4 --max_completion_length 48 --output_file sampled.jsonl

A row of the output has `prompt`, `completions`, `scores`, `ended` (whether each completion is whole) and the other
columns of the data set; `sources` if there are several, `rewards` if there are several reward functions. Rows are
written every few seconds or minutes; the same command goes on where an interrupted one has stopped, and ends with the
same file.
"""

import dataclasses
import errno
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from .cli_models import LoadingArguments
from .cli_parser import Parser, set_environment
from .cli_sources import load_sources
from .data import DataError
from .field_types import check_reward_weights
from .generation_settings import DIVERSE_BEAM_SEARCH, GenerationSettings, setting
from .rewards import load_rewards
from .sample_file import SampleFile, rows_fingerprint, weights_fingerprint
from .sample_rows import load_rows
from .sampler import Sampler, losses
from .vllm_settings import WHEREABOUTS, VLLMSettings


_EPILOG = (
    "Sampling policies of arXiv 2304.05302: BP is --num_beams 4 --dataset_completions, DP the same with "
    "--num_beam_groups 4 --diversity_penalty 1, D is DP without --dataset_completions, P is --dataset_completions "
    "without a model. All models are in memory at once; to have them there one by one, sample with the first, then "
    "with the second from the first one's output with --dataset_completions."
)


@dataclass
class SampleArguments:
    """What to sample, from which prompts, and where to. The meaning of each field is its help text."""

    model_name_or_path: list[str] = field(
        default_factory=list,
        metadata={"help": "Models to sample from: hub ids, directories, LoRA adapter directories."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data set with a column `prompt` (text or messages): hub id, directory, or a .jsonl, .json, "
            ".parquet or .csv file."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to take the prompts from."})
    max_num_prompts: int = field(default=0, metadata={"help": "Take the first so many prompts. 0 means all."})
    dataset_completions: bool = field(
        default=False, metadata={"help": "Whether the data set's own completions join the sampled ones."}
    )
    completion_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns that these are in. By default `completions`, or `chosen` and `rejected`, or "
            "`completion`, the first that there is."
        },
    )
    output_file: str | None = field(
        default=None, metadata={"help": "File for the rows: .jsonl or .parquet. An interrupted run is resumed."}
    )
    overwrite_output: bool = field(default=False, metadata={"help": "Whether to start over if the file exists."})
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Sequence classifier with one label: hub id or directory."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "More rewards: names of TRL's functions, dotted paths to functions, sequence classifiers. Without "
            "any reward the rows have no scores."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of the rewards in the score, --reward_model_name_or_path first. All 1 by default."},
    )
    num_generations: int = field(default=4, metadata={"help": "Completions of a prompt from each model."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cuda_graphs: str = setting("cuda_graphs")
    num_beams: int = field(
        default=1, metadata={"help": "Beams of a beam search; the best num_generations are kept. 1 means sampling."}
    )
    num_beam_groups: int = field(
        default=1, metadata={"help": "Groups of a diverse beam search; needs --trust_remote_code. 1 means off."}
    )
    diversity_penalty: float = field(
        default=0.0, metadata={"help": "What a group of beams pays for another group's token."}
    )
    custom_generate: str = field(
        default=DIVERSE_BEAM_SEARCH,
        metadata={"help": "Hub repository, or directory with a copy of it, that has the diverse beam search."},
    )
    best_first: bool = field(
        default=False, metadata={"help": "Whether the completions of a row come with the best score first."}
    )
    deduplicate: bool = field(
        default=False, metadata={"help": "Whether to keep one of several equal completions of a prompt."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the draws. A vLLM server has a chance of its own."})
    generation_batch_size: int = field(
        default=128,
        metadata={"help": "Sequences that a model writes at once. Rows are saved after four times as many."},
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        if not self.model_name_or_path and not self.dataset_completions:
            raise ValueError("nothing to sample: pass --model_name_or_path, or --dataset_completions to score those.")
        if self.dataset_name is None:
            raise ValueError("there are no prompts: pass --dataset_name.")
        if self.output_file is None:
            raise ValueError("there is nowhere to write to: pass --output_file.")
        if os.path.realpath(self.output_file) == os.path.realpath(self.dataset_name):
            raise ValueError(f"output_file is the data set itself, {self.dataset_name!r}: choose another name.")
        if self.completion_columns and not self.dataset_completions:
            raise ValueError("completion_columns has no effect without --dataset_completions.")
        for name, least in (("max_num_prompts", 0), ("generation_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.best_first and not self.rewards:
            raise ValueError("without a reward none is best: pass --reward_model_name_or_path or --reward_funcs.")
        check_reward_weights(self.reward_weights, self.rewards)

    @property
    def rewards(self) -> list[str]:
        """All rewards that are named, in the order of their weights."""
        return [*filter(None, [self.reward_model_name_or_path]), *(self.reward_funcs or [])]


@dataclass
class SampleLoadingArguments(LoadingArguments):
    """How the models are loaded. Reward models are not quantised, and compute in float32."""

    dtype: str = field(
        default="auto",
        metadata={
            "help": "Data type of the weights and the arithmetic; `auto` is that of the checkpoint.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Whether to quantise the models to 4 bits."})


@dataclass
class SampleEngineArguments(VLLMSettings, SampleLoadingArguments):
    """The same, and whether vLLM loads them and draws."""

    def __post_init__(self) -> None:
        self.check_vllm()
        self.check_used()


def _check_environment() -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"trl-ext sample runs as one process, but was started as {processes}: leave out `accelerate launch`. To "
            "use several devices, run it once on each with a part of the prompts."
        )


def _settings(args: SampleArguments, loading: SampleLoadingArguments, dataset: Dataset) -> dict[str, Any]:
    """All that the rows depend on."""
    settings = {**dataclasses.asdict(args), **dataclasses.asdict(loading)}
    del settings["output_file"], settings["overwrite_output"]
    settings |= {name: value for name, value in WHEREABOUTS.items() if name in settings}
    settings["contents of the data set"] = rows_fingerprint(dataset)
    settings |= {f"weights of {x}": weights_fingerprint(x) for x in [*args.model_name_or_path, *args.rewards]}
    return settings


def run(args: SampleArguments, loading: SampleLoadingArguments, prog: str = "trl-ext sample") -> int:
    """
    Sample, score and write. `prog` is the command, for messages.

    Returns:
        `int`: 0; 130 after Ctrl-C. What was written before stays, and the same call goes on from there.
    """
    _check_environment()
    served = isinstance(loading, VLLMSettings) and loading.use_vllm and loading.vllm_mode == "server"
    if served and args.seed != SampleArguments.seed:
        raise ValueError("seed has no effect on a vLLM server, which draws by a chance of its own: leave it out.")
    settings = GenerationSettings.of(args, trust_remote_code=loading.trust_remote_code)
    dataset, own_columns = load_rows(
        str(args.dataset_name),
        args.dataset_config,
        args.dataset_train_split,
        limit=args.max_num_prompts,
        own=args.dataset_completions,
        asked=args.completion_columns,
    )
    file = SampleFile(str(args.output_file), _settings(args, loading, dataset), overwrite=args.overwrite_output)
    if file.complete:
        print(f"{file.path} is complete, with {file.rows} rows (--overwrite_output starts over).")
        return 0
    sampler = Sampler(
        load_sources(args.model_name_or_path, loading, settings, args.generation_batch_size),
        settings,
        load_rewards(args.rewards, trust_remote_code=loading.trust_remote_code),
        args.reward_weights,
        own_columns,
        deduplicate=args.deduplicate,
        best_first=args.best_first,
        seed=args.seed,
        batch_size=args.generation_batch_size,
        name_sources=len(args.model_name_or_path) + len(own_columns) > 1 or "sources" in dataset.column_names,
    )
    try:
        seconds = _sample(sampler, dataset, file, 4 * max(1, args.generation_batch_size // args.num_generations))
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        where = f"{file.rows_path} has {file.rows} whole rows" if file.rows else "no row was written yet"
        if file.rows or full or isinstance(error, KeyboardInterrupt):  # else the command itself may be what is wrong
            print(f"\n{prog}: stopped; {where}. The same command goes on from there.", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if full:
            raise OSError(f"the disk is full: {file.path} (make room, then run the same command)") from error
        raise
    if not file.rows:
        raise DataError(f"no row is left of {len(dataset)}: {losses(file.totals)}.")
    print(_summary(file, seconds))
    return 0


def _sample(sampler: Sampler, dataset: Dataset, file: SampleFile, step: int) -> float:
    """All batches that are not written yet; returns the seconds they took."""
    models, begin = max(1, len(sampler.sources)), (said := time.monotonic())
    done = min(file.batches * step, len(dataset))
    if done:
        print(f"{file.path}: going on after {done} of {len(dataset)} prompts", file=sys.stderr)
    # Off the terminal, lines in a log file are of more use than a bar.
    bar = tqdm(total=len(dataset) * models, initial=done * models, unit="prompt", desc="sampling", disable=None)
    with bar:
        for start in range(done, len(dataset), step):
            rows = [dataset[i] for i in range(start, min(start + step, len(dataset)))]
            batch = sampler(rows, start, bar.update)
            file.append(batch.rows, batch.totals)
            if bar.disable and time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{start + len(rows)} of {len(dataset)} prompts, {said - begin:.0f} s", file=sys.stderr)
    if file.rows:
        file.finish()
    return time.monotonic() - begin


def _summary(file: SampleFile, seconds: float) -> str:
    totals, completions = file.totals, max(1, file.totals["completions"])
    parts = [f"{file.path}: {file.rows} rows, {completions:.0f} completions in {seconds:.0f} s"]
    if totals["score"] or totals["best_score"]:
        best = totals["best_score"] / file.rows
        parts.append(f"score {totals['score'] / completions:.3f}, best of a row {best:.3f}")
    if totals["tokens"]:
        parts.append(f"{totals['tokens']:.0f} tokens sampled, {100 * totals['ended'] / completions:.0f} % ended")
    return "; ".join([*parts, *filter(None, [losses(totals)])])


def make_parser(prog: str = "trl-ext sample") -> Parser:
    """The parser of the command's flags and YAML file."""
    return Parser(
        [SampleArguments, SampleEngineArguments],
        prog=prog,
        description="Draw completions for prompts, score them and write a data set for the trainers.",
        epilog=_EPILOG,
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext sample`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings, data or models that cannot work.
    """
    set_environment(argv)
    return run(*make_parser().parse_args_and_config(argv))
