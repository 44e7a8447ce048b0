# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext frontier`: joins evaluations into one plot of reward over KL and one table. Loads no weights."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from trl_ext.evaluation.files import read_report, short_names
from trl_ext.evaluation.frontier import (
    check_frontier,
    frontier,
    join,
    renamed_series,
    replaced_name,
    write_frontier,
)
from trl_ext.evaluation.tables import metrics_of, models_table

from .errors import RaisingParser


_USAGE = """\
trl-ext frontier FILE [FILE ...] [--FLAG VALUE ...]

example:
  trl-ext frontier dpo/evaluation.json grpo/evaluation.json \\
      -o frontier.png --label dpo=DPO grpo=GRPO"""


def make_parser(prog: str = "trl-ext frontier") -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = RaisingParser(
        prog=prog,
        usage=_USAGE,
        description="Join evaluations into one plot of reward over KL to the base model, and one table. Loads no "
        "weights.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON files of trl-ext evaluate (--output_file). They must have the base model, the prompts, the rewards "
        "and the sampling settings in common; what differs is named.",
    )
    parser.add_argument(
        "-o",
        "--frontier_file",
        "--frontier-file",
        metavar="FILE",
        help="Plot (.png, .svg or .pdf); its points go to a JSON file beside it. By default there is none.",
    )
    parser.add_argument("--title", default="", help="Title of the plot.")
    parser.add_argument(
        "--label", nargs="+", default=[], metavar="SERIES=TEXT", help="Other names of series in the legend."
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """
    `trl-ext frontier`.

    Returns:
        `int`: 0.

    Raises:
        `ValueError` or `OSError`: The evaluations cannot be compared, or a file cannot be read or written.
    """
    args = make_parser().parse_args(argv)
    if args.frontier_file is not None:
        check_frontier(args.frontier_file)
    labels = dict(_label(text) for text in args.label)
    joined = join({path: read_report(path) for path in dict.fromkeys(args.files)})
    for note in joined.notes:
        print(f"trl-ext frontier: {note}", file=sys.stderr)
    data = renamed_series(frontier(joined.rows, joined.base, joined.sampling), labels)
    if args.frontier_file is not None:
        write_frontier(data, args.frontier_file, title=args.title)
    console = Console()
    names = short_names([row["model"] for row in joined.rows])
    for series, label in labels.items():
        names = {model: replaced_name(name, series, label) for model, name in names.items()}
    names[joined.base] = f"{names.get(joined.base, joined.base)} (base)"
    metrics = metrics_of(joined.rows, ["kl", "perplexity"])
    console.print(models_table(joined.rows, names, console.width, metrics))
    if args.frontier_file is not None:
        print(f"wrote {args.frontier_file}")
    return 0


def _label(text: str) -> tuple[str, str]:
    name, equals, label = text.partition("=")
    if not equals or not name or not label:
        raise ValueError(f"--label takes SERIES=TEXT, got {text!r}")
    return name, label
