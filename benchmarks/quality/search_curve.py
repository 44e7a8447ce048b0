# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Search with values against best-of-n: reward, a second classifier, and the tokens that models read and write.

    trl-ext sample --model_name_or_path recipes/quickstart/models/imdb-2m \\
        --dataset_name recipes/quickstart/prompts_train.jsonl --num_generations 16 --max_completion_length 48 \\
        --reward_funcs recipes/quickstart/models/imdb-2m-reward --output_file outputs/scored.jsonl
    trl-ext vas --model_name_or_path recipes/quickstart/models/imdb-2m \\
        --value_model_name_or_path recipes/quickstart/models/imdb-2m --dataset_name outputs/scored.jsonl \\
        --learning_rate 1e-3 --output_dir outputs/value
    python -m benchmarks.quality.search_curve --value outputs/value --output_file outputs/search_curve.json

Best-of-n by the reward; best-of-n that drops the worse half of its texts by value, half-way and again; beam search
over blocks; the best of several blocks; and guidance of every token. Policy, value model and reward model are of one
size, so tokens stand for FLOPs: each costs some 2 operations per parameter. A text is read again in each round of
blocks, which counts. Each line is written as soon as it is measured, and a later call goes on from there.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.models import MODELS, MODELS_7M
from benchmarks.harness.results import ROOT
from benchmarks.harness.tables import table
from benchmarks.quality.saved_lines import SavedLines
from trl_ext.data.prompts import load_prompts
from trl_ext.evaluation.metrics import mean_and_se
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.guide_file import GuideSettings
from trl_ext.inference.best_of_n import best_of_n_policies
from trl_ext.inference.guide_decoding import policy_with_guides
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.vas.decoding.value_guide import ValueGuide
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.rewards.functions import Reward, load_rewards
from trl_ext.rewards.scoring import score_completions


NS = (2, 4, 8, 16, 32, 64, 128)
BEAMS = ((2, 2), (4, 4), (8, 8))  # texts, and continuations of each
BLOCKS = (4, 16, 64)
BETAS = (1.0, 2.0, 4.0)


@contextmanager
def counted(modules: Sequence[torch.nn.Module]) -> Iterator[list[int]]:
    """The number of tokens that modules are called with in this context, padding included: a list of one number."""
    total = [0]

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        total[0] += 0 if ids is None else ids.numel()

    hooks = [module.register_forward_pre_hook(count, with_kwargs=True) for module in modules]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Search:
    """
    A model, a value model and prompts, and the ways to search.

    Args:
        model, tokenizer: The policy.
        value ([`~trl_ext.methods.vas.value_model.model.ValueModel`]): The value model.
        rewards (`list[Reward]`): The reward, by which best-of-n chooses; another classifier, as a judge.
        readers (`Sequence`): The modules whose tokens are counted: policy, value model and the model of the reward.
        rows (`list[dict]`): Prompts.
        length (`int`): Largest number of tokens of a completion.
        batch (`int`): Sequences at once.
        seed (`int`): Of all sampling.
    """

    model: Any
    tokenizer: Any
    value: ValueModel
    rewards: list[Reward]
    readers: Sequence[torch.nn.Module]
    rows: list[dict[str, Any]]
    length: int = 48
    batch: int = 128
    seed: int = 0
    ns: Sequence[int] = NS
    beams: Sequence[tuple[int, int]] = BEAMS
    blocks: Sequence[int] = BLOCKS
    betas: Sequence[float] = BETAS

    def base(self) -> Policy:
        """The model without guidance."""
        return model_policy(self.model, self.tokenizer, name="base", batch_size=self.batch)

    def of_blocks(self, blocks: int, length: int, **more: Any) -> Policy:
        """A policy that keeps the best texts by value."""
        settings = GuideSettings(guide_blocks=blocks, guide_block_length=length, guide_block_choice="best", **more)
        guides = {"value": ValueGuide(self.value, tokenizer=self.tokenizer)}
        return policy_with_guides(
            self.model, self.tokenizer, guides, settings=settings, batch_size=self.batch, name="search"
        )

    def policies(self) -> Iterator[tuple[str, str, Policy]]:
        """Series, setting and policy of each point."""
        yield "best-of-n by the reward", "n = 1", self.base()
        for n in self.ns:
            [best] = best_of_n_policies(self.base(), self.rows, self.rewards[:1], [n])
            yield "best-of-n by the reward", f"n = {n}", best
        for n in self.ns:
            pruned = self.of_blocks(1, self.length // 3, guide_beams=n, guide_drop=0.5)
            yield "best-of-n by value, half dropped twice", f"n = {n}", pruned
        for width, blocks in self.beams:
            beams = self.of_blocks(blocks, self.length // 6, guide_beams=width)
            yield "beam search over values", f"{width} x {blocks}", beams
        for blocks in self.blocks:
            yield "the best of some blocks", f"{blocks}", self.of_blocks(blocks, self.length // 6)
        for beta in self.betas:
            guided = guided_policy(self.model, self.tokenizer, self.value, beta, batch_size=self.batch)
            yield "every token guided", f"beta = {beta:g}", guided

    def measure(self, policy: Policy) -> dict[str, Any]:
        """Reward, judge, tokens for a prompt, and seconds of a policy."""
        settings = GenerationSettings(num_generations=1, max_completion_length=self.length, cuda_graphs="never")
        torch.manual_seed(self.seed)
        start = time.monotonic()
        with counted(self.readers) as tokens:
            completions = policy.generate(policy.encode_rows(self.rows), settings)
        seconds = time.monotonic() - start
        # Scored for every policy alike, which is no cost of a search.
        scored = score_completions(self.rows, completions, self.rewards)
        line: dict[str, Any] = {"tokens": tokens[0] / len(self.rows), "seconds": seconds}
        for name, reward in zip(("reward", "judge"), self.rewards, strict=True):
            values = [[each.rewards[reward.name] for each in group] for group in scored]
            line[name], line[f"{name}_se"] = mean_and_se(values)
        return line


def run(search: Search, file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Measure what a file does not have yet.

    Args:
        search ([`Search`]): What to measure.
        file (`Path`): JSON file of the lines.
        about (`dict`): The settings, which the file keeps.
    """
    made = SavedLines(file, about)
    for series, setting, policy in search.policies():
        made.add({"series": series, "setting": setting}, lambda p=policy: search.measure(p))  # type: ignore[misc]
    return made.lines


def show(lines: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown."""
    heads = ["search", "setting", "reward", "judge", "tokens for a prompt", "times plain"]
    plain = lines[0]["tokens"]
    rows = [
        [
            line["series"],
            line["setting"],
            *(f"{line[name]:.2f} ± {line[f'{name}_se'] or 0:.2f}" for name in ("reward", "judge")),
            f"{line['tokens']:,.0f}",
            f"{line['tokens'] / plain:.1f}",
        ]
        for line in lines
    ]
    return "\n".join(table([heads, *rows]))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Reward, judge and tokens of search with values and of best-of-n.")
    parser.add_argument("--model", default=str(MODELS / "imdb-2m"))
    parser.add_argument("--reward", default=str(MODELS / "imdb-2m-reward"))
    parser.add_argument("--judge", default=str(MODELS_7M / "imdb-7m-reward"), help="a second classifier")
    parser.add_argument("--value", required=True, help="a value model of the same reward")
    parser.add_argument("--prompts", default=str(ROOT / "benchmarks" / "prompts" / "films.jsonl"))
    parser.add_argument("--num", type=int, default=160, help="prompts")
    parser.add_argument("--length", type=int, default=48, help="largest number of tokens of a completion")
    parser.add_argument("--batch", type=int, default=128, help="sequences at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output_file", type=Path, required=True, help="JSON file of the lines; continued if it exists"
    )
    flags = parser.parse_args(argv)
    model = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32).eval()
    value = ValueModel.from_pretrained(flags.value, dtype=torch.float32).eval()
    rewards = load_rewards([flags.reward, flags.judge])
    search = Search(
        model,
        AutoTokenizer.from_pretrained(flags.model),
        value,
        rewards,
        [model, value.backbone, rewards[0].func.model],  # type: ignore[attr-defined]
        load_prompts(flags.prompts)[: flags.num],
        flags.length,
        flags.batch,
        flags.seed,
    )
    about = {name: value for name, value in vars(flags).items() if name != "output_file"}
    flags.output_file.parent.mkdir(parents=True, exist_ok=True)
    print(show(run(search, flags.output_file, about)))


if __name__ == "__main__":
    main()
