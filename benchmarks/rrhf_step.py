# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Seconds and peak memory of an RRHF training step (forward, loss, backward), one way against another.

    python -m benchmarks.rrhf_step [--devices cpu cuda] [--cases TEXT ...] [--rounds N] [--output FOLDER]
"""

import argparse
import gc
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .harness import (
    RESULTS,
    ROOT,
    Variant,
    alternate,
    clock_of,
    environment,
    peak_memory,
    ratio,
    spread,
    table,
    write_result,
)
from .rrhf_workload import CASCADE, DENSE, DPO, NAIVE, ORDER, OUR_ROWS, TRL_ROWS, Case, Workload
from .shapes import SHAPES


import torch


SUITE = "rrhf_step"
MEASURED = {"head", "prefix", "logprobs", "losses", "harness", "shapes", "rrhf_workload", "rrhf_step"}
RAGGED = (64, 192)  # 128 tokens +- 50 %


def _cpu_cases(model: str) -> list[Case]:
    return [
        Case(model, "cpu", 6, 4, (128, 128), RAGGED),
        Case(model, "cpu", 6, 2, (512, 512), RAGGED),
        # The IMDB task: openings of 16 words, and 48 tokens, few of which end sooner.
        Case(model, "cpu", 4, 8, (16, 28), (48, 48)),
        # Sharing takes a third off the positions: from here on it has to pay.
        Case(model, "cpu", 4, 8, (40, 40), (48, 48)),
    ]


CASES = [
    *_cpu_cases("imdb-2m"),
    *_cpu_cases("imdb-7m"),
    Case("llama-1b", "cuda", 6, 8, (128, 128), RAGGED, targets={"naive": 2.0, "rows": 1.75, "memory": 3.0}),
    Case("llama-1b", "cuda", 6, 4, (512, 512), RAGGED, targets={"naive": 3.2, "rows": 2.6, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 8, (128, 128), RAGGED, qlora=True, targets={"rows": 1.85, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 4, (512, 512), RAGGED, qlora=True, targets={"rows": 2.8, "memory": 3.0}),
    # The memory anchor: whether a step on one prompt fits a card of 12 GB.
    Case("llama-8b", "cuda", 6, 1, (256, 256), RAGGED, qlora=True, optimizer=True, targets={"reserved": 7.5}),
]


# --------------------------------------------------------------------------------------------------------- measuring


def check_agreement(work: Workload, variants: Sequence[Variant]) -> dict[str, float]:
    """
    Compare losses and gradients of all variants with the naive ones on the first batch, before anything is timed.

    Returns:
        `dict`: The largest difference of a loss, and the largest relative difference of all gradients together.

    Raises:
        `RuntimeError`: They differ by more than 1e-4 in float32 (by more than rounding, in bfloat16); or the loss of
            DPO is not log 2, which it is while policy and reference are the same.
    """
    limits = {"loss": 1e-4, "gradient": 1e-4} if work.case.exact else {"loss": 5e-2, "gradient": 0.1}
    found = dict.fromkeys(limits, 0.0)
    first: tuple[float, list[torch.Tensor]] | None = None
    for variant in variants:
        variant.prepare()
        loss = variant.step(0)
        if variant.name == DPO:
            if abs(loss - math.log(2)) > limits["loss"]:
                raise RuntimeError(f"{work.case.name}: the loss of DPO is {loss}, not log 2: its reference differs.")
            continue
        gradients = [p.grad for p in work.model.parameters() if p.grad is not None]
        if first is None:
            first = loss, [g.clone() for g in gradients]
            continue
        apart = math.sqrt(sum(_squares(a - b) for a, b in zip(first[1], gradients, strict=True)))
        differences = {
            "loss": abs(loss - first[0]),
            "gradient": apart / math.sqrt(sum(_squares(g) for g in first[1])),
        }
        if any(differences[key] > limit for key, limit in limits.items()):
            raise RuntimeError(f"{work.case.name}: {variant.name!r} disagrees with {NAIVE!r}: {differences}.")
        found = {key: max(value, differences[key]) for key, value in found.items()}
    return found


def _squares(values: torch.Tensor) -> float:
    return values.float().pow(2).sum().item()


def measure(case: Case, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """One case of a result file; ratios first, each of a variant to a later one of [`ORDER`]."""
    work = Workload(case, batches, seed)
    variants = work.variants()
    agreement = check_agreement(work, variants)
    seconds = alternate(variants, rounds=rounds, batches=batches, device=work.device)
    memory = {variant.name: peak_memory(variant, 0, work.device) for variant in variants}
    clock = clock_of(work.device)
    pairs = list(itertools.combinations([name for name in ORDER if name in seconds], 2))
    timing = {f"{a} / {b}": ratio(seconds[a][clock], seconds[b][clock]) for a, b in pairs}
    space = {f"memory: {a} / {b}": ratio([memory[a]["above"]], [memory[b]["above"]]) for a, b in pairs}
    weights = None if case.qlora else SHAPES[case.model].weights
    return {
        "ratios": timing | space,
        "name": case.name,
        "settings": {
            **asdict(case),
            "dtype": str(case.dtype).removeprefix("torch."),
            "weights": weights.relative_to(ROOT).as_posix() if weights else "random",
            "shape": asdict(SHAPES[case.model]),
        },
        "variants": {
            name: {
                "seconds": {clock: spread(values) for clock, values in clocks.items()},
                "memory": memory[name],
                "positions": work.positions[name],
            }
            for name, clocks in seconds.items()
        },
        "agreement": agreement,
        "auto": work.chosen_form(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write one result file a device."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rrhf_step", description="Seconds and peak memory of an RRHF training step."
    )
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names of cases to run (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--batches", type=int, default=2, help="different batches, each also a step of warm-up")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(argv)
    for device in map(torch.device, options.devices):
        if device.type == "cuda" and not torch.cuda.is_available():
            print("no GPU: the cases for one were not run")
            continue
        chosen = [c for c in CASES if c.device == device.type and any(part in c.name for part in options.cases)]
        if chosen:
            print("wrote", run(chosen, device, options))
    return 0


def run(cases: Sequence[Case], device: torch.device, options: argparse.Namespace) -> Path:
    """Measure cases of one device and write their result file."""
    files = [*ROOT.glob("trl_ext/*.py"), *ROOT.glob("trl_ext/rrhf/*.py"), *ROOT.glob("benchmarks/*.py")]
    facts = environment(device, [path for path in files if path.stem in MEASURED])
    measured = []
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        measured.append(measure(case, rounds=options.rounds, batches=options.batches, seed=options.seed))
        for name, value in measured[-1]["ratios"].items():
            print(f"  {value['of_medians']:6.2f}  {name}", file=sys.stderr, flush=True)
        gc.collect()  # a model and the trainer around it hold one another
        if device.type == "cuda":
            torch.cuda.empty_cache()
    settings = {
        "seed": options.seed,
        "rounds": options.rounds,
        "batches": options.batches,
        "clock": clock_of(device),
    }
    return write_result(SUITE, device, {"settings": settings, "environment": facts, "cases": measured}, options.output)


# --------------------------------------------------------------------------------------------------------- reporting

NOT_MEASURED = "not measured"


def report(results: Sequence[dict[str, Any]]) -> str:
    """The tables of README.md: of each case the newest measurement, targets in brackets."""
    newest = {case["name"]: (result, case) for result in results for case in result["cases"]}
    sections = []
    for device, title in (("cpu", "CPU, float32"), ("cuda", "GPU, bfloat16")):
        cases = [(case, newest.get(case.name, (None, None))[1]) for case in CASES if case.device == device]
        variants = [name for name in ORDER if name != (CASCADE if device == "cpu" else OUR_ROWS)]
        text = [f"### {title}", "", "Times faster than", "", *_speed_table(cases, device)]
        text += ["", "Times less peak memory above the weights than", "", *_memory_table(cases, device)]
        if any(measured for _, measured in cases):
            text += ["", "Seconds a step and peak memory above the weights", "", *_absolute_table(cases, variants)]
        used = {id(newest[c.name][0]): newest[c.name][0] for c, measured in cases if measured}
        text += [f"\n{_provenance(result)}" for result in used.values()]
        sections.append("\n".join(text))
    return "\n\n".join(sections)


def _speed_table(cases: Sequence[tuple[Case, Any]], device: str) -> list[str]:
    best, head = (DENSE, "head: TRL's / ours") if device == "cpu" else (CASCADE, "dense mask")
    rows = [["step", "positions", NAIVE, TRL_ROWS, OUR_ROWS if device == "cpu" else "dense mask", DPO]]
    if device == "cpu":
        rows[0].append(head)
    for case, measured in cases:
        third = measured is not None and _fall(measured, OUR_ROWS, DENSE) >= 1.5 if device == "cpu" else False
        row = [
            _label(case),
            NOT_MEASURED if measured is None else f"÷ {_fall(measured, TRL_ROWS, best):.2f}",
            _cell(measured, f"{NAIVE} / {best}", case.targets.get("naive")),
            _cell(measured, f"{TRL_ROWS} / {best}", case.targets.get("rows")),
            _cell(measured, f"{OUR_ROWS if device == 'cpu' else DENSE} / {best}", 1.0 if third else None),
            _cell(measured, f"{DPO} / {best}"),
        ]
        rows.append(row + [_cell(measured, f"{TRL_ROWS} / {OUR_ROWS}")] if device == "cpu" else row)
    return table(rows)


def _memory_table(cases: Sequence[tuple[Case, Any]], device: str) -> list[str]:
    best = DENSE if device == "cpu" else CASCADE
    rows = [["step", NAIVE, TRL_ROWS, DPO, "largest difference in loss or gradients"]]
    if device == "cuda":
        rows[0].append("peak reserved, GiB")
    for case, measured in cases:
        row = [
            _label(case),
            _cell(measured, f"memory: {NAIVE} / {best}"),
            _cell(measured, f"memory: {TRL_ROWS} / {best}", case.targets.get("memory")),
            _cell(measured, f"memory: {DPO} / {best}"),
            NOT_MEASURED if measured is None else f"{max(measured['agreement'].values()):.0e}",
        ]
        if device == "cuda":
            reserved = measured and measured["variants"][best]["memory"]["reserved"] / 2**30
            goal = f" [≤ {case.targets['reserved']:g}]" if "reserved" in case.targets else ""
            row.append((f"{reserved:.2f}" if measured else NOT_MEASURED) + goal)
        rows.append(row)
    return table(rows)


def _absolute_table(cases: Sequence[tuple[Case, Any]], variants: Sequence[str]) -> list[str]:
    rows = [["step", *variants]]
    for case, measured in cases:
        if measured is not None:
            clock = "cpu" if case.device == "cpu" else "wall"
            cells = [measured["variants"].get(name) for name in variants]
            rows.append(
                [_label(case)]
                + [
                    f"{c['seconds'][clock]['median']:.3g} s, {c['memory']['above'] / 2**20:.0f} MiB" if c else "-"
                    for c in cells
                ]
            )
    return table(rows)


def _label(case: Case) -> str:
    model = case.model + (", nf4 + LoRA + checkpointing" if case.qlora else "")
    lengths = (
        f"{low}" if low == high else f"{low} to {high}" for low, high in (case.prompt_length, case.completion_length)
    )
    prompt, completion = lengths
    optimizer = ", with AdamW" if case.optimizer else ""
    return f"{model}: {case.prompts} × (prompt {prompt}, {case.completions} × {completion}){optimizer}"


def _fall(measured: dict[str, Any], many: str, few: str) -> float:
    return measured["variants"][many]["positions"] / measured["variants"][few]["positions"]


def _cell(measured: dict[str, Any] | None, name: str, target: float | None = None) -> str:
    """A ratio, the smallest and largest of a round in parentheses, the target in brackets."""
    goal = f" [≥ {target:g}]" if target else ""
    if measured is None:
        return NOT_MEASURED + goal
    value = measured["ratios"].get(name)
    if value is None:
        return "-"
    spread_of_rounds = f" ({value['min']:.2f} to {value['max']:.2f})" if value["min"] != value["max"] else ""
    return f"**{value['of_medians']:.2f}**{spread_of_rounds}{goal}"


def _provenance(result: dict[str, Any]) -> str:
    facts, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl"))
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}, {facts['hardware']['vector']}"
    clock = {"cpu": "CPU time of the process", "wall": "wall time"}[settings["clock"]]
    return (
        f"{result['time'][:10]}, {hardware}, {facts['threads']['torch']} thread(s), {clock}, {settings['rounds']} rounds "
        f"over {settings['batches']} batches, seed {settings['seed']}; {versions}; sources {facts['sources']['digest']}."
    )


if __name__ == "__main__":
    sys.exit(main())
