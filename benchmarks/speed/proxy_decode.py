# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Tokens a second of Proxy-RLHF's decoding: a model alone, a forward for every examined candidate, ours.

    python -m benchmarks.run proxy_decode [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N sequences (the batch), P tokens of a prompt, k candidates for each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.harness.decoding import LABEL, SPEEDS, DecodingCase, speed_column
from benchmarks.harness.models import SHAPES, build
from benchmarks.harness.suite import TimedSuite, compare
from benchmarks.harness.tables import Column, Table, ratio_column, sections
from benchmarks.harness.timing import Variant
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.walk import Walk
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.models.backbone_and_head import BackboneAndHead

from .proxy_naive import Sequential


# The variants. A ratio in a result is of an earlier one to a later one.
CANDIDATES = (20, 8, 4)
OURS = {k: f"ours, k = {k}" for k in CANDIDATES}
ORDER = (SEQUENTIAL, *_, PLAIN) = ("candidate by candidate, k = 20", *OURS.values(), "plain")
ACCEPT_RATE = 0.5  # of a new proxy, by default: two candidates per token are examined


@dataclass(frozen=True)
class Case(DecodingCase):
    """
    A frozen model and a batch.

    Args:
        model (`str`): One of [`~benchmarks.harness.models.SHAPES`].
        targets (`dict[str, float]`): Times the time of `"plain"` that a variant is to take at most.
    """

    model: str
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)


_SMALL: dict[str, Any] = {"device": "cpu", "dtype": "float32", "prompt": 64, "new": 32}
_LARGE: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "prompt": 256, "new": 64}
CASES = [
    *(Case("imdb-7m", batch=batch, **_SMALL) for batch in (1, 16)),
    *(Case("llama-8b", batch=batch, **_LARGE, targets={OURS[4]: 1.35}) for batch in (1, 16)),
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
        self.prompts = case.prompts(batches, generator)
        self.counts: dict[str, dict[str, float]] = {}

    def variants(self) -> list[Variant]:
        """A step generates completions for a batch, prefill included."""
        steps: dict[str, Callable[[int], Any]] = {
            SEQUENTIAL: partial(self.sequential, 20),
            **{name: partial(self.ours, k) for k, name in OURS.items()},
            PLAIN: self.plain,
        }
        return [Variant(name, steps[name]) for name in ORDER]

    def plain(self, i: int) -> torch.Tensor:
        """Tokens (N, new) of the model alone, greedily."""
        ids = self.prompts[i]
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.case.new, do_sample=False
        )
        return output[:, ids.shape[1] :]

    def ours(self, k: int, i: int) -> torch.Tensor:
        """Tokens (N, new) that the proxy accepts."""
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
        seeds = torch.randint(2**62, (self.case.batch,), generator=generator).tolist()  # as in `generate`
        naive = Sequential(self.llm, self.proxy, DecisionProcess(top_k=k))
        tokens = naive(self.prompts[i], self.case.new, seeds)
        self._count(SEQUENTIAL, naive.examined, naive.forwards)
        return tokens

    def _count(self, name: str, examined: int, forwards: int | None) -> None:
        """Candidates examined per token, and forwards per position where the variant counts them."""
        case = self.case
        counts = {"examined": examined / (case.batch * case.new)}
        self.counts[name] = counts if forwards is None else counts | {"forwards": forwards / case.new}


def check_agreement(work: Workload) -> dict[str, float]:
    """
    Compare the tokens of ours with those of the sequential form, for every k, before anything is timed.

    Returns:
        `dict`: The share of tokens from the first difference of a row on: 0 in float32.

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
            raise RuntimeError(f"{case.name}: completions have the shape {tuple(ours.shape)}.")
        apart = (ours != expected).int().cummax(1).values.float().mean().item()
        if case.exact and apart:
            raise RuntimeError(f"{case.name}: {OURS[k]!r} takes other tokens than the sequential form.")
        found = max(found, apart)
    if not work.counts[OURS[4]]["examined"] > 1.2:
        raise RuntimeError(f"{case.name}: nearly everything is accepted; nothing would be compared.")
    return {"tokens": found}


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file."""
    work = Workload(case, batches, seed)
    agreement = check_agreement(work)
    return compare(
        case,
        work.variants(),
        rounds=rounds,
        batches=batches,
        memory_of=lambda name: case.device == "cuda",
        facts=lambda name: {"counts": work.counts.get(name, {})},
        settings={
            "accept_rate": ACCEPT_RATE,
            "weights": SHAPES[case.model].weights_name,
            "shape": asdict(SHAPES[case.model]),
            "proxy_share": work.proxy.num_parameters() / work.model.num_parameters(),
        },
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much time the proxy costs, and tokens per second."""
    slower = [
        ratio_column(f"{name}: × the time of plain", f"{name} / {PLAIN}", "≤", name)
        for name in (*OURS.values(), SEQUENTIAL)
    ]
    faster = ratio_column(f"{OURS[20]}: times faster than candidate by candidate", f"{SEQUENTIAL} / {OURS[20]}")
    differ = Column("tokens that differ", lambda case, measured: f"{measured['agreement']['tokens']:.0%}")
    speeds = [speed_column(name) for name in (PLAIN, SEQUENTIAL, *OURS.values())]
    examined = Column(f"candidates examined per token: k = {', '.join(map(str, CANDIDATES))}", _examined)
    forwards = Column("forwards per token, one by one", _forwards)
    found = [
        Table("decoding", LABEL, [*slower, faster, differ]),
        Table("decoding", LABEL, [*speeds, examined, forwards], SPEEDS, measured_only=True),
    ]
    return sections(results, CASES, {"cpu": "CPU", "cuda": "GPU"}, found)


def _examined(case: Case, measured: dict[str, Any]) -> str:
    return ", ".join(f"{measured['variants'][OURS[k]]['counts']['examined']:.2f}" for k in CANDIDATES)


def _forwards(case: Case, measured: dict[str, Any]) -> str:
    return f"{measured['variants'][SEQUENTIAL]['counts']['forwards']:.2f}"


SUITE = TimedSuite("proxy_decode", "Tokens per second of Proxy-RLHF's decoding.", CASES, measure, tables)
