# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Tokens a second of a VAS training step, against a step of TRL's reward trainer on the same completions.

    python -m benchmarks.run vas_train [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

B prompts with K completions each, N = K * B.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from benchmarks.harness.batches import RAGGED, Batch, BatchCase, make_batch
from benchmarks.harness.memory import needed_memory
from benchmarks.harness.models import SHAPES, build
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import BY_DTYPE, Column, Table, agreement_column, median_seconds, ratio_column, sections
from benchmarks.harness.timing import Variant, relative_difference
from benchmarks.harness.trainers import make_tokenizer, trainer_args
from trl_ext.logprobs.shared_prefix import choose_form
from trl_ext.methods.vas.config import VASConfig
from trl_ext.methods.vas.trainer import VASTrainer
from trl_ext.methods.vas.value_model.model import ValueModel


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (REWARD, SEPARATE, SHARED) = ("TRL's RewardTrainer", "VAS, separate rows", "VAS, shared prompts")


@dataclass(frozen=True)
class Case(BatchCase):
    """
    A model, for the value model and for the reward model, and a batch. The reward trainer takes pairs: K is even.

    Args:
        targets (`dict[str, float]`): Tokens per second of VAS that are the goal, as a multiple of a variant's.
    """

    targets: dict[str, float] = field(default_factory=lambda: {REWARD: 0.8})


# The IMDB task (openings of 16 words, and 48 tokens), and longer texts.
_IMDB, _LONG = ((16, 28), (48, 48)), ((128, 128), RAGGED)

CASES = [
    *(
        Case(model, "cpu", completions, prompts, *lengths)
        for model in ("imdb-2m", "imdb-7m")
        for completions, prompts, lengths in ((4, 8, _IMDB), (8, 4, _IMDB), (4, 4, _LONG), (8, 2, _LONG))
    ),
    *(Case("llama-1b", "cuda", completions, prompts, *_LONG) for completions, prompts in ((4, 8), (8, 4))),
]


class _Watched:
    """The rows of a trainer, with a note of the form that they last took."""

    def __init__(self, states: Any) -> None:
        self.states = states
        self.form, self.positions = "", 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens = self.states(*args, **kwargs)
        self.form, self.positions = tokens.form, tokens.num_positions
        return tokens


class Workload:
    """
    Three trainers with models of equal weights, and batches for them.

    Args:
        case ([`Case`]): The model and the sizes of batches.
        batches (`int`): How many batches to make.
        seed (`int`): Of weights and batches.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.batches = [make_batch(case, seed + i) for i in range(batches)]
        self._folder = tempfile.TemporaryDirectory()
        disable_progress_bars()
        model = build(case.model, device=self.device, dtype=case.dtype, seed=seed)
        width = SHAPES[case.model].hidden_size
        self.head = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        settings = {SEPARATE: "never", SHARED: "always"}
        self.trainers: dict[str, Any] = {n: self._vas(copy.deepcopy(model), s) for n, s in settings.items()}
        self.watched = {name: _Watched(trainer.token_values) for name, trainer in self.trainers.items()}
        for name, trainer in self.trainers.items():
            trainer.token_values = self.watched[name]
        self.trainers[REWARD] = self._reward(model)
        for trainer in self.trainers.values():
            trainer.current_gradient_accumulation_steps = 1  # train() would set it
        self.positions: dict[str, int] = {}

    def _vas(self, model: Any, shared_prefix: str) -> VASTrainer:
        """Its dataset is a formality, batches come from here. Each step computes targets; by default every other."""
        value_model = ValueModel.from_backbone(model)
        value_model.head.weight.data.copy_(self.head)
        return VASTrainer(
            "a policy that is never loaded",
            args=trainer_args(
                VASConfig, self._folder.name, self.device, shared_prefix=shared_prefix, num_epochs_per_batch=1
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a"], "completions": [[" b"]], "scores": [[1.0]]}),
            processing_class=make_tokenizer(),
            value_model=value_model,
        )

    def _reward(self, model: Any) -> Any:
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=self.case.dtype).to(self.device)
        classifier.model = model.model
        classifier.score.weight.data.copy_(self.head)
        return RewardTrainer(
            classifier.train(),
            args=trainer_args(RewardConfig, self._folder.name, self.device, max_length=None),
            train_dataset=Dataset.from_dict({"chosen_ids": [[2, 3]], "rejected_ids": [[2, 4]]}),
            processing_class=make_tokenizer(),
        )

    def variants(self) -> list[Variant]:
        """A step is collation from lists of ids, forward, loss with its metrics, backward."""
        steps: dict[str, Callable[[int], float]] = {
            REWARD: self._reward_step,
            SEPARATE: partial(self._vas_step, SEPARATE, "separate"),
            SHARED: partial(self._vas_step, SHARED, ""),
        }
        return [Variant(name, step, self._prepare) for name, step in steps.items()]

    def _prepare(self) -> None:
        for trainer in self.trainers.values():
            trainer.model.zero_grad(set_to_none=True)

    def inputs(self, name: str, batch: Batch) -> dict[str, Any]:
        """What a trainer's collator makes of a batch."""
        if name == REWARD:
            return self.trainers[name].data_collator(
                [
                    {"chosen_ids": prompt + group[j], "rejected_ids": prompt + group[j + 1]}
                    for prompt, group in zip(batch.prompts, batch.completions, strict=True)
                    for j in range(0, len(group), 2)
                ]
            )
        k = self.case.completions
        return self.trainers[name].data_collator(
            [
                {
                    "row_index": b,
                    "prompt_ids": prompt,
                    "completion_ids": group,
                    "token_rewards": [[[score]] for score in batch.scores[b * k : (b + 1) * k]],
                }
                for b, (prompt, group) in enumerate(zip(batch.prompts, batch.completions, strict=True))
            ]
        )

    def _reward_step(self, i: int) -> float:
        inputs = self.inputs(REWARD, self.batches[i])
        self.positions[REWARD] = inputs["input_ids"].numel()
        return self.trainers[REWARD].training_step(self.trainers[REWARD].model, inputs).item()

    def _vas_step(self, name: str, form: str, i: int) -> float:
        trainer, watched = self.trainers[name], self.watched[name]
        loss = trainer.training_step(trainer.model, self.inputs(name, self.batches[i])).item()
        if watched.form != form and (form or watched.form == "separate"):
            raise RuntimeError(f"{name!r} fell back to {watched.form!r} rows; nothing would be measured.")
        self.positions[name] = watched.positions
        return loss

    def tokens(self, i: int) -> int:
        """Tokens of the completions of a batch."""
        return sum(len(c) for group in self.batches[i].completions for c in group)

    @torch.no_grad()
    def last_values(self) -> torch.Tensor:
        """The value of each completion of the first batch at its end, of shape (N,): what a reward model reads off."""
        batch = self.batches[0]
        tokens = self.watched[SEPARATE](self.trainers[SEPARATE].model, batch.prompts, batch.completions)
        return tokens.values[..., 0].gather(1, tokens.mask.sum(1, keepdim=True) - 1)[:, 0]

    def chosen_form(self) -> str:
        """What `shared_prefix="auto"` would do with the first batch."""
        states, batch = self.watched[SHARED].states, self.batches[0]
        return choose_form(states.layout, batch.prompts, batch.completions, states.hidden_size)


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare losses and gradients of the two forms of VAS, and the loss of the reward trainer with what it is for the
    values of VAS, before anything is timed.

    Returns:
        `dict`: The largest difference of a loss, and the relative difference of all gradients together.

    Raises:
        `RuntimeError`: They differ by more than 1e-4 in float32 (by more than rounding, in bfloat16).
    """
    exact = work.case.dtype == torch.float32
    limits = {"loss": 1e-4, "gradient": 1e-4} if exact else {"loss": 5e-2, "gradient": 0.1}
    losses, gradients = {}, {}
    for variant in variants:
        variant.prepare()
        losses[variant.name] = variant.step(0)
        trained = work.trainers[variant.name].model.parameters()
        gradients[variant.name] = [p.grad.clone() for p in trained if p.grad is not None]
    chosen_P, rejected_P = work.last_values().view(-1, 2).unbind(1)
    expected = -torch.nn.functional.logsigmoid(chosen_P - rejected_P).mean().item()
    found = {
        "loss": max(abs(losses[REWARD] - expected), abs(losses[SEPARATE] - losses[SHARED])),
        "gradient": relative_difference(gradients[SHARED], gradients[SEPARATE]),
    }
    if not all(found[key] <= limit for key, limit in limits.items()):
        raise RuntimeError(f"{work.case.name}: the variants disagree: {found}.")
    return found


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file."""
    work = Workload(case, batches, seed)
    variants = work.variants()
    agreement = check_agreement(work, variants)
    return compare(
        case,
        variants,
        rounds=rounds,
        batches=batches,
        facts=lambda name: {"positions": work.positions[name]},
        settings={
            "dtype": str(case.dtype).removeprefix("torch."),
            "weights": SHAPES[case.model].weights_name,
            "shape": asdict(SHAPES[case.model]),
            # Of the batches that rounds took turns over.
            "tokens": sum(work.tokens(i % batches) for i in range(rounds)) / rounds,
        },
        agreement=agreement,
        auto=work.chosen_form(),
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much faster than the reward trainer VAS is; the goal is for the form that the trainer's default takes."""
    ratios = [
        Column("positions", _fall),
        replace(ratio_column(SHARED, f"{REWARD} / {SHARED}"), goal=partial(_goal, False)),
        replace(ratio_column(SEPARATE, f"{REWARD} / {SEPARATE}"), goal=partial(_goal, True)),
        Column("`auto` takes", lambda case, found: "separate rows" if _is_separate(found) else "shared prompts"),
        ratio_column(f"memory: {SHARED}", f"memory: {REWARD} / {SHARED}"),
        agreement_column("agreement of variants"),
    ]
    absolute = [Column(name, partial(_absolute, name)) for name in ORDER]
    heading = "Completion tokens a second, and peak memory above the weights"
    found = [Table("step", _label, ratios), Table("step", _label, absolute, heading, measured_only=True)]
    return sections(results, CASES, BY_DTYPE, found)


def _is_separate(measured: dict[str, Any] | None) -> bool:
    return measured is not None and measured["auto"] == "separate"


def _goal(separate: bool, case: Case, measured: dict[str, Any] | None) -> str:
    return f"≥ {case.targets[REWARD]:g}" if separate == _is_separate(measured) else ""


def _fall(case: Case, measured: dict[str, Any]) -> str:
    many, few = (measured["variants"][name]["positions"] for name in (REWARD, SHARED))
    return f"÷ {many / few:.2f}"


def _absolute(name: str, case: Case, measured: dict[str, Any]) -> str:
    speed = measured["settings"]["tokens"] / median_seconds(measured, name)
    return f"{speed:,.0f}, {needed_memory(measured['variants'][name]['memory']) / 2**20:.0f} MiB"


def _label(case: Case) -> str:
    return f"{case.model}: {case.sizes}"


SUITE = TimedSuite("vas_train", "Tokens per second of a VAS training step.", CASES, measure, tables)
