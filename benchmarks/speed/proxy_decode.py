# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Tokens a second of Proxy-RLHF's decoding: a model alone, a forward for every examined candidate, ours.

    python -m benchmarks.run proxy_decode [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N sequences (the batch), P tokens of a prompt, k candidates for each token.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.walk import Walk
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.models.backbone_and_head import BackboneAndHead

from ..harness.measure import ROOT, Variant, alternate, clock_of, pair_ratios, spreads
from ..harness.memory import peak_memory
from ..harness.models import SHAPES, build
from ..harness.suite import Suite
from .proxy_naive import Sequential


# The variants. A ratio in a result is of an earlier one to a later one.
CANDIDATES = (20, 8, 4)
OURS = {k: f"ours, k = {k}" for k in CANDIDATES}
ORDER = (SEQUENTIAL, *_, PLAIN) = ("candidate by candidate, k = 20", *OURS.values(), "plain")
ACCEPT_RATE = 0.5  # of a new proxy, by default: two candidates a token are examined


@dataclass(frozen=True)
class Case:
    """
    A frozen model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        device (`str`): `"cpu"` or `"cuda"`.
        dtype (`str`): Of its weights.
        batch (`int`): N.
        prompt (`int`): P; all prompts are as long.
        new (`int`): Tokens that are generated for each.
        targets (`dict[str, float]`): Times the time of `"plain"` that a variant is to take at most.
    """

    model: str
    device: str
    dtype: str
    batch: int
    prompt: int
    new: int
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.device}/{self.model}/{self.dtype}-b{self.batch}-p{self.prompt}-n{self.new}"

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float32."""
        return self.dtype == "float32"


CASES = [
    *(Case("imdb-7m", "cpu", "float32", batch, 64, 32) for batch in (1, 16)),
    *(Case("llama-8b", "cuda", "bfloat16", batch, 256, 64, targets={OURS[4]: 1.35}) for batch in (1, 16)),
]


class Workload:
    """
    A frozen model, a proxy as it is when training begins, and prompts of random tokens.

    Args:
        case ([`Case`]): Model and sizes.
        batches (`int`): How many batches of prompts to make.
        seed (`int`): Of weights, prompts and decisions.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device, self.seed = case, torch.device(case.device), seed
        self.model = build(case.model, device=self.device, dtype=getattr(torch, case.dtype), seed=seed).eval()
        self.model.generation_config.eos_token_id = None  # every sequence gets as many tokens
        self.llm = BackboneAndHead(self.model)
        self.proxy = ProxyModel.for_model(self.model, DecisionProcess(), initial_accept_rate=ACCEPT_RATE).eval()
        generator = torch.Generator().manual_seed(seed)
        shape = (case.batch, case.prompt)
        self.prompts = [
            torch.randint(3, SHAPES[case.model].vocab_size, shape, generator=generator).to(self.device)
            for _ in range(batches)
        ]
        self.counts: dict[str, dict[str, float]] = {}

    def variants(self) -> list[Variant]:
        """A step answers a batch, reading the prompts included."""
        steps: dict[str, Callable[[int], Any]] = {
            SEQUENTIAL: partial(self.sequential, 20),
            **{name: partial(self.ours, k) for k, name in OURS.items()},
            PLAIN: self.plain,
        }
        return [Variant(name, lambda: None, partial(self._step, steps[name])) for name in ORDER]

    @staticmethod
    def _step(answer: Callable[[int], Any], i: int) -> float:
        answer(i)
        return 0.0

    def plain(self, i: int) -> torch.Tensor:
        """Tokens (N, new) of the model alone, greedily."""
        ids = self.prompts[i]
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.case.new, do_sample=False
        )
        return output[:, ids.shape[1] :]

    def ours(self, k: int, i: int) -> torch.Tensor:
        """Tokens (N, new) that the proxy lets pass."""
        ids = self.prompts[i]
        found = self.proxy.generate(
            self.model,
            ids,
            max_new_tokens=self.case.new,
            eos_token_id=[],
            top_k=k,
            seed=self.seed,
            return_dict=True,
            cuda_graphs="never",  # see graph_decode.py
        )
        self._count(OURS[k], int(found.examined.sum()), None)
        return found.sequences[:, ids.shape[1] :]

    def sequential(self, k: int, i: int) -> torch.Tensor:
        """The same, one candidate at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        seeds = torch.randint(2**62, (self.case.batch,), generator=generator).tolist()  # as `generate` draws them
        naive = Sequential(self.llm, self.proxy, DecisionProcess(top_k=k))
        tokens = naive(self.prompts[i], self.case.new, seeds)
        self._count(SEQUENTIAL, naive.examined, naive.forwards)
        return tokens

    def _count(self, name: str, examined: int, forwards: int | None) -> None:
        """Candidates examined a token, and forwards a position where the variant counts them."""
        case = self.case
        counts = {"examined": examined / (case.batch * case.new)}
        self.counts[name] = counts if forwards is None else counts | {"forwards": forwards / case.new}


def check_agreement(work: Workload) -> dict[str, float]:
    """
    Compare the answers of ours with those of the sequential form, for every k, before anything is timed.

    Returns:
        `dict`: The share of tokens from the first on in which an answer parts from the other: 0 in float32.

    Raises:
        `RuntimeError`: Tokens differ in float32, decisions change none, or ours fell back to its slow form.
    """
    case, found = work.case, 0.0
    ids = work.prompts[0]
    walk = Walk(work.llm, work.proxy.accept_logits, DecisionProcess(order="descending"), ids, torch.ones_like(ids))
    walk.step()
    if walk.tree.form != "shared":
        raise RuntimeError(f"ours fell back to {walk.tree.form!r} ({walk.tree.reason}); nothing would be measured.")
    for k in CANDIDATES:
        ours, expected = work.ours(k, 0), work.sequential(k, 0)
        if ours.shape != (case.batch, case.new):
            raise RuntimeError(f"{case.name}: answers have the shape {tuple(ours.shape)}.")
        apart = (ours != expected).int().cummax(1).values.float().mean().item()
        if case.exact and apart:
            raise RuntimeError(f"{case.name}: {OURS[k]!r} takes other tokens than the sequential form.")
        found = max(found, apart)
    if not work.counts[OURS[4]]["examined"] > 1.2:
        raise RuntimeError(f"{case.name}: nearly everything is accepted; nothing would be compared.")
    return {"tokens": found}


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; ratios first, each of a variant to a later one of [`ORDER`]."""
    work = Workload(case, batches, seed)
    variants, agreement = work.variants(), check_agreement(work)
    seconds = alternate(variants, rounds=rounds, batches=batches, device=work.device)
    clock, weights = clock_of(work.device), SHAPES[case.model].weights
    return {
        "ratios": pair_ratios(seconds, ORDER, clock),
        "name": case.name,
        "settings": {
            **asdict(case),
            "clock": clock,
            "accept_rate": ACCEPT_RATE,
            "weights": weights.relative_to(ROOT).as_posix() if weights else "random",
            "shape": asdict(SHAPES[case.model]),
            "proxy_share": work.proxy.num_parameters() / work.model.num_parameters(),
        },
        "variants": {
            variant.name: {
                "seconds": spreads(seconds[variant.name]),
                "memory": peak_memory(variant, 0, work.device) if case.device == "cuda" else {},
                "counts": work.counts.get(variant.name, {}),
            }
            for variant in variants
        },
        "agreement": agreement,
    }


SUITE = Suite(
    name="proxy_decode",
    what="Tokens a second of Proxy-RLHF's decoding.",
    cases=CASES,
    measure=measure,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write one result file a device."""
    return SUITE.main(argv)


def report(results: Sequence[dict[str, Any]]) -> str:
    """The tables of README.md."""
    from .proxy_tables import decode_tables

    return decode_tables(results)


if __name__ == "__main__":
    sys.exit(main())
