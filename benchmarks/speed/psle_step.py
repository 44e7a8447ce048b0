# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds per prompt of PSLE's parts, generation, reward and update, against those of TRL's GRPO.

    python -m benchmarks.run psle_step [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

B prompts, K completions of each, N = K * B; T tokens of a completion.
"""

import copy
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from benchmarks.harness.models import MODELS, SHAPES, build, tiny_length, tiny_models
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import BY_DTYPE, Column, Table, agreement_column, median_seconds, ratio_column, sections
from benchmarks.harness.timing import Variant
from benchmarks.harness.trainers import make_tokenizer, trainer_args
from trl_ext.data.completion import Completion
from trl_ext.methods.psle.config import PSLEConfig
from trl_ext.methods.psle.data import view_marks
from trl_ext.methods.psle.iterations import both_views
from trl_ext.methods.psle.trainer import PSLETrainer
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.training.rollouts import score_round


GRPO, SHARED, SEPARATE = "TRL's GRPO", "PSLE", "PSLE, separate rows"
# The variants, a phase each. A ratio in a result is of GRPO's time to the other's of the same phase.
PHASES = {"generation": (GRPO, SHARED), "reward": (GRPO, SHARED), "update": (GRPO, SEPARATE, SHARED)}
# Whatever the model, completions are scored by the reward model that is in the repository.
TOKENIZER, REWARD = MODELS / "imdb-2m", MODELS / "imdb-2m-reward"
PRINCIPLE = 9  # tokens that a principle puts before a prompt
TOP_K = 50


@dataclass(frozen=True)
class Case:
    """
    A model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        device (`str`): `"cpu"` or `"cuda"`.
        answers (`int`): K; PSLE generates half of them with, half without a principle.
        prompts (`int`): B.
        prompt, new (`int`): Tokens of each prompt, and T.
        targets (`dict[str, float]`): Of a phase, the share of GRPO's time that PSLE is to take at most.
    """

    model: str
    device: str
    answers: int
    prompts: int
    prompt: int
    new: int
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.device}/{self.model}/k{self.answers}-b{self.prompts}-p{self.prompt}-t{self.new}"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def tiny(self) -> "Case":
        """The same case at tiny sizes, for a rehearsal on a CPU."""
        sizes: dict[str, Any] = {"prompt": tiny_length(self.prompt), "new": tiny_length(self.new)}
        return replace(self, device="cpu", prompts=min(2, self.prompts), **sizes, **tiny_models(self))


def _cases(model: str, device: str, prompts: int, prompt: int, new: int) -> list[Case]:
    goals = {2: {"update": 0.8, "generation": 1.0}, 4: {"update": 0.6, "generation": 1.0}}
    return [Case(model, device, k, prompts, prompt, new, targets=goals[k]) for k in (2, 4)]


CASES = [
    *_cases("imdb-7m", "cpu", 8, 24, 48),  # the IMDB task: openings of 16 words, and 48 tokens
    *_cases("imdb-7m", "cpu", 8, 128, 48),
    *_cases("llama-1b", "cuda", 16, 128, 128),
]


class Workload:
    """
    The trainers with models of equal weights, and a batch of random tokens.

    Args:
        case ([`Case`]): The model and the sizes of a batch.
        seed (`int`): Of weights and the batch.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        self._folder = tempfile.TemporaryDirectory()
        disable_progress_bars()
        rng, vocabulary = random.Random(seed), SHAPES[case.model].vocab_size

        def tokens(count: int) -> list[int]:
            return [rng.randrange(5, vocabulary) for _ in range(count)]

        self.prompts = [tokens(case.prompt) for _ in range(case.prompts)]
        self.answers = [[tokens(case.new) for _ in range(case.answers)] for _ in range(case.prompts)]
        scores = [[rng.gauss(0, 1) for _ in group] for group in self.answers]
        self.marks = view_marks(case.answers // 2, guided=True)
        principle = tokens(PRINCIPLE)
        self.rows = [
            {"row_index": b, "prompt": f"{b}", "prompt_ids": ids, "guided_ids": [principle + ids]}
            for b, ids in enumerate(self.prompts)
        ]
        self.batch = {
            "prompt_ids": self.prompts,
            "completion_ids": self.answers,
            "scores": scores,
            "marks": [self.marks] * case.prompts,
        }
        texts = load_tokenizer(str(TOKENIZER))
        self.completions = [[Completion(texts.decode(ids), ids, False) for ids in group] for group in self.answers]
        model = build(case.model, device=self.device, dtype=case.dtype, seed=seed)
        # The end token is one that the model does not have: all completions have T tokens.
        self.tokenizer = make_tokenizer(vocabulary)
        model.generation_config.eos_token_id = None
        self.psle = {SHARED: self._psle(copy.deepcopy(model), "auto"), SEPARATE: self._psle(model, "never")}
        self.grpo = self._grpo(copy.deepcopy(model))
        for trainer in (*self.psle.values(), self.grpo):
            trainer.current_gradient_accumulation_steps = 1  # train() would set it
        self._tensors = self._grpo_batch()
        self.grpo._prepare_inputs = lambda batch: batch  # it would generate completions

    def _settings(self) -> dict[str, Any]:
        case = self.case
        return {"max_completion_length": case.new, "top_k": TOP_K, "disable_tqdm": True, "seed": 0}

    def _reward_model(self) -> Any:
        """Loaded here: by name, TRL would take it in the dtype of its file and we in float32."""
        found = AutoModelForSequenceClassification.from_pretrained(REWARD, dtype=self.case.dtype)
        return found.eval().to(self.device)

    def _psle(self, model: Any, shared_prefix: str) -> PSLETrainer:
        """Its dataset is a formality, batches come from here."""
        settings = {
            **self._settings(),
            "max_length": self.case.prompt + self.case.new,
            "num_generations": self.case.answers // 2,
            "generation_batch_size": self.case.prompts * self.case.answers,
            "principles": ["b"],
            "shared_prefix": shared_prefix,
        }
        return PSLETrainer(
            model,
            self._reward_model(),
            trainer_args(PSLEConfig, self._folder.name, self.device, **settings),
            Dataset.from_dict({"prompt": ["a c"]}),
            processing_class=self.tokenizer,
            reward_processing_classes=load_tokenizer(str(REWARD)),
        )

    def _grpo(self, model: Any) -> Any:
        settings = {
            **self._settings(),
            "num_generations": self.case.answers,
            "per_device_train_batch_size": self.case.prompts * self.case.answers,
        }
        return GRPOTrainer(
            model,
            self._reward_model(),
            trainer_args(GRPOConfig, self._folder.name, self.device, **settings),
            Dataset.from_dict({"prompt": ["a c"]}),
            processing_class=self.tokenizer,
            reward_processing_classes=load_tokenizer(str(REWARD)),
        )

    def _grpo_batch(self) -> dict[str, torch.Tensor]:
        """The batch as GRPO has it when completions are generated and scored."""
        k = self.case.answers
        prompts = torch.tensor(self.prompts).repeat_interleave(k, 0)
        answers = torch.tensor(self.answers).flatten(0, 1)
        scores_BK = torch.tensor(self.batch["scores"])
        advantages_BK = (scores_BK - scores_BK.mean(1, keepdim=True)) / scores_BK.std(1, keepdim=True)
        batch = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": answers,
            "completion_mask": torch.ones_like(answers),
            "advantages": advantages_BK.flatten(),
            "num_items_in_batch": torch.tensor(answers.numel()),
        }
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def variants(self) -> list[Variant]:
        """Of each phase in turn: a step is the phase for the complete batch, without an optimizer."""
        steps: dict[str, Callable[[], Any]] = {
            f"generation: {GRPO}": self.generate_grpo,
            f"generation: {SHARED}": self.generate_psle,
            f"reward: {GRPO}": self.reward_grpo,
            f"reward: {SHARED}": self.reward_psle,
            f"update: {GRPO}": self.update_grpo,
            **{f"update: {name}": partial(self.update_psle, name) for name in (SEPARATE, SHARED)},
        }
        return [Variant(name, partial(_of_the_batch, step), self._prepare) for name, step in steps.items()]

    def _prepare(self) -> None:
        for trainer in (*self.psle.values(), self.grpo):
            trainer.model.zero_grad(set_to_none=True)

    def generate_psle(self) -> list[list[int]]:
        """Completions of both views of all prompts, in the order of prompts."""
        trainer = self.psle[SHARED]
        with torch.no_grad():
            groups = both_views(self.rows, 0, trainer.engine.generate_function(trainer.model))
        return [completion.ids for group in groups for completion in group]

    def generate_grpo(self) -> list[list[int]]:
        """As many completions of plain prompts, with their texts, which PSLE's have too."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.case.answers)]
        ids, _ = self.grpo._generate_single_turn(prompts, None, {}, self.case.answers)
        self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return ids  # type: ignore[no-any-return]

    def reward_psle(self) -> list[float]:
        """Scores of the completions of the batch."""
        trainer = self.psle[SHARED]
        sampled = score_round(self.rows, self.completions, trainer.rewards, None, marks=self.marks)
        return sampled.table["score"]

    def reward_grpo(self) -> list[float]:
        """The same by TRL's trainer."""
        inputs = [row for row in self.rows for _ in range(self.case.answers)]
        texts = [completion.text for group in self.completions for completion in group]
        ids = [completion.ids for group in self.completions for completion in group]
        rewards = self.grpo._calculate_rewards(inputs, [row["prompt"] for row in inputs], texts, ids)
        return rewards[:, 0].tolist()  # type: ignore[no-any-return]

    def update_psle(self, name: str) -> float:
        """Forward, loss with its metrics, backward."""
        trainer = self.psle[name]
        return trainer.training_step(trainer.model, dict(self.batch), self.case.prompts).item()

    def update_grpo(self) -> float:
        """The same by TRL's trainer."""
        loss = self.grpo.training_step(self.grpo.model, self._tensors, None)
        return loss.item()  # type: ignore[no-any-return]


def _of_the_batch(step: Callable[[], Any], _: int) -> Any:
    return step()


@torch.no_grad()
def check_agreement(work: Workload) -> dict[str, float]:
    """
    Compare the results of the trainers for the same batch, before anything is timed.

    Returns:
        `dict`: The largest differences of mean log-probabilities of completions and of rewards.

    Raises:
        `RuntimeError`: They are more than rounding, GRPO's loss is not that of a ratio of 1, or a completion is
            shorter than asked for.
    """
    case, batch = work.case, work._tensors
    exact = case.dtype == torch.float32
    for ids in (*work.generate_psle(), *work.generate_grpo()):
        if len(ids) != case.new:
            raise RuntimeError(f"{case.name}: a completion has {len(ids)} tokens.")
    rows = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    theirs = work.grpo._get_per_token_logps_and_entropies(work.grpo.model, rows, torch.ones_like(rows), case.new)[0]
    ours = [t.compute_loss(t.model, work.batch, return_outputs=True)[1]["logps"] for t in work.psle.values()]
    loss = work.grpo.compute_loss(work.grpo.model, batch).item()
    found = {
        "logps": max((x - theirs.mean(1)).abs().max().item() for x in ours),
        "reward": max(abs(a - b) for a, b in zip(work.reward_psle(), work.reward_grpo(), strict=True)),
        "loss": abs(loss + batch["advantages"].mean().item()),
    }
    limit = 1e-3 if exact else 5e-2
    if not all(math.isfinite(x) and x <= limit for x in found.values()):
        raise RuntimeError(f"{case.name}: the trainers disagree: {found}.")
    return found


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; ratios are shares of GRPO's time. All rounds are about one batch."""
    work = Workload(case, seed)
    agreement = check_agreement(work)
    return compare(
        case,
        work.variants(),
        rounds=rounds,
        batches=batches,
        pairs={
            f"{phase}: {name} / {GRPO}": (f"{phase}: {name}", f"{phase}: {GRPO}")
            for phase, names in PHASES.items()
            for name in names
            if name != GRPO
        },
        memory_of=lambda name: name.startswith("update"),
        settings={
            "dtype": str(case.dtype).removeprefix("torch."),
            "weights": SHAPES[case.model].weights_name,
            "shape": asdict(SHAPES[case.model]),
            "top_k": TOP_K,
            "principle": PRINCIPLE,
        },
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The share of GRPO's time that each phase takes, and milliseconds."""
    ratios = []
    for phase, names in PHASES.items():
        ratios.append(ratio_column(f"{phase}: × the time of GRPO", f"{phase}: {SHARED} / {GRPO}", "≤", phase))
        if SEPARATE in names:
            ratios.append(ratio_column(f"{phase}, separate rows", f"{phase}: {SEPARATE} / {GRPO}"))
    ratios += [Column("all three", _all_phases), agreement_column("agreement")]
    shown: dict[str, tuple[str, ...]] = {phase: (f"{phase}: {GRPO}", f"{phase}: {SHARED}") for phase in PHASES}
    shown |= {f"update: {SEPARATE}": (f"update: {SEPARATE}",)}
    seconds = [Column(head, partial(_milliseconds, names)) for head, names in shown.items()]
    heading = f"Milliseconds a prompt: {GRPO}, {SHARED}"
    found = [Table("batch", _label, ratios), Table("batch", _label, seconds, heading, measured_only=True)]
    return sections(results, CASES, BY_DTYPE, found)


def _all_phases(case: Case, measured: dict[str, Any]) -> str:
    ours, theirs = (sum(median_seconds(measured, f"{phase}: {name}") for phase in PHASES) for name in (SHARED, GRPO))
    return f"{ours / theirs:.2f}"


def _milliseconds(names: Sequence[str], case: Case, measured: dict[str, Any]) -> str:
    return ", ".join(f"{median_seconds(measured, name) / case.prompts * 1e3:.3g}" for name in names)


def _label(case: Case) -> str:
    return f"{case.model}: {case.prompts} × (prompt {case.prompt}, {case.answers} × {case.new})"


SUITE = TimedSuite("psle_step", "Seconds per prompt of PSLE's generation, reward and update.", CASES, measure, tables)
