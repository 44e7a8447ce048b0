# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`accelerate launch` behind `trl-ext <method>`: which flags are its own, when it is needed, how it ends."""

import difflib
import importlib.resources
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_ext.training.checkpoints import last_checkpoint
from trl_ext.upstream import parser_actions
from trl_ext.validation import convert

from .parser import Extra, Parser


TRAINING_MODULE = "trl_ext.cli.train"

# What says which program to run is ours to say.
_OURS = ("help", "module", "no_python", "training_script", "training_script_args")

# Flags that choose how several processes work together; without one of them, and without a GPU, accelerate runs one.
_DISTRIBUTED = ("multi_gpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu", "use_parallelism_config")


def launch_arguments(extra: Extra, parser: Parser) -> list[str]:
    """
    What is left of a YAML file and a command line, as arguments of `accelerate launch`.

    Flags come last and so win over the file.

    Raises:
        `ValueError`: a key or flag that accelerate has not either, or a value that does not fit.
    """
    if not extra.config and not extra.flags:
        return []
    actions = _accelerate_actions()
    arguments: list[str] = []
    for key, value in extra.config.items():
        dest = str(key).replace("-", "_")
        if dest == "accelerate_config":
            arguments += ["--config_file", resolve_accelerate_config(str(value))]
        elif dest in actions:
            arguments += _from_yaml(actions[dest], value)
        else:
            raise ValueError(parser.unknown_key(str(key), extra.config_path, [*actions, "accelerate_config"]))
    return arguments + _from_flags(extra.flags, actions, parser)


def resolve_accelerate_config(name: str) -> str:
    """
    Path of an accelerate config: a file, or the name of one of ours (`fsdp2`, ...) or of TRL's.

    Ours are `recipes/accelerate`, in an installed package `trl_ext/accelerate_configs`.

    Raises:
        `ValueError`: neither; the message lists the names. Or a file that is no accelerate config.
    """
    if Path(name).is_file():
        load = json.loads if name.endswith(".json") else yaml.safe_load
        try:
            found = load(Path(name).read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"accelerate_config {name!r} is no accelerate config: {error}") from error
        if not isinstance(found, dict) or "distributed_type" not in found:
            raise ValueError(
                f"accelerate_config {name!r} is no accelerate config: it has no `distributed_type` "
                "(`accelerate config --config_file FILE` writes one)."
            )
        return name
    package = Path(__file__).resolve().parents[1]
    ours = (package / "accelerate_configs", package.parent / "recipes" / "accelerate")
    theirs = Path(str(importlib.resources.files("trl"))) / "accelerate_configs"
    known = {path.stem: path for folder in (theirs, *ours) for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"accelerate_config '{name}' is no file and none of {', '.join(sorted(known))}{hint}")
    return str(known[name])


def needs_launcher(arguments: Sequence[str]) -> bool:
    """
    Whether training has to go through `accelerate launch`.

    One process on one device needs no launcher; starting one would only import torch a second time. A launcher is
    needed where something was asked of it, where `accelerate config` has left a file, and with several accelerators.

    Raises:
        `ValueError`: arguments for a launcher, in a process that a launcher has started.
    """
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if arguments:
            raise ValueError(
                f"{' '.join(arguments)}: this process was started by a launcher already; give it these flags instead"
            )
        return False
    if arguments:
        return True
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return os.path.isfile(default_config_file) or (
        torch.accelerator.is_available() and torch.accelerator.device_count() > 1
    )


def launch(arguments: Sequence[str], method_name: str, script_arguments: Sequence[str]) -> int:
    """
    Run the training script under `accelerate launch` and return its exit status.

    The script runs as a module: run as a file, its folder would be first on `sys.path`, and `import data` in a user's
    reward file would find ours.

    Raises:
        `ValueError`: what was asked for would silently run a single process.
        `ImportError`: DeepSpeed was asked for and is not installed.
        `KeyboardInterrupt`: training was interrupted.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    parser: ArgumentParser = launch_command_parser()
    options = parser.parse_args(["--module", *arguments, TRAINING_MODULE, method_name, *script_arguments])
    _fill_in(options)
    _spread_over_cpu(options)
    _check_deepspeed(options)
    return _exit_status(lambda: launch_command(options))


def with_resume_hint(run: Callable[[], int], prog: str, output_dir: str | None, *, quiet: bool = False) -> int:
    """Run; if it is cut short, say which checkpoint it can go on from: of an error, one that it wrote itself."""
    started = time.time()
    try:
        return run()
    except KeyboardInterrupt:
        if not quiet:
            print(f"\n{prog}: interrupted. {_resume_hint(output_dir)}", file=sys.stderr)
        return 130
    except Exception:
        newest = last_checkpoint(output_dir or ".")
        if not quiet and newest and os.path.getmtime(newest) >= started - 1:
            print(f"{prog}: stopped by an error. {_resume_hint(output_dir)}", file=sys.stderr)
        raise


def _accelerate_actions() -> dict[str, Any]:
    from accelerate.commands.launch import launch_command_parser

    return {action.dest: action for action in parser_actions(launch_command_parser()) if action.dest not in _OURS}


def _from_yaml(action: Any, value: Any) -> list[str]:
    flag = action.option_strings[0]
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"`{action.dest}` is a flag of accelerate: true or false, got {value!r}")
        return [flag] if value else []
    if isinstance(value, bool) and action.choices is not None and "no" in action.choices:
        value = "yes" if value else "no"  # YAML 1.1 reads a bare `no` as false
    return [flag, _text_of(value, action, f"`{action.dest}`")]


def _from_flags(flags: Sequence[str], actions: dict[str, Any], parser: Parser) -> list[str]:
    by_flag = {flag: action for action in actions.values() for flag in action.option_strings}
    arguments: list[str] = []
    words = iter(flags)
    for word in words:
        flag, has_value, value = word.partition("=")
        if flag.replace("-", "_") == "__accelerate_config":
            name = value if has_value else next(words, "")
            arguments += ["--config_file", resolve_accelerate_config(name)]
        elif flag not in by_flag:
            raise ValueError(parser.unknown_flag(word, [*actions, "accelerate_config"]))
        elif by_flag[flag].nargs == 0:
            arguments.append(word)
        else:
            text = _text_of(value if has_value else _value_of(flag, words), by_flag[flag], flag)
            arguments += [f"{flag}={text}"] if has_value else [flag, text]
    return arguments


def _text_of(value: Any, action: Any, name: str) -> str:
    """A value as accelerate's parser reads it, which would print its usage if it is of another type."""
    try:
        value = convert(value, action.type if action.type in (int, float) else Any, action.choices)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    if action.dest == "num_processes" and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value_of(flag: str, words: Any) -> str:
    value: str = next(words, "")
    if not value:
        raise ValueError(f"{flag} needs a value")
    return value


def _fill_in(options: Any) -> None:
    # Where neither flags nor a file say anything, accelerate takes these values too, after a paragraph of warnings.
    from accelerate.commands.config.config_args import default_config_file

    if options.config_file is None and not os.path.isfile(default_config_file):
        for name, value in (("num_machines", 1), ("mixed_precision", "no"), ("dynamo_backend", "no")):
            if getattr(options, name) is None:
                setattr(options, name, value)


def _spread_over_cpu(options: Any) -> None:
    # Without a GPU, `--num_processes 2` alone makes accelerate start one process and say nothing. Its multi-GPU
    # launcher starts two, which our configs put on the CPU, where torch uses gloo.
    if (options.num_processes or 1) < 2 or options.config_file or any(getattr(options, n, 0) for n in _DISTRIBUTED):
        return
    import torch

    if not torch.accelerator.is_available():
        options.multi_gpu, options.cpu = True, False
    elif options.cpu:
        raise ValueError(
            "--cpu with --num_processes above 1 would run a single process; hide the accelerator (for NVIDIA: "
            "CUDA_VISIBLE_DEVICES='') and leave --cpu out"
        )


def _check_deepspeed(options: Any) -> None:
    text = Path(options.config_file).read_text(encoding="utf-8") if options.config_file else ""
    asked = options.use_deepspeed or re.search(r"^distributed_type:\s*['\"]?DEEPSPEED", text, flags=re.MULTILINE)
    if asked and importlib.util.find_spec("deepspeed") is None:
        raise ImportError("DeepSpeed is asked for, but it is not installed: pip install 'trl-ext[deepspeed]'.")


def _exit_status(run: Callable[[], Any]) -> int:
    """Run a launcher; its workers have printed what went wrong, so their failure is a status and no traceback."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run()
    except SignalException:
        raise KeyboardInterrupt from None
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    else:
        return 0
    if status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    return status if status > 0 else 128 - status


def _resume_hint(output_dir: str | None) -> str:
    newest = last_checkpoint(output_dir or ".")
    if newest is None:
        return f"No checkpoint in {output_dir} yet: nothing to resume (see --save_steps)."
    return f"To go on from there: --resume_from_checkpoint {newest}"
