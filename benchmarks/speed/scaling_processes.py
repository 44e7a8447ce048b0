# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The axis "number of processes" of `scaling`: a global batch on one process, and on two by `accelerate launch`."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.process import run
from benchmarks.harness.results import ROOT
from benchmarks.harness.timing import CLOCKS, ratio, slope, spread, spreads


LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "multi_gpu.yaml")]


@dataclass(frozen=True)
class Processes:
    """
    What is timed on how many processes. The work of each falls as their number rises: a slope of -1.

    Args:
        method (`str`): `"rrhf"` (a training step) or `"psle"` (an iteration of one step: sampling, rewards, update).
        what (`str`): In tables.
        batch (`int`): Prompts, over all processes.
        sizes (`tuple[int, ...]`): Numbers of processes.
    """

    method: str
    what: str
    batch: int
    sizes: tuple[int, ...] = (1, 2)
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.device}/processes/{self.method}"

    @property
    def variants(self) -> tuple[str, ...]:
        """By the clock: CPU time leaves out what other work took of the cores, and waiting; wall time does not."""
        return ("CPU time of a process", "wall time")


def measure(axis: Processes, *, rounds: int, batches: int, seed: int) -> dict[str, Any]:
    """
    One case of a result file: `batches` launches of each size in turns, `rounds` timed steps each.

    A step takes as long as the process that takes longest.
    """
    seconds: dict[int, dict[str, list[float]]] = {size: {clock: [] for clock in CLOCKS} for size in axis.sizes}
    for batch in range(batches):
        for size in axis.sizes if batch % 2 == 0 else axis.sizes[::-1]:
            found = launch(axis, size, rounds, seed + batch)
            for clock in CLOCKS:
                seconds[size][clock] += [max(times) for times in zip(*(f[clock][1:] for f in found), strict=True)]
    clocks = dict(zip(axis.variants, ("cpu", "wall"), strict=True))
    last, first = axis.sizes[-1], axis.sizes[0]
    slopes = {}
    for name, clock in clocks.items():
        medians = [spread(seconds[size][clock])["median"] for size in axis.sizes]
        slopes[name] = {"measured": round(slope(axis.sizes, medians), 3), "expected": -1.0}
    return {
        "ratios": {name: ratio(seconds[last][clock], seconds[first][clock]) for name, clock in clocks.items()},
        "name": axis.name,
        "settings": {"what": axis.what, "sizes": list(axis.sizes), "batch": axis.batch, "clock": "cpu and wall"},
        "variants": {
            f"{name}, {size}": {"seconds": spreads(by_clock), "memory": {}}
            for name in clocks
            for size, by_clock in seconds.items()
        },
        "slopes": slopes,
    }


def launch(axis: Processes, size: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    """What [`~benchmarks.harness.round_clock.RoundClock`] found on each process of a launch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = {"method": axis.method, "processes": size, "batch": axis.batch, "rounds": rounds, "seed": seed}
        (folder / "config.json").write_text(json.dumps(config | {"folder": name}), encoding="utf-8")
        several = [*LAUNCH, f"--num_processes={size}", "--mixed_precision=no", "--main_process_port=0"]
        steps = ["-m", "benchmarks.speed.process_steps", str(folder / "config.json")]
        run([*(several if size > 1 else []), *steps], folder / "log", keep=True)
        return [json.loads((folder / f"rounds-{i}.json").read_text(encoding="utf-8")) for i in range(size)]
