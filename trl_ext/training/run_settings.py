# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of the command `trl-ext <method>` that repeat a run which was started from Python."""

import inspect
from dataclasses import fields
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import BitsAndBytesConfig
from trl import ModelConfig

from trl_ext.method import discover
from trl_ext.models.adapters import peft_config_from
from trl_ext.models.load import quantization_config_from
from trl_ext.models.properties import base_of, is_peft_model, is_quantized
from trl_ext.settings_file import RunSettings, nondefault
from trl_ext.upstream import get_config_model_id

from .model_card import dataset_name


# Settings that the configs set themselves where nothing is given: by the machine, or from other settings.
_FILLED_IN = (
    *("accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "bf16", "columns", "debug"),
    *("dataloader_pin_memory", "disable_tqdm", "num_train_epochs", "pad_to_multiple_of", "report_to", "use_cpu"),
)


class Arguments:
    """
    The arguments of a trainer's constructor as settings of the command; models and datasets are not kept.

    Args:
        trainer_class (`type`): The class of the trainer.
        args, kwargs: Its arguments. Those that do not fit its constructor are left to it to report.
    """

    def __init__(self, trainer_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self.notes: list[str] = []
        self._fields = {each.name for each in fields(trainer_class._config_class)}
        try:
            given = inspect.signature(trainer_class.__init__).bind_partial(None, *args, **kwargs).arguments
        except TypeError:
            return
        for name, value in list(given.items())[1:]:
            is_given = any(part is not None for part in value) if isinstance(value, tuple) else value is not None
            if is_given and name not in ("args", "kwargs"):
                getattr(self, f"_add_{name}", self._add)(name, value)

    def _add(self, name: str, value: Any) -> None:
        """An argument that no flag has, unless it names a model or a dataset for which the config has a field."""
        if name.endswith("dataset"):
            self._add_dataset(name, value)
        elif isinstance(value, str) and f"{name}_name_or_path" in self._fields:
            self.values[f"{name}_name_or_path"] = value
        else:
            self.notes.append(f"`{name}` was passed to the trainer: {_described(value)}.")

    def _add_model(self, name: str, model: Any) -> None:
        if isinstance(model, str):
            self.values["model_name_or_path"] = model
            return
        if not hasattr(model, "config"):  # no model: the trainer says so
            return
        source = get_config_model_id(model.config)
        self.notes.append(f"`model` was passed to the trainer: {_described(model)}.")
        if source:
            self.values["model_name_or_path"] = source
        if is_peft_model(model):
            self._add_peft_config("the adapter of `model`", model.active_peft_config)
        if is_quantized(base_of(model)):
            self._add_quantization_config("the quantization of `model`", base_of(model).config.quantization_config)
        else:
            self.values["dtype"] = model.dtype

    def _add_quantization_config(self, name: str, config: Any) -> None:
        if not isinstance(config, BitsAndBytesConfig):
            self.notes.append(f"{_quoted(name)}: {_described(config)}, for which there are no flags.")
            return
        flags: dict[str, Any] = {"load_in_4bit": config.load_in_4bit, "load_in_8bit": config.load_in_8bit}
        flags = {flag: True for flag, given in flags.items() if given}
        if config.load_in_4bit:
            flags["bnb_4bit_quant_type"] = config.bnb_4bit_quant_type
        self.values |= flags
        made = quantization_config_from(ModelConfig(**flags))
        self._note_differences(name, config.to_dict(), made.to_dict() if made else {})

    def _add_peft_config(self, name: str, config: Any) -> None:
        if getattr(config, "peft_type", None) != "LORA":
            self.notes.append(f"{_quoted(name)}: {_described(config)}, for which there are no flags.")
            return
        flags: dict[str, Any] = {
            "use_peft": True,
            "lora_r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "lora_target_modules": _listed(config.target_modules),
            "lora_target_parameters": _listed(getattr(config, "target_parameters", None)),
            "lora_modules_to_save": _listed(config.modules_to_save),
            "lora_task_type": getattr(config.task_type, "value", config.task_type) or "CAUSAL_LM",
            "use_rslora": config.use_rslora,
            "use_dora": config.use_dora,
        }
        made: Any = peft_config_from(ModelConfig(**flags))
        defaults = {each.name: each.default for each in fields(ModelConfig)}
        self.values |= {flag: value for flag, value in flags.items() if value != defaults[flag]}
        if config.target_modules is None:
            self.notes.append(
                f"{_quoted(name)} had no `target_modules`: PEFT chose them; the command takes all-linear."
            )
        ours = {"target_modules", "modules_to_save", "target_parameters", "task_type", "base_model_name_or_path"}
        theirs = {"inference_mode", "auto_mapping", "revision", "peft_version", *ours}
        kept = {key: value for key, value in config.to_dict().items() if key not in theirs}
        self._note_differences(name, kept, made.to_dict())

    def _add_reward_funcs(self, name: str, given: Any) -> None:
        names = [_importable(each) for each in (given if isinstance(given, list | tuple) else [given])]
        self.values[name] = [each for each, _ in names if each]
        self.notes += [f"`reward_funcs`: {note}" for _, note in names if note]

    def _add_dataset(self, name: str, dataset: Any) -> None:
        setting = "dataset_name" if name == "train_dataset" else f"{name}_name"
        source = dataset_name(dataset)
        if source:
            self.values[setting] = source
            if name == "train_dataset" and dataset.info.config_name not in (None, "default"):
                self.values["dataset_config"] = dataset.info.config_name
            if name == "train_dataset" and dataset.split is not None:
                self.values["dataset_train_split"] = str(dataset.split)
            self.notes.append(f"`{name}` came from {source}; what the script did to its rows is not known here.")
        else:
            self.notes.append(f"`{name}` was {_described(dataset)}: save its rows and set `{setting}`.")

    def _note_differences(self, name: str, given: dict[str, Any], made: dict[str, Any]) -> None:
        others = {key: value for key, value in given.items() if value != made.get(key)}
        if others:
            listed = ", ".join(f"{key}={value!r}" for key, value in sorted(others.items()))
            self.notes.append(f"{_quoted(name)} also had {listed}, for which there are no flags.")


def python_settings(trainer: Any) -> RunSettings:
    """
    The settings of a run that was started from Python.

    Args:
        trainer ([`~trl_ext.training.trainer.ExtTrainer`]): The trainer.
    """
    args, given = trainer.args, trainer._arguments
    config = nondefault(args, _FILLED_IN, args.given)
    config.pop("resume_from_checkpoint", None)
    config |= {"output_dir": args.output_dir, "seed": args.seed}
    notes = list(given.notes)
    if trainer.accelerator.num_processes > 1:
        config["num_processes"] = trainer.accelerator.num_processes
        notes.append("It ran in several processes: pass the same `accelerate_config`, if there was one.")
    return RunSettings.of(given.values | config, notes)


def command_of(trainer: Any) -> str:
    """The command that trains with a trainer's class, such as `trl-ext rrhf`; empty if there is none."""
    method = discover().of_class(type(trainer))
    return f"trl-ext {method.name}" if method else ""


def _importable(func: Any) -> tuple[str, str]:
    """The name by which the command finds a reward function, or `""`, and a note about it, or `""`."""
    if isinstance(func, str):
        return func, ""
    if isinstance(func, nn.Module):
        name = get_config_model_id(func.config) or ""
        return name, f"{_described(func)} was passed to the trainer."
    module, name = getattr(func, "__module__", ""), getattr(func, "__qualname__", "")
    if module and module != "__main__" and name.isidentifier():
        return f"{module}.{name}", ""
    shown = name or type(func).__name__
    return "", f"{shown} cannot be imported by a name: put it in a module, and name it as module.function."


def _listed(value: Any) -> list[str] | None:
    if value is None or isinstance(value, str):
        return value if value is None else [value]
    return sorted(value)


def _quoted(name: str) -> str:
    return name if " " in name else f"`{name}`"


def _described(value: Any) -> str:
    """An object as a note names it."""
    kind = type(value).__name__
    if isinstance(value, nn.Module):
        source = get_config_model_id(value.config) if hasattr(value, "config") else ""
        return f"a {kind} in memory" + (f", loaded from {source}" if source else "")
    if isinstance(value, Dataset):
        return f"a {kind} of {len(value)} rows ({', '.join(value.column_names)})"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_described(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_described, value))
    return getattr(value, "__name__", f"a {kind}") if callable(value) else f"a {kind}"
