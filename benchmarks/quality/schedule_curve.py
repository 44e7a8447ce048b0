# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What guidance of some tokens gives and costs on the IMDB task: reward, a second classifier, KL, and time per token.

    python -m benchmarks.quality.imdb_prompts  # once: the prompts, of the public dataset
    python -m benchmarks.quality.schedule_curve --value outputs/vas-imdb-7m --output_file outputs/schedule_curve.json

Every token, every 2nd, 4th and 8th, words and sentences, gates by entropy and by margin; and for each of them random
tokens of the same share, the control. Each line is written as soon as it is measured, and a later call goes on from
there, with other `--betas` and `--arms` too. 200 prompts, two weights and a 7 M value model take about two hours on
one core, of which the gates by margin, which save no time, are a third.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.harness.models import MODELS, MODELS_7M
from benchmarks.harness.tables import table
from benchmarks.harness.text import DATA
from benchmarks.quality.saved_lines import SavedLines
from trl_ext.data.prompts import load_prompts
from trl_ext.decoding.guide_schedule import GuideSchedule, entropy
from trl_ext.evaluation.evaluate import evaluate
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.policy import Policy, model_policy
from trl_ext.methods.vas.policies import guided_policy
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.rewards.functions import Reward, load_rewards


QUANTILES = (0.25, 0.5, 0.75)  # of the entropies of the model's tokens, where gates are put
MARGINS = (1.0, 2.0, 4.0)  # nats
RANDOM = "random, as "  # how the name of a control begins; its arm follows


@dataclass
class Curve:
    """
    A model, a value model and prompts, and what is measured of them.

    Args:
        model, tokenizer: The policy.
        value ([`~trl_ext.methods.vas.value_model.model.ValueModel`]): The value model.
        rewards (`list[Reward]`): The reward that the values are of, and another classifier as a judge.
        rows (`list[dict]`): Prompts.
        betas (`Sequence[float]`): Weights of the values.
        length (`int`): Largest number of tokens of a completion.
        top_k (`int`): Candidates.
        batch (`int`): Sequences at once.
        seed (`int`): Of all sampling.
        arms (`Sequence[str]`, *optional*): Words: only the arms whose name has one of them. All, without.
    """

    model: Any
    tokenizer: Any
    value: ValueModel
    rewards: list[Reward]
    rows: list[dict[str, Any]]
    betas: Sequence[float] = (2.0, 4.0)
    length: int = 48
    top_k: int = 20
    batch: int = 50
    seed: int = 0
    arms: Sequence[str] = ()

    @property
    def settings(self) -> GenerationSettings:
        """Completions of the complete distribution: those that the KL is measured on."""
        return GenerationSettings(num_generations=1, max_completion_length=self.length)

    def entropies(self) -> list[float]:
        """The quantiles of the entropies of the model's next token, along completions of its own."""
        found: list[torch.Tensor] = []

        def record(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[Any]:
            def of_step(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                found.append(entropy(scores))
                return scores

            return [of_step]

        torch.manual_seed(self.seed)
        ids = model_policy(self.model, self.tokenizer).encode_rows(self.rows[: self.batch])
        never = replace(self.settings, cuda_graphs="never")
        generate(self.model, self.tokenizer, ids, never, batch_size=self.batch, processors=record)
        values = torch.cat(found)
        return [round(float(values.quantile(q)), 3) for q in QUANTILES]

    def schedules(self, entropies: Sequence[float]) -> dict[str, GuideSchedule]:
        """
        The arms by name, without their controls.

        Raises:
            `ValueError`: A word of `arms` is in no name.
        """
        every: tuple[int | str, ...] = (1, 2, 4, 8, "word", "sentence")
        found = {
            **{f"every {n}": GuideSchedule(n) for n in every},
            **{f"entropy above {x:g}": GuideSchedule(entropy=x) for x in entropies},
            **{f"margin above {x:g}": GuideSchedule(margin=x) for x in MARGINS},
        }
        unknown = [word for word in self.arms if not any(word in name for name in found)]
        if unknown:
            raise ValueError(f"--arms: {', '.join(unknown)} is in no name of {', '.join(found)}.")
        asked = self.arms or [""]
        return {name: schedule for name, schedule in found.items() if any(word in name for word in asked)}

    def measure(self, policy: Policy) -> dict[str, Any]:
        """Metrics of a policy."""
        base = model_policy(self.model, self.tokenizer, name="base", batch_size=self.batch)
        found = evaluate(policy, self.rows, self.rewards, settings=self.settings, base=base, seed=self.seed)
        reward, judge = (f"reward/{each.name}" for each in self.rewards)
        named = {"reward": reward, "judge": judge, "kl": "kl"}
        metrics = {f"{name}{se}": found.metrics[f"{key}{se}"] for name, key in named.items() for se in ("", "_se")}
        tokens = sum(len(completion.ids) for group in found.completions for completion in group)
        share = found.metrics.get("guided_tokens", 1.0)
        return {**metrics, "guided_tokens": share, "milliseconds_per_token": 1000 * found.seconds / tokens}

    def policy(self, schedule: GuideSchedule, beta: float) -> Policy:
        """The policy under guidance."""
        when = schedule.changes()
        every = when.pop("every", 1)
        return guided_policy(
            self.model, self.tokenizer, self.value, beta, self.top_k, batch_size=self.batch,
            guide_every=every, guide_when=when or None,
        )  # fmt: skip


def run(curve: Curve, file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Measure what a file does not have yet.

    Args:
        curve ([`Curve`]): What to measure.
        file (`Path`): JSON file of the lines, written after each of them.
        about (`dict`): The settings, which the file keeps.

    Raises:
        `ValueError`: The file is of other settings.
    """
    made = SavedLines(file, about)

    def add(name: str, beta: float, make: Any) -> dict[str, Any]:
        return made.add({"name": name, "beta": beta}, lambda: curve.measure(make()))

    if "entropies" not in made.saved:
        made.saved["entropies"] = curve.entropies()
    add("unguided", 0.0, lambda: model_policy(curve.model, curve.tokenizer, batch_size=curve.batch))
    made.lines[0]["guided_tokens"] = 0.0
    for beta in curve.betas:
        for name, schedule in curve.schedules(made.saved["entropies"]).items():
            share = add(name, beta, lambda s=schedule, b=beta: curve.policy(s, b))["guided_tokens"]
            if 0 < share < 1:
                control = GuideSchedule(random=share, seed=1)
                add(f"{RANDOM}{name}", beta, lambda s=control, b=beta: curve.policy(s, b))
    return made.lines


def show(lines: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown."""
    heads = ["tokens that are guided", "beta", "share", "reward", "judge", "KL", "ms per token"]
    rows = [
        [
            line["name"],
            f"{line['beta']:g}",
            f"{line['guided_tokens']:.0%}",
            *(f"{line[name]:.2f} ± {line[f'{name}_se'] or 0:.2f}" for name in ("reward", "judge", "kl")),
            f"{line['milliseconds_per_token']:.2f}",
        ]
        for line in lines
    ]
    return "\n".join(table([heads, *rows]))


def _value_model(path: str | None, reward: str) -> ValueModel:
    """A trained value model; without one the reward model as it is, as if its logit for half a text were its value."""
    if path is not None:
        return ValueModel.from_pretrained(path, dtype=torch.float32).eval()
    classifier = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float32)
    made = ValueModel.from_backbone(reward, dtype=torch.float32)
    made.head.weight.data.copy_(classifier.score.weight.data)
    return made.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Reward, judge, KL and time of guidance of some tokens.")
    parser.add_argument("--models", type=Path, default=MODELS_7M, help="folder of imdb-7m and imdb-7m-reward")
    parser.add_argument("--judge", default=str(MODELS / "imdb-2m-reward"), help="a second classifier")
    parser.add_argument("--value", help="a trained value model; without one the reward model guides")
    parser.add_argument("--prompts", type=Path, default=DATA / "imdb_prompts_eval.jsonl")
    parser.add_argument("--num", type=int, default=200, help="prompts")
    parser.add_argument("--betas", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument("--arms", nargs="+", default=[], help="words: only the arms whose name has one of them")
    parser.add_argument("--length", type=int, default=48, help="largest number of tokens of a completion")
    parser.add_argument("--batch", type=int, default=50, help="sequences at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output_file", type=Path, required=True, help="JSON file of the lines; continued if it exists"
    )
    flags = parser.parse_args(argv)
    reward = str(flags.models / "imdb-7m-reward")
    curve = Curve(
        AutoModelForCausalLM.from_pretrained(flags.models / "imdb-7m", dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(flags.models / "imdb-7m"),
        _value_model(flags.value, reward),
        load_rewards([reward, flags.judge]),
        load_prompts(str(flags.prompts))[: flags.num],
        flags.betas,
        flags.length,
        batch=flags.batch,
        seed=flags.seed,
        arms=flags.arms,
    )
    about = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
    for name in ("output_file", "betas", "arms"):  # which lines, not how they are measured
        del about[name]
    flags.output_file.parent.mkdir(parents=True, exist_ok=True)
    print(show(run(curve, flags.output_file, about)))


if __name__ == "__main__":
    main()
