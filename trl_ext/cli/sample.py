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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from trl_ext.data.resumable_file import ResumableFile, rows_fingerprint, weights_fingerprint
from trl_ext.data.schema import DataError
from trl_ext.endpoint.vllm_server import VLLMServer
from trl_ext.generation.vllm_settings import SERVER_FIELDS, VLLMSettings
from trl_ext.generation_settings import DIVERSE_BEAM_SEARCH, GenerationSettings, setting
from trl_ext.inference.dataset_rows import load_rows
from trl_ext.inference.dataset_sampler import Sampler, losses
from trl_ext.inference.policy import Source
from trl_ext.models.load import adapter_base, loading_error
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.rewards.functions import load_rewards
from trl_ext.rewards.scoring import check_reward_weights

from .models import LoadingArguments, SampleLoadingArguments, load_source
from .parser import Parser, set_environment


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
    settings |= {name: value for name, value in SERVER_FIELDS.items() if name in settings}
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
    file = ResumableFile(str(args.output_file), _settings(args, loading, dataset), overwrite=args.overwrite_output)
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


def _sample(sampler: Sampler, dataset: Dataset, file: ResumableFile, step: int) -> float:
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


def _summary(file: ResumableFile, seconds: float) -> str:
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


def load_sources(
    names: Sequence[str], loading: LoadingArguments, settings: GenerationSettings, batch_size: int
) -> list[Source]:
    """
    Models to sample from, by transformers or, if `loading` has vLLM's settings and they say so, by vLLM.

    Raises:
        `OSError`: There is no such model.
        `ValueError`: Of several models, an adapter, or one that is to be loaded otherwise than it was saved, for vLLM.
        `ImportError`: vLLM is not installed.
    """
    if not isinstance(loading, VLLMSettings) or not loading.use_vllm:
        return [load_source(name, loading) for name in names]
    if len(names) != 1:
        raise ValueError("--use_vllm is for one model at a time: sample with one, then from its output with the next.")
    return [_vllm_source(names[0], loading, settings, loading, batch_size)]


def _vllm_source(
    name: str, loading: LoadingArguments, settings: GenerationSettings, vllm: VLLMSettings, batch_size: int
) -> Source:
    if adapter_base(name) is not None:
        raise ValueError(
            f"{name!r} is an adapter, and vLLM needs a full model: merge it first (`merge_and_unload` of PEFT)."
        )
    if vllm.vllm_enable_sleep_mode:
        raise ValueError("vllm_enable_sleep_mode is for training, which sends vLLM its weights again: leave it out.")
    if vllm.vllm_tensor_parallel_size > 1:
        raise ValueError(
            "vllm_tensor_parallel_size is for several processes, and trl-ext sample is one: for a model that one GPU "
            "does not hold, start a server (`vllm serve --tensor-parallel-size`) and pass --vllm_mode server."
        )
    usual = {
        "load_in_4bit": False,
        "load_in_8bit": False,
        "attn_implementation": None,
        "model_revision": "main",
        "dtype": "auto",
    }
    for option, value in usual.items():
        if getattr(loading, option) != value:
            raise ValueError(f"{option} is not for --use_vllm, which loads the model as it was saved.")
    trust: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **trust)
    except (OSError, ValueError) as error:
        raise loading_error("model", name, error) from error
    tokenizer = load_tokenizer(name, **trust)
    model = PreTrainedModel(config)  # without layers: vLLM loads the weights
    if vllm.vllm_mode == "server":
        return Source(name, tokenizer, model, VLLMServer(name, tokenizer, settings, vllm))
    from accelerate import Accelerator

    from trl_ext.generation.vllm import VLLM

    try:
        model.generation_config = GenerationConfig.from_pretrained(name)
    except OSError:  # it has none
        model.generation_config = GenerationConfig(eos_token_id=getattr(config, "eos_token_id", None))
    engine = VLLM(model, tokenizer, settings, vllm, Accelerator(), batch_size=batch_size, **trust)
    return Source(name, tokenizer, model, engine, vllm.vllm_context(0))
