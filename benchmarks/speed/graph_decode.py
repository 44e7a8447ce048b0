# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Decoding in a cache of fixed size, a token being one replay of a CUDA graph: unguided, by VAS, by Proxy-RLHF.

    python -m benchmarks.run graph_decode [--devices cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

N sequences (the batch), P tokens of a prompt, k candidates for each token.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.decoding.static_generate import static_generate
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.value_model.model import ValueModel

from ..harness.measure import ROOT, Variant, alternate, clock_of, pair_ratios, spreads, table
from ..harness.memory import peak_memory
from ..harness.models import SHAPES, build
from ..harness.suite import NOT_MEASURED, Rows, Suite, cell, sections


GENERATE = "plain `generate`"
PLAIN = "unguided"
FORMS = {form: f"VAS, form `{form}`" for form in ("state", "action", "policy")}
PROXY = {k: f"Proxy-RLHF, k = {k}" for k in (20, 8, 4)}
# A ratio in a result is of an earlier one to a later one.
ORDER = (GENERATE, *FORMS.values(), *PROXY.values(), PLAIN)
BETA, TOP_K = 3.0, 20


@dataclass(frozen=True)
class Case:
    """
    A language model, a value model and a batch.

    Args:
        policy, value (`str`): Two of [`~benchmarks.harness.models.SHAPES`] with the same vocabulary.
        device (`str`): `"cpu"` or `"cuda"`.
        dtype (`str`): Of the weights of both.
        batch (`int`): N.
        prompt (`int`): P; all prompts are as long.
        new (`int`): Tokens that are generated for each.
        targets (`dict[str, float]`): Times the time of `"unguided"` that a variant is to take at most.
        speedups (`dict[str, float]`): Times faster than plain `generate` that a variant is to be at least.
    """

    policy: str
    value: str
    device: str
    dtype: str
    batch: int
    prompt: int
    new: int
    targets: dict[str, float] = field(default_factory=dict)
    speedups: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.device}/{self.policy}+{self.value}/{self.dtype}-b{self.batch}-p{self.prompt}-n{self.new}"


_CHEAP = {FORMS["action"]: 1.12, FORMS["policy"]: 1.03}
CASES = [
    Case("imdb-7m", "imdb-2m", "cpu", "float32", 4, 64, 32),
    Case(
        *("llama-8b", "llama-1b", "cuda", "bfloat16", 1, 256, 64),
        targets={FORMS["state"]: 1.3, PROXY[4]: 1.05, PROXY[20]: 1.08, **_CHEAP},
        speedups={FORMS["state"]: 3.0},
    ),
    Case(
        *("llama-8b", "llama-1b", "cuda", "bfloat16", 16, 256, 64),
        targets={FORMS["state"]: 1.4, PROXY[4]: 1.1, **_CHEAP},
        speedups={FORMS["state"]: 2.0},
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
        shape = (case.batch, case.prompt)
        self.prompts = [
            torch.randint(3, SHAPES[case.policy].vocab_size, shape, generator=generator).to(self.device)
            for _ in range(batches)
        ]

    def variants(self) -> list[Variant]:
        """A step answers a batch, reading the prompts included."""
        steps: dict[str, Callable[[int], Any]] = {
            GENERATE: partial(self.generate, None, static=False),
            **{name: partial(self.generate, form, static=True) for form, name in FORMS.items()},
            **{name: partial(self.decide, k, "always") for k, name in PROXY.items()},
            PLAIN: partial(self.generate, None, static=True),
        }
        return [Variant(name, lambda: None, partial(_step, steps[name])) for name in ORDER]

    def generate(self, form: str | None, i: int, *, static: bool) -> torch.Tensor:
        """Tokens (N, new), greedily, guided by a value model or not."""
        ids = self.prompts[i]
        processors = [] if form is None else [ValueAugmentedLogitsProcessor(self.values[form], BETA, TOP_K)]
        extra: dict[str, Any] = {"custom_generate": static_generate} if static else {}
        kwargs: dict[str, Any] = {"max_new_tokens": self.case.new, "do_sample": False, "logits_processor": processors}
        output = self.policy.generate(ids, attention_mask=torch.ones_like(ids), **kwargs, **extra)
        return output[:, ids.shape[1] :]

    def decide(self, k: int, cuda_graphs: str, i: int) -> torch.Tensor:
        """Tokens (N, new) that the proxy lets pass."""
        ids, new = self.prompts[i], self.case.new
        kwargs: dict[str, Any] = {"eos_token_id": [], "seed": self.seed, "cuda_graphs": cuda_graphs}
        return self.proxy.generate(self.policy, ids, max_new_tokens=new, top_k=k, **kwargs)[:, ids.shape[1] :]


def _step(answer: Callable[[int], Any], i: int) -> float:
    answer(i)
    return 0.0


def check_agreement(work: Workload) -> dict[str, float]:
    """
    Compare the tokens with those of the ordinary loops, before anything is timed.

    Returns:
        `dict`: For each variant the share of tokens from the first on in which an answer parts from the ordinary
        loop's: 0 in float32. In half precision near-ties flip, and answers part for good.

    Raises:
        `RuntimeError`: Tokens differ in float32, or differ from the first on.
    """
    pairs = {PLAIN: (partial(work.generate, None, static=True), partial(work.generate, None, static=False))}
    for form, name in FORMS.items():
        pairs[name] = (partial(work.generate, form, static=True), partial(work.generate, form, static=False))
    for k, name in PROXY.items():
        pairs[name] = (partial(work.decide, k, "always"), partial(work.decide, k, "never"))
    found = {}
    for name, (ours, expected) in pairs.items():
        apart = (ours(0) != expected(0)).int().cummax(1).values.float().mean().item()
        if apart and work.case.dtype == "float32":
            raise RuntimeError(f"{work.case.name}: {name!r} takes other tokens than the ordinary loop.")
        found[name] = apart
    return found


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; ratios first, each of a variant to a later one of [`ORDER`]."""
    work = Workload(case, batches, seed)
    agreement, variants = check_agreement(work), work.variants()
    seconds = alternate(variants, rounds=rounds, batches=batches, device=work.device)
    clock = clock_of(work.device)
    weights = {name: SHAPES[name].weights for name in (case.policy, case.value)}
    return {
        "ratios": pair_ratios(seconds, ORDER, clock),
        "name": case.name,
        "settings": {
            **asdict(case),
            "clock": clock,
            "beta": BETA,
            "top_k": TOP_K,
            "weights": {name: w.relative_to(ROOT).as_posix() if w else "random" for name, w in weights.items()},
        },
        "variants": {
            variant.name: {
                "seconds": spreads(seconds[variant.name]),
                "memory": peak_memory(variant, 0, work.device) if case.device == "cuda" else {},
            }
            for variant in variants
        },
        "agreement": agreement,
    }


SUITE = Suite(
    name="graph_decode",
    what="Tokens a second of decoding with a cache of fixed size and a CUDA graph.",
    cases=CASES,
    measure=measure,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write one result file a device."""
    return SUITE.main(argv)


def report(results: Sequence[dict[str, Any]]) -> str:
    """The tables of README.md."""
    titles = {"cpu": "CPU (no graph: the code path alone)", "cuda": "GPU"}
    return sections(results, CASES, titles, _ratios, "Tokens a second, all rows together", _speeds)


def _ratios(rows: Rows) -> list[str]:
    names = (*FORMS.values(), *PROXY.values())
    head = ["decoding", *(f"{name}: × the time of unguided" for name in names)]
    faster = [f"{name}: times faster than plain `generate`" for name in (FORMS["state"], PROXY[4], PLAIN)]
    lines = [[*head, *faster, "tokens that differ from the ordinary loop's"]]
    for case, _, measured in rows:
        goals = {name: f"≤ {value:g}" for name, value in case.targets.items()}
        least = {name: f"≥ {value:g}" for name, value in case.speedups.items()}
        apart = NOT_MEASURED if measured is None else f"{max(measured['agreement'].values()):.0%} at most"
        lines.append(
            [
                _label(case),
                *(cell(measured, f"{name} / {PLAIN}", goals.get(name, "")) for name in names),
                *(cell(measured, f"{GENERATE} / {n}", least.get(n, "")) for n in (FORMS["state"], PROXY[4], PLAIN)),
                apart,
            ]
        )
    return table(lines)


def _speeds(rows: Rows) -> list[str]:
    lines = [["decoding", *ORDER]]
    for case, _, measured in rows:
        if measured is not None:
            clock, made = measured["settings"]["clock"], case.batch * case.new
            speeds = [made / measured["variants"][name]["seconds"][clock]["median"] for name in ORDER]
            lines.append([_label(case), *(f"{speed:.0f}" for speed in speeds)])
    return table(lines)


def _label(case: Case) -> str:
    return f"{case.policy} + {case.value}, {case.dtype}: {case.batch} × (prompt {case.prompt}, {case.new} new)"


if __name__ == "__main__":
    sys.exit(main())
