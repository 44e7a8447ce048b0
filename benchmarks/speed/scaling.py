# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
How the time of an RRHF step and of guided decoding grows with one size, and beside that of its arithmetic.

    python -m benchmarks.run scaling [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]

Along an axis one size changes and the rest stays. The slope is that of a least-squares line through (log size, log
time): 1 is proportional, 0 constant. Beside it stands the slope of the multiplications that the same steps need.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.harness.models import SHAPES, Shape
from benchmarks.harness.suite import TimedSuite
from benchmarks.harness.tables import NOT_MEASURED, newest, provenances, ratio_cell, table
from benchmarks.harness.timing import Variant, alternate, clock_of, ratio, slope, spread, spreads
from benchmarks.speed import rrhf_workload, vas_decode

from .rrhf_workload import DENSE, NAIVE, OUR_ROWS
from .rrhf_workload import Workload as Step
from .scaling_processes import Processes
from .scaling_processes import measure as measure_processes
from .vas_decode import BY_ONE, OURS, PLAIN
from .vas_decode import Workload as Decoding


@dataclass(frozen=True)
class Point:
    """
    A place on an axis.

    Args:
        size (`float`): What changes.
        case: Of `rrhf_workload` or `vas_decode`.
    """

    size: float
    case: Any


@dataclass(frozen=True)
class Axis:
    """
    What changes, and what is timed there.

    Args:
        name (`str`): In results.
        what (`str`): In tables.
        points (`tuple[Point, ...]`): From small to large.
        variants (`tuple[str, ...]`): Of the suite that the cases belong to.
    """

    name: str
    what: str
    points: tuple[Point, ...]
    variants: tuple[str, ...]

    @property
    def device(self) -> str:
        return str(self.points[0].case.device)


def _steps(name: str, what: str, device: str, sizes: Sequence[Any], case: Callable[[Any], rrhf_workload.Case]) -> Axis:
    points = tuple(Point(_size(size), case(size)) for size in sizes)
    return Axis(f"{device}/rrhf/{name}", what, points, (NAIVE, OUR_ROWS, DENSE))


def _size(size: Any) -> float:
    return float(linear_weights(SHAPES[size])) if isinstance(size, str) else float(size)


def linear_weights(shape: Shape) -> int:
    """Weights of the linear maps of the layers: multiplications a position."""
    d, head = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
    attention = 2 * d * d + 2 * d * head * shape.num_key_value_heads
    return shape.num_hidden_layers * (attention + 3 * d * shape.intermediate_size)


def _axes(device: str, model: str) -> list[Axis]:
    def case(k: int = 6, prompts: int = 2, prompt: int = 128, completion: int = 64, of: str = model) -> Any:
        return rrhf_workload.Case(of, device, k, prompts, (prompt, prompt), (completion, completion))

    sizes: dict[str, Any] = {"device": device, "dtype": "float32", "batch": 4, "prompt": 64, "new": 16}
    guided = [vas_decode.Case("imdb-7m", "imdb-2m", top_k=k, **sizes) for k in (5, 10, 20, 40)]
    return [
        _steps("completions", "completions a prompt (2 to 16)", device, (2, 4, 8, 16), lambda k: case(k=k)),
        _steps("prompt", "tokens of a prompt (32 to 512)", device, (32, 128, 512), lambda n: case(prompt=n)),
        _steps("completion", "tokens of a completion (16 to 256)", device, (16, 64, 256),
               lambda n: case(completion=n)),
        _steps("prompts", "prompts of a step (1 to 8)", device, (1, 2, 4, 8), lambda n: case(prompts=n)),
        _steps("model", "weights of the layers (0.07 to 4.8 M)", device, ("tiny", "imdb-2m", "imdb-7m"),
               lambda name: case(of=name)),
        Axis(f"{device}/vas/candidates", "candidates of a token (5 to 40)",
             tuple(Point(float(c.top_k), c) for c in guided), (BY_ONE, OURS, PLAIN)),
    ]  # fmt: skip


CASES: list[Axis | Processes] = [
    *_axes("cpu", "imdb-2m"),
    Processes("rrhf", "processes (1 to 2): an RRHF step on 8 prompts of 6 completions", batch=8),
    Processes("psle", "processes (1 to 2): a PSLE iteration on 32 prompts", batch=32),
]


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(axis: Axis | Processes, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One axis, as a case of a result file: each variant at each size takes its turn."""
    if isinstance(axis, Processes):
        return measure_processes(axis, rounds=rounds, batches=batches, seed=seed)
    device = torch.device(axis.device)
    works = [_workload(point.case, batches, seed) for point in axis.points]
    # Each size has one batch, so that its slope is not that of random lengths.
    variants = [
        Variant(_key(variant.name, point), partial(_first, variant.step), variant.prepare)
        for point, work in zip(axis.points, works, strict=True)
        for variant in work.variants()
        if variant.name in axis.variants
    ]
    seconds = alternate(variants, rounds=rounds, batches=1, device=device)
    clock = clock_of(device)
    slopes = {}
    for name in axis.variants:
        medians = [spread(seconds[_key(name, point)][clock])["median"] for point in axis.points]
        needed = [multiplications(name, work) for work in works]
        sizes = [point.size for point in axis.points]
        slopes[name] = {"measured": round(slope(sizes, medians), 3), "expected": round(slope(sizes, needed), 3)}
    last, first = axis.points[-1], axis.points[0]
    return {
        "ratios": {
            name: ratio(seconds[_key(name, last)][clock], seconds[_key(name, first)][clock]) for name in axis.variants
        },
        "name": axis.name,
        "settings": {"what": axis.what, "sizes": [p.size for p in axis.points], "clock": clock},
        "variants": {name: {"seconds": spreads(clocks), "memory": {}} for name, clocks in seconds.items()},
        "slopes": slopes,
    }


def _workload(case: Any, batches: int, seed: int) -> Step | Decoding:
    return Step(case, batches, seed) if isinstance(case, rrhf_workload.Case) else Decoding(case, batches, seed)


def _key(variant: str, point: Point) -> str:
    return f"{variant}, {point.size:g}"


def _first(step: Callable[[int], Any], _: int) -> None:
    step(0)


def multiplications(variant: str, work: Step | Decoding) -> float:
    """
    That one step needs in the forward; the backward is twice as many of each, so slopes are the same.

    A training step: linear maps a position, attention a pair of positions of a row (a mask hides pairs, it does not
    save them), the head a token of a completion (a position, in the naive form). Decoding: linear maps a token fed.
    """
    if isinstance(work, Decoding):
        case = work.case
        fed = work.counts[variant]["tokens"] if variant != PLAIN else 0
        policy = linear_weights(SHAPES[case.policy]) * case.batch * (case.prompt + case.new)
        return float(policy + linear_weights(SHAPES[case.value]) * fed)
    batch, positions = work.case, work.positions[variant]
    shape = SHAPES[batch.model]
    rows = batch.prompts * (1 if variant == DENSE else batch.completions)
    pairs = rows * (positions / rows) ** 2
    scored = positions if variant == NAIVE else batch.prompts * batch.completions * batch.completion_length[0]
    attention = 2 * shape.num_hidden_layers * shape.hidden_size * pairs
    return linear_weights(shape) * positions + attention + shape.hidden_size * shape.vocab_size * scored


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The slopes of each axis."""
    rows = newest(results, CASES, "cpu")
    lines = [["what grows", "variant", "slope", "slope of multiplications", "time at the largest / at the smallest"]]
    for axis, _, measured in rows:
        for name in axis.variants if measured is not None else ():
            slopes = measured["slopes"][name]
            grown = ratio_cell(measured["ratios"][name])
            lines.append([axis.what, name, f"{slopes['measured']:.2f}", f"{slopes['expected']:.2f}", grown])
        if measured is None:
            lines.append([axis.what, *[NOT_MEASURED] * 4])
    return "\n".join([*table(lines), *provenances(rows)])


SUITE = TimedSuite("scaling", "How time grows with one size.", CASES, measure, tables)
