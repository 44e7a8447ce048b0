# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The model card of a trained model: what it is, how to use it, how it was trained."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase

from trl_ext.models.properties import is_peft_model
from trl_ext.upstream import get_comet_experiment_url, get_trackio_space_url


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILE_ON_THE_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@")
_VERSIONS = ("trl-ext", "trl", "transformers", "torch", "datasets", "tokenizers")
_CITE_TRL = """\
@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and \
Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}"""


def on_hub(name: str | None) -> bool:
    """Whether a model's name is one on the Hub, rather than a directory."""
    return bool(name) and not os.path.isdir(str(name)) and _HUB_ID.fullmatch(str(name)) is not None


def dataset_name(dataset: Any) -> str | None:
    """The name on the Hub of the dataset that `dataset` was loaded from, or `None`."""
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    names = {found[1] for found in map(_FILE_ON_THE_HUB.match, files) if found}
    return names.pop() if len(names) == 1 else None


def quoted(name: str, *, published: bool) -> str:
    """A model's name as a Python string. The path of a directory is not published."""
    return repr(f"path/to/{Path(name).name or 'model'}" if not name or (published and not on_hub(name)) else name)


def link(name: str | None) -> str:
    """A model's name as text of a card, with a link if it is on the Hub."""
    if not name:
        return "a language model"
    return f"[{name}](https://huggingface.co/{name})" if on_hub(name) else f"the model `{Path(name).name}`"


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
    data = ModelCardData(
        base_model=[name for name in dict.fromkeys(trained.base_models) if on_hub(name)] or None,
        datasets=[dataset] if dataset else None,
        library_name=trained.library,
        model_name=title,
        tags=list(dict.fromkeys(["generated_from_trainer", *_tags(trainer, tags)])),
    )
    paper, summary, introduced = trainer._paper, trained.summary, ""
    if paper:
        introduced = f", a method introduced in [{paper['title']}](https://huggingface.co/papers/{paper['id']})"
    if dataset:
        summary += f" The dataset is [{dataset}](https://huggingface.co/datasets/{dataset})."
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Model Card for {title}",
        summary,
        f"## Quick start\n\n```python\n{trained.quick_start.strip()}\n```",
        "## Training procedure",
        *_runs(),
        f"It was trained with {trainer._name}{introduced}, as trl-ext implements it on top of "
        "[TRL](https://github.com/huggingface/trl).",
        "### Framework versions\n\n" + "\n".join(f"- {name}: {version(name)}" for name in _VERSIONS),
        "## Citations",
    ]
    if paper:
        parts.append(f"Cite {trainer._name} as:\n\n```bibtex\n{paper['citation']}\n```")
    parts.append(f"Cite TRL as:\n\n```bibtex\n{_CITE_TRL}\n```")
    return "\n\n".join(parts) + "\n"


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
