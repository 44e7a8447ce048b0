# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext evaluate`: measure models on prompts, beside their base model.

    trl-ext evaluate --model_name_or_path A B --base_model_name_or_path M --dataset_name prompts.jsonl \\
        --reward_funcs R1 R2 --output_file out.json
    trl-ext evaluate --model_name_or_path M --best_of_n 4 16 64 --dataset_name prompts.jsonl --reward_funcs R \\
        --frontier_file frontier.png

What steers a frozen model is measured as well, on the base model: best-of-n, and what installed methods declare as
their decoding, whose flags are then among those of the command (`trl-ext evaluate --help`). Where such flags name a
server, its model is measured too; it has no KL, and no perplexity but under a model that is named.

The file is JSON and has three keys. `settings`: every setting, the number of prompts, versions. `models`: one object
per model, the base first, with `model` (its name), `reward/<name>`, `kl`, `perplexity`, `distinct_2`,
`completion_length` and `ended`, each with its standard error under `<key>_se` (`null` where there is no number),
`generation_seconds` (wall time of drawing the completions) and `notes` on what is missing and why; best-of-n has
`kl_bound` where its KL is not measured; one of several settings has its `series` and its `extras` (the setting); a
model that failed has `model` and `error`. `completions`: for the first prompts, each model's completion and rewards.
The file is written anew, in one piece, after every model.
"""

import dataclasses
import gc
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import progress as rich_progress
from rich.console import Console

from trl_ext.data.prompts import load_prompts
from trl_ext.data.schema import is_conversational
from trl_ext.evaluation.evaluate import untruncated
from trl_ext.evaluation.frontier import check_frontier, frontier, write_frontier
from trl_ext.evaluation.report import Report, check_writable
from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.inference.best_of_n import best_of_n_policies
from trl_ext.inference.policy import Decoding, Policy, Progress, served_at_once
from trl_ext.models.load import adapter_base, default_device
from trl_ext.rewards.functions import Reward, load_rewards
from trl_ext.rewards.scoring import check_reward_weights

from .decoding_flags import asked_for, decoding_classes, policies, settings_of
from .models import LoadingArguments, Models
from .parser import Parser, set_environment


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
    best_of_n: list[int] | None = field(
        default=None,
        metadata={
            "help": "Measure best-of-n of the base model as well, for each of these n. One draw serves them all."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the rewards in best-of-n's choice, --reward_model_name_or_path first. All 1 by "
            "default; 0 makes a reward a judge that has no say."
        },
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
    temperature: float = setting(
        "temperature",
        "The KL is always measured on a draw at temperature 1 from the whole distribution, whatever the settings say.",
    )
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cuda_graphs: str = setting("cuda_graphs")
    seed: int = field(default=42, metadata={"help": "Seed of the draws, the same for every model."})
    generation_batch_size: int = field(
        default=0,
        metadata={"help": "Sequences that are generated or scored at once. 0 means 64 on CPU, 128 elsewhere."},
    )
    num_completions_to_print: int = field(default=4, metadata={"help": "Prompts whose completions are shown."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results. It is replaced."})
    frontier_file: str | None = field(
        default=None,
        metadata={"help": "Picture of reward over KL (.png, .svg or .pdf); its points go to a JSON file next to it."},
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        if self.dataset_name is None:
            raise ValueError("there are no prompts to measure on: pass --dataset_name")
        for name in ("max_num_prompts", "generation_batch_size", "num_completions_to_print"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if min(self.best_of_n or [1]) < 1:
            raise ValueError(f"`best_of_n` must be at least 1, got {min(self.best_of_n or [])}")
        if not self.rewards:
            for name in ("best_of_n", "frontier_file", "reward_weights"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` needs a reward: pass --reward_funcs or --reward_model_name_or_path")
        check_reward_weights(self.reward_weights, self.rewards)
        self.settings()

    @property
    def rewards(self) -> list[str]:
        """All rewards that are named, in the order of their weights."""
        first = [self.reward_model_name_or_path] if self.reward_model_name_or_path else []
        return [*first, *(self.reward_funcs or [])]

    def settings(self) -> GenerationSettings:
        """The fields that say how completions are drawn."""
        return GenerationSettings.of(self)


def run(args: EvaluateArguments, loading: LoadingArguments, decodings: Sequence[Decoding] = ()) -> int:
    """
    Measure every model, then what steers the base; print and write what was found.

    Args:
        args ([`EvaluateArguments`]): What to measure, on what, and how.
        loading ([`~trl_ext.cli.models.LoadingArguments`]): How models are loaded.
        decodings (`Sequence[Decoding]`, *optional*): What steers the base model; checked.

    Returns:
        `int`: 0; 1 if a model failed or a file could not be written; 130 after Ctrl-C. What was measured before is
        printed and written all the same.
    """
    if not served_at_once(decodings) and not args.model_name_or_path and args.base_model_name_or_path is None:
        raise ValueError("there is no model to measure: pass --model_name_or_path")
    check_writable(args.output_file, "output_file")
    if args.frontier_file is not None:
        check_frontier(args.frontier_file)
    rows = load_prompts(
        str(args.dataset_name), args.dataset_config, args.dataset_test_split, limit=args.max_num_prompts
    )
    rewards = load_rewards(args.rewards, trust_remote_code=loading.trust_remote_code)
    models = _models(args, loading, decodings, is_conversational(rows[0]))
    report = Report(
        rows,
        {**_settings(args, loading, models.base, len(rows)), **settings_of(decodings)},
        base=models.base,
        path=args.output_file,
        num_completions=args.num_completions_to_print,
    )
    status = Measurement(
        models,
        report,
        rows,
        rewards,
        settings=args.settings(),
        seed=args.seed,
        ns=args.best_of_n or (),
        reward_weights=args.reward_weights,
        decodings=decodings,
    )()
    report.show()
    if args.frontier_file is not None:
        try:
            write_frontier(frontier(report.rows, models.base), args.frontier_file)
        except (OSError, ValueError) as error:
            print(f"trl-ext evaluate: error: cannot draw {args.frontier_file}: {error}", file=sys.stderr)
            report.failed = True
    return status or int(report.failed)


def _models(
    args: EvaluateArguments, loading: LoadingArguments, decodings: Sequence[Decoding], conversational: bool
) -> Models:
    steering = [decoding for decoding in decodings if not served_at_once([decoding])]
    base, steered = args.base_model_name_or_path, bool(steering or args.best_of_n)
    if base is None and steered and len(args.model_name_or_path) == 1 and not adapter_base(args.model_name_or_path[0]):
        [base] = args.model_name_or_path
    models = Models(
        args.model_name_or_path,
        loading,
        base=base,
        judge=args.perplexity_model_name_or_path,
        batch_size=args.generation_batch_size,
        conversational=conversational,
    )
    if models.base is None and (steered or args.frontier_file is not None):
        raise ValueError(
            "best-of-n, guidance and the frontier are relative to a base model: name it with --base_model_name_or_path"
        )
    for name, reason in models.failures.items():
        complain(name, reason)
    return models


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


def make_parser(prog: str = "trl-ext evaluate") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [EvaluateArguments, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
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
    args, loading, *decodings = make_parser().parse_args_and_config(argv)
    return run(args, loading, asked_for(decodings))


logger = logging.getLogger(__name__)


class Measurement:
    """
    One policy after the other, into the report; a policy that fails leaves the others their numbers.

    Args:
        models ([`~trl_ext.cli.models.Models`]): The models, the base first.
        report ([`~trl_ext.evaluation.report.Report`]): Takes in what is found.
        rows (`list[dict[str, Any]]`): Rows with a `prompt`.
        rewards (`list[Reward]`): May be empty.
        settings ([`~trl_ext.generation.generate.GenerationSettings`]): How completions are drawn.
        seed (`int`): Seed of the draws, the same for every policy.
        ns (`Sequence[int]`, *optional*): The n of best-of-n of the base.
        reward_weights (`Sequence[float]`, *optional*): What decides there which is best.
        decodings (`Sequence[Decoding]`, *optional*): What steers the base, or a model of its own; checked.
    """

    def __init__(
        self,
        models: Models,
        report: Report,
        rows: list[dict[str, Any]],
        rewards: list[Reward],
        *,
        settings: GenerationSettings,
        seed: int,
        ns: Sequence[int] = (),
        reward_weights: Sequence[float] | None = None,
        decodings: Sequence[Decoding] = (),
    ) -> None:
        self.models, self.report, self.rows, self.rewards = models, report, rows, rewards
        self.settings, self.seed = settings, seed
        self.ns, self.reward_weights, self.decodings = ns, reward_weights, decodings
        self.progress = Progress()

    def __call__(self) -> int:
        """Measure all; returns 130 after Ctrl-C, else 0."""
        try:
            for name in self.models.names:
                if name in self.models.failures:
                    self.report.fail(name, self.models.failures[name])
                elif not self._model(name) and name == self.models.base:
                    break  # the others are measured against it
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._decodings(None)
        except KeyboardInterrupt:
            print("\ntrl-ext evaluate: interrupted; the models below were finished", file=sys.stderr)
            return 130
        return 0

    def _model(self, name: str) -> bool:
        measured = False
        with self._failing(name):
            policy, base = self.models.open(name, self.progress)
            self._policy(policy, base)
            measured = True
            if name == self.models.base:
                self._guided(policy)
        return measured

    def _policy(self, policy: Policy, base: Policy | None) -> None:
        with_kl = policy is not base and policy.logps is not None and self.settings != untruncated(self.settings)
        with progress_bar(self.progress, policy.name, (2 if with_kl else 1) * len(self.rows)):  # the KL samples again
            found = self.models.measure(
                policy, base, rows=self.rows, rewards=self.rewards, settings=self.settings, seed=self.seed
            )
        self.report.add(policy.name, found, series=policy.series, extras=policy.extras)

    def _guided(self, base: Policy) -> None:
        """Measure best-of-n of the base and the decodings that the user asked for."""
        for policy in self._best_of_n(base):
            with self._failing(policy.name):
                self._policy(policy, base)
        self._decodings(base)

    def _decodings(self, base: Policy | None) -> None:
        """Measure the decodings that guide the base model, or without one those that bring their own model."""
        for decoding in self.decodings:
            at_once = served_at_once([decoding])
            if bool(at_once) is not (base is None):
                continue
            prefix = "" if base is None else f"{base.name} "
            with self._failing(f"{prefix}{type(decoding).__name__}"):
                for policy in policies(
                    [decoding],
                    None if base is None else base.model,
                    None if base is None else base.tokenizer,
                    name="" if base is None else base.name,
                    batch_size=at_once or self.models.batch_size,
                    progress=self.progress,
                ):
                    with self._failing(policy.name):
                        self._policy(policy, base)

    def _best_of_n(self, base: Policy) -> list[Policy]:
        if not self.ns:
            return []
        return best_of_n_policies(base, self.rows, self.rewards, self.ns, reward_weights=self.reward_weights)

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the other models' numbers are worth having
            logger.debug("measuring %s failed", name, exc_info=True)
            self.report.fail(name, f"{type(error).__name__}: {error}")
            complain(name, f"{type(error).__name__}: {error}")


def complain(model: str, reason: str) -> None:
    """Say on stderr that a model could not be measured."""
    print(f"trl-ext evaluate: error: model {model!r}: {reason}", file=sys.stderr)


@contextmanager
def progress_bar(progress: Progress, name: str, total: int) -> Iterator[None]:
    """
    A bar on the terminal's error stream, and one line with the time when `name` is done.

    Args:
        progress ([`~trl_ext.inference.policy.Progress`]): Called by the policy that is measured.
        name (`str`): Name of the policy.
        total (`int`): Number of prompts to complete.
    """
    start = time.monotonic()
    console = Console(stderr=True)
    with rich_progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{Path(name).name}: sampling", total=total)
        with progress.shown_by(lambda done: bar.advance(task, done)):
            yield
    print(f"{name}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
