# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""A trainer of each method, on the tiniest models, for tests of properties that all of them have."""

from pathlib import Path
from typing import Any

from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset

from trl_ext.method import discover


METHODS = ("rrhf", "vas", "psle", "proxy_rlhf")

OPENINGS = "the film|a great story|I found|the plot was|one of|music and|it is|we loved".split("|")
PROMPTS = [{"prompt": text} for text in OPENINGS]
SCORED = [{**row, "completions": [" was good", " was bad", " is on"], "scores": [2.0, 0.0, 1.0]} for row in PROMPTS]

_SETTINGS: dict[str, dict[str, Any]] = {
    "rrhf": {"resample_steps": 1, "num_generations": 2},
    "vas": {"num_epochs_per_batch": 1, "resample_steps": 1, "num_generations": 2},
    "psle": {"principles": ["good film"], "resample_steps": 1, "num_iterations": 1000},
    "proxy_rlhf": {"top_k": 5, "num_ppo_epochs": 1, "num_mini_batches": 1},
}


def make_trainer(
    method: str,
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    eval_rows: list[dict[str, Any]] | None = None,
    streams: bool = False,
    chat: bool = False,
    tokenizer: Any = None,
    model_changes: dict[str, Any] | None = None,
    reward_funcs: Any = letter_reward,
    compute_metrics: Any = None,
    **settings: Any,
) -> Any:
    """
    A trainer that generates new completions for every step, from prompts.

    Args:
        method (`str`): Its name.
        folder (`Path`): Where it writes to.
        rows (`list[dict]`, *optional*): Its dataset.
        eval_rows (`list[dict]`, *optional*): What it is evaluated on.
        streams (`bool`, *optional*): Whether the dataset is streamed.
        chat (`bool`, *optional*): Whether the tokenizer has a chat template.
        tokenizer (*optional*): Another tokenizer.
        model_changes (`dict`, *optional*): Fields of the models' config, see `conftest.make_model`.
        reward_funcs (*optional*): A reward that falls and rises with letters, unless another is given.
        compute_metrics (`Callable`, *optional*): Its argument of this name.
        settings: Fields of its config.
    """
    tokenizer = tokenizer or make_tokenizer(chat=chat)
    made = discover().methods[method].method
    defaults = {
        "max_completion_length": 6,
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    given = {name: value for name, value in (defaults | _SETTINGS[method] | settings).items() if value is not None}
    args = made.config_class()(output_dir=str(folder), **given)
    changes = model_changes or {}
    more: dict[str, Any] = {"value_model": make_model(len(tokenizer), seed=1, **changes)} if method == "vas" else {}
    dataset = Dataset.from_list(PROMPTS if rows is None else rows)
    more |= {"compute_metrics": compute_metrics} if compute_metrics else {}
    return made.trainer_class()(
        model=make_model(len(tokenizer), **changes),
        args=args,
        train_dataset=dataset.to_iterable_dataset() if streams else dataset,
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
        reward_funcs=reward_funcs,
        **more,
    )


def losses(trainer: Any) -> list[float]:
    """The losses that were logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
