# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A suite: its command line, what it measures, and the tables of its results."""

import argparse
import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from trl_ext.devices import default_device, empty_cache

from .memory import needed_memory, peak_memory
from .results import RESULTS, ResultFile, environment, measured_names, refuse_dirty
from .timing import Variant, all_pairs, alternate, clock_of, pair_ratios, ratio, spreads


DEVICES = ("cpu", "cuda")
FAILED = "not measured: "  # begins the line about a case that failed


class Suite:
    """
    Something that is measured by `python -m benchmarks.run <name>`.

    Attributes:
        name (`str`): Of its module, in results and on the command line.
        what (`str`): One line for `--help`.
    """

    name: str
    what: str

    def parser(self) -> argparse.ArgumentParser:
        """A parser with the flags of every suite."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.run {self.name}", description=self.what)
        parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
        parser.add_argument("--allow_dirty", action="store_true", help="measure a tree that differs from its commit")
        return parser

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Measure and write result files; 1 if something could not be measured."""
        raise NotImplementedError

    def measures(self) -> set[Any]:
        """Functions and classes that measure; a result keeps fingerprints of all that they run through."""
        raise NotImplementedError

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """The tables of its results."""
        raise NotImplementedError

    def pages(self, results: Sequence[dict[str, Any]]) -> dict[Path, str]:
        """Pages that have tables of this suite between its markers, and the tables."""
        return {RESULTS / f"{self.name}.md": self.report(results)}

    def plot(self, results: Sequence[dict[str, Any]]) -> list[Path]:
        """Write the plots of the results."""
        return []


def add_case_flags(parser: argparse.ArgumentParser, devices: Sequence[str], default: Sequence[str]) -> None:
    """Flags of suites that have cases and devices."""
    parser.add_argument("--devices", nargs="+", choices=devices, default=list(default))
    parser.add_argument("--cases", nargs="+", default=[""], help=names_help("cases"))
    parser.add_argument("--label", default="", help="kept in the result; cases measured under it are not run again")
    parser.add_argument("--rehearse", action="store_true", help="run the cases for a GPU at tiny sizes on the CPU")


def names_help(what: str) -> str:
    """The help of a flag whose texts [`names_chosen`] reads."""
    return f"names, or parts of names, of {what} to run (default: all)"


def names_chosen(names: Iterable[str], text: str) -> set[str]:
    """The names that a text asks for: a whole name asks for that one alone, a part for all names that have it."""
    every = set(names)
    return {text} & every or {name for name in every if text in name}


def chosen(cases: Iterable[Any], options: argparse.Namespace) -> list[Any]:
    """The cases that `--cases` asks for."""
    every = list(cases)
    names = [case.name for case in every]
    asked = set().union(*(names_chosen(names, text) for text in options.cases))
    return [case for case in every if case.name in asked]


def not_measured(suite: str, cases: Iterable[Any], options: argparse.Namespace) -> list[Any]:
    """The cases that no run of the same `--label` has measured."""
    done = measured_names(suite, options.label, options.output)
    return [case for case in cases if case.name not in done]


def report_failure(case: str, error: Exception) -> None:
    """Print why a case was not measured: the traceback, and [`FAILED`] with the case and the error in one line."""
    traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"{FAILED}{case}: {text[:300]}", file=sys.stderr, flush=True)


def present_devices(options: argparse.Namespace) -> Iterable[torch.device]:
    """The devices that `--devices` asks for and this machine has; the CPU for a rehearsal."""
    for device in map(torch.device, ["cpu"] if options.rehearse else options.devices):
        if device.type == "cuda" and default_device().type != "cuda":
            print("no GPU: the cases for one were not run")
        else:
            refuse_dirty(options.allow_dirty)
            yield device


def free_memory(device: torch.device) -> None:
    """Free what the last case has left: a model and the trainer around it refer to each other."""
    gc.collect()
    empty_cache()


@dataclass(frozen=True, eq=False)
class TimedSuite(Suite):
    """
    A suite that times variants which take turns.

    Args:
        name (`str`), what (`str`): As for [`Suite`].
        cases (`Sequence`): Settings of what is measured; each has a `name`, a `device` (`"cpu"` or `"cuda"`), and, if
            it is for a GPU, a method `tiny()`: the same case at tiny sizes for a CPU.
        measure (`Callable`): `(case, rounds=, batches=, seed=) -> dict`, a case of a result file.
        tables (`Callable`): `(results) -> str`, the tables of the results.
    """

    name: str
    what: str
    cases: Sequence[Any]
    measure: Callable[..., dict[str, Any]]
    tables: Callable[[Sequence[dict[str, Any]]], str]

    def measures(self) -> set[Any]:
        return {self.measure, *map(type, self.cases)}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        return self.tables(results)

    def main(self, argv: Sequence[str] | None = None) -> int:
        parser = self.parser()
        add_case_flags(parser, DEVICES, default=DEVICES)
        parser.add_argument("--rounds", type=int, default=5, help="timed runs of each variant")
        parser.add_argument("--batches", type=int, default=2, help="different batches, each also a run of warm-up")
        parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
        if any(each.name == "variants" for case in self.cases for each in fields(case)):
            parser.add_argument("--variants", nargs="+", help="parts of names of variants to measure (default: all)")
        options = parser.parse_args(argv)
        done = True
        for device in present_devices(options):
            done &= self.run(self.asked(device, options), device, options)
        return int(not done)

    def asked(self, device: torch.device, options: argparse.Namespace) -> list[Any]:
        """The cases of a device that the command line asks for."""
        kind = "cuda" if options.rehearse else device.type
        found = [case for case in chosen(self.cases, options) if case.device == kind]
        if getattr(options, "variants", None):
            found = [replace(case, variants=tuple(options.variants)) for case in found]
        return not_measured(self.name, [case.tiny() for case in found] if options.rehearse else found, options)

    def run(self, cases: Sequence[Any], device: torch.device, options: argparse.Namespace) -> bool:
        """
        Measure cases of one device.

        The result file is written again after each case, so that what comes after it cannot cost it; a case that fails
        does not cost the others.
        """
        facts = environment(device, self.measures())
        settings = {name: getattr(options, name) for name in ("seed", "rounds", "batches")}
        result = {"settings": settings | {"clock": clock_of(device)}, "environment": facts, "label": options.label}
        file, measured = ResultFile(self.name, device, options.output), []
        for case in cases:
            print(case.name, file=sys.stderr, flush=True)
            try:
                measured.append(self.measure(case, rounds=options.rounds, batches=options.batches, seed=options.seed))
            except Exception as error:
                report_failure(case.name, error)
                continue
            finally:
                free_memory(device)
            for name, value in measured[-1]["ratios"].items():
                print(f"  {value['of_medians']:6.2f}  {name}", file=sys.stderr, flush=True)
            file.write(result | {"cases": measured})
        if measured:
            print("wrote", file.path)
        return len(measured) == len(cases)


def selected(variants: Sequence[Variant], parts: Sequence[str]) -> list[Variant]:
    """
    The variants whose names have one of the parts, or all if there are none.

    Raises:
        `ValueError`: Fewer than two are left, so that there is nothing to compare.
    """
    found = [variant for variant in variants if not parts or any(part in variant.name for part in parts)]
    if len(found) < 2:
        raise ValueError(f"--variants {' '.join(parts)}: there are {', '.join(variant.name for variant in variants)}.")
    return found


def compare(
    case: Any,
    variants: Sequence[Variant],
    *,
    rounds: int,
    batches: int,
    pairs: dict[str, tuple[str, str]] | None = None,
    memory_of: Callable[[str], bool] = lambda name: True,
    facts: Callable[[str], dict[str, Any]] = lambda name: {},
    settings: dict[str, Any],
    **found: Any,
) -> dict[str, Any]:
    """
    Time variants in turns and measure their memory: a case of a result file.

    Args:
        case: A dataclass with a `name` and a `device`.
        variants (`Sequence[Variant]`): In the order of the ratios: a ratio is of an earlier one to a later one.
        rounds (`int`), batches (`int`): As for [`~benchmarks.harness.timing.alternate`].
        pairs (`dict[str, tuple[str, str]]`, *optional*): The ratios, by name. By default those of all pairs.
        memory_of (`Callable`, *optional*): Whether the peak memory of a variant is measured. By default all are, and
            pairs have ratios of memory too.
        facts (`Callable`, *optional*): What else is known about a variant, by its name, when it has been timed.
        settings (`dict`): Added to those of the case.
        found: Further entries of the result's case.
    """
    device = torch.device(case.device)
    seconds = alternate(variants, rounds=rounds, batches=batches, device=device)
    memory = {v.name: peak_memory(v, 0, device) for v in variants if memory_of(v.name)}
    pairs = all_pairs(seconds) if pairs is None else pairs
    clock = clock_of(device)
    ratios = pair_ratios(seconds, pairs, clock)
    if memory.keys() == seconds.keys():
        needed = {name: needed_memory(value) for name, value in memory.items()}
        ratios |= {f"memory: {name}": ratio([needed[a]], [needed[b]]) for name, (a, b) in pairs.items()}
    return {
        "ratios": ratios,
        "name": case.name,
        "settings": {**asdict(case), "clock": clock, **settings},
        "variants": {
            name: {"seconds": spreads(values), "memory": memory.get(name, {}), **facts(name)}
            for name, values in seconds.items()
        },
        **found,
    }
