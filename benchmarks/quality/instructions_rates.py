# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
How often a model meets each kind of constraint before any training.

    python -m benchmarks.quality.instructions_rates --model SmolLM2-135M-Instruct --num 8

Each kind has prompts of its own, with this one constraint. Shorter lengths are the same completions, cut off there.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.harness.tables import table
from trl_ext.atomic_files import write_text
from trl_ext.data.completion import Completion, truncated
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import model_policy
from trl_ext.instructions.constraints import KINDS, constraints_met
from trl_ext.instructions.prompts import make_row


@dataclass(frozen=True)
class Rate:
    """
    How often a model meets constraints of one kind.

    Args:
        kind (`str`): The kind.
        length (`int`): Largest number of tokens of a completion.
        mean (`float`): Share of completions that meet it.
        error (`float`): Standard error of `mean` over prompts.
        ended (`float`): Share of completions that the model ended.
    """

    kind: str
    length: int
    mean: float
    error: float
    ended: float


def prompts(kinds: Sequence[str], num: int, seed: int) -> list[dict[str, Any]]:
    """`num` rows of each kind, with one constraint."""
    rng = random.Random(seed)
    return [make_row(rng, [kind], is_train=True) for kind in kinds for _ in range(num)]


def rates(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Completion]],
    lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Rate]:
    """
    The rate of each kind at each length.

    Args:
        rows (`Sequence[dict]`): Rows with one constraint, at least two of each kind.
        groups (`Sequence`): The completions of each row.
        lengths (`Sequence[int]`): Numbers of tokens at which completions are cut off.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the completions.
    """
    found = []
    for kind in dict.fromkeys(row["constraints"][0]["kind"] for row in rows):
        of_kind = [pair for pair in zip(rows, groups, strict=True) if pair[0]["constraints"][0]["kind"] == kind]
        for length in lengths:
            by_prompt, ended = [], []
            for row, group in of_kind:
                cut = [truncated(completion, length, tokenizer) for completion in group]
                of_each = [row["prompt"]] * len(cut), [each.text for each in cut], [row["constraints"]] * len(cut)
                by_prompt.append(fmean(share or 0.0 for share in constraints_met(*of_each)))
                ended += [each.ended for each in cut]
            error = stdev(by_prompt) / len(by_prompt) ** 0.5
            found.append(Rate(kind, length, fmean(by_prompt), error, fmean(ended)))
    return found


def show(found: Sequence[Rate], lengths: Sequence[int]) -> str:
    """A table in Markdown, a line for each kind."""
    by_kind: dict[str, list[Rate]] = {}
    for rate in found:
        by_kind.setdefault(rate.kind, []).append(rate)
    lines = [
        [kind, *(cell for rate in of_kind for cell in (f"{rate.mean:.2f} ± {rate.error:.2f}", f"{rate.ended:.2f}"))]
        for kind, of_kind in by_kind.items()
    ]
    heads = [head for length in lengths for head in (f"met, {length} tokens", "ended")]
    return "\n".join(table([["kind", *heads], *lines]))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a model and print the table."""
    parser = argparse.ArgumentParser(description="How often a model meets each kind of constraint untrained.")
    parser.add_argument("--model", required=True, help="the model, by Hub id or directory")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--num", type=int, default=8, help="prompts of each kind")
    parser.add_argument("--num_generations", type=int, default=4, help="completions of each prompt")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 48], help="largest numbers of tokens")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, help="also write the prompts with their completions, .jsonl")
    flags = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    model: Any = AutoModelForCausalLM.from_pretrained(flags.model, dtype=getattr(torch, flags.dtype))
    policy = model_policy(model, tokenizer)
    rows = prompts(flags.kinds, flags.num, flags.seed)
    settings = GenerationSettings(
        num_generations=flags.num_generations,
        max_completion_length=max(flags.lengths),
        temperature=flags.temperature,
    )
    torch.manual_seed(flags.seed)
    groups = policy.generate(policy.encode_rows(rows), settings)
    if flags.output_file:
        lines = [row | {"completions": [each.text for each in group]} for row, group in zip(rows, groups, strict=True)]
        write_text(flags.output_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(show(rates(rows, groups, flags.lengths, tokenizer), flags.lengths))


if __name__ == "__main__":
    main()
