# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext plan`: whether a training fits a card, and the settings with which it would."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from trl_ext.method import Found, discover

from .errors import RaisingParser


_USAGE = """\
%(prog)s --model MODEL --method METHOD --card 8GB
                    [--config FILE.yaml] [--FIELD VALUE ...]"""
_DESCRIPTION = """\
Say whether a training fits a card, at which batch, and which settings would
make it fit. Takes seconds: only the config of the model is read, and memory is
counted by a formula, not measured.

example:
  trl-ext plan --model Qwen/Qwen2.5-7B-Instruct --method {method} \\
      --card 24GB --load_in_4bit true
  trl-ext plan --method {method} --config recipe.yaml --card 16GB"""
_EPILOG = """\
Every other flag, and every key of the recipe, is that of `trl-ext METHOD`. The
exit status is 1 if it does not fit."""


def make_parser(prog: str = "trl-ext plan") -> argparse.ArgumentParser:
    """The parser of this command's own flags, which stand among those of the training."""
    methods = list(discover().methods)
    parser = RaisingParser(
        prog,
        add_help=False,
        allow_abbrev=False,
        usage=_USAGE,
        description=_DESCRIPTION.format(method=methods[0] if methods else "METHOD"),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", help="A folder, a config.json, or an id on the Hub. By default model_name_or_path of the recipe."
    )
    parser.add_argument("--method", help=f"The method to train with: {', '.join(methods)}.")
    parser.add_argument(
        "--card", metavar="SIZE", help="Memory of the card, such as 8GB. By default that of this machine's GPU."
    )
    for name, text in (("prompt", "what max_length leaves for prompts"), ("completion", "max_completion_length")):
        parser.add_argument(
            f"--{name}_length",
            type=int,
            default=0,
            metavar="N",
            help=f"Longest {name} in tokens. By default {text}.",
        )
    return parser


def main(argv: Sequence[str]) -> int:
    """`trl-ext plan`."""
    parser, methods = make_parser(), discover().methods
    if any(word in ("--help", "-h") for word in argv):
        print(parser.format_help(), end="")
        return 0
    own, rest = parser.parse_known_args(list(argv))
    if not own.method:
        raise ValueError(f"set --method: one of {', '.join(methods)}")
    found = discover().find(own.method)
    if found is None:
        raise ValueError(f"there is no method '{own.method}'; there are {', '.join(methods)}")
    if min(own.prompt_length, own.completion_length) < 0:
        raise ValueError("--prompt_length and --completion_length must be positive numbers of tokens")
    card = card_gib(own.card) if own.card else _own_card()
    if own.model:
        rest += ["--model_name_or_path", own.model]
    return _plan(found, rest, card, own.prompt_length, own.completion_length)


def _plan(found: Found, rest: list[str], card: float, prompt: int, completion: int) -> int:
    from trl_ext.memory.fitting import fit, largest_batch
    from trl_ext.memory.planner import Planner
    from trl_ext.training.config import ExtConfig

    from .train import make_parser

    if not issubclass(found.method.config_class(), ExtConfig):  # a plug-in's, with settings of its own
        raise ValueError(f"the memory of '{found.method.name}' cannot be counted: its config is no trl_ext.ExtConfig")
    flags = make_parser(found.method, "trl-ext plan").parse_flags(rest)
    planner = Planner(found.method, flags, prompt, completion)
    estimate = planner.estimate()
    print(_described(planner, card))
    print(_table(estimate, card))
    for each in planner.not_counted:
        print(textwrap.fill(f"Not counted: {each}.", 80))
    if estimate.needed_gib <= card:
        most = largest_batch(planner, card)
        print(f"It fits, with up to {most} prompts in a step (--per_device_train_batch_size {most}).")
        return 0
    print(f"It does not fit: {estimate.needed_gib - card:.1f} GiB are missing.\n")
    nearest = fit(planner, card)
    if not nearest.fits:
        print(f"No settings were found with which it does; these need least, {nearest.estimate.needed_gib:.1f} GiB:")
    else:
        print(f"It fits with these settings, the cheapest first ({nearest.estimate.needed_gib:.1f} GiB):")
    for change in nearest.changes:
        print(f"\n  {change.flags}\n" + textwrap.indent(textwrap.fill(change.cost, 74), "      "))
    return 1


def _described(planner: Any, card: float) -> str:
    """What is planned: model, step, generation."""
    from trl_ext.memory.estimate import generated_rows
    from trl_ext.training.summary import number

    flags, needs, sizes = planner.flags, planner.needs(), planner.sizes()
    name = flags.model_name_or_path
    model = planner.model(name, flags, trained=needs.trains_language_model)
    lines = [
        f"{planner.method.name}: {name}, {number(model.parameters)} parameters, on a card of {card:g} GiB",
        f"a step: {sizes.prompts} x (prompt of {sizes.prompt} + {needs.trained} completions of "
        f"{sizes.completion} tokens)"
        + (f", at most {sizes.per_forward} completions in a forward pass" if sizes.per_forward else ""),
    ]
    if needs.generates:
        lines.append(f"generation: {generated_rows(needs, sizes)[0]} sequences at once")
    return "\n".join(textwrap.fill(line, 80, subsequent_indent="    ") for line in lines) + "\n"


def _table(estimate: Any, card: float) -> str:
    """Parts with their GiB, counted and needed."""
    rows = [(name, size, "") for name, size in estimate.parts.items() if size >= 0.005]
    rows += [
        ("counted", estimate.total_gib, f"where most is needed: {estimate.phase}"),
        ("margin", estimate.margin_gib, "CUDA context and kernels 1.21, allocator 5%"),
        ("needed", estimate.needed_gib, f"of {card:g}; counted, not measured, for one device"),
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"  {name:<{width}} {size:7.2f} GiB  {note}".rstrip() for name, size, note in rows) + "\n"


def card_gib(text: str) -> float:
    """
    The memory of a card in GiB. The GB that cards are sold with are GiB.

    Raises:
        `ValueError`: It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", text.strip().lower())
    if found is None or not float(found[1]):
        raise ValueError(f"--card must be a size such as 8GB or 24GB, got '{text}'")
    return float(found[1])


def _own_card() -> float:
    from trl_ext.devices import accelerators

    totals = [each.total for each in accelerators() if each.total]
    if not totals:
        raise ValueError("set --card, such as --card 24GB: this machine has no GPU")
    return round(min(totals) / 2**30, 1)
