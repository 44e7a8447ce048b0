# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Files of evaluations with chosen completions, written as `trl-ext evaluate` writes them."""

from pathlib import Path
from typing import Any

from trl_ext.data.completion import Completion
from trl_ext.evaluation.evaluate import Evaluation
from trl_ext.evaluation.report import Report


def write_evaluation(
    folder: Path,
    name: str,
    texts: dict[str, list[list[str]]],
    prompts: list[Any] | None = None,
    rewards: list[list[float]] | None = None,
    source: str = "r",
    sampling: dict[str, Any] | None = None,
) -> str:
    """
    An evaluation with the texts of each prompt by policy; returns its Parquet file.

    Its reward `r`, of the model `source`, is the length of a text unless `rewards` has others. Each policy also has
    completions for the KL, which are not evaluated.
    """
    groups = next(iter(texts.values()))
    prompts = prompts or [f"p{index}" for index in range(len(groups))]
    rows = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
    of_reward = {"r": {"name": source, "weights": None}}
    comparison = {"base_model": None, "prompts": name, "rewards": of_reward, "sampling": sampling or {}}
    report = Report(rows, {}, base=None, path=str(folder / f"{name}.json"), comparison=comparison)
    for policy, completions in texts.items():
        made = [[Completion(text, [len(text)], True) for text in group] for group in completions]
        numbers = rewards or [[float(len(text)) for text in group] for group in completions]
        found = Evaluation(
            metrics={"reward/r": 0.0, "reward/r_se": 0.0},
            completions=made,
            kl_completions=[[Completion("for the KL", [1], True)] for _ in made],
            rewards={"r": numbers},
            scores=numbers,
            prompt_lengths=[1] * len(made),
            seconds=1.0,
        )
        report.add(policy, found)
    return str(folder / f"{name}.parquet")
