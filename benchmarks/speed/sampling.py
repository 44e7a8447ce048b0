# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Tokens a second of sampling completions, as the trainers and `trl-ext sample` do it, against transformers' `generate`.

    python -m benchmarks.run sampling [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N prompts (the batch), P tokens of a prompt, K completions of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.harness.decoding import LABEL, DecodingCase
from benchmarks.harness.models import SHAPES, build
from benchmarks.harness.suite import TimedSuite, compare, selected
from benchmarks.harness.tables import Column, Table, median_seconds, ratio_column, sections
from benchmarks.harness.timing import Variant
from benchmarks.harness.trainers import make_tokenizer
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings


# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (GENERATE, EAGER, OURS) = ("transformers' `generate`", "CUDA graphs off", "ours")
TOP_K = 50


@dataclass(frozen=True)
class Case(DecodingCase):
    """
    A model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        completions (`int`): K.
        variants (`tuple[str, ...]`): Parts of the names of the variants that are measured; all by default.
        targets (`dict[str, float]`): Times faster than `GENERATE` that ours is to be at least.
    """

    model: str
    completions: int
    variants: tuple[str, ...] = ()
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    def sizes(self) -> str:
        return f"b{self.batch}-k{self.completions}-p{self.prompt}-n{self.new}"

    @property
    def label(self) -> str:
        return (
            f"{self.model}, {self.dtype}: {self.batch} × (prompt {self.prompt}, {self.completions} × {self.new} new)"
        )


_LARGE: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "batch": 256, "prompt": 128, "new": 128}
CASES = [
    *(Case("imdb-7m", k, device="cpu", dtype="float32", batch=16, prompt=32, new=32) for k in (1, 4)),
    *(Case("llama-1b", k, targets={GENERATE: 5.0}, **_LARGE) for k in (1, 4)),
]


class Workload:
    """
    A model, and prompts of random tokens.

    Args:
        case ([`Case`]): The model and the sizes.
        batches (`int`): How many batches of prompts to make.
        seed (`int`): Of weights and prompts.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.model = build(case.model, device=self.device, dtype=getattr(torch, case.dtype), seed=seed).eval()
        self.model.generation_config.eos_token_id = None
        # The end token is one that the model does not have: all completions have as many tokens.
        self.tokenizer = make_tokenizer(SHAPES[case.model].vocab_size)
        self.prompts = case.prompts(batches, torch.Generator().manual_seed(seed))

    def variants(self) -> list[Variant]:
        """A step samples K completions of each prompt of a batch, in one call of the model, prefill included."""
        steps: dict[str, Callable[[int], Any]] = {
            GENERATE: self.transformers,
            EAGER: partial(self.ours, "never"),
            OURS: partial(self.ours, "auto"),
        }
        return selected([Variant(name, steps[name]) for name in ORDER], self.case.variants)

    def transformers(self, i: int, top_k: int = TOP_K) -> list[list[int]]:
        """Ids of N * K completions by transformers' `generate`, those of one prompt next to each other."""
        ids, case = self.prompts[i], self.case
        sampling: dict[str, Any] = {"do_sample": True, "top_k": top_k, "num_return_sequences": case.completions}
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=case.new, **sampling)
        return output[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def ours(self, cuda_graphs: str, i: int, top_k: int = TOP_K) -> list[list[int]]:
        """The same by the function of the trainers, which also decodes the texts."""
        case = self.case
        settings = GenerationSettings(
            num_generations=case.completions, max_completion_length=case.new, top_k=top_k, cuda_graphs=cuda_graphs
        )
        prompts, batch_size = self.prompts[i].tolist(), case.batch * case.completions
        groups = generate(self.model, self.tokenizer, prompts, settings, batch_size=batch_size)
        return [completion.ids for group in groups for completion in group]


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare the tokens that variants choose where only the likeliest may be sampled, before anything is timed.

    Returns:
        `dict`: For each variant the share of tokens from the first difference of a row on: 0 in float32. In half
        precision near-ties flip, and rows stay different from there.

    Raises:
        `RuntimeError`: Tokens differ in float32, or completions are shorter than asked for.
    """
    case, found = work.case, {}
    expected = torch.tensor(work.transformers(0, top_k=1))
    for name in (variant.name for variant in variants if variant.name != GENERATE):
        rows = work.ours("never" if name == EAGER else "auto", 0, top_k=1)
        if {len(row) for row in rows} != {case.new} or len(rows) != case.batch * case.completions:
            raise RuntimeError(f"{case.name}: {name!r} has {len(rows)} completions, or some that are too short.")
        apart = (torch.tensor(rows) != expected).int().cummax(1).values.float().mean().item()
        if apart and case.exact:
            raise RuntimeError(f"{case.name}: {name!r} takes other tokens than {GENERATE}.")
        found[name] = apart
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
        memory_of=lambda name: case.device == "cuda",
        settings={"top_k": TOP_K, "weights": SHAPES[case.model].weights_name, "shape": asdict(SHAPES[case.model])},
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much faster than transformers ours is, and tokens per second."""
    ratios = [
        ratio_column("ours: times faster than `generate`", f"{GENERATE} / {OURS}", "≥", GENERATE),
        ratio_column("without CUDA graphs", f"{GENERATE} / {EAGER}"),
        Column("tokens that differ", lambda case, measured: f"{max(measured['agreement'].values()):.0%} at most"),
    ]
    speeds = [Column(name, partial(_speed, name)) for name in ORDER]
    found = [
        Table("sampling", LABEL, ratios),
        Table("sampling", LABEL, speeds, "Tokens a second, all completions together", measured_only=True),
    ]
    return sections(results, CASES, {"cpu": "CPU (no graph)", "cuda": "GPU"}, found)


def _speed(name: str, case: Case, measured: dict[str, Any]) -> str:
    if name not in measured["variants"]:
        return "-"
    return f"{case.batch * case.completions * case.new / median_seconds(measured, name):,.0f}"


SUITE = TimedSuite("sampling", "Tokens per second of sampling completions.", CASES, measure, tables)
