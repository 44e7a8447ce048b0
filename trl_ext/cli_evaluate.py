# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext evaluate`: measure models on prompts, beside their base model.

    trl-ext evaluate --model_name_or_path A B --base_model_name_or_path M --dataset_name prompts.jsonl \\
        --reward_funcs R1 R2 --output_file out.json

The file is JSON and has three keys. `settings`: every setting, the number of prompts, versions. `models`: one object
per model, the base first, with `model` (its name), `reward/<name>`, `kl`, `perplexity`, `distinct_2`,
`completion_length` and `ended`, each with its standard error under `<key>_se` (`null` where there is no number), and
`notes` on what is missing and why; a model that failed has `model` and `error`. `completions`: for the first prompts,
each model's completion and rewards. The file is written anew, in one piece, after every model.
"""

import dataclasses
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from .cli_models import LoadingArguments, Models
from .cli_parser import Parser, set_environment
from .data import DataError, is_conversational
from .evaluation import untruncated
from .evaluation_report import Report
from .loading import load_dataset
from .models import default_device
from .rewards import load_rewards
from .sampling import GenerationSettings


logger = logging.getLogger(__name__)


@dataclass
class EvaluateArguments:
    """What to measure, on what, and how. The meaning of each field is its help text."""

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Models to measure: hub ids, directories, LoRA adapter directories."}
    )
    base_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model that the KL is measured to; it gets a row of its own. By default the base model of a LoRA "
            "adapter; other models then have no KL."
        },
    )
    perplexity_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model that the completions' perplexity is measured under. By default the base model."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: names of TRL's functions, dotted paths to functions, sequence classifiers (hub ids or "
            "directories)."
        },
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "One more sequence classifier, as in `trl grpo`."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data set with a column `prompt` (text or messages): hub id, directory, or a .jsonl, .json, "
            ".parquet or .csv file. Its other columns are passed to the rewards."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to measure on. By default `test`, or the only one there is."}
    )
    max_num_prompts: int = field(default=0, metadata={"help": "Measure on the first so many prompts. 0 means all."})
    num_generations: int = field(default=1, metadata={"help": "Completions of a prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Sampling temperature of the completions. 0 takes the likeliest token. The KL is always measured "
            "on a draw at temperature 1 from the whole distribution, whatever the settings here say."
        },
    )
    top_k: int = field(default=0, metadata={"help": "Sample among the k likeliest tokens. 0 means all."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample among the likeliest tokens whose probabilities sum to this."}
    )
    min_p: float = field(
        default=0.0,
        metadata={"help": "Sample among tokens at least this probable relative to the likeliest. 0 means off."},
    )
    repetition_penalty: float = field(default=1.0, metadata={"help": "Above 1 discourages repetition."})
    seed: int = field(default=42, metadata={"help": "Seed of the draws, the same for every model."})
    generation_batch_size: int = field(
        default=0,
        metadata={"help": "Sequences that are generated or scored at once. 0 means 64 on CPU, 128 elsewhere."},
    )
    num_completions_to_print: int = field(default=4, metadata={"help": "Prompts whose completions are shown."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results. It is replaced."})

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        if not self.model_name_or_path and self.base_model_name_or_path is None:
            raise ValueError("there is no model to measure: pass --model_name_or_path")
        if self.dataset_name is None:
            raise ValueError("there are no prompts to measure on: pass --dataset_name")
        for name in ("max_num_prompts", "generation_batch_size", "num_completions_to_print"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        self.settings()

    def settings(self) -> GenerationSettings:
        """The fields that say how completions are drawn."""
        names = {f.name for f in dataclasses.fields(GenerationSettings)} & {f.name for f in dataclasses.fields(self)}
        return GenerationSettings(**{name: getattr(self, name) for name in names})


def load_prompts(args: EvaluateArguments) -> list[dict[str, Any]]:
    """
    The rows to measure on.

    Raises:
        [`~trl_ext.data.DataError`]: There are several splits and none was chosen, no row, or no column `prompt`.
    """
    name, split = str(args.dataset_name), args.dataset_test_split
    if split is None:
        splits = load_dataset(name, args.dataset_config)
        if "test" not in splits and len(splits) != 1:
            raise DataError(f"{name!r} has the splits {', '.join(splits)}: choose one with --dataset_test_split.")
        dataset = splits["test"] if "test" in splits else next(iter(splits.values()))
    else:
        dataset = load_dataset(name, args.dataset_config, split)
    if len(dataset) == 0:
        raise DataError(f"{name!r} has no rows: there is nothing to measure on.")
    if "prompt" not in dataset.column_names:
        raise DataError(f"{name!r} has no column 'prompt'; it has {', '.join(map(repr, dataset.column_names))}.")
    rows = list(dataset.select(range(min(args.max_num_prompts or len(dataset), len(dataset)))))
    for index, row in enumerate(rows):
        if not row["prompt"]:
            raise DataError(f"{name!r}, row {index}: the prompt is empty.")
    return rows


def run(args: EvaluateArguments, loading: LoadingArguments) -> int:
    """
    Measure every model, print and write what was found.

    Returns:
        `int`: 0; 1 if a model failed or the file could not be written; 130 after Ctrl-C. What was measured before is
        printed and written all the same.
    """
    _check_output(args.output_file)
    rows = load_prompts(args)
    specs = [*([args.reward_model_name_or_path] if args.reward_model_name_or_path else []), *(args.reward_funcs or [])]
    rewards = load_rewards(specs, trust_remote_code=loading.trust_remote_code)
    models = Models(
        args.model_name_or_path,
        loading,
        base=args.base_model_name_or_path,
        judge=args.perplexity_model_name_or_path,
        batch_size=args.generation_batch_size,
        conversational=is_conversational(rows[0]),
    )
    report = Report(
        rows,
        _settings(args, loading, models.base, len(rows)),
        base=models.base,
        path=args.output_file,
        num_completions=args.num_completions_to_print,
    )
    for name, reason in models.failures.items():
        _complain(name, reason)
    settings = args.settings()
    try:
        for name in models.names:
            if name in models.failures:
                report.fail(name, models.failures[name])
                continue
            draws = 1 if name == models.base or settings == untruncated(settings) else 2  # the second is for the KL
            try:
                with _progress(name, draws * len(rows)) as progress:
                    found = models.measure(
                        name, progress, rows=rows, rewards=rewards, settings=settings, seed=args.seed
                    )
                report.add(name, found)
            except Exception as error:  # whatever it is, the other models' numbers are worth having
                logger.debug("measuring %s failed", name, exc_info=True)
                report.fail(name, f"{type(error).__name__}: {error}")
                _complain(name, f"{type(error).__name__}: {error}")
                if name == models.base:
                    break  # the others are measured against it
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    except KeyboardInterrupt:
        print("\ntrl-ext evaluate: interrupted; the models below were finished", file=sys.stderr)
        report.show()
        return 130
    report.show()
    return 1 if report.failed else 0


def _check_output(path: str | None) -> None:
    """Find out before hours of work whether the file can be written."""
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"the folder of --output_file does not exist: {folder}")
    if Path(path).is_dir():
        raise ValueError(f"--output_file is a folder, name a file in it: {path}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the folder of --output_file cannot be written to: {folder}")


def _complain(model: str, reason: str) -> None:
    print(f"trl-ext evaluate: error: model {model!r}: {reason}", file=sys.stderr)


def _settings(
    args: EvaluateArguments, loading: LoadingArguments, base: str | None, num_prompts: int
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(args),
        **dataclasses.asdict(loading),
        "base_model_name_or_path": base,
        "perplexity_model_name_or_path": args.perplexity_model_name_or_path or base,
        "num_prompts": num_prompts,
        "device": str(default_device()),
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in ("trl-ext", "trl", "transformers", "torch", "peft", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on the terminal's error stream, and one line with the time once the model is done."""
    start = time.monotonic()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{Path(name).name}: sampling", total=total)
        yield lambda done: bar.advance(task, done)
    print(f"{name}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)


def make_parser(prog: str = "trl-ext evaluate") -> Parser:
    """The parser of the command's flags and YAML file."""
    return Parser(
        [EvaluateArguments, LoadingArguments],
        prog=prog,
        description="Measure models on prompts: rewards, KL to the base model, perplexity, distinct-2, length.",
        epilog="A LoRA adapter is named by its directory. Prints a table; --output_file keeps it as JSON.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext evaluate`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings that cannot work, found before anything was measured.
    """
    set_environment(argv)
    return run(*make_parser().parse_args_and_config(argv))
