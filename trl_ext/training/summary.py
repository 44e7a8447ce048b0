# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The summary that is printed before the first step: what is trained on what, and how much there is to do."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from trl_ext.data.schema import first_row
from trl_ext.devices import supports_cuda_graphs
from trl_ext.memory.estimate import estimate_memory
from trl_ext.models.properties import base_of, is_peft_model, is_quantized, parameter_count, quantized_bits

from .model_card import on_hub
from .progress import steps_per_epoch


if TYPE_CHECKING:
    from .trainer import ExtTrainer

logger = logging.get_logger(__name__)

_WIDTH = 80
_TITLES = 13  # width of the column of titles
_MOST_COLUMNS = 6  # of a dataset that are named
_MOST_MODULES = 4  # of an adapter that are named
_ROWS_AT_ONCE = 10_000  # whose lengths are read, so that memory does not grow with the dataset


@dataclass(frozen=True)
class Run:
    """
    The size of a training run.

    Args:
        steps (`int`): Number of optimizer steps.
        begun (`int`): Number of those that a resumed run has behind it.
        steps_per_epoch (`int`): Number of optimizer steps in an epoch.
        epochs (`int`): Number of epochs that are begun.
        rows (`int`): Number of rows of the train dataset; 0 for a stream.
        prompts_per_step (`int`): Prompts in a step, on all processes.
    """

    steps: int
    begun: int
    steps_per_epoch: int
    epochs: int
    rows: int
    prompts_per_step: int


class SummaryCallback(TrainerCallback):
    """
    Prints the summary when training begins, on the main process.

    Args:
        lines (`Callable`): From a [`Run`] to the text of each line by its title; an empty text leaves the line out.
        trainer ([`~trl_ext.training.trainer.ExtTrainer`]): The trainer.
    """

    def __init__(self, trainer: "ExtTrainer", lines: Callable[[Run], dict[str, str]]) -> None:
        self.trainer, self.lines = trainer, lines
        self._printed = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not self.trainer.args.print_summary:
            return
        run = run_of(self.trainer, args, state, kwargs.get("train_dataloader"))
        text = summary_text(f"{self.trainer._name} {self.trainer._phase}", self.lines(run))
        if text != self._printed:  # again for another batch size of `auto_find_batch_size`
            self._printed = text
            print(text, flush=True)


def run_of(trainer: "ExtTrainer", args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> Run:
    """The size of the run that begins."""
    per_epoch = steps_per_epoch(args, state, train_dataloader)
    return Run(
        steps=state.max_steps,
        begun=state.global_step,
        steps_per_epoch=per_epoch,
        epochs=-(-state.max_steps // per_epoch),
        rows=len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else 0,
        prompts_per_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    )


def summary_text(heading: str, lines: dict[str, str]) -> str:
    """The summary as text of 80 columns. `files` comes last."""
    if "files" in lines:
        lines = {**{title: text for title, text in lines.items() if title != "files"}, "files": lines["files"]}
    rows = [heading]
    for title, text in lines.items():
        if text:
            indent = " " * (2 + _TITLES)
            wrapped = textwrap.wrap(text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
            rows.append(textwrap.indent("\n".join(wrapped), indent).replace(indent, f"  {title:<{_TITLES}}", 1))
    return "\n".join(rows)


def common_lines(trainer: "ExtTrainer", run: Run) -> dict[str, str]:
    """The lines that all methods have. Those that are empty keep their place for a method."""
    args = trainer.args
    return {
        "model": describe_model(trainer.accelerator.unwrap_model(trainer.model), trainer._language_model, trainer),
        "trained": describe_trained(trainer.accelerator.unwrap_model(trainer.model)),
        "data": _data(trainer, run),
        "step": f"{run.prompts_per_step} prompts ({_batch(args)})",
        "training": _training(args, run),
        "sampling": _sampling(trainer, run),
        "engine": "",
        "rewards": ", ".join(trainer.reward_func_names),
        "reference": "",
        "memory": describe_memory(trainer),
        "files": args.output_dir,
    }


def describe_model(model: Any, name: str, trainer: "ExtTrainer") -> str:
    """Name, class, number of parameters (without those of an adapter that is trained), dtype and device of a model."""
    base = base_of(model)
    bits = f", {quantized_bits(base)}-bit" if is_quantized(base) else ""
    precision = next((f" with {name} autocast" for name in ("bf16", "fp16") if getattr(trainer.args, name)), "")
    dtype = str(getattr(base, "dtype", torch.float32)).removeprefix("torch.")
    own = parameter_count(base) - (parameter_count(base, trainable=True) if is_peft_model(model) else 0)
    return (
        f"{model_label(name)} ({type(base).__name__}), {number(own)} parameters{bits}, "
        f"{dtype}{precision} on {_devices(trainer)}"
    )


def describe_trained(model: Any) -> str:
    """What is trained of a model: all of it, some of its parameters, or an adapter of which kind."""
    trained, everything = parameter_count(model, trainable=True), parameter_count(model)
    if trained == everything:
        return f"all {number(everything)} parameters"
    share = f"{number(trained)} parameters ({100 * trained / max(everything, 1):.2g} %)"
    if not is_peft_model(model):
        return share
    config: Any = model.active_peft_config
    kind = str(getattr(config.peft_type, "value", config.peft_type)).replace("LORA", "LoRA")
    rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
    modules = getattr(config, "target_modules", None) or ()
    if not isinstance(modules, str) and len(modules) > _MOST_MODULES:
        # PEFT writes "all-linear" out, block by block, those that it leaves out included.
        found = getattr(model.base_model, "targeted_module_names", modules)
        modules = {name.rpartition(".")[2] for name in found}
    names = modules if isinstance(modules, str) else ", ".join(sorted(modules))
    if not isinstance(modules, str) and len(modules) > _MOST_MODULES:
        names = f"{len(modules)} layers of each block"
    where = f" on {names}" if names else ""
    return f"{kind} adapter{rank}{where}: {share}"


def describe_generate(args: Any, batch_size: int, name: str = "generate") -> str:
    """For people: sampling with a model in this process, and whether CUDA graphs speed it up."""
    graphs = args.cuda_graphs == "always" or (args.cuda_graphs == "auto" and supports_cuda_graphs(args.device))
    return f"{name}, {batch_size} sequences at once{', CUDA graphs' if graphs else ''}"


def planned_completions(trainer: "ExtTrainer", run: Run) -> int:
    """Number of completions that the run samples for training; 0 if it samples none."""
    if not trainer._samples:
        return 0
    rounds = trainer._rounds
    if rounds is not None and not rounds.every_steps:
        prompts = (trainer._round_of(run.steps - 1, run.steps_per_epoch) + 1 - trainer._rounds_in_dataset()) * run.rows
    else:
        prompts = _prompts_of(run, trainer._repeats())
    return prompts * trainer._completions_per_row()


def _prompts_of(run: Run, repeats: int) -> int:
    """Prompts of all steps, each of which occurs `repeats` times; the last of an epoch is filled up if they repeat."""
    if not run.rows or repeats > 1:
        return run.prompts_per_step * -(-run.steps // repeats)
    epochs, rest = divmod(run.steps, run.steps_per_epoch)
    in_epoch, in_rest = (min(run.rows, run.prompts_per_step * steps) for steps in (run.steps_per_epoch, rest))
    return epochs * in_epoch + in_rest


def describe_memory(trainer: "ExtTrainer") -> str:
    """The memory that the run is counted to need on one device."""
    model, *others = trainer._models_in_memory()
    prompt, completion, completions = _longest_row(trainer.train_dataset)
    try:
        found = estimate_memory(
            model,
            trainer.args,
            beside=[*others, *(each for each in trainer.reward_funcs if isinstance(each, torch.nn.Module))],
            generates=trainer._samples,
            prompt=prompt,
            completion=0 if trainer._samples else completion,
            completions=trainer._completions_in_step(completions),
        )
    except Exception as error:  # the formula may not know a model of a plug-in, which can be trained all the same
        logger.info(f"No estimate of the memory: {type(error).__name__}: {error}")
        return ""
    size = f"{found.total_gib:.1f}" if found.total_gib >= 0.1 else "under 0.1"
    on_cpu = trainer.args.device.type == "cpu"
    needed = "" if on_cpu else f", {found.needed_gib:.1f} with the context and the allocator"
    return f"{size} GiB{needed} (counted, not measured)"


def _longest_row(dataset: Any) -> tuple[int, int, int]:
    """Tokens of the longest prompt and completion, and most completions of a row; 0 for what only a stream has."""
    if not isinstance(dataset, Dataset):
        return 0, 0, 0
    prompt = completion = completions = 0
    columns = [name for name in ("prompt_ids", "completion_ids") if name in dataset.column_names]
    # Not `dataset.data`, which still has the rows that were dropped, such as those whose prompt is too long.
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        prompt = max(prompt, _longest(table["prompt_ids"]))
        if "completion_ids" in columns:
            of_rows = table["completion_ids"]
            completion = max(completion, _longest(pyarrow.compute.list_flatten(of_rows)))
            completions = max(completions, _longest(of_rows))
    return prompt, completion, completions


def _longest(lists: Any) -> int:
    """Length of the longest list of a column."""
    return int(pyarrow.compute.max(pyarrow.compute.list_value_length(lists)).as_py() or 0)


def number(value: int) -> str:
    """A number of parameters for people: `2.1M`, `135M`, `8.03B`."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _sampling(trainer: "ExtTrainer", run: Run) -> str:
    completions = planned_completions(trainer, run)
    if not completions:
        return ""
    rounds = trainer._round_of(run.steps - 1, run.steps_per_epoch) + 1
    return (
        f"{completions:,} completions of at most {trainer.args.max_completion_length} tokens in {rounds:,} "
        f"{'round' if rounds == 1 else 'rounds'}, {trainer._completions_per_row()} per prompt"
    )


def _data(trainer: "ExtTrainer", run: Run) -> str:
    rows = f"{run.rows:,} rows" if run.rows else "a stream"
    form = f" read as `{trainer._form}`" if trainer._form else ""
    names = trainer._own_columns
    more = f" and {len(names) - _MOST_COLUMNS} more" if len(names) > _MOST_COLUMNS else ""
    evals = trainer.eval_dataset
    sizes = [
        len(part) for part in (evals.values() if isinstance(evals, dict) else [evals]) if hasattr(part, "__len__")
    ]
    evaluated = f"; evaluation on {sum(sizes):,} rows" if sizes and trainer.args.eval_strategy != "no" else ""
    return f"{rows}{form} (columns {', '.join(names[:_MOST_COLUMNS])}{more}){_without_template(trainer)}{evaluated}"


def _without_template(trainer: "ExtTrainer") -> str:
    """That a chat model is trained on text, which is seldom meant; empty for messages, and without a template."""
    row = first_row(trainer.train_dataset, "train") if trainer._tokenizer.chat_template else {}
    return ", text without the chat template" if isinstance(row.get("prompt"), str) else ""


def _batch(args: Any) -> str:
    parts = [f"per_device_train_batch_size {args.per_device_train_batch_size}"]
    if args.gradient_accumulation_steps > 1:
        parts.append(f"gradient_accumulation_steps {args.gradient_accumulation_steps}")
    if args.world_size > 1:
        parts.append(f"{args.world_size} processes")
    return " x ".join(parts)


def _training(args: Any, run: Run) -> str:
    epochs = f" in {run.epochs} {'epoch' if run.epochs == 1 else 'epochs'}" if run.rows else ""
    begun = f", resumed after {run.begun:,}" if run.begun else ""
    scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    steps = f"{run.steps:,} {'step' if run.steps == 1 else 'steps'}"
    return f"{steps}{epochs}{begun}; learning rate {args.learning_rate:g} ({scheduler})"


def _devices(trainer: "ExtTrainer") -> str:
    kind, count = trainer.args.device.type, trainer.args.world_size
    return f"{count} x {kind}" if count > 1 else kind


def model_label(name: str) -> str:
    """A Hub id as it is, or the last part of a directory."""
    return name if on_hub(name) else Path(name).name or "a model"
