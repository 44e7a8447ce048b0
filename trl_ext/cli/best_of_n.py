# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext best_of_n`: n completions for each prompt, scored and written, the best first.

    trl-ext best_of_n --model_name_or_path M --dataset_name prompts.jsonl --reward_funcs R1 R2 \\
        --num_generations 64 --output_file best.jsonl

It is `trl-ext sample` with the completions of a row in the order of their scores; everything that holds there, such as
that an interrupted run is resumed, holds here. `completions[0]` of a row is the best of n.
"""

from dataclasses import dataclass, field

from .models import SampleLoadingArguments
from .parser import Parser, set_environment
from .sample import SampleArguments, run


@dataclass
class BestOfNArguments(SampleArguments):
    """What to sample and where to, as in `trl-ext sample`; at least one reward has to be named."""

    num_generations: int = field(
        default=16, metadata={"help": "Completions of a prompt from each model: the n of best-of-n."}
    )
    best_first: bool = field(
        default=True, metadata={"help": "Whether the completions of a row come with the best score first."}
    )


def make_parser(prog: str = "trl-ext best_of_n") -> Parser:
    """The parser of the command's flags and YAML file."""
    return Parser(
        [BestOfNArguments, SampleLoadingArguments],
        prog=prog,
        description="Draw n completions for each prompt, score them, and write all of them, the best first.",
        epilog="In Python: `from trl_ext import best_of_n`. `trl-ext evaluate --best_of_n` measures it.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext best_of_n`.

    Returns:
        `int`: 0; 130 after Ctrl-C. What was written before stays, and the same call goes on from there.

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings, data or models that cannot work.
    """
    set_environment(argv)
    args, loading = make_parser().parse_args_and_config(argv)
    return run(args, loading, prog="trl-ext best_of_n")
