# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext evaluate`: measure models on prompts, beside their base model.

    trl-ext evaluate --model_name_or_path A B --base_model_name_or_path M --dataset_name prompts.jsonl \\
        --reward_funcs R1 R2 --output_file out.json
    trl-ext evaluate --model_name_or_path M --best_of_n 4 16 64 --dataset_name prompts.jsonl --reward_funcs R \\
        --frontier_file frontier.png
    trl-ext evaluate --from out.json --reward_funcs R3 --output_file again.json

Guidance is measured as well, on the base model: best-of-n, and the decodings that installed methods declare, whose
flags are among those of the command (`trl-ext evaluate --help`). If such flags name a server, its model is measured
too; it has a KL if value models guide it, and a perplexity only under a model that is named.

The last line scores the completions of an evaluation again with other rewards (`rescore`).

The file is JSON. `settings`: every setting, the number of prompts, versions. `comparison`: what another evaluation
has to have in common with this one to be joined by `trl-ext frontier`. `models`: one object per model, the base first,
with `model` (its name), `reward/<name>`, `kl`, `perplexity`, `distinct_2`, `completion_length` and `ended`, each with
its standard error under `<key>_se` (`null` if it was not measured), `difference/<name>` (the reward minus the base's,
paired by prompt), `generation_seconds` (wall time of generating the completions) and `notes` on what is missing and
why; best-of-n and blocks that guides choose have `kl_bound`, as their KL is not known; a model with one of several
settings has its `series` and its `extras` (the setting); a model that failed has `model` and `error`. `completions`:
for the first prompts, each model's completion and rewards. A Parquet file beside it (`out.parquet`) has every
completion; `evaluation/completions.py` has its columns. Both files are replaced atomically after every model.
"""

import gc
import logging
import platform
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_ext.data.chat_template import with_template_kwargs
from trl_ext.data.prompts import load_prompts
from trl_ext.data.resumable_file import rows_fingerprint, weights_fingerprint
from trl_ext.data.schema import is_conversational
from trl_ext.devices import default_device, empty_cache
from trl_ext.evaluation.completions import DESCRIPTION, completions_file, read_evaluations
from trl_ext.evaluation.evaluate import measure_rewards
from trl_ext.evaluation.files import check_writable
from trl_ext.evaluation.frontier import check_frontier, frontier, write_frontier
from trl_ext.evaluation.report import Report
from trl_ext.generation_settings import setting
from trl_ext.inference.best_of_n import best_of_n_policies
from trl_ext.inference.policy import Decoding, Policy, served_at_once
from trl_ext.models.load import adapter_base
from trl_ext.progress import duration, titled
from trl_ext.rewards.functions import Reward, check_reward_columns, check_reward_prompts, load_rewards
from trl_ext.rewards.kept_scores import fingerprint_of
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.rewards.settings import RewardSettings
from trl_ext.settings_file import versions

from .arguments import LoadingArguments, PromptArguments, RewardArguments, SamplingArguments
from .decoding_flags import active_decodings, decoding_classes, settings_of
from .models import Models
from .parser import Parser


logger = logging.getLogger(__name__)


@dataclass
class EvaluateArguments(PromptArguments, RewardArguments, RewardSettings, SamplingArguments):
    """Which models to measure, on which prompts, and how."""

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Models to measure: Hub ids, directories, LoRA adapter directories."}
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
    kl_prompts: int | None = field(
        default=None,
        metadata={
            "help": "Number of prompts, the first ones, on which the KL is measured: it takes completions of its own, "
            "and their log-probabilities, which are slow for guided models. By default all prompts; 0 measures no KL."
        },
    )
    completion_logps: bool = field(
        default=True,
        metadata={
            "help": "Whether the Parquet file also has the log-probabilities of the completions that are scored. For "
            "a guided model they take as long as generating. The KL does not need them."
        },
    )
    best_of_n: list[int] | None = field(
        default=None,
        metadata={
            "help": "Also measure best-of-n of the base model, for each of these n. All of them use the same samples."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the rewards by which best-of-n chooses, --reward_model_name_or_path first. All 1 by "
            "default; a reward with weight 0 is measured but does not decide."
        },
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to measure on. By default `test`, or the only one there is."}
    )
    temperature: float = setting(
        "temperature", "The KL is always measured on completions sampled at temperature 1 from the full distribution."
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sampling, the same for every model."})
    num_completions_to_print: int = field(default=4, metadata={"help": "Prompts whose completions are printed."})
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "File for the results, .json. A Parquet file beside it has every completion with its rewards and "
            "log-probabilities. Both are replaced."
        },
    )
    from_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of an evaluation (also `--from`): its completions are scored again with the rewards of "
            "this command. Nothing is generated, and no model but reward models is loaded.",
            "aliases": ["--from"],
        },
    )
    frontier_file: str | None = field(
        default=None,
        metadata={"help": "Plot of reward over KL (.png, .svg or .pdf); its points go to a JSON file next to it."},
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = list(dict.fromkeys(self.model_name_or_path))
        self._check_output()
        self.check_counts(max_num_prompts=0, generation_batch_size=0, num_completions_to_print=0)
        if self.kl_prompts is not None:
            self.check_counts(kl_prompts=0)
        if not self.completion_logps and self.output_file is None:
            raise ValueError("`completion_logps` is about the file of completions: pass --output_file too")
        if min(self.best_of_n or [1]) < 1:
            raise ValueError(f"`best_of_n` must be at least 1, got {min(self.best_of_n or [])}")
        if not self.rewards:
            for name in ("best_of_n", "frontier_file", "reward_weights"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` needs a reward: pass --reward_funcs or --reward_model_name_or_path")
        check_reward_weights(self.reward_weights, self.rewards)
        self.check_prompts()
        self.check_reward_settings()
        self.settings()

    def _check_output(self) -> None:
        """Raise a `ValueError` if the two files would have the name of another one."""
        if self.output_file is None:
            return
        # Without the suffix, those of `beta_0.5` and `beta_0.7` would both be beta_0.parquet.
        if Path(self.output_file).suffix != ".json" and not Path(self.output_file).is_dir():
            raise ValueError(
                f"`output_file` is a JSON file, with a .parquet file beside it: its name must end in .json, got "
                f"{self.output_file!r}"
            )
        for file in (Path(self.output_file), completions_file(self.output_file)):
            if self.dataset_name is not None and file.resolve() == Path(self.dataset_name).resolve():
                raise ValueError(f"`output_file`: '{file}' is the dataset, which is read: choose another name")


@dataclass
class EvaluateLoadingArguments(LoadingArguments):
    """How all models of the command are loaded, the base and the perplexity model included."""

    dtype: str = field(
        default="float32",
        metadata={**LoadingArguments.__dataclass_fields__["dtype"].metadata},
    )


def run(args: EvaluateArguments, loading: LoadingArguments, decodings: Sequence[Decoding] = ()) -> int:
    """
    Measure every model and the guided base model; print and write the results.

    Args:
        args ([`EvaluateArguments`]): Which models to measure, on which prompts, and how.
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]): How models are loaded.
        decodings (`Sequence[Decoding]`, *optional*): Guidance of the base model, already checked.

    Returns:
        `int`: 0; 1 if a model failed or a file could not be written; 130 after Ctrl-C. Models that were measured
        before are printed and written in any case.
    """
    if not served_at_once(decodings) and not args.model_name_or_path and args.base_model_name_or_path is None:
        raise ValueError("there is no model to measure: pass --model_name_or_path")
    check_writable(args.output_file, "output_file")
    if args.frontier_file is not None:
        check_frontier(args.frontier_file)
    rows = load_prompts(
        str(args.dataset_name),
        args.dataset_config,
        args.dataset_test_split,
        limit=args.max_num_prompts,
        columns=args.columns,
        dataset_format=args.dataset_format,
    )
    rows = [with_template_kwargs(row, args.template_kwargs) for row in rows]
    models = _models(args, loading, decodings, is_conversational(rows[0]))
    rewards = load_rewards(
        args.rewards,
        settings=args,
        policy_tokenizer=next(iter(models.tokenizers.values()), None),
        trust_remote_code=loading.trust_remote_code,
    )
    check_reward_columns(rewards, rows[0])
    check_reward_prompts(rewards, rows[0]["prompt"])
    report = Report(
        rows,
        {**_settings(args, loading, models.base, len(rows)), **settings_of(decodings)},
        base=models.base,
        path=args.output_file,
        num_completions=args.num_completions_to_print,
        comparison=_comparison(args, loading, models.base, rows, rewards),
    )
    status = Measurement(args, models, report, rows, rewards, decodings).run()
    failed = _finish(report, args.frontier_file)  # after Ctrl-C too
    return status or failed


def _finish(report: Report, frontier_file: str | None) -> int:
    """Print the report and plot the frontier; returns 1 if anything failed, else 0."""
    report.show()
    if frontier_file is not None:
        try:
            sampling = (report.comparison or {}).get("sampling")
            write_frontier(frontier(report.rows, report.base, sampling), frontier_file)
        except (OSError, ValueError) as error:
            print(f"trl-ext evaluate: error: cannot plot {frontier_file}: {error}", file=sys.stderr)
            report.failed = True
    return int(report.failed)


# With --from, what the new rewards and the output depend on; all other settings are those of the file.
_OF_RESCORING = {
    "from_file", "output_file", "frontier_file", "num_completions_to_print", "trust_remote_code", "reward_weights",
    *RewardArguments.__dataclass_fields__, *RewardSettings.__dataclass_fields__,
}  # fmt: skip


def rescore(args: EvaluateArguments, loading: LoadingArguments, given: Collection[str]) -> int:
    """
    Score the completions of an evaluation with other rewards; print and write the results as [`run`] does.

    KL, perplexity and the like are those of the evaluation. Best-of-n is what the evaluation's rewards chose.

    Args:
        args ([`EvaluateArguments`]): The file and the rewards.
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]): Whether the code of reward models is trusted.
        given (`Collection[str]`): Names of the settings that were given, also with their default value.

    Raises:
        `ValueError` or `OSError`: There is no reward, a file cannot be read, or a setting has no effect.
    """
    source = str(args.from_file)
    if others := sorted(set(given) - _OF_RESCORING):
        names = ", ".join(f"`{name}`" for name in others)
        raise ValueError(f"{names}: no effect with --from, whose completions are kept: only rewards can change")
    if not args.rewards:
        raise ValueError("--from needs the rewards to score with: pass --reward_funcs or --reward_model_name_or_path")
    replaced = Path(source).with_suffix(".json").resolve()
    if args.output_file is not None and Path(args.output_file).resolve() == replaced:
        raise ValueError(f"--output_file would replace {source}, which is read: pass another file")
    check_writable(args.output_file, "output_file")
    if args.frontier_file is not None:
        check_frontier(args.frontier_file)
    saved = read_evaluations(source)
    rewards = load_rewards(args.rewards, settings=args, trust_remote_code=loading.trust_remote_code)
    check_reward_columns(rewards, saved.prompts[0])
    check_reward_prompts(rewards, saved.prompts[0]["prompt"])
    settings, comparison = saved.report["settings"], saved.report["comparison"]
    own = {name: getattr(args, name) for name in _OF_RESCORING if hasattr(args, name)}
    report = Report(
        saved.prompts,
        {**settings, **own},
        base=settings["base_model_name_or_path"],
        path=args.output_file,
        num_completions=args.num_completions_to_print,
        comparison={**comparison, "rewards": _sources(rewards, args.rewards)},
    )
    chosen = f"of the completions that {', '.join(comparison['rewards'])} chose"
    for row in saved.report["models"]:
        if "error" in row:
            report.fail(row["model"], row["error"])
            continue
        found = saved.evaluations[row["model"]]
        measure_rewards(found, saved.prompts, rewards, args.reward_weights)
        if row.get("series") == "best-of-n":
            for key in (f"reward/{reward.name}" for reward in rewards):
                found.notes[key] = "; ".join(filter(None, [found.notes.get(key), chosen]))
        report.add(row["model"], found, **{key: row[key] for key in DESCRIPTION if key in row})
    return _finish(report, args.frontier_file)


def _models(
    args: EvaluateArguments, loading: LoadingArguments, decodings: Sequence[Decoding], conversational: bool
) -> Models:
    guided = bool(args.best_of_n) or not all(served_at_once([decoding]) for decoding in decodings)
    base = args.base_model_name_or_path
    if base is None and guided and len(args.model_name_or_path) == 1 and not adapter_base(args.model_name_or_path[0]):
        [base] = args.model_name_or_path
    models = Models(
        args.model_name_or_path,
        loading,
        base=base,
        judge=args.perplexity_model_name_or_path,
        batch_size=args.generation_batch_size,
        conversational=conversational,
    )
    if models.base is None and (guided or args.frontier_file is not None):
        raise ValueError(
            "best-of-n, guidance and the frontier are relative to a base model: name it with --base_model_name_or_path"
        )
    for name, reason in models.failures.items():
        _print_failure(name, reason)
    return models


def _settings(
    args: EvaluateArguments, loading: LoadingArguments, base: str | None, num_prompts: int
) -> dict[str, Any]:
    return {
        **asdict(args),
        **asdict(loading),
        "base_model_name_or_path": base,
        "perplexity_model_name_or_path": args.perplexity_model_name_or_path or base,
        "num_prompts": num_prompts,
        "device": str(default_device()),
        "versions": {"python": platform.python_version(), **versions()},
    }


def _comparison(
    args: EvaluateArguments,
    loading: LoadingArguments,
    base: str | None,
    rows: Sequence[dict[str, Any]],
    rewards: Sequence[Reward],
) -> dict[str, Any]:
    """What an evaluation must have in common with this one to be compared; see `evaluation/comparison.py`."""
    sampling = ("max_completion_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {
        "prompts": rows_fingerprint(rows),
        "base_model": None if base is None else _source(base),
        "rewards": _sources(rewards, args.rewards),
        "sampling": {name: getattr(args, name) for name in sampling}
        | {name: getattr(loading, name) for name in ("chat_template_path", "eos_token")},
    }


def _sources(rewards: Sequence[Reward], names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for reward, name in zip(rewards, names, strict=True):
        source = fingerprint_of(reward)
        found[reward.name] = _source(name) | ({} if source is None else {"source": source})
    return found


def _source(name: str) -> dict[str, str | None]:
    return {"name": name, "weights": weights_fingerprint(name)}


class Measurement:
    """
    Measures one policy after the other; a policy that fails does not stop the others.

    Args:
        args ([`EvaluateArguments`]):
            How to measure.
        models ([`~trl_ext.cli.models.Models`]):
            The models, the base first.
        report ([`~trl_ext.evaluation.report.Report`]):
            Receives the results.
        rows (`list[dict[str, Any]]`):
            Rows with a `prompt`.
        rewards (`list[Reward]`):
            May be empty.
        decodings (`Sequence[Decoding]`):
            Guidance of the base model, or of a server's model; already checked.
    """

    def __init__(
        self,
        args: EvaluateArguments,
        models: Models,
        report: Report,
        rows: list[dict[str, Any]],
        rewards: list[Reward],
        decodings: Sequence[Decoding],
    ) -> None:
        self.args, self.models, self.report, self.rows, self.rewards = args, models, report, rows, rewards
        self.decodings = decodings
        self.settings = args.settings()

    def run(self) -> int:
        """Measure all; returns 130 after Ctrl-C, else 0."""
        try:
            for name in self.models.names:
                if name in self.models.failures:
                    self.report.fail(name, self.models.failures[name])
                elif not self._measure_model(name) and name == self.models.base:
                    break  # the others are measured against it
                gc.collect()
                empty_cache()
            for decoding in self.decodings:
                if served_at_once([decoding]):
                    self._measure_decoding(decoding, None)
        except KeyboardInterrupt:
            print("\ntrl-ext evaluate: interrupted; the models below were finished", file=sys.stderr)
            return 130
        return 0

    def _measure_model(self, name: str) -> bool:
        """Measure a model, and if it is the base, its guidance. Returns whether the model itself could be measured."""
        measured = False
        with self._reporting_failure(name):
            policy, base = self.models.load(name)
            self._measure(policy, base)
            measured = True
            if name == self.models.base:
                self._measure_guided(policy)
        return measured

    def _measure_guided(self, base: Policy) -> None:
        """Measure best-of-n of the base, and the decodings that guide it."""
        if self.args.best_of_n:
            for policy in best_of_n_policies(
                base, self.rows, self.rewards, self.args.best_of_n, reward_weights=self.args.reward_weights
            ):
                with self._reporting_failure(policy.name):
                    self._measure(policy, base)
        for decoding in self.decodings:
            if not served_at_once([decoding]):
                self._measure_decoding(decoding, base)

    def _measure_decoding(self, decoding: Decoding, base: Policy | None) -> None:
        """Measure all settings of a decoding, on the base or, without one, on the decoding's own model."""
        name = "" if base is None else base.name
        with self._reporting_failure(f"{name} {type(decoding).__name__}".lstrip()):
            for policy in self._policies(decoding, base, name):
                with self._reporting_failure(policy.name):
                    self._measure(self.models.loading.served(policy) if base is None else policy, base)

    def _policies(self, decoding: Decoding, base: Policy | None, name: str) -> Iterator[Policy]:
        """The settings of a decoding; before them its guides without training, where they differ from the base."""
        for make in filter(None, [getattr(decoding, "untrained_policies", None), decoding.policies]):
            yield from make(
                None if base is None else base.model,
                None if base is None else base.tokenizer,
                name=name,
                batch_size=served_at_once([decoding]) or self.models.batch_size,
            )

    def _measure(self, policy: Policy, base: Policy | None) -> None:
        start = time.monotonic()
        with titled(Path(policy.name).name):
            found = self.models.measure(
                policy,
                base,
                rows=self.rows,
                rewards=self.rewards,
                reward_weights=self.args.reward_weights,
                keep_logps=self.args.output_file is not None and self.args.completion_logps,
                kl_prompts=self.args.kl_prompts,
                settings=self.settings,
                seed=self.args.seed,
            )
        print(f"{policy.name}: measured in {duration(time.monotonic() - start)}", file=sys.stderr)
        self.report.add(policy.name, found, **{name: getattr(policy, name) for name in DESCRIPTION})

    @contextmanager
    def _reporting_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the results of the other models are of use
            logger.debug("measuring %s failed", name, exc_info=True)
            self.report.fail(name, f"{type(error).__name__}: {error}")
            _print_failure(name, f"{type(error).__name__}: {error}")


def _print_failure(model: str, reason: str) -> None:
    print(f"trl-ext evaluate: error: model {model!r}: {reason}", file=sys.stderr)


def make_parser(prog: str = "trl-ext evaluate") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [EvaluateArguments, EvaluateLoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Measure models on prompts: rewards, KL to the base model, perplexity, distinct-2, length.",
        epilog="A LoRA adapter is named by its directory. The results are printed as a table; --output_file also "
        "writes them as JSON, and every completion as Parquet. trl-ext frontier joins evaluations in one plot.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext evaluate`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings that cannot work, found before anything was measured.
    """
    parser = make_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    if args.from_file is not None:
        return rescore(args, loading, parser.given)
    return run(args, loading, active_decodings(decodings, parser.given))
