# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
`trl-ext sample` and `trl-ext best_of_n`: completions for prompts, scored and written as a dataset for the trainers.

    trl-ext sample --model_name_or_path M --dataset_name prompts.jsonl --reward_model_name_or_path R \\
        --num_generations 4 --max_completion_length 48 --output_file sampled.jsonl
    trl-ext best_of_n --model_name_or_path M --dataset_name prompts.jsonl --reward_funcs R1 R2 \\
        --num_generations 64 --output_file best.jsonl

A row of the output has `prompt`, `completions`, `scores`, `ended` (whether each completion ended before the maximum
length), the token ids that were sampled (`completion_ids`, `prompt_ids`, and in `tokenizers` the tokenizer's name
and a hash of its vocabulary), which training uses, and the other columns of the dataset; `sources` if the completions
have several, `rewards` if there are several reward functions, `extra` for the columns that functions give to
`log_extra`. Rows are written every few seconds or minutes; the same command resumes an interrupted run, and ends with
the same file. `best_of_n` sorts the completions of a row by their scores: `completions[0]` is the best of n.
"""

import errno
import os
import sys
import time
from dataclasses import asdict, dataclass, field

from datasets import Dataset
from tqdm.auto import tqdm

from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError, first_row
from trl_ext.generation.vllm_settings import SERVER_FIELDS, VLLMSettings
from trl_ext.generation_settings import DIVERSE_BEAM_SEARCH, GenerationSettings
from trl_ext.inference.dataset_sampler import DatasetSampler, describe_dropped, describe_logged, load_rows
from trl_ext.rewards.functions import check_reward_columns, check_reward_prompts, load_rewards
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.rewards.settings import RewardSettings

from .arguments import LoadingArguments, OutputArguments, PromptArguments, RewardArguments, SamplingArguments
from .models import load_policies
from .parser import Parser
from .progress import Progress


_EPILOG = (
    "Sampling policies of arXiv 2304.05302: BP is --num_beams 4 --dataset_completions, DP the same with "
    "--num_beam_groups 4 --diversity_penalty 1, D is DP without --dataset_completions, P is --dataset_completions "
    "without a model. All models are in memory together; to load one at a time, sample with the first, then with the "
    "second from the first one's output with --dataset_completions."
)


@dataclass
class SampleArguments(PromptArguments, RewardArguments, RewardSettings, SamplingArguments, OutputArguments):
    """What to sample, from which prompts, and where to write it. Without any reward the rows have no scores."""

    model_name_or_path: list[str] = field(
        default_factory=list,
        metadata={"help": "Models to sample from: Hub ids, directories, LoRA adapter directories."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split that the prompts are taken from."})
    dataset_completions: bool = field(
        default=False, metadata={"help": "Whether to add the dataset's own completions to the sampled ones."}
    )
    completion_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the dataset's own completions. By default those that its form has them in, such as "
            "`completions`, `chosen` and `rejected`, or `completion`."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of the rewards in the score, --reward_model_name_or_path first. All 1 by default."},
    )
    num_generations: int = field(default=4, metadata={"help": "Completions per prompt from each model."})
    num_beams: int = field(
        default=1, metadata={"help": "Beams of a beam search; the best num_generations are kept. 1 means sampling."}
    )
    num_beam_groups: int = field(
        default=1, metadata={"help": "Groups of a diverse beam search; needs --trust_remote_code. 1 means off."}
    )
    diversity_penalty: float = field(
        default=0.0,
        metadata={"help": "Penalty on a token that another group of beams chose at the same position."},
    )
    custom_generate: str = field(
        default=DIVERSE_BEAM_SEARCH,
        metadata={"help": "Hub repository with the diverse beam search, or a directory with a copy of it."},
    )
    best_first: bool = field(
        default=False, metadata={"help": "Whether to sort the completions of a row by score, the best first."}
    )
    deduplicate: bool = field(
        default=False, metadata={"help": "Whether to keep only one of several equal completions of a prompt."}
    )
    seed: int = field(
        default=42, metadata={"help": "Seed of the sampling. A vLLM server samples with a seed of its own."}
    )
    generation_batch_size: int = field(
        default=128,
        metadata={"help": "Sequences that a model generates at once. Rows are saved after four times as many."},
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        if not self.model_name_or_path and not self.dataset_completions:
            raise ValueError(
                "there is nothing to sample: pass --model_name_or_path, or --dataset_completions to score those."
            )
        if self.dataset_name is None:
            raise ValueError("there are no prompts: pass --dataset_name.")
        if self.output_file is None:
            raise ValueError("there is no file to write to: pass --output_file.")
        if os.path.realpath(self.output_file) == os.path.realpath(self.dataset_name):
            raise ValueError(f"output_file is the dataset itself, {self.dataset_name!r}: choose another name.")
        if self.completion_columns and not self.dataset_completions:
            raise ValueError("completion_columns has no effect without --dataset_completions.")
        self.check_counts(max_num_prompts=0, generation_batch_size=1)
        if self.best_first and not self.rewards:
            raise ValueError(
                "there is no reward to find the best by: pass --reward_model_name_or_path or --reward_funcs."
            )
        check_reward_weights(self.reward_weights, self.rewards)
        self.check_prompts()
        self.check_reward_settings()


@dataclass
class BestOfNArguments(SampleArguments):
    """The arguments of `trl-ext sample`; at least one reward is required."""

    num_generations: int = field(
        default=16, metadata={"help": "Completions per prompt from each model: the n of best-of-n."}
    )
    best_first: bool = field(
        default=True, metadata={"help": "Whether to sort the completions of a row by score, the best first."}
    )


@dataclass
class SampleLoadingArguments(VLLMSettings, LoadingArguments):
    """How all models of the command are loaded, and whether vLLM loads them and generates."""

    def __post_init__(self) -> None:
        self.check_vllm()
        self.check_used()


def run(args: SampleArguments, loading: LoadingArguments, prog: str = "trl-ext sample") -> int:
    """
    Sample, score and write. `prog` is the command, for messages.

    Returns:
        `int`: 0; 130 after Ctrl-C. Rows that were written before stay, and the same call resumes there.
    """
    _check_environment(prog)
    served = isinstance(loading, VLLMSettings) and loading.use_vllm and loading.vllm_mode == "server"
    if served and args.seed != SampleArguments.seed:
        raise ValueError("seed has no effect on a vLLM server, which samples with a seed of its own: remove it.")
    settings = args.settings(trust_remote_code=loading.trust_remote_code)
    dataset, own_columns = _load(args)
    # The rows do not depend on where a server is.
    of_loading = {name: SERVER_FIELDS.get(name, value) for name, value in asdict(loading).items()}
    file = args.open_output(dataset, [*args.model_name_or_path, *args.rewards], of_loading)
    if file.complete:
        print(f"{file.path} is complete, with {file.rows} rows (--overwrite_output starts over).")
        return 0
    progress = Progress()
    sampler = _sampler(args, loading, settings, dataset, own_columns, progress)
    try:
        step = 4 * max(1, args.generation_batch_size // args.num_generations)
        seconds = _sample(sampler, dataset, file, step, progress)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        where = f"{file.rows_path} has {file.rows} complete rows" if file.rows else "no row was written yet"
        if file.rows or full or isinstance(error, KeyboardInterrupt):  # else the command itself may be wrong
            print(f"\n{prog}: stopped; {where}. The same command resumes there.", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if full:
            raise OSError(f"the disk is full: {file.path} (free some space, then run the same command)") from error
        raise
    if not file.rows:
        raise DataError(f"no row is left of {len(dataset)}: {describe_dropped(file.totals)}.")
    print(_summary(file, seconds))
    return 0


def _sampler(
    args: SampleArguments,
    loading: LoadingArguments,
    settings: GenerationSettings,
    dataset: Dataset,
    own_columns: tuple[str, ...],
    progress: Progress,
) -> DatasetSampler:
    """Load the models and the rewards."""
    policies = load_policies(args.model_name_or_path, loading, settings, args.generation_batch_size, progress)
    rewards = load_rewards(
        args.rewards,
        settings=args,
        policy_tokenizer=policies[0].tokenizer if policies else None,
        trust_remote_code=loading.trust_remote_code,
    )
    check_reward_columns(rewards, dataset.column_names)
    check_reward_prompts(rewards, first_row(dataset, "input").get("prompt"))
    return DatasetSampler(
        policies,
        settings,
        rewards,
        args.reward_weights,
        own_columns,
        deduplicate=args.deduplicate,
        best_first=args.best_first,
        chat_template_kwargs=args.template_kwargs,
        seed=args.seed,
        progress=progress,
        name_sources=len(args.model_name_or_path) + len(own_columns) > 1
        or (bool(own_columns) and "sources" in dataset.column_names),
    )


def _load(args: SampleArguments) -> tuple[Dataset, tuple[str, ...]]:
    return load_rows(
        str(args.dataset_name),
        args.dataset_config,
        args.dataset_train_split,
        limit=args.max_num_prompts,
        own=args.dataset_completions,
        asked=args.completion_columns,
        columns=args.columns,
        dataset_format=args.dataset_format,
    )


def _check_environment(prog: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"{prog} runs as one process, but was started as {processes}: do not use `accelerate launch`. To use "
            "several devices, run it once on each with a part of the prompts."
        )


def _sample(sampler: DatasetSampler, dataset: Dataset, file: ResumableFile, step: int, progress: Progress) -> float:
    """All batches that are not written yet; returns the seconds they took."""
    models, begin = max(1, len(sampler.policies)), (reported := time.monotonic())
    starts = file.missing_batches(len(dataset), step)
    done = starts.start
    if done:
        print(f"{file.path}: resuming after {done} of {len(dataset)} prompts", file=sys.stderr)
    # Outside a terminal, lines in a log file are of more use than a bar.
    bar = tqdm(total=len(dataset) * models, initial=done * models, unit="prompt", desc="sampling", disable=None)
    with bar, progress.shown_by(bar.update):
        for start in starts:
            rows = [dataset[i] for i in range(start, min(start + step, len(dataset)))]
            batch = sampler(rows, start)
            file.append(batch.rows, batch.totals)
            if bar.disable and time.monotonic() - reported > 10:
                reported = time.monotonic()
                print(f"{start + len(rows)} of {len(dataset)} prompts, {reported - begin:.0f} s", file=sys.stderr)
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
    return "; ".join([*parts, *filter(None, [describe_logged(totals), describe_dropped(totals)])])


def make_parser(prog: str = "trl-ext sample") -> Parser:
    """The parser of the command's flags and YAML file."""
    return Parser(
        [SampleArguments, SampleLoadingArguments],
        prog=prog,
        description="Generate completions for prompts, score them and write a dataset for the trainers.",
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
    return run(*make_parser().parse_args_and_config(argv))


def best_of_n(argv: list[str]) -> int:
    """`trl-ext best_of_n`. See [`main`]."""
    prog = "trl-ext best_of_n"
    parser = Parser(
        [BestOfNArguments, LoadingArguments],
        prog=prog,
        description="Generate n completions for each prompt, score them, and write all of them, the best first.",
        epilog="In Python: `from trl_ext import best_of_n`. `trl-ext evaluate --best_of_n` measures it.",
    )
    args, loading = parser.parse_args_and_config(argv)
    return run(args, loading, prog)
