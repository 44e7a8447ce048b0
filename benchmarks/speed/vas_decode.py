# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Tokens a second of value-guided decoding: a model alone, guided the naive way, guided by ours.

    python -m benchmarks.run vas_decode [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N sequences (the batch), P tokens of a prompt, S columns of a sequence so far, k candidates for each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessor

from benchmarks.harness.decoding import LABEL, SPEEDS, DecodingCase, speed_column
from benchmarks.harness.models import SHAPES, build
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import Column, Table, agreement_column, median_seconds, ratio_column, sections
from benchmarks.harness.timing import Variant
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.value_model.model import ValueModel

from .vas_naive import NaiveValues


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (BY_ONE, TILED, OURS, PLAIN) = ("candidate by candidate", "tiled", "ours", "unguided")
BETA = 3.0


@dataclass(frozen=True)
class Case(DecodingCase):
    """
    A policy, a value model and a batch.

    Args:
        policy, value (`str`): Two of [`~benchmarks.harness.models.SHAPES`] with the same vocabulary.
        top_k (`int`): k.
        targets (`dict[str, float]`): Goals of ours: times the time of `"unguided"` at most, times faster than
            `"candidate by candidate"` at least.
    """

    policy: str
    value: str
    top_k: int = 20
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return self.policy, self.value

    @property
    def sizes(self) -> str:
        return f"b{self.batch}-k{self.top_k}-p{self.prompt}-n{self.new}"


_SMALL: dict[str, Any] = {"device": "cpu", "prompt": 64, "new": 32}
_LARGE: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "prompt": 256, "new": 64}
CASES = [
    *(
        Case("imdb-7m", "imdb-2m", dtype=dtype, batch=batch, **_SMALL, targets={BY_ONE: 5.0})
        for dtype in ("float32", "bfloat16")
        for batch in (1, 16)
    ),
    *(Case("llama-8b", "llama-1b", batch=batch, **_LARGE, targets={PLAIN: 1.75, BY_ONE: 6.5}) for batch in (1, 16)),
]


class Workload:
    """
    A policy, a value model with random weights in its head, and prompts of random tokens.

    Args:
        case ([`Case`]): Models and sizes.
        batches (`int`): How many batches of prompts to make.
        seed (`int`): Of weights and prompts.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        kwargs: dict[str, Any] = {"device": self.device, "dtype": getattr(torch, case.dtype)}
        self.policy = build(case.policy, **kwargs, seed=seed).eval()
        self.policy.generation_config.eos_token_id = None  # every sequence gets as many tokens
        self.value_model = ValueModel.from_backbone(build(case.value, **kwargs, seed=seed + 1)).eval()
        generator = torch.Generator().manual_seed(seed)
        width = SHAPES[case.value].hidden_size
        head = torch.randn(1, width, generator=generator) / width**0.5
        self.value_model.head.weight.data.copy_(head)
        self.prompts = case.prompts(batches, generator)
        self.counts: dict[str, dict[str, int]] = {}

    def processors(self) -> dict[str, Callable[[], Any]]:
        """What makes a processor of each guided variant, as new as a request is."""
        settings = (self.value_model, BETA, self.case.top_k)
        return {
            BY_ONE: partial(NaiveValues, *settings, chunk=1),
            TILED: partial(NaiveValues, *settings, chunk=self.case.top_k),
            OURS: partial(ValueAugmentedLogitsProcessor, *settings),
        }

    def variants(self) -> list[Variant]:
        """Guided ones and the policy alone; a step is a `generate`, reading the prompts included."""
        makers = {**self.processors(), PLAIN: None}
        return [Variant(name, partial(self._step, name, makers[name])) for name in ORDER]

    def _step(self, name: str, make: Callable[[], Any] | None, i: int) -> None:
        processor = make() if make is not None else None
        self.generate(i, [processor] if processor is not None else [])
        if processor is not None:
            self.counts[name] = {"calls": processor.value_calls, "tokens": processor.value_tokens}

    def generate(self, i: int, processors: list[LogitsProcessor]) -> torch.Tensor:
        """Tokens of shape (N, new), greedily, for batch i."""
        ids = self.prompts[i]
        kwargs: dict[str, Any] = {"max_new_tokens": self.case.new, "do_sample": False}
        mask = torch.ones_like(ids)
        return self.policy.generate(ids, attention_mask=mask, logits_processor=processors, **kwargs)[:, ids.shape[1] :]


class _Recorder(LogitsProcessor):
    """Records the arguments and results of a processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        before, after = scores.clone(), self.processor(input_ids, scores)
        self.calls.append((input_ids.clone(), before, after.clone()))
        return after


def check_agreement(work: Workload) -> dict[str, float]:
    """
    Compare what the guided variants add to the logits along one path, and their tokens, before anything is timed.

    The path is that of the naive form, candidate by candidate; the others run each of its steps.

    Returns:
        `dict`: The largest difference of a centred value; where weights are not float32, as a share of the deviation
        of these values.

    Raises:
        `RuntimeError`: Values differ by more than 1e-4 in float32 (by more than rounding, otherwise); tokens differ in
            float32; guidance changes no token; or ours fell back to its slow form.
    """
    case, found = work.case, 0.0
    makers = work.processors()
    path = _Recorder(makers[BY_ONE]())
    tokens = work.generate(0, [path])
    if torch.equal(tokens, work.generate(0, [])):
        raise RuntimeError(f"{case.name}: guidance changes no token; nothing would be compared.")
    added = [(after - before) / BETA for _, before, after in path.calls]
    # In half precision the values of two forms differ as those of two runs of one form on other hardware would.
    scale = 1.0 if case.exact else torch.cat([x[x != 0] for x in added]).std().item()
    limit = 1e-4 if case.exact else 0.15
    for name in (TILED, OURS):
        processor = makers[name]()
        for (ids, before, _), expected in zip(path.calls, added, strict=True):
            difference = ((processor(ids, before.clone()) - before) / BETA - expected).abs().max().item() / scale
            if not difference <= limit:
                raise RuntimeError(f"{case.name}: values of {name!r} differ from {BY_ONE!r} by {difference:.2g}.")
            found = max(found, difference)
        if case.exact and not torch.equal(work.generate(0, [makers[name]()]), tokens):
            raise RuntimeError(f"{case.name}: {name!r} chooses other tokens than {BY_ONE!r}.")
    check_form(processor)
    return {"values": found}


def check_form(processor: ValueAugmentedLogitsProcessor) -> None:
    """Raise a `RuntimeError` if candidates do not share a cache of their prefix: that is not what is measured."""
    readers: list[Any] = [guide.reader for guide in processor.value_guides]
    trees = [reader.reads.tree for reader in readers]
    for tree in trees:
        if tree.form != "shared":
            raise RuntimeError(f"{OURS!r} fell back to {tree.form!r} ({tree.reason}); nothing would be measured.")


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file."""
    work = Workload(case, batches, seed)
    agreement = check_agreement(work)
    return compare(
        case,
        work.variants(),
        rounds=rounds,
        batches=batches,
        # On the CPU torch's profiler would measure it, which takes minutes over so many small operations.
        memory_of=lambda name: case.device == "cuda",
        facts=lambda name: {"value_model": work.counts.get(name, {"calls": 0, "tokens": 0})},
        settings={
            "beta": BETA,
            "weights": {name: SHAPES[name].weights_name for name in case.models},
            "shapes": {name: asdict(SHAPES[name]) for name in case.models},
        },
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much time guidance costs, and tokens per second."""
    ratios = [
        ratio_column("ours: × the time of unguided", f"{OURS} / {PLAIN}", "≤", PLAIN),
        ratio_column(f"ours: times faster than {BY_ONE}", f"{BY_ONE} / {OURS}", "≥", BY_ONE),
        ratio_column(f"ours: times faster than {TILED}", f"{TILED} / {OURS}"),
        Column("guidance alone", _guidance_alone),
        agreement_column("agreement of values"),
    ]
    speeds = [speed_column(name) for name in (PLAIN, BY_ONE, TILED, OURS)]
    fed = Column("value tokens fed: one by one, tiled, ours", _tokens_fed)
    found = [
        Table("decoding", LABEL, ratios),
        Table("decoding", LABEL, [*speeds, fed], SPEEDS, measured_only=True),
    ]
    return sections(results, CASES, {"cpu": "CPU", "cuda": "GPU"}, found)


def _guidance_alone(case: Case, measured: dict[str, Any]) -> str:
    """How many times faster than candidate by candidate ours is, without the time of the policy."""
    plain, slow, fast = (median_seconds(measured, name) for name in (PLAIN, BY_ONE, OURS))
    return f"{(slow - plain) / (fast - plain):.1f}" if fast > plain else "-"


def _tokens_fed(case: Case, measured: dict[str, Any]) -> str:
    fed = [measured["variants"][name]["value_model"] for name in (BY_ONE, TILED, OURS)]
    return ", ".join(f"{f['tokens']:,} in {f['calls']:,}" for f in fed)


SUITE = TimedSuite("vas_decode", "Tokens per second of value-guided decoding.", CASES, measure, tables)
