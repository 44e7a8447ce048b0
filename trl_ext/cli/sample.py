# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
`trl-ext sample` and `trl-ext best_of_n`: completions for prompts, scored and written as a dataset for the trainers.

    trl-ext sample --model_name_or_path M --dataset_name prompts.jsonl --reward_model_name_or_path R \\
        --num_generations 4 --max_completion_length 48 --output_file sampled.jsonl
    trl-ext best_of_n --model_name_or_path M --dataset_name prompts.jsonl --reward_funcs R1 R2 \\
        --num_generations 64 --output_file best.jsonl
    trl-ext best_of_n --model_name_or_path M --prompt "Once upon a time" --reward_funcs R
    trl-ext sample --endpoint http://localhost:8000/v1 --endpoint_model M --endpoint_tokenizer M \\
        --dataset_name prompts.jsonl --reward_funcs R --output_file sampled.jsonl

The model may be guided, as in `trl-ext generate`, or be that of a server.

A row of the output has `prompt`, `completions`, `scores`, `ended` (whether each completion ended before the maximum
length), the token ids that were sampled (`completion_ids`, `prompt_ids`, and in `tokenizers` the tokenizer's name
and a hash of its vocabulary), which training uses, and the other columns of the dataset; `sources` if the completions
have several, `rewards` if there are several reward functions, `extra` for the columns that functions give to
`log_extra`. `best_of_n` sorts the completions of a row by their scores: `completions[0]` is the best of n. `format`
writes the rows of other trainers instead: pairs for DPO, labels for KTO, the best for SFT.

Rows are written after each call of the model; the same command resumes an interrupted run, and ends with the same
file. Until then the rows have a column with their number in the dataset, as prompts of similar length are generated
together.
"""

import errno
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Dataset

from trl_ext.atomic_files import write_text
from trl_ext.data.exports import ExportSettings, describe_export, export_row
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError, first_row
from trl_ext.endpoint.errors import EndpointError
from trl_ext.generation.vllm_settings import SERVER_FIELDS, VLLMSettings
from trl_ext.generation_settings import DIVERSE_BEAM_SEARCH, GenerationSettings
from trl_ext.inference.dataset_card import card_path, dataset_card
from trl_ext.inference.dataset_sampler import (
    DatasetSampler,
    batches_of_similar_length,
    describe_dropped,
    describe_logged,
    load_rows,
)
from trl_ext.inference.policy import Decoding, Policy, served_at_once
from trl_ext.packages import VLLM, require_package
from trl_ext.progress import progress, shown
from trl_ext.rewards.aggregation import AGGREGATION, SUM, check_aggregation
from trl_ext.rewards.functions import check_reward_columns, check_reward_prompts, load_rewards
from trl_ext.rewards.kept_scores import sources_of
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.rewards.settings import RewardSettings
from trl_ext.settings_file import RunSettings, nondefault

from .arguments import (
    LoadingArguments,
    OutputArguments,
    RewardArguments,
    SamplingArguments,
    TypedPromptArguments,
    as_message,
)
from .decoding_flags import active_decodings, check_beside_server, decoding_classes, settings_of
from .generate import text_of, texts_in
from .models import load_model_tokenizer, load_policies
from .parser import Parser


_EPILOG = (
    "Sampling policies of arXiv 2304.05302: BP is --num_beams 4 --dataset_completions, DP the same with "
    "--num_beam_groups 4 --diversity_penalty 1, D is DP without --dataset_completions, P is --dataset_completions "
    "without a model. All models are in memory together; to load one at a time, sample with the first, then with the "
    "second from the first one's output with --dataset_completions."
)
_ROW_INDEX = "trl_ext_row_index"  # column of an unfinished file: the number of the row in the dataset


@dataclass
class SampleArguments(
    TypedPromptArguments, RewardArguments, RewardSettings, SamplingArguments, ExportSettings, OutputArguments
):
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
    multi_objective_aggregation: str = field(default=SUM, metadata=AGGREGATION)
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
        metadata={
            "help": "Sequences that a model generates at once. Rows are written after each time; with vLLM, which "
            "schedules sequences itself, after four times as many."
        },
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        for name in ("dataset_completions", "max_num_prompts"):
            if self.prompt is not None and getattr(self, name):
                raise ValueError(f"{name} is for a dataset: remove it, or pass --dataset_name in place of --prompt.")
        if self.prompt is None and (self.system_prompt is not None or not self.apply_chat_template):
            raise ValueError(
                "system_prompt and apply_chat_template are for --prompt: a dataset's text is continued, its messages "
                "are rendered as they are."
            )
        if self.output_file is None and self.format != "scored":
            raise ValueError("--format is the form of a file: pass --output_file.")
        self.check_output(self.dataset_name)
        if self.completion_columns and not self.dataset_completions:
            raise ValueError("completion_columns has no effect without --dataset_completions.")
        self.check_counts(max_num_prompts=0, generation_batch_size=1)
        if self.best_first and not self.rewards:
            raise ValueError(
                "there is no reward to find the best by: pass --reward_model_name_or_path or --reward_funcs."
            )
        check_reward_weights(self.reward_weights, self.rewards)
        check_aggregation(self.multi_objective_aggregation, self.rewards)
        self.check_export()
        if self.format in ("pairs", "kto") and not self.rewards:
            raise ValueError(
                f"--format {self.format} compares scores, and there is no reward: pass --reward_model_name_or_path or "
                "--reward_funcs."
            )
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
        if self.use_vllm and self.vllm_mode == "colocate":
            require_package("use_vllm", VLLM)


def run(
    args: SampleArguments,
    loading: LoadingArguments,
    decodings: Sequence[Decoding] = (),
    prog: str = "trl-ext sample",
    words: Sequence[str] = (),
) -> int:
    """
    Sample, score and write.

    Args:
        args ([`SampleArguments`]), loading ([`~trl_ext.cli.arguments.LoadingArguments`]): The settings.
        decodings (`Sequence[Decoding]`, *optional*): Guidance of the model, already checked.
        prog (`str`), words (`Sequence[str]`): The command and its flags, for messages.

    Returns:
        `int`: 0; 1 if a server failed for good; 130 after Ctrl-C. Rows that were written before stay, and the same
            call resumes there.
    """
    _check_environment(prog)
    _check_models(args, loading, decodings)
    served = isinstance(loading, VLLMSettings) and loading.use_vllm and loading.vllm_mode == "server"
    if served and args.seed != SampleArguments.seed:
        raise ValueError("seed has no effect on a vLLM server, which samples with a seed of its own: remove it.")
    settings = args.settings(trust_remote_code=loading.trust_remote_code)
    dataset, own_columns = _load(args, loading, decodings)
    if args.output_file is None:
        sampler = _sampler(args, loading, decodings, settings, dataset, own_columns)
        _print_rows(sampler(list(dataset), range(len(dataset))).rows)
        return 0
    # The rows do not depend on where a server is.
    of_loading = {name: SERVER_FIELDS.get(name, value) for name, value in asdict(loading).items()}
    of_decodings = settings_of(decodings)
    weights = [*args.model_name_or_path, *args.rewards, *texts_in(of_decodings)]
    file = args.open_output(dataset, weights, of_loading | of_decodings | sources_of(args.rewards))
    if file.complete:
        if file.rows and not card_path(file.path).exists():  # the run that wrote the rows ended before
            _write_card(file, args, loading, decodings)
        print(f"{file.path} is complete, with {file.rows} rows (--overwrite_output starts over).")
        return 0
    sampler = _sampler(args, loading, decodings, settings, dataset, own_columns)
    batches = batches_of_similar_length(dataset["prompt"], _prompts_at_once(args, loading, decodings))
    try:
        seconds = _sample(sampler, dataset, batches, file, args)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if file.rows or full or isinstance(error, KeyboardInterrupt):  # else the command itself may be wrong
            done = f"{_done(batches, file)} of {len(dataset)} prompts are done"
            kept = f"{file.rows_path} keeps {file.rows} rows, {done}" if file.rows else "no row was written yet"
            print(f"\n{prog}: stopped; {kept}. To go on:\n{_again(prog, words, args)}", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if full:
            raise OSError(f"the disk is full: {file.path} (free some space, then run the same command)") from error
        if isinstance(error, EndpointError):
            print(f"{prog}: error: {error}", file=sys.stderr)
            return 1
        raise
    if not file.rows:
        raise DataError(f"no row is left of {len(dataset)}: {_left_out(file)}.")
    _write_card(file, args, loading, decodings)
    print(_summary(file, seconds))
    return 0


def _write_card(
    file: ResumableFile, args: SampleArguments, loading: LoadingArguments, decodings: Sequence[Decoding]
) -> None:
    """Write a card beside the file."""
    of_decodings = {name: value for each in decodings for name, value in nondefault(each).items()}
    settings = RunSettings.of(nondefault(args) | nondefault(loading) | of_decodings | {"seed": args.seed})
    served = [name for each in decodings if (name := getattr(each, "endpoint_model", None))]
    models = args.model_name_or_path or served
    card = dataset_card(file, settings, dataset=args.dataset_name, models=models, rewards=args.rewards)
    write_text(card_path(file.path), card)


def _again(prog: str, words: Sequence[str], args: SampleArguments) -> str:
    """The command that resumes."""
    return shlex.join([*prog.split(), *words, *(["--overwrite_output", "false"] if args.overwrite_output else [])])


def _prompts_at_once(args: SampleArguments, loading: LoadingArguments, decodings: Sequence[Decoding]) -> int:
    """Prompts per batch, whose rows are written together. With a server few, as few are lost then."""
    if at_once := served_at_once(decodings):
        return max(1, at_once // args.num_generations)
    vllm = isinstance(loading, VLLMSettings) and loading.use_vllm
    return max(1, args.generation_batch_size // args.num_generations) * (4 if vllm else 1)


def _done(batches: list[list[int]], file: ResumableFile) -> int:
    """Number of prompts whose rows are written."""
    return sum(map(len, batches[: file.batches]))


def _check_models(args: SampleArguments, loading: LoadingArguments, decodings: Sequence[Decoding]) -> None:
    """Raise a `ValueError` for models that do not fit the flags of guides and servers."""
    if not decodings:
        return
    if served_at_once(decodings) and args.model_name_or_path:
        raise ValueError(
            "the server's model generates: remove --model_name_or_path, or the flag that names the server."
        )
    check_beside_server(decodings, args, loading)
    if not served_at_once(decodings) and len(args.model_name_or_path) != 1:
        raise ValueError("guides are for one model: pass one --model_name_or_path.")
    if isinstance(loading, VLLMSettings) and loading.use_vllm:
        raise ValueError(
            "vLLM's samples are not guided here, and a server is one or the other: remove --use_vllm, or the flags of "
            "the guide or --endpoint."
        )


def _policies(
    args: SampleArguments, loading: LoadingArguments, decodings: Sequence[Decoding], settings: GenerationSettings
) -> list[Policy]:
    """What samples: models, guided ones, or a server's."""
    size = args.generation_batch_size
    policies = load_policies(args.model_name_or_path, loading, settings, size)
    if not decodings:
        return policies
    plain = policies[0] if policies else None
    model, tokenizer, name = (plain.model, plain.tokenizer, plain.name) if plain else (None, None, "")
    found = [each for one in decodings for each in one.policies(model, tokenizer, name=name, batch_size=size)]
    return found if plain else [loading.served(each) for each in found]


def _sampler(
    args: SampleArguments,
    loading: LoadingArguments,
    decodings: Sequence[Decoding],
    settings: GenerationSettings,
    dataset: Dataset,
    own_columns: tuple[str, ...],
) -> DatasetSampler:
    """Load the models and the rewards."""
    policies = _policies(args, loading, decodings, settings)
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
        aggregation=args.multi_objective_aggregation,
        deduplicate=args.deduplicate,
        best_first=args.best_first,
        chat_template_kwargs=args.template_kwargs,
        seed=args.seed,
        name_sources=len(policies) + len(own_columns) > 1 or (bool(own_columns) and "sources" in dataset.column_names),
    )


def _load(
    args: SampleArguments, loading: LoadingArguments, decodings: Sequence[Decoding]
) -> tuple[Dataset, tuple[str, ...]]:
    if args.prompt is not None:
        served = next((each for each in decodings if served_at_once([each])), None)
        if served is not None:
            tokenizer = served.served_tokenizer()  # type: ignore[attr-defined]
        else:
            tokenizer = load_model_tokenizer(args.model_name_or_path[0], loading)
        opening = args.opening_messages(tokenizer)
        return Dataset.from_list([as_message({"prompt": prompt}, opening) for prompt in args.prompt]), ()
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


def _sample(
    sampler: DatasetSampler,
    dataset: Dataset,
    batches: list[list[int]],
    file: ResumableFile,
    args: SampleArguments,
) -> float:
    """All batches that are not written yet; returns the seconds they took."""
    begin = time.monotonic()
    done = _done(batches, file)
    if done:
        print(f"{file.path}: resuming after {done} of {len(dataset)} prompts", file=sys.stderr)
    name = f"{'sampling' if sampler.policies else 'scoring'} to {file.path.name}"
    with progress(name, len(dataset), done=done) as phase:
        for numbers in batches[file.batches :]:
            with shown(False):  # a batch that is not complete would be lost
                batch = sampler([dataset[i] for i in numbers], numbers)
            counts: dict[str, float] = {}
            file.append(
                [
                    made | {_ROW_INDEX: i}
                    for i, row in zip(batch.indices, batch.rows, strict=True)
                    for made in export_row(row, i, args, counts)
                ],
                batch.totals | counts,
            )
            if args.prompt is not None:
                _print_rows(batch.rows)
            phase.advance(len(numbers))  # what is written, so that Ctrl-C loses nothing that is shown
    if file.rows:
        file.finish(sort_by=_ROW_INDEX, drop=True)
    return time.monotonic() - begin


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print prompts with their completions, each behind its model if there are several, and its score."""
    for row in rows:
        print(f"> {text_of(row['prompt'])}")
        for index, completion in enumerate(row["completions"]):
            label = [row["sources"][index]] if "sources" in row else []
            label += [f"{row['scores'][index]:.3f}"] if "scores" in row else []
            print(f"[{', '.join(label) or index}] {text_of(completion)}")


def _summary(file: ResumableFile, seconds: float) -> str:
    totals, completions = file.totals, max(1, file.totals["completions"])
    parts = [f"{file.path}: {file.rows} rows, {completions:.0f} completions in {seconds:.0f} s"]
    if totals["score"] or totals["best_score"]:
        best = totals["best_score"] / totals["prompts"]
        parts.append(f"score {totals['score'] / completions:.3f}, best of a prompt {best:.3f}")
    if totals["tokens"]:
        parts.append(f"{totals['tokens']:.0f} tokens sampled, {100 * totals['ended'] / completions:.0f} % ended")
    return "; ".join([*parts, *filter(None, [describe_logged(totals), _left_out(file)])])


def _left_out(file: ResumableFile) -> str:
    return ", ".join(filter(None, [describe_dropped(file.totals), describe_export(file.totals)]))


def make_parser(prog: str = "trl-ext sample") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [SampleArguments, SampleLoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
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
    parser = make_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    return run(args, loading, active_decodings(decodings, parser.given), words=argv)


def make_best_of_n_parser(prog: str = "trl-ext best_of_n") -> Parser:
    """See [`make_parser`]."""
    own = [BestOfNArguments, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Generate n completions for each prompt, score them, and write all of them, the best first.",
        epilog="In Python: `from trl_ext import best_of_n`. `trl-ext evaluate --best_of_n` measures it.",
    )


def best_of_n(argv: list[str]) -> int:
    """`trl-ext best_of_n`. See [`main`]."""
    parser = make_best_of_n_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    return run(args, loading, active_decodings(decodings, parser.given), parser.prog, argv)
