# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext <method>`: one training script for every method.

It runs in the caller's process or, where several processes are needed, under `accelerate launch`, as
`python -m trl_ext.cli.train <method> ...`.
"""

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ScriptArguments

from trl_ext.atomic_files import make_folder
from trl_ext.cards import is_hub_dataset
from trl_ext.data.load import FILE_TYPES_TEXT
from trl_ext.method import Found, Method, discover
from trl_ext.packages import check_packages
from trl_ext.progress import library_progress
from trl_ext.settings_file import RunSettings

from .arguments import RewardArguments
from .config_file import set_environment
from .launch import add_launcher_flags, launch, launcher_options, needs_launcher, with_resume_hint
from .parser import Parser


@dataclass
class TrainArguments(RewardArguments, ScriptArguments):
    """
    Where the data and the rewards come from: TRL's script arguments, and rewards as in `trl grpo`.

    Args:
        dataset_name (`str`, *optional*):
            Hub id, local directory, or local file (see [`~trl_ext.data.load.load_dataset`]).
        eval_dataset_name (`str`, *optional*):
            The same for evaluation, if it is not a split of `dataset_name`.
        reward_model_name_or_path (`str`, *optional*):
            Reward model: a classifier with one label, by Hub id or directory.
        reward_funcs (`list[str]`, *optional*):
            Reward functions: names of TRL's, dotted paths (`package.module.function`), classifiers.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": f"Dataset to train on: a Hub id, a local directory, or a local {FILE_TYPES_TEXT} file. Ignored if "
            "`datasets` is given."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset to evaluate on, given like `dataset_name`. If not set, `dataset_test_split` of "
            "`dataset_name` is used. Needs `eval_strategy`."
        },
    )


def make_parser(method: Method, prog: str | None = None) -> Parser:
    """
    The parser of a method: data and rewards, model, the method's config, dataset mixture, flags of the launcher.

    Raises:
        `ImportError`: The method's config class cannot be imported.
    """
    from trl import DatasetMixtureConfig, ModelConfig

    paper = f" (https://huggingface.co/papers/{method.paper})" if method.paper else ""
    columns = f" Dataset columns: {', '.join(method.columns)}." if method.columns else ""
    parser = Parser(
        (TrainArguments, ModelConfig, method.config_class(), DatasetMixtureConfig),
        prog=prog or f"trl-ext {method.name}",
        description=f"{method.summary}{paper}{columns}",
        epilog="Flags win over the YAML file. Any flag of `accelerate launch` can be given too, e.g. "
        "--num_processes 2; --accelerate_config takes a file or the name of a packaged one, e.g. zero2. "
        "`--no_<field>` sets a field to false.",
    )
    add_launcher_flags(parser)
    parser.explain("lora_target_modules", "Names of the modules that LoRA adapts. By default all linear layers.")
    return parser


def main(argv: Sequence[str], *, launched: bool = False) -> int:
    """
    Train.

    Everything that can be wrong with the arguments is found here, in one process, before anything is launched.

    Args:
        argv (`Sequence[str]`):
            The method's name, then flags.
        launched (`bool`, *optional*, defaults to `False`):
            Whether this is the script under `accelerate launch`. The launcher's flags, which the launching process has
            used, are then ignored.

    Returns:
        `int`: Exit status.
    """
    found = _find(argv[0])
    arguments = list(argv[1:])
    parser = make_parser(found.method)
    flags = parser.parse_flags(arguments)
    parser.check_files(flags)
    options = {} if launched else launcher_options(parser.other_flags(flags))
    script_args, model_args, training_args, mixture_args = parser.build(flags)
    check_packages(training_args)
    make_folder(Path(training_args.output_dir), "output_dir")  # before the data and the models are loaded
    if not launched and needs_launcher(options):
        run: Callable[[], int] = lambda: launch(options, found.method.name, arguments)  # noqa: E731
        return with_resume_hint(run, parser.prog, training_args.output_dir)
    return with_resume_hint(
        lambda: train(found, script_args, model_args, training_args, mixture_args, parser.named_settings(flags)),
        parser.prog,
        training_args.output_dir,
        quiet=launched,
    )


def train(
    found: Found,
    script_args: Any,
    model_args: Any,
    training_args: Any,
    mixture_args: Any,
    given: dict[str, Any],
) -> int:
    """Load the data and the model, train, save, push to the Hub. `given` are the settings that the user gave."""
    # First, because an import error of the method must not come after minutes of loading data.
    trainer_class = found.method.trainer_class()
    train_dataset, eval_dataset = load_datasets(script_args, training_args, mixture_args)
    add_model_init_kwargs(training_args, model_args)
    trainer = build_trainer(
        trainer_class,
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        **_optional_arguments(script_args, model_args),
    )
    trainer.settings = _run_settings(given, training_args)
    trainer.train(resume_from_checkpoint=_resume_from(training_args.resume_from_checkpoint))
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        # a model card must not name a file of this machine as its dataset
        name = script_args.dataset_name
        trainer.push_to_hub(dataset_name=name if is_hub_dataset(name) else None)
        trainer.accelerator.print(f"Pushed to https://huggingface.co/{trainer.hub_model_id}")
    trainer.end()
    if trainer.accelerator.num_processes > 1:
        # With gloo, freeing the DDP model joins a thread of the process group while holding the GIL, and that thread
        # may wait for the GIL to free its last tensor (torch 2.13: one rank hangs). Sleeping releases the GIL first.
        time.sleep(1)
    return 0


def load_datasets(script_args: Any, training_args: Any, mixture_args: Any) -> tuple[Any, Any]:
    """
    The dataset to train on and, unless `eval_strategy` is `"no"`, the one to evaluate on.

    Raises:
        `ValueError`: A split does not exist; the message names those that do.
    """
    from transformers.utils import logging
    from trl import get_dataset

    from trl_ext.data.load import load_dataset

    logger = logging.get_logger(__name__)
    if mixture_args.datasets:
        if script_args.dataset_name:
            logger.warning("`datasets` and `dataset_name` are both given; `dataset_name` is ignored.")
        with library_progress("loading the datasets"):
            source, splits = "datasets", get_dataset(mixture_args)
    else:
        source = script_args.dataset_name
        splits = load_dataset(source, script_args.dataset_config, streaming=script_args.dataset_streaming)
    train_set = _split(splits, script_args.dataset_train_split, source, "dataset_train_split")
    if str(getattr(training_args.eval_strategy, "value", training_args.eval_strategy)) == "no":
        if script_args.eval_dataset_name:
            logger.warning("`eval_dataset_name` is not used, as `eval_strategy` is 'no'.")
        return train_set, None
    if script_args.eval_dataset_name:
        source, splits = script_args.eval_dataset_name, load_dataset(script_args.eval_dataset_name)
        if len(splits) == 1:
            return train_set, next(iter(splits.values()))
    return train_set, _split(splits, script_args.dataset_test_split, source, "dataset_test_split")


def add_model_init_kwargs(training_args: Any, model_args: Any) -> None:
    """Add revision, attention and dtype of the command line to the config's own `model_init_kwargs`, which win."""
    if not hasattr(training_args, "model_init_kwargs"):
        return
    kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        # TRL's default, float32, is for whole models: in 4 or 8 bits the rest of the model has the compute dtype.
        "dtype": "auto" if model_args.load_in_4bit or model_args.load_in_8bit else model_args.dtype,
    }
    kwargs |= training_args.model_init_kwargs or {}
    training_args.model_init_kwargs = {key: value for key, value in kwargs.items() if value is not None}


def _run_settings(given: dict[str, Any], training_args: Any) -> RunSettings:
    """The settings for `config.yaml`: it repeats the whole run, and writes to the same folder."""
    values = {name: value for name, value in given.items() if name != "resume_from_checkpoint"}
    if training_args.world_size > 1 and not {"num_processes", "accelerate_config", "config_file"} & set(values):
        values["num_processes"] = training_args.world_size  # from `accelerate config`, or `accelerate launch` itself
    return RunSettings.of(values | {"output_dir": training_args.output_dir, "seed": training_args.seed})


def build_trainer(trainer_class: type, **arguments: Any) -> Any:
    """
    Construct a trainer with those of `arguments` that are not `None`.

    Raises:
        `ValueError`: One of these is not a parameter of the trainer.
    """
    parameters = inspect.signature(trainer_class).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in parameters and not takes_any:
            raise ValueError(f"{trainer_class.__name__} takes no `{name}`{_FLAGS_BEHIND.get(name, '')}")
    return trainer_class(**given)


_FLAGS_BEHIND = {
    "reward_funcs": ": remove --reward_funcs and --reward_model_name_or_path",
    "peft_config": ": remove --use_peft",
    "quantization_config": ": remove --load_in_4bit and --load_in_8bit",
    "eval_dataset": ": set --eval_strategy no",
}


def _optional_arguments(script_args: Any, model_args: Any) -> dict[str, Any]:
    from trl_ext.models.adapters import peft_config_from
    from trl_ext.models.load import quantization_config_from

    return {
        "quantization_config": quantization_config_from(model_args),
        "peft_config": peft_config_from(model_args),
        "reward_funcs": script_args.rewards or None,
    }


def _find(name: str) -> Found:
    found = discover().find(name)
    if found is None:
        raise ValueError(f"there is no method '{name}'; `trl-ext methods` lists those installed")
    return found


def _split(splits: Any, name: str, source: str, setting: str) -> Any:
    if name not in splits:
        raise ValueError(
            f"{source} has no split '{name}', only {', '.join(splits)}: set `{setting}`"
            + (", set `eval_dataset_name`, or set `eval_strategy` to 'no'" if setting == "dataset_test_split" else "")
        )
    return splits[name]


def _resume_from(value: str | bool | None) -> str | bool | None:
    """The argument of `Trainer.train`: `true` means the newest checkpoint in `output_dir`; other words are a path."""
    words: dict[Any, bool | None] = {"true": True, "false": None, True: True, False: None, "": None}
    return words.get(value.lower() if isinstance(value, str) else value, value)


def _launched_main() -> int:
    from .errors import guarded

    if os.getcwd() not in sys.path:  # for reward functions of the user
        sys.path.append(os.getcwd())

    def run() -> int:
        set_environment(sys.argv[2:])
        return main(sys.argv[1:], launched=True)

    return guarded(f"trl-ext {sys.argv[1]}", run)


if __name__ == "__main__":
    sys.exit(_launched_main())
