# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Decoding with a static KV cache and CUDA graphs: unguided, by VAS, by Proxy-RLHF.

    python -m benchmarks.run graph_decode [--devices cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N sequences (the batch), P tokens of a prompt, k candidates for each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness.decoding import LABEL, SPEEDS, DecodingCase, speed_column
from benchmarks.harness.models import SHAPES, build
from benchmarks.harness.suite import TimedSuite, compare, selected
from benchmarks.harness.tables import Column, Table, ratio_column, sections
from benchmarks.harness.timing import Variant
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.decoding.static_generate import static_generate
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.value_model.model import ValueModel


GENERATE = "plain `generate`"
PLAIN = "unguided"
FORMS = {form: f"VAS, form `{form}`" for form in ("state", "action", "policy")}
EVERY = 4
SOME = f"VAS, form `state`, every {EVERY}"
PROXY = {k: f"Proxy-RLHF, k = {k}" for k in (20, 8, 4)}
# A ratio in a result is of an earlier one to a later one.
ORDER = (GENERATE, *FORMS.values(), SOME, *PROXY.values(), PLAIN)
BETA, TOP_K = 3.0, 20


@dataclass(frozen=True)
class Case(DecodingCase):
    """
    A language model, a value model and a batch.

    Args:
        policy, value (`str`): Two of [`~benchmarks.harness.models.SHAPES`] with the same vocabulary.
        variants (`tuple[str, ...]`): Parts of the names of the variants that are measured; all by default.
        targets (`dict[str, float]`): Times the time of `"unguided"` that a variant is to take at most.
        speedups (`dict[str, float]`): Times faster than plain `generate` that a variant is to be at least.
    """

    policy: str
    value: str
    variants: tuple[str, ...] = ()
    targets: dict[str, float] = field(default_factory=dict)
    speedups: dict[str, float] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return self.policy, self.value


_CHEAP = {FORMS["action"]: 1.12, FORMS["policy"]: 1.03, SOME: 1.1}
_LARGE: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "prompt": 256, "new": 64}
CASES = [
    Case("imdb-7m", "imdb-2m", device="cpu", dtype="float32", batch=4, prompt=64, new=32),
    Case(
        "llama-8b",
        "llama-1b",
        batch=1,
        targets={FORMS["state"]: 1.3, PROXY[4]: 1.05, PROXY[20]: 1.08, **_CHEAP},
        speedups={FORMS["state"]: 3.0},
        **_LARGE,
    ),
    Case(
        "llama-8b",
        "llama-1b",
        batch=16,
        targets={FORMS["state"]: 1.4, PROXY[4]: 1.1, **_CHEAP},
        speedups={FORMS["state"]: 2.0},
        **_LARGE,
    ),
]


class Workload:
    """
    A language model, value models of three forms and a proxy with random weights, and prompts of random tokens.

    Args:
        case ([`Case`]): Models and sizes.
        batches (`int`): How many batches of prompts to make.
        seed (`int`): Of weights, prompts and decisions.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device, self.seed = case, torch.device(case.device), seed
        kwargs: dict[str, Any] = {"device": self.device, "dtype": getattr(torch, case.dtype)}
        self.policy = build(case.policy, **kwargs, seed=seed).eval()
        self.policy.generation_config.eos_token_id = None  # every sequence gets as many tokens
        loops = cached_loops(self.policy)
        loops.most, loops.idle = len(ORDER), 2**40  # all are used in turns
        value = build(case.value, **kwargs, seed=seed + 1)
        self.values = {
            "state": ValueModel.from_backbone(value).eval(),
            "action": ValueModel.from_backbone(value, form="action").eval(),
            "policy": ValueModel.on_policy(self.policy, form="policy").eval(),
        }
        generator = torch.Generator().manual_seed(seed)
        for model in self.values.values():  # heads begin at zero: guidance would change nothing
            for parameter in (*model.head.parameters(), *getattr(model, "action", torch.nn.Module()).parameters()):
                noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                parameter.data.copy_(noise)
        self.proxy = ProxyModel.for_model(self.policy, DecisionProcess(), initial_accept_rate=0.5).eval()
        self.prompts = case.prompts(batches, generator)

    def variants(self) -> list[Variant]:
        """A step generates completions for a batch, prefill included."""
        steps: dict[str, Callable[[int], Any]] = {
            GENERATE: partial(self.generate, None, static=False),
            **{name: partial(self.generate, form, static=True) for form, name in FORMS.items()},
            SOME: partial(self.generate, "state", static=True, every=EVERY),
            **{name: partial(self.decide, k, "always") for k, name in PROXY.items()},
            PLAIN: partial(self.generate, None, static=True),
        }
        return selected([Variant(name, steps[name]) for name in ORDER], self.case.variants)

    def generate(self, form: str | None, i: int, *, static: bool, every: int = 1) -> torch.Tensor:
        """Tokens (N, new), greedily, guided by a value model at every so many tokens, or not."""
        ids, processors = self.prompts[i], []
        if form is not None:
            processors.append(ValueAugmentedLogitsProcessor(self.values[form], BETA, TOP_K, guide_every=every))
        extra: dict[str, Any] = {"custom_generate": static_generate} if static else {}
        kwargs: dict[str, Any] = {"max_new_tokens": self.case.new, "do_sample": False, "logits_processor": processors}
        output = self.policy.generate(ids, attention_mask=torch.ones_like(ids), **kwargs, **extra)
        return output[:, ids.shape[1] :]

    def decide(self, k: int, cuda_graphs: str, i: int) -> torch.Tensor:
        """Tokens (N, new) that the proxy accepts."""
        ids, new = self.prompts[i], self.case.new
        kwargs: dict[str, Any] = {"eos_token_id": [], "seed": self.seed, "cuda_graphs": cuda_graphs}
        return self.proxy.generate(self.policy, ids, max_new_tokens=new, top_k=k, **kwargs)[:, ids.shape[1] :]


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare the tokens of variants with those of the ordinary loops, before anything is timed.

    Returns:
        `dict`: For each variant the share of tokens from the first difference of a row on: 0 in float32. In half
        precision near-ties flip, and rows stay different from there.

    Raises:
        `RuntimeError`: Tokens differ in float32, or differ from the first on.
    """
    pairs = {PLAIN: (partial(work.generate, None, static=True), partial(work.generate, None, static=False))}
    for form, name in FORMS.items():
        pairs[name] = (partial(work.generate, form, static=True), partial(work.generate, form, static=False))
    some: dict[str, Any] = {"every": EVERY}
    pairs[SOME] = (
        partial(work.generate, "state", static=True, **some),
        partial(work.generate, "state", static=False, **some),
    )
    for k, name in PROXY.items():
        pairs[name] = (partial(work.decide, k, "always"), partial(work.decide, k, "never"))
    found = {}
    for name, (ours, expected) in ((v.name, pairs[v.name]) for v in variants if v.name in pairs):
        apart = (ours(0) != expected(0)).int().cummax(1).values.float().mean().item()
        if apart and work.case.dtype == "float32":
            raise RuntimeError(f"{work.case.name}: {name!r} takes other tokens than the ordinary loop.")
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
        settings={
            "beta": BETA,
            "top_k": TOP_K,
            "weights": {name: SHAPES[name].weights_name for name in case.models},
        },
        agreement=agreement,
    )


# ------------------------------------------------------------------------------------------------------------- tables


def tables(results: Sequence[dict[str, Any]]) -> str:
    """How much time guidance costs under CUDA graphs, how much they save, and tokens per second."""
    slower = [
        ratio_column(f"{name}: × the time of unguided", f"{name} / {PLAIN}", "≤", name)
        for name in (*FORMS.values(), SOME, *PROXY.values())
    ]
    faster = [
        replace(
            ratio_column(f"{name}: times faster than plain `generate`", f"{GENERATE} / {name}"),
            goal=partial(_speedup_goal, name),
        )
        for name in (FORMS["state"], PROXY[4], PLAIN)
    ]
    apart = Column("tokens that differ from the ordinary loop's", _differ)
    speeds = [speed_column(name) for name in ORDER]
    found = [
        Table("decoding", LABEL, [*slower, *faster, apart]),
        Table("decoding", LABEL, speeds, SPEEDS, measured_only=True),
    ]
    return sections(results, CASES, {"cpu": "CPU (no graph: the code path alone)", "cuda": "GPU"}, found)


def _speedup_goal(name: str, case: Case, measured: dict[str, Any] | None) -> str:
    return f"≥ {case.speedups[name]:g}" if name in case.speedups else ""


def _differ(case: Case, measured: dict[str, Any]) -> str:
    return f"{max(measured['agreement'].values()):.0%} at most"


SUITE = TimedSuite(
    "graph_decode", "Tokens per second of decoding with a static KV cache and a CUDA graph.", CASES, measure, tables
)
