# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds of Proxy-RLHF's update on a round of responses, against an epoch of policy gradient through the language model.

    python -m benchmarks.run proxy_update [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N responses, T tokens of a response, M decisions.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars

from benchmarks.harness.models import SHAPES, build, tiny_length, tiny_models
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import BY_DTYPE, Column, Table, ratio_column, seconds_column, sections
from benchmarks.harness.timing import Variant
from benchmarks.harness.trainers import make_tokenizer, trainer_args
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.methods.proxy_rlhf.config import ProxyRLHFConfig
from trl_ext.methods.proxy_rlhf.data import Decisions, minibatch
from trl_ext.methods.proxy_rlhf.trainer import ProxyRLHFTrainer
from trl_ext.training.statistics import whitened


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (GRADIENT, PPO) = ("policy gradient, one epoch", "PPO on decisions, four epochs")
LORA_RANK = 16


@dataclass(frozen=True)
class Case:
    """
    A language model and a round of responses.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        device (`str`): `"cpu"` or `"cuda"`.
        responses (`int`): N, one a prompt.
        prompt, new (`int`): Tokens of each prompt and response.
        rows (`int`): Responses that go through the language model at once in its training.
        targets (`dict[str, float]`): Times cheaper than `GRADIENT` that the update is to be at least.
    """

    model: str
    device: str
    responses: int
    prompt: int
    new: int
    rows: int
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.device}/{self.model}/n{self.responses}-p{self.prompt}-t{self.new}"

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def tiny(self) -> "Case":
        """The same case at tiny sizes, for a rehearsal on a CPU."""
        sizes: dict[str, Any] = {"prompt": tiny_length(self.prompt), "new": tiny_length(self.new), "rows": 2}
        return replace(self, device="cpu", responses=4, **sizes, **tiny_models(self))


CASES = [
    *(Case(model, "cpu", 32, 24, 48, rows=16) for model in ("imdb-2m", "imdb-7m")),
    Case("llama-8b", "cuda", 64, 256, 128, rows=16, targets={GRADIENT: 30.0}),
]


class Workload:
    """
    A round of responses with its decisions, the trainer of the proxy, and the language model with an adapter.

    Args:
        case ([`Case`]): Model and sizes.
        seed (`int`): Of weights, prompts, decisions and rewards.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        self._folder = tempfile.TemporaryDirectory()
        disable_progress_bars()
        generator = torch.Generator().manual_seed(seed)
        vocabulary = SHAPES[case.model].vocab_size
        shape = (case.responses, case.prompt)
        self.prompts = torch.randint(5, vocabulary, shape, generator=generator).tolist()
        self.scores = torch.randn(case.responses, generator=generator)
        self.trainer = self._make_trainer(seed, vocabulary)
        rows = [{"prompt": "a", "prompt_ids": ids, "row_index": n} for n, ids in enumerate(self.prompts)]
        answers, _ = self.trainer._roll_out(rows, "train")
        assert answers.decisions is not None
        self.answers, self.decisions = answers.ids, answers.decisions
        self._make_language_model(seed)

    def _make_trainer(self, seed: int, vocabulary: int) -> ProxyRLHFTrainer:
        """Its dataset is a formality, the round comes from here. No response ends by itself."""
        case = self.case
        settings = {
            "max_length": case.prompt + case.new,
            "max_completion_length": case.new,
            "seed": seed,
            "disable_tqdm": True,
        }
        trainer = ProxyRLHFTrainer(
            build(case.model, device=self.device, dtype=case.dtype, seed=seed),
            lambda completions, **_: self.scores.tolist()[: len(completions)],
            trainer_args(ProxyRLHFConfig, self._folder.name, self.device, **settings),
            Dataset.from_dict({"prompt": ["a"]}),
            processing_class=make_tokenizer(vocabulary - 1),
        )
        trainer.language_model.generation_config.eos_token_id = None
        trainer.create_optimizer()
        return trainer

    def _make_language_model(self, seed: int) -> None:
        case = self.case
        checkpointing = case.device == "cuda"
        kwargs: dict[str, Any] = {"lora_rank": LORA_RANK, "gradient_checkpointing": checkpointing, "seed": seed}
        self.model = build(case.model, device=self.device, dtype=case.dtype, **kwargs)
        self.log_probs = LogProbs(self.model, pad_token_id=0, shared_prefix="auto")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def variants(self) -> list[Variant]:
        """A step is a complete update, with optimizer steps and clipped gradients."""
        steps = {GRADIENT: self._gradient_step, PPO: self._ppo_step}
        return [Variant(name, steps[name]) for name in ORDER]

    def _ppo_step(self, _: int) -> float:
        """Values, advantages, and `num_ppo_epochs` x `num_mini_batches` steps on the decisions of the round."""
        trainer, args, total = self.trainer, self.trainer.args, 0.0
        trainer._estimate(self.decisions, self.scores.to(self.decisions.logps.device))
        self.decisions.advantages = whitened(self.decisions.advantages, trainer.accelerator)
        for update in range(args.updates_per_round):
            epoch, part = divmod(update, args.num_mini_batches)
            some = self.decisions[minibatch(len(self.decisions), part, args.num_mini_batches, epoch).sort().values]
            inputs = {name: getattr(some, name) for name in Decisions.__dataclass_fields__}
            total += trainer.training_step(trainer.model, inputs, len(some)).item()
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), args.max_grad_norm)
            trainer.optimizer.step()
            trainer.model.zero_grad()
        return total

    def _gradient_step(self, _: int) -> float:
        """-A log pi(y | x) of every response, in one optimizer step."""
        total = 0.0
        advantages_N = (self.scores - self.scores.mean()).to(self.device)
        for start in range(0, len(self.answers), self.case.rows):
            some = slice(start, start + self.case.rows)
            completions = [[ids] for ids in self.answers[some]]
            sums_N = self.log_probs(self.model, self.prompts[some], completions).sums()
            loss = -(advantages_N[some] * sums_N).sum() / (len(self.answers) * self.case.new)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return total


def check_agreement(work: Workload) -> dict[str, float]:
    """
    See that both updates are of the same responses, and that they change something, before anything is timed.

    Returns:
        `dict`: The largest difference between the log-probability of a decision as it was made and as the update first
        sees it.

    Raises:
        `RuntimeError`: It is more than rounding, a response is shorter than asked for, or an update changes nothing.
    """
    case, decisions = work.case, work.decisions
    if not all(len(ids) == case.new for ids in work.answers) or not len(decisions):
        raise RuntimeError(f"{case.name}: responses ended, or nothing was decided.")
    with torch.no_grad():
        logits = work.trainer.model(decisions.features).logits
    logps = torch.nn.functional.logsigmoid(torch.where(decisions.accepted, logits, -logits))
    found = (logps - decisions.logps).abs().max().item()
    if not found < (1e-4 if case.dtype == torch.float32 else 1e-2):
        raise RuntimeError(f"{case.name}: decisions are weighed otherwise than when they were made, by {found:.2g}.")
    for model, variant in zip((work.model, work.trainer.model), work.variants(), strict=True):
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        variant.step(0)
        after = [p for p in model.parameters() if p.requires_grad]
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise RuntimeError(f"{case.name}: {variant.name!r} changes nothing.")
    return {"logps": found}


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; all rounds are about the same responses, whatever `batches` is."""
    work = Workload(case, seed)
    agreement = check_agreement(work)
    trained = {GRADIENT: work.model, PPO: work.trainer.model}
    return compare(
        case,
        work.variants(),
        rounds=rounds,
        batches=batches,
        memory_of=lambda name: case.device == "cuda",
        settings={
            "dtype": str(case.dtype).removeprefix("torch."),
            "lora_rank": LORA_RANK,
            "weights": SHAPES[case.model].weights_name,
            "shape": asdict(SHAPES[case.model]),
            "tokens": case.responses * case.new,
            "decisions": len(work.decisions),
            "trainable": {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in trained.items()},
        },
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much cheaper the update is than policy gradient, and seconds."""
    ratios = [
        ratio_column(f"{PPO}: times cheaper than {GRADIENT}", f"{GRADIENT} / {PPO}", "≥", GRADIENT),
        Column("decisions", lambda case, measured: f"{measured['settings']['decisions']:,}"),
        Column("trained parameters: proxy, adapter", _trained),
    ]
    seconds = [seconds_column(name) for name in ORDER]
    found = [
        Table("update", _label, ratios),
        Table("update", _label, seconds, "Seconds of an update", measured_only=True),
    ]
    return sections(results, CASES, BY_DTYPE, found)


def _trained(case: Case, measured: dict[str, Any]) -> str:
    return " and ".join(f"{measured['settings']['trainable'][name]:,}" for name in (PPO, GRADIENT))


def _label(case: Case) -> str:
    return f"{case.model}: {case.responses} × (prompt {case.prompt}, {case.new} tokens)"


SUITE = TimedSuite("proxy_update", "Seconds of Proxy-RLHF's update on a round of responses.", CASES, measure, tables)
