# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`accelerate launch` for `trl-ext <method>`: its flags and configs, when it is needed, how it runs and ends."""

import difflib
import importlib.resources
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_ext.packages import DEEPSPEED, require_package
from trl_ext.training.checkpoints import last_checkpoint
from trl_ext.upstream import (
    accelerate_launch_command,
    accelerate_launch_options,
    add_accelerate_flags,
    default_accelerate_config,
)

from .config_file import recipes_folder


TRAINING_MODULE = "trl_ext.cli.train"

# Flags that choose how several processes work together; without one of them, and without a GPU, accelerate runs one.
_DISTRIBUTED = ("multi_gpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu", "use_parallelism_config")


def add_launcher_flags(parser: ArgumentParser) -> None:
    """Add the flags of `accelerate launch` to a parser, except those that it has already."""
    add_accelerate_flags(parser)
    parser.add_argument("--accelerate_config", "--accelerate-config", type=str, default=SUPPRESS)


def launcher_options(flags: dict[str, Any]) -> dict[str, Any]:
    """
    Options of `accelerate launch`.

    Args:
        flags (`dict[str, Any]`):
            The flags of [`add_launcher_flags`] that were given, by name.

    Raises:
        `ValueError`: A value that the launcher cannot use.
    """
    # A switch that is off asks for nothing. `nondefault` is accelerate's note of what was given on the command line.
    options = {name: value for name, value in flags.items() if value is not False and name != "nondefault"}
    if "accelerate_config" in options:
        if "config_file" in options:
            raise ValueError(
                f"`config_file` ({options['config_file']}) and `accelerate_config` ({options['accelerate_config']}) "
                "are two names of one setting: remove one of them."
            )
        options["config_file"] = resolve_accelerate_config(options.pop("accelerate_config"))
    if options.get("num_processes", 1) < 1:
        raise ValueError(f"`num_processes` must be at least 1, got {options['num_processes']}")
    return options


def resolve_accelerate_config(name: str) -> str:
    """
    Path of an accelerate config: a file, or the name of one of ours (`fsdp2`, ...) or of TRL's.

    Raises:
        `ValueError`: It is neither (the message lists the names), or the file is not an accelerate config.
    """
    if Path(name).is_file():
        load = json.loads if name.endswith(".json") else yaml.safe_load
        try:
            found = load(Path(name).read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"accelerate_config {name!r} is not an accelerate config: {error}") from error
        if not isinstance(found, dict) or "distributed_type" not in found:
            raise ValueError(
                f"accelerate_config {name!r} is not an accelerate config: it has no `distributed_type` "
                "(`accelerate config --config_file FILE` writes one)."
            )
        return name
    ours = recipes_folder() / "accelerate"
    theirs = Path(str(importlib.resources.files("trl"))) / "accelerate_configs"
    known = {path.stem: path for folder in (theirs, ours) for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"accelerate_config '{name}' is neither a file nor one of {', '.join(sorted(known))}{hint}")
    return str(known[name])


def needs_launcher(options: dict[str, Any]) -> bool:
    """
    Whether training has to go through `accelerate launch`.

    One process on one device needs no launcher, which would only import torch a second time. A launcher is needed if
    one of its options is set, if `accelerate config` has left a file, and with several accelerators.

    Raises:
        `ValueError`: There are options for a launcher, but a launcher has started this process already.
    """
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if options:
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in options)}: a launcher has started this process already; pass "
                "these flags to that launcher instead"
            )
        return False
    if options or default_accelerate_config():
        return True
    from trl_ext.devices import accelerator_count

    return accelerator_count() > 1


def launch(options: dict[str, Any], method_name: str, script_arguments: Sequence[str]) -> int:
    """
    Run the training script under `accelerate launch` and return its exit status.

    The script runs as a module: run as a file, its folder would be first on `sys.path`, and `import data` in a user's
    reward file would find ours.

    Args:
        options (`dict[str, Any]`):
            See [`launcher_options`].
        method_name (`str`):
            The method to train.
        script_arguments (`Sequence[str]`):
            The whole command line after the method's name; the script ignores the launcher's flags in it.

    Raises:
        `ValueError`: The options would silently start a single process.
        `ImportError`: DeepSpeed is asked for and not installed.
        `KeyboardInterrupt`: Training was interrupted.
    """
    launcher = accelerate_launch_options(options, ["--module", TRAINING_MODULE, method_name, *script_arguments])
    _fill_in(launcher)
    _use_cpu_processes(launcher)
    _check_deepspeed(launcher)
    return _exit_status(lambda: accelerate_launch_command(launcher))


def with_resume_hint(run: Callable[[], int], prog: str, output_dir: str | None, *, quiet: bool = False) -> int:
    """Run; if that is interrupted or fails, name the checkpoint to resume from (after an error, one of this run)."""
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


def _fill_in(options: Namespace) -> None:
    # accelerate takes these values too where neither a flag nor a file sets them, after a paragraph of warnings.
    if options.config_file is None and not default_accelerate_config():
        for name, value in (("num_machines", 1), ("mixed_precision", "no"), ("dynamo_backend", "no")):
            if getattr(options, name) is None:
                setattr(options, name, value)


def _use_cpu_processes(options: Namespace) -> None:
    # Without a GPU, `--num_processes 2` alone makes accelerate start one process without a message. Its multi-GPU
    # launcher starts two, which our configs put on the CPU, where torch uses gloo.
    if (options.num_processes or 1) < 2 or options.config_file or any(getattr(options, n, 0) for n in _DISTRIBUTED):
        return
    from trl_ext.devices import accelerator_count

    if not accelerator_count():
        options.multi_gpu, options.cpu = True, False
    elif options.cpu:
        raise ValueError(
            "--cpu with --num_processes above 1 would start a single process; hide the accelerator (for NVIDIA: "
            "CUDA_VISIBLE_DEVICES='') and remove --cpu"
        )


def _check_deepspeed(options: Namespace) -> None:
    text = Path(options.config_file).read_text(encoding="utf-8") if options.config_file else ""
    asked = options.use_deepspeed or re.search(r"^distributed_type:\s*['\"]?DEEPSPEED", text, flags=re.MULTILINE)
    if asked:
        require_package("use_deepspeed", DEEPSPEED)


def _exit_status(run: Callable[[], Any]) -> int:
    """Run a launcher; its workers have printed what went wrong, so a failure is an exit status, not a traceback."""
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
        return f"There is no checkpoint in {output_dir} to resume from yet (see --save_steps)."
    return f"To resume: --resume_from_checkpoint {newest}"
