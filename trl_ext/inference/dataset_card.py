# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The card of a sampled dataset: what the completions are, how to load them, how they were made."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from trl_ext.cards import (
    Card,
    citations,
    code,
    dataset_link,
    is_hub_dataset,
    link,
    settings_parts,
    table,
    versions_list,
)
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.settings_file import RunSettings


_COLUMNS = {
    "prompt": "the prompt, as text or messages",
    "completions": "completions of the prompt",
    "completion": "a completion of the prompt",
    "chosen": "the completion of a pair with the higher score",
    "rejected": "the other completion of the pair",
    "label": "whether the completion is one with a high score",
    "scores": "the score of each completion: the weighted sum of its rewards",
    "score": "its score, the weighted sum of its rewards",
    "score_chosen": "the score of `chosen`, the weighted sum of its rewards",
    "score_rejected": "the score of `rejected`",
    "score_margin": "the difference of both scores",
    "ended": "whether each completion ended by itself, before the maximum length",
    "sources": "the model, or the column of the dataset, that each completion is from",
    "rewards": "the rewards of each completion, by reward function",
    "extra": "what reward functions recorded about each completion",
    "completion_ids": "the token ids that were sampled, which training uses where they fit its tokenizer",
    "prompt_ids": "the token ids of the prompt",
    "tokenizers": "for each completion, the tokenizer's name and a hash of its vocabulary",
}


def card_path(output_file: Path) -> Path:
    """Where the card of a file is: beside it, since a folder may hold several files, and a README of its own."""
    return output_file.with_name(f"{output_file.name}.README.md")


def dataset_card(
    file: ResumableFile, settings: RunSettings, *, dataset: str | None, models: Sequence[str], rewards: Sequence[str]
) -> str:
    """
    The text of a card.

    Args:
        file ([`~trl_ext.data.resumable_file.ResumableFile`]): The complete output.
        settings ([`~trl_ext.settings_file.RunSettings`]): The settings of the command.
        dataset (`str`, *optional*): Name of the dataset of prompts. `None`: they were given one by one.
        models (`Sequence[str]`): Names of the models; none if the dataset's own completions were scored.
        rewards (`Sequence[str]`): Names of the reward functions and models.
    """
    metadata = DatasetCardData(
        source_datasets=[dataset] if dataset and is_hub_dataset(dataset) else None,
        configs=[{"config_name": "default", "data_files": file.path.name}],
        tags=["trl", "trl-ext", "generated"],
    )
    whose = f"Completions of {', '.join(map(link, models))}" if models else "The dataset's own completions"
    scored = f", scored by {', '.join(f'`{Path(name).name}`' for name in rewards)}" if rewards else ", without scores"
    card = Card(f"Dataset Card for {file.path.stem}", metadata)
    prompts = f"the prompts of {dataset_link(dataset)}" if dataset else "prompts that were given one by one"
    card.parts.append(f"{whose} for {prompts}{scored}. trl-ext made it.")
    card.add("Load it", code(_loading_code(file.path)), "Train on it: `trl-ext METHOD --dataset_name FILE`.")
    card.add("Columns", table(["column", "contents"], [[f"`{name}`", _meaning(name)] for name in _columns(file.path)]))
    card.add("Counts", table(["", "number"], _counts(file)))
    card.add(
        "How it was made",
        "Settings, where they were given or differ from the defaults; as a YAML file they are a recipe:",
        *settings_parts(settings),
    )
    card.add("Framework versions", versions_list())
    card.add("Citations", *citations())
    return card.text()


def _loading_code(path: Path) -> str:
    builder = "parquet" if path.suffix == ".parquet" else "json"
    return f"""
from datasets import load_dataset

dataset = load_dataset({builder!r}, data_files={str(path)!r}, split="train")
print(dataset[0]["prompt"])
"""


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(pq.read_schema(path).names)
    with path.open(encoding="utf-8") as file:
        return list(json.loads(next(file)))


def _meaning(column: str) -> str:
    return _COLUMNS.get(column, "a column of the prompts' dataset")


def _counts(file: ResumableFile) -> list[list[str]]:
    totals = file.totals
    completions = totals.get("completions", 0)
    rows = [["rows", f"{file.rows}"], ["completions", f"{completions:.0f}"]]
    if completions and (totals.get("score") or totals.get("best_score")):
        rows.append(["mean score", f"{totals['score'] / completions:.4g}"])
        if totals.get("prompts"):
            rows.append(["mean of the best score of each prompt", f"{totals['best_score'] / totals['prompts']:.4g}"])
    if completions and totals.get("tokens"):
        rows.append(["sampled tokens", f"{totals['tokens']:.0f}"])
        rows.append(["completions that ended by themselves", f"{totals['ended'] / completions:.1%}"])
    if totals.get("cut_off"):  # rows of other trainers have no column `ended`
        rows.append(["completions in these rows that were cut off", f"{totals['cut_off']:.0f}"])
    if totals.get("cut_off_chosen"):
        rows.append(["`chosen` that were cut off", f"{totals['cut_off_chosen']:.0f}"])
    return rows
