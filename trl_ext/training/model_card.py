# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The model card of a trained model: what it is, how to use it, how it was trained."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase

from trl_ext.cards import (
    Card,
    citations,
    code,
    dataset_link,
    link,
    on_hub,
    settings_parts,
    table,
    versions_list,
)
from trl_ext.data.schema import column_names
from trl_ext.models.properties import is_peft_model
from trl_ext.upstream import get_comet_experiment_url, get_trackio_space_url


_FILE_ON_THE_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@")

# Logged beside the metrics; they say how fast this machine was, or nothing about the model.
_NO_RESULTS = ("runtime", "per_second", "preparation_time", "total_flos", "epoch", "step", "learning_rate")


def dataset_name(dataset: Any) -> str | None:
    """The name on the Hub of the dataset that `dataset` was loaded from, or `None`."""
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    names = {found[1] for found in map(_FILE_ON_THE_HUB.match, files) if found}
    return names.pop() if len(names) == 1 else None


def rows_and_columns(dataset: Any) -> str:
    """How many rows a dataset has, and which columns, as text of a card."""
    columns = ", ".join(f"`{name}`" for name in column_names(dataset))
    return f"{len(dataset)} rows with {columns}" if isinstance(dataset, Dataset) else f"a stream with {columns}"


@dataclass(frozen=True)
class TrainedModel:
    """
    What a model card writes about the model that a method trains.

    Args:
        summary (`str`): Sentences that say what it is.
        quick_start (`str`): Python code that uses it.
        library (`str`): The library that loads it; the Hub shows code of that library.
        base_models (`list[str]`): Names or directories of the models that it was made of or for.
    """

    summary: str
    quick_start: str
    library: str
    base_models: list[str]


def language_model_card(model: Any, place: str, base_model: str, tokenizer: PreTrainedTokenizerBase) -> TrainedModel:
    """
    What a model card writes about a trained language model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model.
        place (`str`): Where it is saved, as a Python string.
        base_model (`str`): Name or directory of the model that was trained.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
    """
    what = "An adapter for" if is_peft_model(model) else "A fine-tuned version of"
    library = "peft" if is_peft_model(model) else "transformers"
    code = f"""
from transformers import pipeline

generator = pipeline("text-generation", model={place})
output = generator({example_prompt(tokenizer)}, max_new_tokens=128, return_full_text=False)[0]
print(output["generated_text"])
"""
    return TrainedModel(f"{what} {link(base_model)}.", code, library, [base_model])


def example_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt of the form that a tokenizer's model reads, as Python code."""
    question = "Which invention would you take back, and why?"
    return repr([{"role": "user", "content": question}] if tokenizer.chat_template else "The film was")


def model_card(trainer: Any, title: str, trained: TrainedModel, dataset: str | None, tags: Any) -> str:
    """
    The text of a model card.

    Args:
        trainer ([`~trl_ext.training.trainer.ExtTrainer`]): The trainer.
        title (`str`): Name of the model.
        trained ([`TrainedModel`]): What it is, and how to use it.
        dataset (`str`, *optional*): Name of the dataset on the Hub.
        tags (`str` or `list[str]`, *optional*): Further tags.
    """
    settings, paper = trainer.settings, trainer._paper
    data = ModelCardData(
        base_model=[name for name in dict.fromkeys(trained.base_models) if on_hub(name)] or None,
        datasets=[dataset] if dataset else None,
        library_name=trained.library,
        model_name=title,
        tags=list(dict.fromkeys(["generated_from_trainer", *_tags(trainer, tags)])),
    )
    introduced = ""
    if paper:
        introduced = f", a method introduced in [{paper['title']}](https://huggingface.co/papers/{paper['id']})"
    card = Card(f"Model Card for {title}", data, [trained.summary])
    card.add("Quick start", code(trained.quick_start))
    card.add(
        "Training",
        f"It was trained with {trainer._name}{introduced}, as trl-ext implements it on top of "
        "[TRL](https://github.com/huggingface/trl).",
        *_data(trainer, dataset or settings.values.get("dataset_name")),
        *_runs(),
        "Settings, where they were given or differ from the defaults (`config.yaml` repeats the run):",
        *settings_parts(settings),
    )
    card.add("Results", *_results(trainer))
    card.add("Framework versions", versions_list())
    card.add("Citations", *citations(trainer._name, paper.get("citation", "")))
    return card.text()


def _data(trainer: Any, dataset: str | None) -> list[str]:
    """What it was trained on: the rows, and the rewards that scored completions."""
    sentences = [f"The data: {dataset_link(dataset)}, {trainer._data_description}."]
    if trainer.rewards:
        names = ", ".join(
            f"`{name}` (weight {weight:g})"
            for name, weight in zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True)
        )
        sentences.append(f"Completions were scored by {names}.")
    return [" ".join(sentences)]


def _results(trainer: Any) -> list[str]:
    """The last metrics of training and of evaluations, up to the step that the weights are of."""
    last: dict[str, float] = {}
    step, history = _of_the_weights(trainer)
    for entry in history:
        last |= {name: value for name, value in entry.items() if _is_result(name, value)}
    evaluated = {name.removeprefix("eval_"): value for name, value in last.items() if name.startswith("eval_")}
    trained = {name: value for name, value in last.items() if not name.startswith("eval_")}
    rows = [
        [f"`{name}`", *(f"{found[name]:.4g}" if name in found else "" for found in (trained, evaluated))]
        for name in sorted({*trained, *evaluated})
    ]
    if not rows:
        return []
    return [
        f"The last logged values, at step {step} or before; all are in `metrics.jsonl`. `trl-ext evaluate` compares "
        "the model with its base.",
        table(["metric", "training", "evaluation"], rows),
    ]


def _of_the_weights(trainer: Any) -> tuple[int, list[dict[str, Any]]]:
    """The step that the model is of, and what was logged of it or before: `load_best_model_at_end` takes it back."""
    state = trainer.state
    history = state.log_history
    end = None  # of the training: then the weights are those of the best step
    for place, entry in enumerate(history):
        if "train_runtime" in entry and entry["step"] == state.global_step:
            end = place
    if end is None or not (trainer.args.load_best_model_at_end and state.best_global_step):
        return state.global_step, history
    before = [entry for entry in history[:end] if entry["step"] <= state.best_global_step]
    return state.best_global_step, before + history[end + 1 :]  # what is evaluated later is of these weights


def _is_result(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not name.endswith(_NO_RESULTS)


def _tags(trainer: Any, given: str | Iterable[str] | None) -> list[str]:
    """The tags that TRL's cards have."""
    tags = [*([given] if isinstance(given, str) else given or ()), *trainer._tag_names]
    if hasattr(trainer.model.config, "unsloth_version"):
        tags.append("unsloth")
    if "JOB_ID" in os.environ:
        tags.append("hf_jobs")
    url = get_trackio_space_url()
    return [tag for tag in tags if not tag.startswith("trackio:")] + [f"trackio:{url}"] if url else tags


def _runs() -> list[str]:
    """Links to the run's pages at the services that track it."""
    wandb = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    pages = {
        "Weights & Biases": getattr(run, "url", None),
        "Trackio": get_trackio_space_url(),
        "Comet": get_comet_experiment_url(),
    }
    found = [f"[{name}]({url})" for name, url in pages.items() if url]
    return [f"The run: {', '.join(found)}."] if found else []
